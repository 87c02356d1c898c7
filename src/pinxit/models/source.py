"""Where a base's parts come from: a folder in diffusers' layout, or one file."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pinxit.errors import ModelError
from pinxit.files.atomic_write import sha256
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.torch_file import looks_pickled, read_pickled

# The only parts a base can have, whatever its files say.
NETWORKS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "unet", "vae")
PARTS = (*NETWORKS, "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")

_LARGEST_JSON = 32 * 2**20
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16", ".fp32")
_WANTED = "a part needs config.json and its weights, best as safetensors"


class Source(ABC):
    """The parts of a base by their names in diffusers' layout, wherever they are kept.

    `name` is how messages and recipes call the base, `vae` another autoencoder it is opened with.
    """

    name: str
    vae: str | None = None

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

    def close(self) -> None:  # noqa: B027
        """Let go of weights that are held; only name, settings and hash are asked for after."""

    @cached_property
    def hash(self) -> str:
        """The fingerprint of the base: SHA-256 over the files of its parts."""
        return hashlib.sha256("".join(self.fingerprints()).encode()).hexdigest()


class Folder(Source):
    """A base in diffusers' layout: a folder for each part; `alone` has its files in no folder."""

    def __init__(self, folder: Path, name: str, alone: str | None = None) -> None:
        self.folder = folder
        self.name = name
        self._alone = alone

    def has(self, part: str) -> bool:
        """Whether there is a folder of that name."""
        return part == self._alone or (part in PARTS and self._at(part).is_dir())

    def config(self, part: str) -> dict[str, Any]:
        """What the part's JSON files say, a tokenizer's special tokens included."""
        folder = self._at(part)
        if not part:
            return _settings(folder / "model_index.json")
        if part == "scheduler":
            return _settings(folder / "scheduler_config.json")
        if part.startswith("tokenizer"):
            special = _settings(folder / "special_tokens_map.json")
            return special | _settings(folder / "tokenizer_config.json")
        return _settings(folder / "config.json")

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part, from one file or from several."""
        files = [path for path in self._weight_files(part) if path.suffix != ".json"]
        if not files:
            raise ModelError(f"{self.name}/{part} cannot be opened: it has no weights", _WANTED)
        return {name: held for path in files for name, held in read_weights(path)[0].items()}

    def tokenizer(self, part: str) -> Path:
        """The part's own folder."""
        return self._at(part)

    def fingerprints(self) -> Iterator[str]:
        """Those of the settings, the vocabularies, and the weights that are opened."""
        for part in sorted(filter(self.has, PARTS)):
            texts = (path for path in self._at(part).iterdir() if path.suffix in (".json", ".txt"))
            plain = {path for path in texts if ".index." not in path.name}
            for path in sorted(plain.union(self._weight_files(part) if part in NETWORKS else ())):
                yield f"{part}/{path.name}:{sha256(path)}\n"

    def _at(self, part: str) -> Path:
        return self.folder if part == self._alone else self.folder / part

    def _weight_files(self, part: str) -> list[Path]:
        folder = self._at(part)
        return [folder / name for name in weight_files([path.name for path in folder.iterdir()])]


class WithVae(Source):
    """A base whose autoencoder is taken from elsewhere."""

    def __init__(self, base: Source, other: Source) -> None:
        self.name = base.name
        self.vae = other.name
        self._base = base
        self._other = other

    def has(self, part: str) -> bool:
        """Whether either has it."""
        return part == "vae" or self._base.has(part)

    def config(self, part: str) -> dict[str, Any]:
        """The base's; of the autoencoder its own, and the base's where it says nothing."""
        told = self._base.config(part)
        return told | self._other.config(part) if part == "vae" else told

    def weights(self, part: str) -> dict[str, Tensor]:
        """Those of the one that the part is from."""
        return (self._other if part == "vae" else self._base).weights(part)

    def tokenizer(self, part: str) -> Path:
        """The base's."""
        return self._base.tokenizer(part)

    def fingerprints(self) -> Iterator[str]:
        """All of both."""
        yield from self._base.fingerprints()
        yield from self._other.fingerprints()

    def close(self) -> None:
        """Let go of both."""
        self._base.close()
        self._other.close()


def weight_files(names: Collection[str]) -> list[str]:
    """Which of a folder's files hold a network's weights: one, or several and their index.

    Safetensors come first, and full precision; none if there are none.
    """
    for kind, variant, stem in product(("safetensors", "bin"), _VARIANTS, _STEMS):
        whole = f"{stem}{variant}.{kind}"
        if whole in names:
            return [whole]
        shard = re.compile(rf"{re.escape(stem + variant)}-\d+-of-\d+\.{kind}")
        shards = [name for name in names if shard.fullmatch(name)]
        if shards:
            index = {f"{whole}.index.json", f"{stem}.{kind}.index{variant}.json"}
            return [*shards, *index.intersection(names)]
    return []


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, whatever it is called, and what it says of itself.

    FileError if it cannot be read, or holds what could be code.
    """
    if not looks_pickled(path):
        return read_safetensors(path)
    held = read_pickled(path)
    while isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = cast("dict[object, object]", held["state_dict"])
    table = cast("dict[object, object]", held) if isinstance(held, dict) else {}
    return {str(name): tensor for name, tensor in table.items() if isinstance(tensor, Tensor)}, {}


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
