"""What the layers of a LoRA lost when their ranks were reduced, by group of layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from pinxit.concepts.layer_names import LAYER_KINDS


@dataclass(frozen=True)
class LayerError:
    """What a layer's change lost: squared norms of the whole change and of the lost part."""

    network: str
    layer: str
    rank: int
    total: float
    lost: float

    @property
    def group(self) -> str:
        """The network and the group of the layer."""
        groups = (name for name, pattern in LAYER_KINDS.items() if pattern.search(self.layer))
        return f"{self.network}: {next(groups, 'other layers')}"


def error_rows(errors: Sequence[LayerError]) -> list[tuple[str, str, str, str]]:
    """Rows by group: its name, the number of layers, their ranks, and the relative error."""
    rows: list[tuple[str, str, str, str]] = []
    for name, of_group in _by_group(errors).items():
        ranks = sorted({error.rank for error in of_group})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        rows.append((name, str(len(of_group)), shown, f"{relative_error(of_group):.2%}"))
    return rows


def group_errors(errors: Sequence[LayerError]) -> dict[str, float]:
    """The relative error of each group of layers, and of "all"."""
    return {name: relative_error(of_group) for name, of_group in _by_group(errors).items()}


def _by_group(errors: Sequence[LayerError]) -> dict[str, list[LayerError]]:
    groups: dict[str, list[LayerError]] = {}
    for error in sorted(errors, key=lambda error: error.group):
        groups.setdefault(error.group, []).append(error)
    return {**groups, "all": list(errors)}


def relative_error(errors: Sequence[LayerError]) -> float:
    """The norm of what all layers lost, relative to the norm of their changes."""
    return sqrt(sum(error.lost for error in errors) / (sum(e.total for e in errors) or 1.0))
