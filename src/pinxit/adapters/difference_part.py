"""Differences of a network's weights as data: weights and biases to add, by name."""

from dataclasses import dataclass
from typing import ClassVar

from pinxit.adapters.parts import NetworkPart, weight_count
from pinxit.models.family import family_of_denoiser


@dataclass(frozen=True)
class DifferencePart(NetworkPart):
    """Differences that are added to weights and biases of a network, by name without prefix."""

    kind: ClassVar[str] = "weight-difference"
    has_strength: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """The network and the kind."""
        return f"{self.network}.difference"

    def describe(self) -> list[tuple[str, str]]:
        """The network, the number of weights, and the base models that it fits."""
        count, size = len(self.weights), weight_count(self.weights.values())
        rows = [("adapter", f"differences of {count} weights of `{self.network}`, {size}")]
        family = family_of_denoiser(self.weights) if self.network == "denoiser" else None
        return rows + ([("fits", family.title)] if family else [])
