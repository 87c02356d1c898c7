"""Pictures painted beside others, step by step, which hold them in place."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from pinxit.adapters.attention_sharing import FEATURES, PLACES, Sharing
from pinxit.generation.control import Control, Hold, Walk
from pinxit.generation.schedulers import Solver


def inverted(walk: Walk, picture: Path) -> Generator[Tensor, None, list[Tensor]]:
    """A picture's way from noise, told what is beside: DDIM inversion (arXiv:2105.05233, F).

    Yields it at each time on the way into noise; latents (N, C, H, W) for every time at last.
    """
    model, clean = walk.model, walk.model.encode(walk.pixels(picture)).mean
    schedule, latents = model.schedule, clean
    before, noises = torch.zeros(1, device=model.device), dict[float, Tensor]()
    for time in walk.times.to(model.device).unique():  # upwards; some solvers look twice
        answer = model.denoise(latents, time, walk.told)
        latents = schedule.add_noise(*schedule.parted(latents, answer, before), time.view(1))
        before = time.view(1)
        # What would noise the picture itself to the same latents, in whatever scale a solver has.
        nothing = torch.zeros_like(clean)
        rest = latents - schedule.add_noise(clean, nothing, before)
        noises[float(time)] = rest / schedule.add_noise(nothing, nothing + 1, before)
        yield latents
    return walk.path(clean, [noises[float(time)] for time in walk.times])


def noised(walk: Walk, picture: Path) -> list[Tensor]:
    """A picture's latents at every time, under the noise that the seeds paint with."""
    clean = walk.model.encode(walk.pixels(picture)).mean
    return walk.path(clean, [walk.noise()] * len(walk.times))


class Beside(Hold):
    """Another picture beside each, on a path that is known or of its own.

    In the first `same` of the steps the pictures are what is beside them. In those that are `held`
    layers answer for both what they answer for it, and where a path is followed its deviations from
    there are the pictures' too (direct inversion, arXiv:2310.01506; edit-friendly, 2304.06140).
    """

    def __init__(
        self,
        walk: Walk,
        layers: Sequence[str],
        held: range,
        path: Sequence[Tensor] | None = None,
        same: int | None = None,
    ) -> None:
        self._sharing = Sharing(layers, walk.role, walk.roles + 1, len(walk.seeds))
        self.adapters = (self._sharing,)
        self._held = held
        self._path = path
        self._same = same
        self._role = walk.role
        self._batch = (walk.roles + 1, len(walk.seeds))

    @classmethod
    def slid(cls, walk: Walk, keep: float, path: Sequence[Tensor] | None = None) -> Self:
        """In the place of what is beside: up to a half held longer, beyond it the same longer."""
        steps = len(walk.times)
        same = round(max(0, 2 * keep - 1) ** 2 * steps)
        held = range(same, round((same + steps) / 2) if keep > 0.5 else round(keep * steps))
        return cls(walk, (PLACES, FEATURES), held, path, same)

    def start(self, solver: Solver) -> Tensor | None:  # noqa: ARG002
        """The path's first latents if it is followed, else noise as ever."""
        return None if self._path is None or self._same is None else self._path[0]

    def beside(self, start: Tensor) -> Tensor:
        """The path's first latents; without a path, what the pictures begin with."""
        return start if self._path is None else self._path[0]

    def before(self, at: int, rows: Tensor) -> Tensor:
        """Whether layers share is settled."""
        self._sharing.on = at in self._held
        return rows

    def after(self, at: int, rows: Tensor) -> Tensor:
        """What is beside is on its path again."""
        parts = rows.unflatten(0, self._batch).clone()
        if self._path is not None:
            deviation = self._path[at + 1] - parts[self._role]
            parts[self._role] = self._path[at + 1]
            if self._same is not None and at in self._held:
                parts[0] += deviation
        if self._same is not None and at < self._same:
            parts[0] = parts[self._role]
        return parts.flatten(0, 1)


class Accompanied(Control):
    """A control that paints another picture beside each, unless it is to keep nothing of it."""

    keep: float = Field(
        default=0.5, ge=0, le=1, description="0: the prompt only; 1: the whole picture"
    )
    shows: str | None = Field(
        default=None,
        description="what the picture shows; if unset the prompt without learned words",
    )

    def beside(self, plain: str) -> str | None:
        """What the picture shows."""
        return (self.shows or plain) if self.keep else None

    def begin(self, walk: Walk) -> Generator[Tensor, None, Hold]:
        """Find the way of what is beside."""
        return (yield from self._begin(walk)) if self.keep else Hold()

    @abstractmethod
    def _begin(self, walk: Walk) -> Generator[Tensor, None, Beside]:
        """What is beside, on its way."""
