"""Reduce the rank of a layer's change by its singular values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pinxit.errors import ConceptError


@dataclass(frozen=True)
class RankLimit:
    """How far the rank of each layer is reduced: the smaller of the two that these options allow.

    `rank` is the largest rank. `energy` is the share of the squared singular values that must
    remain, 0 to 1. Without both, the rank stays.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConceptError(f"a rank cannot be {self.rank}", "choose 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConceptError(
                f"a share of the energy cannot be {self.energy:g}",
                "choose a number above 0 and at most 1, such as 0.99",
            )

    def keeps(self, rank: int) -> bool:
        """Whether a change of this rank may stay as it is."""
        return self.energy is None and (self.rank is None or rank <= self.rank)

    def rank_of(self, energies: Tensor) -> int:
        """How many of the squared singular values, in falling order, remain; at least 1."""
        # Smaller values are rounding errors.
        smallest = energies[0] * (max(len(energies), 32) * torch.finfo(torch.float32).eps) ** 2
        rank = int((energies > smallest).sum())
        if self.energy is not None and self.energy < 1:
            shares = energies.cumsum(0) / energies.sum()
            rank = min(rank, int((shares < self.energy).sum()) + 1)
        return max(min(rank, self.rank or rank), 1)


@dataclass(frozen=True)
class LowRank:
    """A matrix as the product of `up` (outputs, rank) and `down` (rank, inputs), in fp32.

    `lost` is the squared norm of what the product lacks, `total` that of the whole matrix.
    """

    up: Tensor
    down: Tensor
    total: float
    lost: float = 0.0


def reduced_matrix(matrix: Tensor, limit: RankLimit) -> LowRank:
    """The closest product to a matrix within the limit, by its singular values."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    energies = values.double().square()
    rank = limit.rank_of(energies)
    # The root in both factors keeps them in the range of half precision.
    roots = values[:rank].sqrt()
    return LowRank(
        (left[:, :rank] * roots).contiguous(),
        (right[:rank] * roots[:, None]).contiguous(),
        float(energies.sum()),
        float(energies[rank:].sum()),
    )


def reduced_product(up: Tensor, down: Tensor, limit: RankLimit) -> LowRank:
    """The closest product to `up @ down` within the limit; the whole matrix is never computed."""
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.T)
    core = reduced_matrix(left_core @ right_core.T, limit)
    return LowRank(left @ core.up, core.down @ right.T, core.total, core.lost)


def product_energy(up: Tensor, down: Tensor) -> float:
    """The squared norm of `up @ down`; the whole matrix is never computed."""
    return float(((up.T @ up) * (down @ down.T)).sum())
