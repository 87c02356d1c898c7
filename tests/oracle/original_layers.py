"""Weights under the names of the authors' code, which joins layers: files as the authors write."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pinxit.models.joined_layers import LayerTable


def to_original(table: LayerTable, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `LayerTable.to_diffusers`."""
    renamed: dict[str, Tensor] = {}
    for name in weights:
        layer, _, leaf = name.rpartition(".")
        original = table.original(layer)
        if whole := table.original(name):
            renamed[whole] = weights[name]
        elif original and f"{original}.{leaf}" not in renamed:
            parts = [part for part, _ in table.parts(original)]
            joined = torch.cat([weights[f"{part.removeprefix('~')}.{leaf}"] for part in parts])
            is_swapped = parts[0].startswith("~")
            swapped = torch.cat(joined.chunk(2)[::-1]) if is_swapped else joined
            renamed[f"{original}.{leaf}"] = swapped
        elif not original:
            renamed[name] = weights[name]
    return renamed
