"""Sources of a base model's parts: folders in diffusers' layout, and the reading of their files."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pinxit.errors import FileError, ModelError
from pinxit.files.atomic_write import sha256
from pinxit.files.pickle.torch_file import is_pickle, read_torch_file
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.untrusted import check_inside, open_untrusted, read_untrusted_text
from pinxit.models.family import network_folders, part_folders
from pinxit.models.gguf_file import read_gguf
from pinxit.models.quantized import dequantized

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16", ".fp32")
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "rare_words.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_FINGERPRINTED = {
    "config.json",
    "generation_config.json",
    "scheduler_config.json",
    *(name for name in _TOKENIZER_FILES if name != "spiece.model"),
}
# Where training programs put the weights in a pickle file, the best first.
_WEIGHT_TABLES = ("state_dict", "model", "module", "weights")
COPY_HINT = "copy or download the base model again"
_WEIGHTS_HINT = "add the weights of this part, preferably as a safetensors file"


class Source(ABC):
    """The parts of a base model under their names in diffusers' layout.

    `name` is the base model's name in messages and recipes. `vae` and `text_encoders` are the names
    of the separate autoencoder and text encoders, if there are any.
    """

    name: str
    vae: str | None = None
    text_encoders: tuple[str, ...] = ()

    @abstractmethod
    def has(self, part: str) -> bool:
        """Whether the base model has this part."""

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, or of the whole base model for "". Empty if there is none."""

    @abstractmethod
    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part under diffusers' and transformers' names, in their dtype."""

    @abstractmethod
    def tokenizer(self, part: str) -> Path:
        """The folder with a tokenizer's vocabulary and, optionally, rare_words.txt."""

    @abstractmethod
    def fingerprints(self) -> Iterator[str]:
        """A line for each file that affects results: its path and its SHA-256."""

    def kind(self, part: str) -> str:
        """What a text encoder or a tokenizer is, such as "clip" or "t5 tokenizer"."""
        if not part.startswith("tokenizer"):
            return str(self.config(part).get("model_type", "")).removesuffix("_text_model")
        encoder = part.replace("tokenizer", "text_encoder")
        return f"{self.kind(encoder)} tokenizer".strip() if self.has(encoder) else "tokenizer"

    @property
    def missing(self) -> Mapping[str, str]:
        """The parts that other files must have, with examples; usually none."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Release cached weights. Weights that are requested afterwards are read again."""

    @cached_property
    def hash(self) -> str:
        """Fingerprint of the base model: SHA-256 over the files of its parts."""
        return hashlib.sha256("".join(self.fingerprints()).encode()).hexdigest()


class FolderSource(Source):
    """A folder in diffusers' layout, with a subfolder for each part.

    The files of the parts `in_folder` are in the folder itself.
    """

    def __init__(self, folder: Path, name: str, in_folder: Collection[str] = ()) -> None:
        self.folder = folder
        self.name = name
        self._in_folder = in_folder

    def has(self, part: str) -> bool:
        """Whether there is a subfolder for this part."""
        # Other folders than those of the families' parts are ignored.
        is_folder = part in part_folders() and self._part_folder(part).is_dir()
        return part in self._in_folder or is_folder

    def config(self, part: str) -> dict[str, Any]:
        """The content of the part's JSON files; for a tokenizer with its special tokens."""
        folder = self._part_folder(part)
        if part.startswith("tokenizer"):
            special = self._read_config(folder / "special_tokens_map.json")
            return special | self._read_config(folder / "tokenizer_config.json")
        names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
        return self._read_config(folder / names.get(part, "config.json"))

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part, from one file or several shards."""
        files = [path for path in self._weight_files(part) if path.suffix != ".json"]
        if not files:
            raise ModelError(f"{self.name}/{part} has no weights", _WEIGHTS_HINT)
        tensors = {name: tensor for path in files for name, tensor in read_weights(path)[0].items()}
        return dequantized(tensors, f"{self.name}/{part}")

    def tokenizer(self, part: str) -> Path:
        """The part's folder; FileError if it is a link that leads out of the base model."""
        check_inside(self._part_folder(part), self.folder)
        return self._part_folder(part)

    def fingerprints(self) -> Iterator[str]:
        """Lines for configs, vocabularies, and the weight files that are loaded."""
        for part in sorted(filter(self.has, part_folders())):
            folder = self._part_folder(part)
            paths = set(_regular_files(folder, _FINGERPRINTED, self.folder))
            if part in network_folders():
                paths.update(self._weight_files(part))
            for path in sorted(paths):
                yield f"{part}/{path.name}:{sha256(path)}\n"

    def _part_folder(self, part: str) -> Path:
        return self.folder if part in self._in_folder else self.folder / part

    def _weight_files(self, part: str) -> list[Path]:
        folder = self._part_folder(part)
        return [folder / name for name in weight_files([path.name for path in folder.iterdir()])]

    def _read_config(self, path: Path) -> dict[str, Any]:
        """The content of a config file, empty if it does not exist."""
        if not path.is_file():
            return {}
        config = read_json(path, self.folder)
        if not isinstance(config, dict):
            raise ModelError(f"{path} is not a JSON object", COPY_HINT)
        return cast("dict[str, Any]", config)


class CombinedSource(Source):
    """A base model with the autoencoder or the text encoders of other sources.

    Raises ModelError if the base model has no use for a text encoder or tokenizer.
    """

    def __init__(self, base: Source, vae: Source | None, text_encoders: Sequence[Source]) -> None:
        self.name = base.name
        self.vae = vae.name if vae else None
        self.text_encoders = tuple(source.name for source in text_encoders)
        self._base = base
        # The source of each part, and its name there.
        self._others: dict[str, tuple[Source, str]] = {"vae": (vae, "vae")} if vae else {}
        for source in text_encoders:
            if not self._add_text_encoders(source):
                raise ModelError(
                    f"{source.name} has no text encoder or tokenizer that {base.name} uses",
                    "give a text encoder file, a folder with a text encoder or a tokenizer.json, "
                    "or a base model of the same family in diffusers' layout",
                )

    def _add_text_encoders(self, source: Source) -> bool:
        """Take the parts of a source that the base model has, too; False if there are none."""
        own = [part for part in part_folders() if part.startswith(("text_encoder", "tokenizer"))]
        used = False
        for part in filter(source.has, own):
            kind = source.kind(part)
            lacks = (name for name in self._base.missing if name.startswith("tokenizer"))
            same = (name for name in own if kind and self._base.kind(name) == kind)
            target = next(lacks if kind == "tokenizer" else same, None)
            if target:
                self._others[target] = (source, part)
                used = True
        return used

    @property
    def missing(self) -> dict[str, str]:
        """What the base model lacks, and no other source has."""
        lacks = self._base.missing
        return {part: example for part, example in lacks.items() if part not in self._others}

    def kind(self, part: str) -> str:
        """What a part of the base model is."""
        return self._base.kind(part)

    def has(self, part: str) -> bool:
        """Whether the base model or another source has this part."""
        return part in self._others or self._base.has(part)

    def config(self, part: str) -> dict[str, Any]:
        """The base model's config, for a part of another source with that source's on top."""
        config = self._base.config(part)
        source, name = self._others.get(part, (None, part))
        return config | source.config(name) if source else config

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part, from the source that has it."""
        source, name = self._others.get(part, (self._base, part))
        return source.weights(name)

    def tokenizer(self, part: str) -> Path:
        """The tokenizer's folder."""
        source, name = self._others.get(part, (self._base, part))
        return source.tokenizer(name)

    def fingerprints(self) -> Iterator[str]:
        """The fingerprint lines of all sources."""
        for source in self._sources:
            yield from source.fingerprints()

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources:
            source.close()

    @property
    def _sources(self) -> list[Source]:
        others = (source for source, _ in self._others.values())
        return list(dict.fromkeys((self._base, *others)))


def weight_files(names: Collection[str]) -> list[str]:
    """The files of a folder with a network's weights: one, or all shards and their index.

    Safetensors and full precision are preferred. Empty if there are no weights.
    """
    for extension, variant, stem in product(("safetensors", "bin"), _VARIANTS, _STEMS):
        single_file = f"{stem}{variant}.{extension}"
        if single_file in names:
            return [single_file]
        pattern = re.compile(rf"{re.escape(stem + variant)}-\d+-of-\d+\.{extension}")
        shards = [name for name in names if pattern.fullmatch(name)]
        if shards:
            index = {f"{single_file}.index.json", f"{stem}.{extension}.index{variant}.json"}
            return [*shards, *index.intersection(names)]
    return []


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors or pickle file, whatever its extension.

    Raises FileError if it cannot be read, is a pipe or a device, or could contain code.
    """
    if not path.is_file():
        raise FileError(f"{path} is not a regular file", _WEIGHTS_HINT)
    if not is_pickle(path):
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        return (read_gguf(path), {}) if is_gguf else read_safetensors(path)
    content = read_torch_file(path)
    while nested := _nested_weights(content):
        content = nested
    items = cast("dict[object, object]", content) if isinstance(content, dict) else {}
    return {str(name): tensor for name, tensor in items.items() if isinstance(tensor, Tensor)}, {}


def _nested_weights(content: object) -> dict[object, object]:
    """The table of weights inside a training program's checkpoint; empty if this is one.

    A usual name is best, then any table if there are no tensors beside it.
    """
    items = cast("dict[object, object]", content) if isinstance(content, dict) else {}
    tables = {k: cast("dict[object, object]", v) for k, v in items.items() if isinstance(v, dict)}
    names = [name for name in _WEIGHT_TABLES if name in tables]
    if not names and not any(isinstance(item, Tensor) for item in items.values()):
        names = sorted(tables, key=lambda name: -len(tables[name]))
    return tables[names[0]] if names else {}


def read_json(path: Path, inside: Path | None = None) -> object:
    """The content of a JSON file.

    Raises ModelError if it is invalid or too large, or a link that leads out of the folder
    `inside`.
    """
    try:
        return json.loads(read_untrusted_text(path, inside=inside))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}", COPY_HINT) from error
    except FileError as error:
        raise ModelError(error.message, error.hint) from error


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer in a folder: of known names, limited size and no links out of it."""
    return _regular_files(folder, _TOKENIZER_FILES, folder)


def _regular_files(folder: Path, names: Collection[str], inside: Path) -> list[Path]:
    """The regular files with these names in a folder; FileError if `open_untrusted` refuses one."""
    paths = [folder / name for name in names if (folder / name).is_file()]
    for path in paths:
        open_untrusted(path, inside=inside).close()
    return paths
