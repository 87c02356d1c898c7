"""Base models that stay open, so that a process with many jobs reads each only once."""

from collections import OrderedDict
from pathlib import Path
from typing import Literal

from pinxit.models.model import Model, Precision, open_base

_Key = tuple[str, str, str, str]


class Bases:
    """The base models used last, of which at most `max_loaded` have their weights in memory.

    When another one is opened, the one unused for longest is offloaded. It can still be used: its
    weights are then read again.
    """

    def __init__(self, max_loaded: int = 1) -> None:
        self._max_loaded = max_loaded
        self._models = OrderedDict[_Key, Model]()

    def open(
        self,
        base: str | Path = "pocket",
        device: str = "cpu",
        precision: Precision | Literal["auto"] = "auto",
        vae: str | Path | None = None,
    ) -> Model:
        """A base model as `open_base` opens it, or the one that is open already.

        Raises ModelError as `open_base` does.
        """
        key = (str(base), device, precision, str(vae or ""))
        if key not in self._models:
            while len(self._models) >= self._max_loaded:
                _, longest_unused = self._models.popitem(last=False)
                longest_unused.offload()
            self._models[key] = open_base(base, device, precision, vae)
        self._models.move_to_end(key)
        return self._models[key]
