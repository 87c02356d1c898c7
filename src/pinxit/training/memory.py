"""Free memory, and the micro-batch size and gradient checkpointing that fit into it."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import RunError
from pinxit.models.model import Model

# Fraction of the free memory that a step may use; the rest covers what the estimate misses.
_USABLE_FRACTION = 0.85
# Memory for the backward pass with gradient checkpointing, as a fraction of that without.
_CHECKPOINTING_FRACTION = 0.3


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is split to fit into memory: samples at a time and gradient checkpointing.

    `needed_bytes` and `free_bytes` are the estimate behind the plan, 0 if there is none.
    """

    micro_batch: int
    gradient_checkpointing: bool = False
    needed_bytes: int = 0
    free_bytes: int = 0

    def smaller(self) -> "MemoryPlan | None":
        """A plan that needs less memory; None if there is none."""
        if self.micro_batch > 1:
            return MemoryPlan(self.micro_batch // 2, self.gradient_checkpointing)
        return None if self.gradient_checkpointing else MemoryPlan(1, gradient_checkpointing=True)

    def description(self, precision: str) -> str:
        """The plan and its estimate as a message."""
        checkpointing = ", gradient checkpointing" if self.gradient_checkpointing else ""
        estimate = f", about {_gb(self.needed_bytes)} of memory ({_gb(self.free_bytes)} free)"
        return (
            f"training in {precision}, micro-batch size {self.micro_batch}{checkpointing}"
            f"{estimate if self.needed_bytes else ''}"
        )


def smallest(plans: Iterable[MemoryPlan]) -> MemoryPlan:
    """The plan that needs the least memory."""
    return min(plans, key=lambda plan: (not plan.gradient_checkpointing, plan.micro_batch))


def plan_memory(
    num_samples: int, sample_bytes: int, fixed_bytes: int, free_bytes: int
) -> MemoryPlan:
    """The plan with the largest micro-batch that fits into the free memory.

    `sample_bytes` is what the backward pass needs per sample, `fixed_bytes` what a step needs
    besides. Raises RunError if not even one sample fits: some systems kill a process that
    allocates too much, without a message.
    """
    usable_bytes = int(free_bytes * _USABLE_FRACTION) - fixed_bytes
    for gradient_checkpointing, fraction in ((False, 1.0), (True, _CHECKPOINTING_FRACTION)):
        needed_bytes = max(1, int(sample_bytes * fraction))
        micro_batch = min(num_samples, usable_bytes // needed_bytes)
        if micro_batch > 0:
            total_bytes = fixed_bytes + micro_batch * needed_bytes
            return MemoryPlan(micro_batch, gradient_checkpointing, total_bytes, free_bytes)
    minimum = fixed_bytes + int(sample_bytes * _CHECKPOINTING_FRACTION)
    raise RunError(
        f"a training step needs {_gb(minimum)} of memory, but only {_gb(free_bytes)} are free",
        "choose a smaller --resolution, a method that trains fewer weights "
        "(lora, textual-inversion), or --precision bf16",
    )


@contextmanager
def saved_tensors(weights: Iterable[Tensor]) -> Generator[dict[int, int]]:
    """Inside the context, collect the bytes of each tensor that autograd saves, by its address.

    These are the tensors for the backward pass; the weights are left out.
    """
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks: Any = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with hooks:
        yield sizes


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def gradient_checkpointing(model: Model, enabled: bool) -> Generator[None]:
    """Use gradient checkpointing inside the block, if enabled."""
    if not enabled:  # turning it off visits every layer: a tenth of a small model's step
        yield
        return
    model.enable_gradient_checkpointing(True)
    try:
        yield
    finally:
        model.enable_gradient_checkpointing(False)
