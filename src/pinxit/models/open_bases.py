"""Bases that stay open from one job to the next, so that a session reads each only once."""

from collections import OrderedDict
from pathlib import Path
from typing import Literal

from pinxit.models.model import Model, Precision, open_base

_Asked = tuple[str, str, str, str]


class Bases:
    """The bases used last, kept warm: at most so many have their weights in memory.

    One that has to make room rests. Whoever still holds it may use it: it is read again then.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._warm = OrderedDict[_Asked, Model]()

    def open(
        self,
        base: str | Path = "pocket",
        device: str = "cpu",
        precision: Precision | Literal["auto"] = "auto",
        vae: str | Path | None = None,
    ) -> Model:
        """A base as `open_base` opens it, or as it was left by the job before; ModelError."""
        asked = (str(base), device, precision, str(vae or ""))
        if asked not in self._warm:
            while len(self._warm) >= self._most:
                _, longest_unused = self._warm.popitem(last=False)
                longest_unused.rest()
            self._warm[asked] = open_base(base, device, precision, vae)
        self._warm.move_to_end(asked)
        return self._warm[asked]
