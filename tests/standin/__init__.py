"""The device `standin`: an accelerator for tests on machines that have none.

`register` builds `standin.cpp` (half a minute; the result is kept) and registers it with torch.
Its memory is the host's and its operators are the CPU's, but a program that works on it keeps to
the rules of a GPU:

- an operator that has a tensor on `standin` and another one on the CPU raises an error, except for
  tensors without dimensions and for the indices of `x[indices]`, which CUDA accepts too;
- a random generator of the CPU cannot draw numbers there;
- `torch.accelerator` reports its memory, and more than `memory_limit` allows raises
  torch.OutOfMemoryError.

It cannot show whether a kernel of a real device is fast or exact. A process that has registered it
has this accelerator to its end, so tests that use it have processes of their own.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

UNLIMITED = 2**40
_SOURCE = Path(__file__).with_name("standin.cpp")


class _Module:
    """What torch looks for as `torch.standin`."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def get_device_name(_: object = None) -> str:
        return "stand-in accelerator"

    @staticmethod
    def is_bf16_supported() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing: it has no random generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@cache
def register() -> Any:
    """Build the extension, once for each source and torch, and register the device."""
    version = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pinxit-standin-{os.getuid()}-{version}"
    folder.mkdir(exist_ok=True)
    # Torch's own lock is a file that stays if a process is killed, and all others then wait.
    with (folder / "building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        extension = _build(folder)
    torch.utils.rename_privateuse1_backend("standin")
    torch._register_device_module("standin", _Module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return extension


def _build(folder: Path) -> Any:
    from torch.utils.cpp_extension import load

    os.environ.setdefault("MAX_JOBS", "2")
    options = {"extra_cflags": ["-O1"], "build_directory": str(folder)}
    return load("pinxit_standin", [str(_SOURCE)], **options)


def memory_used() -> int:
    """Bytes of all tensors on the device."""
    return torch.accelerator.memory_allocated()


@contextmanager
def memory_limit(more_bytes: int) -> Generator[None]:
    """Let tensors on the device use at most so many bytes more than now."""
    extension = register()
    extension.set_memory_limit(memory_used() + more_bytes)
    try:
        yield
    finally:
        extension.set_memory_limit(UNLIMITED)
