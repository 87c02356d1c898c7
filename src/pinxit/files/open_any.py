"""Open a file of unknown format by its content, not its name, without running code in it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, tensor

from pinxit.errors import ConceptError, typed
from pinxit.files.other_kinds import START_BYTES, other_kind
from pinxit.files.pickle.torch_file import is_pickle, read_torch_file
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.untrusted import RECIPE, exists, read_errors, read_untrusted_text, run_hint

Container = Literal["safetensors", "pickle", "image", "folder"]

_IMAGE_HEADERS = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff", b"\xff\x0a", b"\x00\x00\x00\x0cJXL")
# Result files of run folders and of diffusers' training scripts; the best checkpoint of a run comes
# before the last.
_RESULT_FILES = (
    "best.safetensors",
    "concept.safetensors",
    *("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
    *("learned_embeds.safetensors", "learned_embeds.bin"),
    *("adapter_model.safetensors", "adapter_model.bin"),
)
# The settings beside an adapter of peft, and the folders of the networks that scripts save.
PEFT_CONFIG = "adapter_config.json"
_PEFT_FOLDERS = ("unet", "transformer", "text_encoder", "text_encoder_2")
_SCALES = (".alpha", ".scale", ".scalar")
_MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class OpenedFile:
    """The content of a file or folder, before its format is known.

    `content` is the top-level table; for an image or a folder only the path is set.
    """

    path: Path
    container: Container
    content: Mapping[str, object] = field(default_factory=dict[str, object])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors in the top-level table."""
        return {name: item for name, item in self.content.items() if isinstance(item, Tensor)}

    def table(self, name: str) -> Mapping[str, object]:
        """A table inside the top-level one; empty if there is none with that name."""
        item = self.content.get(name)
        return cast("Mapping[str, object]", item) if isinstance(item, Mapping) else {}

    def text(self, name: str) -> str | None:
        """A text in the metadata or, for a pickle, in the top-level table."""
        value = self.metadata.get(name) or self.content.get(name)
        return value if isinstance(value, str) else None


def open_any(path: Path) -> OpenedFile:
    """Open a file or folder; ConceptError if it does not exist or its content is unknown."""
    if os.path.isdir(path):  # noqa: PTH112 (takes any text)
        return _result(path)
    if not os.path.isfile(path):  # noqa: PTH113
        raise _no_file(path)
    with read_errors(path), path.open("rb") as file:
        start = file.read(START_BYTES)
    if start[8:9] == b"{":  # 8 bytes of header length, then a JSON object
        tensors, metadata = read_safetensors(path)
        return OpenedFile(path, "safetensors", tensors, metadata | _peft_config(path))
    if is_pickle(path):
        return OpenedFile(path, "pickle", _top_level_table(path), _peft_config(path))
    if start.startswith(_IMAGE_HEADERS):
        return OpenedFile(path, "image")
    raise ConceptError(
        f"{path} is not a safetensors file, a PyTorch file or an image: it is {other_kind(start)}",
        f"give the folder of the run: {typed(path.parent)}"
        if (path.parent / RECIPE).is_file()
        else "give the file that is in the archive, or download it again",
    )


def _no_file(path: Path) -> ConceptError:
    """The error for what is neither a file nor a folder."""
    hint, problem = "give a run folder, its concept.safetensors, or a file", "does not exist"
    before, _, strength = str(path).rpartition(":")
    if exists(path):
        problem = "is not a regular file"
    elif before and exists(before) and re.fullmatch(r"[\d.]+", strength):
        hint = f"give {before}: a strength is for generating, transferring and merging"
    elif before and exists(before):
        hint = f"`{strength}` is no strength: type a number, such as {before}:0.7"
    return ConceptError(f"concept {path} {problem}", hint)


def _result(folder: Path) -> OpenedFile:
    """Open the result in a folder, or a base model in the format of diffusers."""
    results = [folder / name for name in _RESULT_FILES if (folder / name).is_file()]
    if results:
        return open_any(results[0])
    if (folder / "model_index.json").is_file():
        return OpenedFile(folder, "folder")
    adapters = [folder / name for name in _PEFT_FOLDERS if (folder / name / PEFT_CONFIG).is_file()]
    if adapters:
        return _joined([(path.name, _result(path)) for path in adapters])
    if (folder / RECIPE).is_file():
        raise ConceptError(
            f"concept {folder} is a run without a result so far",
            f"continue it with: pinxit train --resume {typed(folder)}",
        )
    raise ConceptError(f"concept {folder} is not a run, model or embedding", run_hint(folder))


def _peft_config(path: Path) -> dict[str, str]:
    """The settings beside a file of peft, as metadata."""
    config = path.with_name(PEFT_CONFIG)
    if path.stem != "adapter_model" or not config.is_file():
        return {}
    return {PEFT_CONFIG: read_untrusted_text(config, _MAX_CONFIG_BYTES, inside=path.parent)}


def _joined(files: Sequence[tuple[str, OpenedFile]]) -> OpenedFile:
    """Files for several networks as one, whose names begin with that of the network's folder."""
    content = {f"{name}.{key}": item for name, file in files for key, item in file.content.items()}
    metadata = {
        f"{name}/{key}": text for name, file in files for key, text in file.metadata.items()
    }
    return replace(files[0][1], content=content, metadata=metadata)


def _top_level_table(path: Path) -> Mapping[str, object]:
    """The top-level table of a PyTorch file; a single tensor is stored under the file's stem."""
    content: Any = read_torch_file(path)
    if isinstance(content, Tensor):
        return {path.stem: content}
    if not isinstance(content, Mapping):
        raise ConceptError(
            f"{path} contains a {type(content).__name__}, not a table of tensors",
            "no format that pinxit supports looks like this",
        )
    table = cast("Mapping[object, object]", content)
    state = table.get("state_dict")
    table = cast("Mapping[object, object]", state) if isinstance(state, Mapping) else table
    return {str(name): _as_tensor(str(name), value) for name, value in table.items()}


def _as_tensor(name: str, value: object) -> object:
    """The scale of a layer as a tensor, which a pickle may have as a number; else the value."""
    is_number = isinstance(value, int | float)
    return tensor(float(value)) if is_number and name.endswith(_SCALES) else value
