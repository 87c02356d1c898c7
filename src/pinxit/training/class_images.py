"""Class pictures: what the untouched base paints of a class, kept and shared between runs."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pinxit.files.atomic_write import sha256
from pinxit.generation.generate import Painted, Request, generate
from pinxit.images.folder import Picture
from pinxit.models.model import Model
from pinxit.training.method import Preparing

# Painted in these groups whatever the count: so the same picture comes out to the last bit.
_TOGETHER = 8


def cache_folder() -> Path:
    """Where pinxit keeps what it can make again: PINXIT_CACHE, else the user's cache folder."""
    own = os.environ.get("PINXIT_CACHE")
    if own:
        return Path(own)
    users = os.environ.get("XDG_CACHE_HOME")
    return (Path(users) if users else Path.home() / ".cache") / "pinxit"


@dataclass(frozen=True)
class ClassPictures:
    """The first `count` pictures that a base paints of a prompt, with seeds from 0 on."""

    prompt: str
    count: int

    def paint(self, model: Model) -> Iterator[Preparing]:
        """Paint those that are not in the cache, telling how many there are."""
        folder = self._folder(model)
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, self.count, _TOGETHER):
            if not all(path.is_file() for path in self._files(model)[first : first + _TOGETHER]):
                request = self._request(model, first)
                for event in generate(model, request):
                    if isinstance(event, Painted):
                        event.save(folder / _name(event.request.seed))
            yield Preparing("class pictures", min(first + _TOGETHER, self.count), self.count)

    def found(self, model: Model) -> tuple[Picture, ...]:
        """The pictures, which `paint` has made."""
        files = self._files(model)
        return tuple(Picture(file, self.prompt, sha256(file), 1.0, True) for file in files)

    def _request(self, model: Model, first: int) -> Request:
        return Request(
            prompt=self.prompt,
            seed=first,
            count=_TOGETHER,
            base=model.hash,
            precision=model.placement.precision,
        )

    def _folder(self, model: Model) -> Path:
        """One folder for each way of painting them, named after everything they follow from."""
        whole = self._request(model, 0).model_dump_json()
        return cache_folder() / "class-pictures" / hashlib.sha256(whole.encode()).hexdigest()[:24]

    def _files(self, model: Model) -> list[Path]:
        return [self._folder(model) / _name(seed) for seed in range(self.count)]


def _name(seed: int) -> str:
    return f"{seed:05}.png"
