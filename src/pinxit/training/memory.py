"""Free memory, and the micro-batch size and gradient checkpointing that fit into it."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

from pinxit.errors import RunError
from pinxit.models.model import Model

# Fraction of the free memory that a step may use. The rest is a reserve for temporary memory of
# kernels, and for gaps between tensors.
_USABLE_FRACTION = 0.85


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is split to fit into memory: samples at a time and gradient checkpointing.

    Predicted before the first step, 0 if there is no prediction: `step_bytes` is what a step needs
    besides the `weight_bytes` of weights, and `free_bytes` what was free for it. `offloaded` are
    the networks that are not in memory. A step takes about `seconds`.
    """

    micro_batch: int
    gradient_checkpointing: bool = False
    step_bytes: int = 0
    weight_bytes: int = 0
    free_bytes: int = 0
    offloaded: tuple[str, ...] = ()
    seconds: float = 0

    def smaller(self) -> "MemoryPlan | None":
        """A plan that needs less memory; None if there is none."""
        if self.micro_batch > 1:
            return MemoryPlan(self.micro_batch // 2, self.gradient_checkpointing)
        return None if self.gradient_checkpointing else SMALLEST

    def description(self, precision: str) -> str:
        """The plan and its prediction as a message."""
        checkpointing = ", gradient checkpointing" if self.gradient_checkpointing else ""
        text = f"training in {precision}, micro-batch size {self.micro_batch}{checkpointing}"
        if self.offloaded:
            text += f", offloaded: {', '.join(self.offloaded)}"
        if not self.step_bytes:
            return text
        text += (
            f"; predicted peak: {_gb(self.weight_bytes + self.step_bytes)} of memory "
            f"({_gb(self.weight_bytes)} weights, {_gb(self.step_bytes)} of {_gb(self.free_bytes)} "
            "free for a step)"
        )
        return f"{text}; about {two_digits(self.seconds)} s a step" if self.seconds else text


SMALLEST = MemoryPlan(1, gradient_checkpointing=True)


def smallest(plans: Iterable[MemoryPlan]) -> MemoryPlan:
    """The plan that needs the least memory."""
    return min(plans, key=lambda plan: (not plan.gradient_checkpointing, plan.micro_batch))


def plan_memory(
    num_samples: int, needs: Callable[[int, bool], int], usable_bytes: int
) -> tuple[int, bool, int]:
    """The largest micro-batch that fits, whether with gradient checkpointing, and what it needs.

    `needs` gives the bytes for a micro-batch size with or without gradient checkpointing. Raises
    RunError if not even one sample fits: some systems kill a process that allocates too much,
    without a message.
    """
    one = 0
    for checkpointing in (False, True):
        whole = needs(num_samples, checkpointing)
        if whole <= usable_bytes:
            return num_samples, checkpointing, whole
        one = needs(1, checkpointing) if num_samples > 1 else whole
        if one <= usable_bytes:
            # No less than what is needed, which is the largest of several straight lines.
            sample = (whole - one) / (num_samples - 1)
            micro_batch = 1 + int((usable_bytes - one) / sample)
            return micro_batch, checkpointing, one + int(sample * (micro_batch - 1))
    raise RunError(
        f"a training step needs {_gb(one)} of memory, but only {_gb(usable_bytes)} are free",
        "choose a smaller --resolution, a method that trains fewer weights "
        "(lora, textual-inversion), or --precision bf16",
    )


def usable(free_bytes: int) -> int:
    """How much of the free memory a step may use."""
    return int(free_bytes * _USABLE_FRACTION)


def two_digits(number: float) -> str:
    """A number rounded to two significant digits, without an exponent if it is not tiny."""
    return f"{float(f'{number:.2g}'):.12g}"


def _gb(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e8 else f"{count / 1e9:.1f} GB"


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
