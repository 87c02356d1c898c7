"""The window of a text encoder: which tokens of a prompt stay when it is too long.

`units` has an entry for each token of a prompt: None for a token of the text, and for a token of a
placeholder the placeholder's name and the number of its occurrence.
"""

from collections.abc import Sequence

Unit = tuple[str, int] | None


def window_indices(units: Sequence[Unit], size: int) -> list[int]:
    """The indices of the tokens that stay in one window of `size` tokens.

    The end of the text is left out, but the first occurrence of each placeholder stays whole.
    """
    if len(units) <= size:
        return list(range(len(units)))
    first = _first_occurrences(units)
    for length in range(size, -1, -1):
        rest = [index for unit in first for index in unit if index >= length]
        if length + len(rest) <= size and not _is_torn(units, length):
            return [*range(length), *rest]
    stay: list[int] = []
    for unit in first:
        if len(stay) + len(unit) <= size:
            stay += unit
    return stay


def split_windows(units: Sequence[Unit], size: int) -> list[range]:
    """The windows of a long prompt; no placeholder is divided unless it is longer than a window."""
    windows: list[range] = []
    start = 0
    while start < len(units):
        end = min(start + size, len(units))
        whole = next((e for e in range(end, start, -1) if not _is_torn(units, e)), end)
        windows.append(range(start, whole))
        start = whole
    return windows or [range(0)]


def _first_occurrences(units: Sequence[Unit]) -> list[list[int]]:
    """The indices of the tokens of each placeholder's first occurrence, in their order."""
    numbers: dict[str, int] = {}
    indices: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        if unit is not None and numbers.setdefault(unit[0], unit[1]) == unit[1]:
            indices.setdefault(unit[0], []).append(index)
    return list(indices.values())


def _is_torn(units: Sequence[Unit], index: int) -> bool:
    """Whether a placeholder lies on both sides of an index."""
    return 0 < index < len(units) and units[index] is not None and units[index - 1] == units[index]
