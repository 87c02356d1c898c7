"""Where a base's parts come from: a folder in diffusers' layout, or one file."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pinxit.durable import sha256
from pinxit.errors import ModelError

# The only parts a base can have, whatever its files say.
NETWORKS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "unet", "vae")
PARTS = (*NETWORKS, "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")

_LARGEST_JSON = 32 * 2**20
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16", ".fp32")
_WANTED = "a part needs config.json and its weights as safetensors"


class Source(ABC):
    """The parts of a base by their names in diffusers' layout, wherever they are kept.

    `name` is how messages and recipes call the base.
    """

    name: str

    @abstractmethod
    def has(self, part: str) -> bool:
        """Whether the base has that part."""

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The settings of a part; of "", those of the whole base. Empty if there are none."""

    @abstractmethod
    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part by diffusers' and transformers' names, as they are stored."""

    @abstractmethod
    def tokenizer(self, part: str) -> Path:
        """A folder with a tokenizer's vocabulary, perhaps with rare_words.txt."""

    @abstractmethod
    def fingerprints(self) -> Iterator[str]:
        """A line for each file that counts: what it is for, and its SHA-256."""

    @cached_property
    def hash(self) -> str:
        """The fingerprint of the base: SHA-256 over the files of its parts."""
        return hashlib.sha256("".join(self.fingerprints()).encode()).hexdigest()


class Folder(Source):
    """A base in diffusers' layout: a folder for each part."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def has(self, part: str) -> bool:
        """Whether there is a folder of that name."""
        return part in PARTS and (self.folder / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """What the part's JSON files say, a tokenizer's special tokens included."""
        folder = self.folder / part
        if not part:
            return _settings(folder / "model_index.json")
        if part == "scheduler":
            return _settings(folder / "scheduler_config.json")
        if part.startswith("tokenizer"):
            special = _settings(folder / "special_tokens_map.json")
            return special | _settings(folder / "tokenizer_config.json")
        return _settings(folder / "config.json")

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part, from one file or from all files of its index."""
        found: dict[str, Tensor] = {}
        for path in self._shards(part):
            try:
                found |= load_file(path)
            except (OSError, SafetensorError) as trouble:
                raise ModelError(
                    f"{self.name}/{part} cannot be opened: {path.name}: {trouble}",
                    "copy or download the base again",
                ) from trouble
        return found

    def tokenizer(self, part: str) -> Path:
        """The part's own folder."""
        return self.folder / part

    def fingerprints(self) -> Iterator[str]:
        """Those of the settings, the vocabularies, and the weights that are opened."""
        for path in sorted(path for part in PARTS if self.has(part) for path in self._files(part)):
            yield f"{path.parent.name}/{path.name}:{sha256(path)}\n"

    def _files(self, part: str) -> set[Path]:
        """The files of a part that count."""
        folder = self.folder / part
        plain = {path for path in folder.iterdir() if path.suffix in (".json", ".txt")}
        if part not in NETWORKS:
            return plain
        index = self._weight_file(part)
        others = {path for path in plain if ".index." in path.name}
        return plain - others | {index, *self._shards(part)}

    def _weight_file(self, part: str) -> Path:
        """The file, or the index of files, that holds a part's weights."""
        folder = self.folder / part
        for variant in _VARIANTS:
            for stem in _STEMS:
                for name in (
                    f"{stem}{variant}.safetensors",
                    f"{stem}{variant}.safetensors.index.json",
                    f"{stem}.safetensors.index{variant}.json",
                ):
                    if (folder / name).is_file():
                        return folder / name
        raise ModelError(f"{self.name}/{part} cannot be opened: it has no weights", _WANTED)

    def _shards(self, part: str) -> list[Path]:
        """The files that hold a part's weights."""
        path = self._weight_file(part)
        if path.suffix != ".json":
            return [path]
        listed = _settings(path).get("weight_map")
        table = cast("dict[str, object]", listed) if isinstance(listed, dict) else {"": ""}
        names = {str(name) for name in table.values()}
        for name in names:
            if Path(name).name != name:
                raise ModelError(f"{path} lists `{name}`, which is no file's name", _WANTED)
        return [path.parent / name for name in sorted(names)]


def read_json(path: Path) -> object:
    """What a JSON file of a base holds; ModelError if it cannot be read or is far too large."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many for settings")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as trouble:
        raise ModelError(
            f"{path} cannot be read: {trouble}", "copy or download the base again"
        ) from trouble


def _settings(path: Path) -> dict[str, Any]:
    """A table of settings, empty if there is no such file."""
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no table of settings", "copy or download the base again")
    return cast("dict[str, Any]", found)
