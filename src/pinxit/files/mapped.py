"""Files as memory: it fills when they are used, and is given back when they have been read."""

import mmap
from io import BufferedReader
from weakref import WeakSet

# Files that tensors are views of, and how much of them may stay in memory once it is read.
_MAPPED: WeakSet[mmap.mmap] = WeakSet()
_READ_AHEAD = 2**28
_read = 0


def mapped(file: BufferedReader) -> mmap.mmap:
    """A file as memory that fills when it is used, and can be forgotten."""
    # A private copy, which nobody writes to: torch wants memory that could be written.
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _MAPPED.add(data)
    return data


def forget_pages(used: int) -> None:
    """So many bytes of mapped files were used, and not for long: now and then they leave memory.

    The tensors stay good: what is used again is read again.
    """
    global _read
    _read += used
    if _read > _READ_AHEAD and hasattr(mmap, "MADV_DONTNEED"):
        _read = 0
        for data in _MAPPED:
            data.madvise(mmap.MADV_DONTNEED)
