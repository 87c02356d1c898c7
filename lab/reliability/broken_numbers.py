"""Numbers that are none get into a step of learning: are they seen, and is the run mended?"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lab.reliability.small_runs import METHODS, Workshop
from pinxit.models.model import Conditioning
from pinxit.runs.checkpoint import newest
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import DivergedError
from pinxit.training.train import Lesson, Step

_STAGES = ("latents", "conditioning", "denoiser", "gradient", "weight")
_AT = 7


def numbers(shop: Workshop, _asked: argparse.Namespace) -> dict[str, int]:
    """A number that is none gets in at each stage of a step: once, and every time."""
    found = Counter[str]()
    for method in METHODS:
        for stage in _STAGES:
            recipe = shop.recipe(method)
            with poisoned(shop, stage, lasting=False):
                folder = shop.folder / f"{method}-{stage}"
                wanted = shop.whole(folder, recipe)
                entries = Run.open(folder).notes.entries()
                found["mended"] += [e.get("pace") for e in entries if "pace" in e] == [0.5]
                stopped = shop.folder / f"{method}-{stage}-stopped"
                for step in (3, 7, 2):  # the last is in the second attempt
                    with closing(shop.events(stopped, recipe)) as events:
                        steps = (event for event in events if isinstance(event, Step))
                        list(islice(steps, step))
                found["differing"] += shop.whole(stopped, recipe) != wanted
            with poisoned(shop, stage, lasting=True):
                folder = shop.folder / f"{method}-{stage}-lasting"
                try:
                    list(shop.events(folder, recipe))
                except DivergedError as error:
                    found["reported"] += (
                        f"at step {_AT}:" in error.message and ".png" in error.message
                    )
            last = newest(folder / "checkpoints")
            sound = last and all(tensor.isfinite().all() for tensor in last.state.values())
            found["saved broken"] += not sound
            found["stages"] += 1
    return {"differing": 0, "saved broken": 0, **found}


@contextmanager
def poisoned(shop: Workshop, stage: str, *, lasting: bool) -> Iterator[None]:
    """A step has a number that is none; not when it is tried again, unless it lasts."""
    now = False
    kind = type(shop.model)
    batches, denoise = Lesson.batches, kind.denoise
    hooked: list[Any] = []

    def spoilt(tensor: Tensor) -> Tensor:
        return tensor * torch.nan if now else tensor

    def drawn(self: Lesson, step: int, concepts: Sequence[int] = ()) -> Any:
        nonlocal now
        now = step == _AT - 1 and (lasting or self.learners[0].pace == 1)
        made = batches(self, step, concepts)
        weight = next(w for learner in self.learners for w in learner.weights)
        if now and stage == "weight":
            weight.data[(0,) * weight.ndim] = torch.nan
        if now and stage == "gradient":
            hooked.append(weight.register_hook(spoilt))
        elif hooked:
            hooked.pop().remove()
        if stage == "latents":
            object.__setattr__(made[0], "latents", spoilt(made[0].latents))
        return made

    def answered(self: Any, latents: Tensor, times: Tensor, told: Conditioning) -> Tensor:
        if stage == "conditioning":
            told = Conditioning(spoilt(told.states), told.pooled)
        answer = denoise(self, latents, times, told)
        return spoilt(answer) if stage == "denoiser" else answer

    with patch.object(Lesson, "batches", drawn), patch.object(kind, "denoise", answered):
        yield
