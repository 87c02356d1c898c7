"""How much memory is free, and how a step's work is cut so that it fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from pinxit.errors import RunError

# What a step may take of the memory that is free; the rest is for what no count foresees.
_SHARE = 0.85
# What is left of the states that the backward pass needs if most are computed anew.
_ECONOMISED = 0.3
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Choice:
    """How the work of a step is cut: so many samples at a time, states kept or computed anew.

    `needed` and `free` are the bytes that it was chosen by.
    """

    together: int
    economise: bool = False
    needed: int = 0
    free: int = 0

    def smaller(self) -> "Choice | None":
        """What takes less memory than this did; None if nothing does."""
        if self.together > 1:
            return Choice(self.together // 2, self.economise)
        return None if self.economise else Choice(1, economise=True)

    @property
    def noted(self) -> dict[str, int]:
        """What was chosen, without what it was chosen by: as `read` takes it."""
        return {"together": self.together, "economise": self.economise}

    @classmethod
    def read(cls, noted: object) -> "Choice | None":
        """One that was noted as a table of its fields; None if it is no such table."""
        try:
            return cls(**noted) if isinstance(noted, dict) else None
        except TypeError:
            return None

    def told(self, precision: str) -> str:
        """What was chosen and why, in words."""
        how = f"{self.together} at a time" if self.together > 1 else "one sample at a time"
        anew = ", states computed anew in the backward pass" if self.economise else ""
        why = f"; takes {_gb(self.needed)} of the {_gb(self.free)} that are free"
        return f"learns in {precision}, {how}{anew}{why if self.needed else ''}"


def choose(samples: int, each: int, fixed: int, free: int) -> Choice:
    """How to learn from so many samples, of which each keeps so many bytes for its backward pass.

    `fixed` is what else the step will take. RunError if it does not fit at all: some systems
    end a process that asks for too much, without a word.
    """
    room = int(free * _SHARE) - fixed
    for economise, share in ((False, 1.0), (True, _ECONOMISED)):
        own = max(1, int(each * share))
        together = min(samples, room // own)
        if together > 0:
            return Choice(together, economise, fixed + together * own, free)
    raise RunError(
        f"a step would take {_gb(fixed + int(each * _ECONOMISED))} of memory, and "
        f"{_gb(free)} are free",
        "take a smaller --size, a method that trains less (lora, textual-inversion), "
        "or --precision bf16",
    )


def free(device: torch.device) -> int:
    """The bytes of memory that can still be had, of the device or of what the process may use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    left = psutil.virtual_memory().available
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return left if limit == "max" else min(left, int(limit) - int(_USED.read_text()))


class Saved:
    """Counts the bytes that are kept for a backward pass: a block, and then `bytes`."""

    def __init__(self, besides: list[Tensor]) -> None:
        self._besides = {weight.untyped_storage().data_ptr() for weight in besides}
        self._seen = dict[int, int]()
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)

    def __enter__(self) -> "Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._hooks.__exit__(*trouble)

    @property
    def bytes(self) -> int:
        """How many there were, weights not counted."""
        return sum(self._seen.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._besides:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
