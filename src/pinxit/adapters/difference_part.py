"""Differences of a network's weights as data: weights and biases to add, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from pinxit.adapters.parts import Part, weight_count
from pinxit.models.family import family_of_denoiser


@dataclass(frozen=True)
class DifferencePart(Part):
    """Differences that are added to weights and biases of a network, by name without prefix."""

    network: str
    differences: Mapping[str, Tensor]
    kind: ClassVar[str] = "weight-difference"
    has_strength: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, str]:
        """The name of the network."""
        return {"network": self.network}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The differences by name."""
        return self.differences

    @classmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`; KeyError if a setting is missing."""
        return cls(settings["network"], tensors)

    @property
    def key(self) -> str:
        """The network and the kind."""
        return f"{self.network}.difference"

    def describe(self) -> list[tuple[str, str]]:
        """The network, the number of weights, and the base models that it fits."""
        count, size = len(self.differences), weight_count(self.differences.values())
        rows = [("adapter", f"differences of {count} weights of `{self.network}`, {size}")]
        family = family_of_denoiser(self.differences) if self.network == "denoiser" else None
        return rows + ([("fits", family.title)] if family else [])
