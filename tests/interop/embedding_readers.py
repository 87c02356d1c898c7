"""What other programs do with embedding files, as facts of their readers.

Each reader returns the tables that the program uses for the first and the second text encoder
(None if it uses none), or raises RefusedError.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.interop.adapter_readers import RefusedError

Tables = tuple[Tensor | None, Tensor | None]


def content(file: Path) -> Mapping[str, Any]:
    """A file as torch 2.6 and later opens it: no types but those of tensors and plain values."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, weights_only=True)


def comfyui(file: Path, *, two: bool) -> Tables:
    """`string_to_param`, or the key of each text encoder, or else the first value."""
    data = content(file)

    def table(key: str, width: int) -> Tensor | None:
        if "string_to_param" in data:
            tensors = next(iter(data["string_to_param"].values()))
        else:
            tensors = data[key] if key in data else next(iter(data.values()))
        return tensors if tensors.shape[-1] == width else None

    return table("clip_l", 768), table("clip_g", 1280) if two else None


def automatic1111(file: Path, *, two: bool) -> Tables:
    """`string_to_param`, `clip_g` with all values as tensors, or the only table of the file."""
    data = content(file)
    if "string_to_param" in data:
        (table,) = data["string_to_param"].values()
        return table.detach(), None
    if "clip_g" in data and "clip_l" in data:
        tables = {key: value.detach() for key, value in data.items()}
        return tables["clip_l"], tables["clip_g"]
    if len(data) != 1 or two:
        raise RefusedError("a file with one table for a model with two text encoders")
    (table,) = data.values()
    return (table.unsqueeze(0) if table.ndim == 1 else table), None


def invokeai(file: Path, *, two: bool) -> Tables:  # noqa: ARG001
    """`string_to_param`, `emb_params`, both of `clip_g` and `clip_l`, or the first value.

    Its import takes other files for embeddings only by the width of their first dimension.
    """
    data = content(file)
    if "string_to_param" in data:
        return next(iter(data["string_to_param"].values())), None
    if "emb_params" in data:
        return data["emb_params"], None
    if "clip_g" in data and "clip_l" in data:
        return data["clip_l"], data["clip_g"]
    raise RefusedError("its import does not know the file")


def sd_scripts(file: Path, *, two: bool) -> Tables:
    """Both of `clip_l` and `clip_g`, or the first tensor, in `string_to_param` if there is one."""
    data = content(file)
    if two:
        return data["clip_l"], data["clip_g"]
    return next(iter(data.get("string_to_param", data).values())), None


def onetrainer(file: Path, *, two: bool) -> Tables:
    """`emp_params` for one text encoder, `clip_l` and `clip_g` for two."""
    data = content(file)
    return (data["clip_l"], data["clip_g"]) if two else (data["emp_params"], None)


def ai_toolkit(file: Path, *, two: bool) -> Tables:
    """Torch files with `string_to_param` for one text encoder; safetensors with known keys."""
    data = content(file)
    if file.suffix == ".pt":
        if two or "string_to_param" not in data:
            raise RefusedError("XL in a torch file")
        return next(iter(data["string_to_param"].values())), None
    return (data["clip_l"], data["clip_g"]) if two else (next(iter(data.values())), None)


def diffusers(file: Path, *, two: bool) -> Tables:
    """`string_to_param["*"]` of a file with a `name`, or the only table; XL by its keys."""
    data = content(file)
    if two:
        if "clip_l" in data:
            return data["clip_l"], data["clip_g"]
        second = content(file.with_stem(f"{file.stem}_2"))
        return next(iter(data.values())), next(iter(second.values()))
    if "string_to_param" in data:
        if "name" not in data:
            raise RefusedError("name")
        return data["string_to_param"]["*"], None
    (table,) = data.values()
    return table, None


READERS: dict[str, Callable[..., Tables]] = {
    "ComfyUI": comfyui,
    "AUTOMATIC1111": automatic1111,
    "Forge": automatic1111,
    "InvokeAI": invokeai,
    "sd-scripts": sd_scripts,
    "OneTrainer": onetrainer,
    "ai-toolkit": ai_toolkit,
    "diffusers": diffusers,
}
