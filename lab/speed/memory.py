"""Peak memory of this process, as measured by the system."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.01  # seconds between two measurements


class Peaks:
    """Records peak memory inside a `with` block, in gigabytes."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._anonymous = 0.0
        self._loading = 0.0
        self._first = 0.0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        trouble: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watch.join()

    def loaded(self) -> float:
        """Separate the peak before the first step from the peak after, if the system can do so.

        Returns the gigabytes in use now: of the device, if it has its own memory.
        """
        self._loading = _status().get("VmHWM", 0.0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._loading = 0.0
        used = torch.cuda.memory_allocated(self._cuda) / 1e9 if self._cuda else 0.0
        return used or _status().get("VmRSS", 0.0)

    def first_step(self) -> None:
        """Separate the device's peak until the end of the first step from the peak after."""
        self._first = self._held()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def gigabytes(self) -> dict[str, float]:
        """All peaks by the names of `Outcome`."""
        steps = _status().get("VmHWM", 0.0)
        return {
            "peak_gb": max(self._loading, steps),
            "loading_gb": self._loading,
            "steps_gb": steps if self._loading else 0.0,
            "anonymous_gb": self._anonymous,
            "device_gb": max(self._first, self._held()),
            "device_steps_gb": self._held(),
        }

    def _held(self) -> float:
        return torch.cuda.max_memory_allocated(self._cuda) / 1e9 if self._cuda else 0.0

    def _look(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._anonymous = max(self._anonymous, _status().get("RssAnon", 0.0))


def _status() -> dict[str, float]:
    """Memory sizes of this process in gigabytes; empty if the system has no such file."""
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else []
    sizes = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 / 1e9 for name, size, _ in sizes}
