"""diffusers': `learned_embeds` for a word, a folder of networks for a tuned base."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import (
    CARRIED,
    NAMELESS,
    Embedding,
    Target,
    Word,
    flat,
    only_word,
    write_packed,
)
from pinxit.concepts.full_model_file import PARTS, completed, metadata, source_of, tuned
from pinxit.files.atomic_write import replace_tensors, replace_text
from pinxit.files.open_any import Opened, opened
from pinxit.models.source import Source

_WORD = "learned_embeds.safetensors"
# In the names of tensors of a LoRA, and of no word.
_LAYER = re.compile(r"^lora_(unet|te\d?)_|[._]lora[_.]|\.(hada|lokr|oft)_")


class Diffusers(Embedding):
    """A word under its own name, a file for each text encoder; or a base as a folder."""

    holds = ("words", "networks")
    endings = (".safetensors", "")
    used_by = "diffusers; a word in one file also in ComfyUI and AUTOMATIC1111"

    def recognises(self, found: Opened) -> bool:
        """By a folder's list of networks, or by one table whose key may be a word."""
        shapes = {name: tensor.ndim for name, tensor in found.tensors.items()}
        lone = len(shapes) == 1 and not shapes.keys() & NAMELESS and max(shapes.values()) <= 2
        lone = lone and not _LAYER.search(min(shapes))
        return found.container == "folder" or (lone and "pinxit" not in found.metadata)

    def read(self, found: Opened) -> Concept:
        """The word, or the networks that were tuned."""
        if found.container != "folder":
            return super().read(found)
        files = (_weights(found.path, part) for part in PARTS)
        carried = [opened(file).text(CARRIED) for file in files if file.is_file()]
        return tuned(found, next(filter(None, carried), None))

    def unpack(self, found: Opened) -> list[Word]:
        """The word by its key, with the table in the second encoder's file beside, if any."""
        ((name, table),) = found.tensors.items()
        tables = {"text": flat(table)}
        second = _second(found.path)
        if second.is_file() and name in (others := opened(second).tensors):
            tables["text_2"] = flat(others[name])
        return [Word(name, tables, {})]

    def pack(self, word: Word) -> dict[str, object]:
        """The first text encoder's table under the word."""
        return {word.name: word.tables["text"]}

    def write(self, concept: Concept, target: Target) -> None:
        """A file for each text encoder, in a folder if OUT is one; or a folder of networks."""
        if concept.tuned:
            _write_folder(concept, source_of(concept, target), target)
            return
        word, out = only_word(concept), target.out
        if not out.suffix:
            out.mkdir(parents=True)
            out /= _WORD
        super().write(concept, Target(out, target.base, target.numbers))
        if "text_2" in word.tables:
            write_packed({word.name: word.tables["text_2"]}, concept, _second(out))


def _second(file: Path) -> Path:
    """Where the second text encoder's table is."""
    return file.with_stem(f"{file.stem}_2")


def _weights(folder: Path, part: str) -> Path:
    text = part.startswith("text_encoder")
    return folder / part / f"{'model' if text else 'diffusion_pytorch_model'}.safetensors"


def _write_folder(concept: Concept, source: Source, target: Target) -> None:
    """A whole base with the tuned networks, whole or not at all."""
    beside = target.out.with_name(f".{target.out.name}-new")
    try:
        for part, weights in completed(concept, source, target.numbers):
            config = source.config(part)
            if part.startswith("text_encoder"):
                # The prefix is what all releases of transformers read; the type lets the encoder
                # open in fp32 like the rest, whatever numbers are in the file.
                weights = {_prefixed(name): tensor for name, tensor in weights.items()}
                config = {**config, "dtype": "float32"}
            _write_json(beside / part / "config.json", config)
            about = metadata(concept, source, weights, target.out.name)
            replace_tensors(_weights(beside, part), weights, about)
        _write_json(beside / "scheduler" / "scheduler_config.json", source.config("scheduler"))
        for part in filter(source.has, ("tokenizer", "tokenizer_2", "tokenizer_3")):
            shutil.copytree(source.tokenizer(part), beside / part)
            _write_vocabulary(beside / part)
        _write_json(beside / "model_index.json", source.config(""))
        beside.rename(target.out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _prefixed(name: str) -> str:
    has = name.startswith(("text_model.", "text_projection.", "encoder.block.", "shared."))
    return name if has else f"text_model.{name}"


def _write_vocabulary(folder: Path) -> None:
    """The two files that older programs want, from the one that newer ones write."""
    whole = folder / "tokenizer.json"
    if (folder / "vocab.json").is_file() or not whole.is_file():
        return
    model: dict[str, Any] = json.loads(whole.read_text(encoding="utf-8"))["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    _write_json(folder / "vocab.json", model["vocab"])
    replace_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
