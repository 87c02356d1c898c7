"""Insert NaN into a training step: is it detected, and does the run recover?"""

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
from pinxit.models.conditioning import Conditioning
from pinxit.runs.checkpoint import newest_checkpoint
from pinxit.runs.events import LearningRateReduction
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import DivergedError
from pinxit.training.train import StepResult, TrainingSession

_STAGES = ("latents", "conditioning", "denoiser", "gradient", "weight")
_STEP = 7


def numbers(shop: Workshop, _arguments: argparse.Namespace) -> dict[str, int]:
    """Insert NaN at each stage of a step, once and at every attempt."""
    counts = Counter[str]()
    for method in METHODS:
        for stage in _STAGES:
            recipe = shop.recipe(method)
            with nan_inserted(shop, stage, permanent=False):
                folder = shop.folder / f"{method}-{stage}"
                expected = shop.finish(folder, recipe)
                reductions = Run.open(folder).state.of_kind(LearningRateReduction)
                counts["mended"] += [event.multiplier for event in reductions] == [0.5]
                stopped = shop.folder / f"{method}-{stage}-stopped"
                for step in (3, 7, 2):  # the last one is in the second attempt
                    with closing(shop.events(stopped, recipe)) as events:
                        steps = (event for event in events if isinstance(event, StepResult))
                        list(islice(steps, step))
                counts["differing"] += shop.finish(stopped, recipe) != expected
            with nan_inserted(shop, stage, permanent=True):
                folder = shop.folder / f"{method}-{stage}-permanent"
                try:
                    list(shop.events(folder, recipe))
                except DivergedError as error:
                    counts["reported"] += (
                        f"at step {_STEP}:" in error.message and ".png" in error.message
                    )
            checkpoint = newest_checkpoint(folder / "checkpoints")
            finite = checkpoint and all(t.isfinite().all() for t in checkpoint.state.values())
            counts["saved broken"] += not finite
            counts["stages"] += 1
    return {"differing": 0, "saved broken": 0, **counts}


@contextmanager
def nan_inserted(shop: Workshop, stage: str, *, permanent: bool) -> Iterator[None]:
    """Insert NaN into one step; into its second attempt too if `permanent`."""
    active = False
    model_class = type(shop.model)
    batches, denoise = TrainingSession.batches, model_class.denoise
    backward = TrainingSession.backward
    hooks: list[Any] = []

    def with_nan(tensor: Tensor) -> Tensor:
        return tensor * torch.nan if active else tensor

    def patched_batches(self: TrainingSession, step: int, concepts: Sequence[int] = ()) -> Any:
        nonlocal active
        active = step == _STEP - 1 and (permanent or self.trainers[0].lr_multiplier == 1)
        drawn = batches(self, step, concepts)
        weight = next(w for trainer in self.trainers for w in trainer.weights)
        if active and stage == "weight":
            weight.data[(0,) * weight.ndim] = torch.nan
        if active and stage == "gradient":
            hooks.append(weight.register_hook(with_nan))
        elif hooks:
            hooks.pop().remove()
        if stage == "latents":
            object.__setattr__(drawn[0], "latents", with_nan(drawn[0].latents))
        return drawn

    def patched_backward(self: TrainingSession, *arguments: Any) -> Any:
        nonlocal active
        try:
            return backward(self, *arguments)
        finally:
            active = False  # what the next attempt computes before its steps is intact

    def patched_denoise(
        self: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        broken = Conditioning(with_nan(conditioning.states), conditioning.pooled)
        given = broken if stage == "conditioning" else conditioning
        prediction = denoise(self, latents, timesteps, given)
        return with_nan(prediction) if stage == "denoiser" else prediction

    with (
        patch.object(TrainingSession, "batches", patched_batches),
        patch.object(TrainingSession, "backward", patched_backward),
        patch.object(model_class, "denoise", patched_denoise),
    ):
        yield
