"""diffusers: `learned_embeds` files for embeddings, model folders for full weights."""

import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import (
    CERTAIN,
    KEYS_WITHOUT_TOKEN,
    POSSIBLE,
    EmbeddingFormat,
    StoredEmbedding,
    Target,
    as_table,
    single_embedding,
    write_embedding,
)
from pinxit.concepts.full_model_file import (
    base_source,
    completed_networks,
    full_model_metadata,
    read_full_model,
)
from pinxit.concepts.metadata import PROVENANCE_KEY
from pinxit.files.atomic_write import make_folder, write_text
from pinxit.files.open_any import OpenedFile, open_any
from pinxit.files.safetensors_file import write_tensors
from pinxit.models.family import trainable_networks
from pinxit.models.source import Source, tokenizer_files

_EMBEDDING_FILE = "learned_embeds.safetensors"
# Tensor names of LoRAs, which are not tokens.
_WEIGHT_KEY = re.compile(r"\.(weight|bias|alpha|diff|diff_b|[wb]_norm|scale|\d+)$")
_LORA_KEY = re.compile(r"^lora_(unet|te\d?)_|[._]lora[_.]|\.(hada|lokr|oft)_")


class Diffusers(EmbeddingFormat):
    """An embedding under its token, one file for each text encoder; or a model folder."""

    contents = ("embeddings", "full weights")
    suffixes = (".safetensors", "")
    preferred_for = frozenset({("embeddings", ""), ("full weights", "")})
    used_by = "diffusers; an embedding in one file also in ComfyUI and AUTOMATIC1111"

    def confidence(self, file: OpenedFile) -> float:
        """CERTAIN for a model folder, POSSIBLE for a file of tables under tokens."""
        if file.container == "folder":
            return CERTAIN
        tensors = file.tensors
        names_weights = len(tensors) > 1 and any(map(_WEIGHT_KEY.search, tensors))
        names_weights |= any(name.endswith((".weight", ".bias")) for name in tensors)
        is_other = names_weights or any(map(_LORA_KEY.search, tensors))
        widths = {as_table(t).shape[-1] for t in tensors.values() if 1 <= t.ndim <= 2}
        are_tables = all(t.ndim <= 2 and t.is_floating_point() for t in tensors.values())
        if is_other or tensors.keys() & KEYS_WITHOUT_TOKEN or not are_tables or len(widths) > 1:
            return 0
        return POSSIBLE if tensors else 0

    def stores(self, concept: Concept) -> bool:
        """Whether it is a single embedding or has full weights."""
        return concept.has_full_weights or super().stores(concept)

    def read(self, file: OpenedFile) -> Concept:
        """Read the embedding, or the networks of a model folder."""
        if file.container != "folder":
            return super().read(file)
        files = (_weights_file(file.path, folder) for folder in trainable_networks())
        descriptions = [open_any(path).text(PROVENANCE_KEY) for path in files if path.is_file()]
        return read_full_model(file, next(filter(None, descriptions), None))

    def unpack(self, file: OpenedFile) -> list[StoredEmbedding]:
        """The embeddings by their keys, with tables for a second encoder from a second file."""
        second_file = _second_encoder_file(file.path)
        second_tensors = open_any(second_file).tensors if second_file.is_file() else {}
        embeddings: list[StoredEmbedding] = []
        for token, table in file.tensors.items():
            second = {"text_2": as_table(second_tensors[token])} if token in second_tensors else {}
            embeddings.append(StoredEmbedding(token, {"text": as_table(table), **second}, {}))
        return embeddings

    def pack(self, embedding: StoredEmbedding) -> dict[str, object]:
        """The table for the first text encoder under the token."""
        return {embedding.token: embedding.tables["text"]}

    def write(self, concept: Concept, target: Target) -> None:
        """Write a file per text encoder, in a folder if OUT has no suffix, or a model folder."""
        if concept.has_full_weights:
            _write_folder(concept, base_source(concept, target), target)
            return
        embedding, out = single_embedding(concept), target.out
        if not out.suffix:
            make_folder(out)
            out /= _EMBEDDING_FILE
        super().write(concept, Target(out, target.base, target.precision))
        if "text_2" in embedding.tables:
            content = {embedding.token: embedding.tables["text_2"]}
            write_embedding(content, concept, _second_encoder_file(out))


def _second_encoder_file(file: Path) -> Path:
    """The file with the table for the second text encoder."""
    return file.with_stem(f"{file.stem}_2")


def _weights_file(model: Path, folder: str) -> Path:
    name = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
    return model / folder / f"{name}.safetensors"


def _write_folder(concept: Concept, source: Source, target: Target) -> None:
    """Write the base model with the concept's weights as a folder, atomically."""
    draft = target.out.with_name(f".{target.out.name}-{secrets.token_hex(8)}.tmp")
    draft.mkdir(parents=True)  # fails if it exists: only a folder of our own is removed below
    try:
        for folder, weights in completed_networks(concept, source, target.precision):
            config = source.config(folder)
            if folder.startswith("text_encoder"):
                # All releases of transformers read names with this prefix; the dtype makes them
                # open the encoder in fp32 like the other networks, whatever the file has.
                weights = {_with_prefix(name): tensor for name, tensor in weights.items()}
                config = {**config, "dtype": "float32"}
            _write_json(draft / folder / "config.json", config)
            metadata = full_model_metadata(concept, source, weights, target.out.name)
            write_tensors(_weights_file(draft, folder), weights, metadata)
        _write_json(draft / "scheduler" / "scheduler_config.json", source.config("scheduler"))
        for folder in filter(source.has, ("tokenizer", "tokenizer_2", "tokenizer_3")):
            (draft / folder).mkdir()
            for path in tokenizer_files(source.tokenizer(folder)):
                shutil.copyfile(path, draft / folder / path.name)
            _write_vocabulary(draft / folder)
        _write_json(draft / "model_index.json", source.config(""))
        draft.rename(target.out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _with_prefix(name: str) -> str:
    is_complete = name.startswith(("text_model.", "text_projection.", "encoder.block.", "shared."))
    return name if is_complete else f"text_model.{name}"


def _write_vocabulary(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`, which older programs need, from `tokenizer.json`."""
    tokenizer_file = folder / "tokenizer.json"
    if (folder / "vocab.json").is_file() or not tokenizer_file.is_file():
        return
    model: dict[str, Any] = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    _write_json(folder / "vocab.json", model["vocab"])
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))


def _write_json(path: Path, values: Any) -> None:
    make_folder(path.parent)
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
