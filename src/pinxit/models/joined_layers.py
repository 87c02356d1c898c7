"""Layers under the names of their authors' code, in which several layers may be joined into one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

# A name in diffusers, and how many times as many outputs as inputs the layer has.
_Part = tuple[str, int]


@dataclass(frozen=True)
class LayerTable:
    """Names of the authors' code with the diffusers names of the layers that they join.

    The table is that of `FamilyFacts.original_layers`. With `~` before its name, a layer has the
    halves of its outputs in the other order.
    """

    layers: Mapping[str, Sequence[str]]

    def parts(self, original: str, separator: str = r"\.") -> list[_Part]:
        """The diffusers names of an original layer, and their outputs per input; [] if unknown.

        `separator` is a regular expression for what is between the parts of the original name.
        """
        for name, templates in self.layers.items():
            if match := _pattern(name, separator).fullmatch(original):
                return [_part(template, match.groups()) for template in templates]
        return []

    def original(self, layer: str) -> str | None:
        """The original name of a diffusers layer, alone or joined with others; None if unknown."""
        for pattern, template in self._origins.items():
            if match := pattern.fullmatch(layer):
                return template.format(*match.groups())
        return None

    def to_diffusers(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under diffusers' names; those that are not in the table keep their names.

        Raises KeyError or RuntimeError if joined weights have no shape that can be divided.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            layer, _, leaf = name.rpartition(".")
            whole, parts = self.parts(name), self.parts(layer)
            if whole:
                renamed[whole[0][0]] = tensor
            elif parts and parts[0][0].startswith("~"):
                renamed[f"{parts[0][0][1:]}.{leaf}"] = _halves_swapped(tensor)
            elif len(parts) > 1:
                width = weights[f"{layer}.weight"].shape[1]
                sizes = [width * factor for _, factor in parts]
                pieces = zip(parts, tensor.split(sizes), strict=True)
                renamed |= {f"{part[0]}.{leaf}": piece for part, piece in pieces}
            else:
                renamed[f"{parts[0][0]}.{leaf}" if parts else name] = tensor
        return renamed

    @cached_property
    def _origins(self) -> dict[re.Pattern[str], str]:
        """Original names by patterns of diffusers names; the first name of a layer counts."""
        names: dict[str, str] = {}
        for original, templates in self.layers.items():
            for template in templates:
                names.setdefault(template.partition("*")[0].removeprefix("~"), original)
        return {_pattern(template, r"\."): original for template, original in names.items()}


def modulation_swapped(layer: str, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LoRA, with the halves of its outputs swapped if diffusers has that order.

    That is so where a text block only scales and shifts: the last one of Stable Diffusion 3.
    """
    rows, columns = (changes.get(name) for name in ("lora_B.weight", "lora_A.weight"))
    is_last = rows is not None and columns is not None and len(rows) == 2 * columns.shape[-1]
    if not (is_last and layer.endswith("norm1_context.linear")):
        return dict(changes)
    count = len(rows) if rows is not None else 0
    return {
        name: _halves_swapped(t) if t.ndim and len(t) == count and name != "lora_A.weight" else t
        for name, t in changes.items()
    }


def _halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _part(template: str, numbers: Sequence[str]) -> _Part:
    name, _, factor = template.partition("*")
    return name.format(*numbers), int(factor or 1)


@cache
def _pattern(template: str, separator: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{\}", r"(\d+)")
    return re.compile(escaped.replace(r"\.", separator))
