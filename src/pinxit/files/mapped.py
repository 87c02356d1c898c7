"""Memory-mapped files: memory fills when they are used, and can be freed after they were read."""

import mmap
import os
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryFile
from weakref import WeakSet

# Files that tensors are views of, and how many bytes of them may stay in memory after reading.
_MAPPED: WeakSet[mmap.mmap] = WeakSet()
_MAX_BYTES = 2**28
_bytes_since_freed = 0


def map_file(file: BufferedReader) -> mmap.mmap:
    """Map a file into memory, which fills when it is used and can be freed by `forget_pages`."""
    # Copy on write, though nothing is written: torch needs writable memory.
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _MAPPED.add(data)
    return data


def map_scratch(folder: Path, size: int) -> mmap.mmap:
    """Memory in a temporary file without a name in a folder; OSError if the disk is full."""
    with TemporaryFile(dir=folder) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # without space, writing to the memory would be fatal
            os.posix_fallocate(file.fileno(), 0, size)
        data = mmap.mmap(file.fileno(), size)
    _MAPPED.add(data)
    return data


def forget_pages(used: int) -> None:
    """Count bytes of mapped files as no longer needed; from time to time free their memory.

    Tensors stay valid: what is used again is read again.
    """
    global _bytes_since_freed
    _bytes_since_freed += used
    if _bytes_since_freed > _MAX_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        _bytes_since_freed = 0
        for data in _MAPPED:
            data.madvise(mmap.MADV_DONTNEED)
