"""A file of unknown make, opened by what it is and not by what it is called; nothing in it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from pinxit.errors import ConceptError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.torch_file import looks_pickled, read_pickled

Container = Literal["safetensors", "pickle", "picture", "folder"]

_PICTURES = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff", b"\xff\x0a", b"\x00\x00\x00\x0cJXL")
# What a folder of a run, or of what diffusers' scripts trained, keeps its result in; the best of
# a run comes before its last.
_RESULTS = (
    "best.safetensors",
    "concept.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "learned_embeds.safetensors",
    "learned_embeds.bin",
)


@dataclass(frozen=True)
class Opened:
    """What a file or folder holds, before anyone reads a meaning into it.

    `content` is a file's outermost table; of a picture or a folder only the path is known.
    """

    path: Path
    container: Container
    content: Mapping[str, object] = field(default_factory=dict[str, object])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that stand in the outermost table."""
        return {name: held for name, held in self.content.items() if isinstance(held, Tensor)}

    def table(self, name: str) -> Mapping[str, object]:
        """A table inside the outermost one, empty if there is none of that name."""
        held = self.content.get(name)
        return cast("Mapping[str, object]", held) if isinstance(held, Mapping) else {}

    def text(self, name: str) -> str | None:
        """What its metadata, or a pickle's outermost table, say under a name."""
        said = self.metadata.get(name) or self.content.get(name)
        return said if isinstance(said, str) else None


def opened(path: Path) -> Opened:
    """A file or folder, opened; ConceptError if it is not there or holds nothing known."""
    if path.is_dir():
        return _result(path)
    if not path.is_file():
        raise ConceptError(
            f"concept {path} is not there", "give a run folder, its concept.safetensors, or a file"
        )
    if _looks_safe(path):
        tensors, metadata = read_safetensors(path)
        return Opened(path, "safetensors", tensors, metadata)
    if looks_pickled(path):
        return Opened(path, "pickle", _outermost(path))
    with path.open("rb") as file:
        if file.read(12).startswith(_PICTURES):
            return Opened(path, "picture")
    raise ConceptError(
        f"{path} is neither a safetensors file, nor a torch file, nor a picture",
        "it is damaged, or of a kind that pinxit does not read",
    )


def _result(folder: Path) -> Opened:
    """What a folder is there for."""
    results = [folder / name for name in _RESULTS if (folder / name).is_file()]
    if results:
        return opened(results[0])
    if (folder / "model_index.json").is_file():
        return Opened(folder, "folder")
    begun = (folder / "recipe.toml").is_file()
    why = "a run without a result so far" if begun else "no run, and no base or word either"
    raise ConceptError(f"concept {folder} is {why}", "give a run folder or a concept's file")


def _looks_safe(path: Path) -> bool:
    """Whether a file begins as safetensors do: the header's length, then a JSON table."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _outermost(path: Path) -> Mapping[str, object]:
    """The table a torch file holds; a lone tensor is one under the file's own name."""
    held: Any = read_pickled(path)
    if isinstance(held, Tensor):
        return {path.stem: held}
    if not isinstance(held, Mapping):
        raise ConceptError(
            f"{path} holds a {type(held).__name__} and no table of tensors",
            "pinxit knows no format that does",
        )
    named = {str(name): value for name, value in held.items()}
    inner = named.get("state_dict")
    return cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else named
