"""Several processes train one run: rank 0 has the run's folder, the others do what it asks for."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from pinxit.adapters.adapter import before_denoise
from pinxit.errors import RunError
from pinxit.generation.finite import NotFiniteError
from pinxit.models.model import Model
from pinxit.models.ranks import Ranks
from pinxit.runs.class_images import generate_class_images, read_class_images
from pinxit.runs.preview import preview_images
from pinxit.runs.preview_base import previewed
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.memory import MemoryPlan
from pinxit.training.method import ClassImages
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.shared_state import gather_state, gather_weights, share_state
from pinxit.training.train import TrainingSession, train


@dataclass(frozen=True)
class OpenBase:
    """Asks to open the base model of a recipe."""

    recipe: Recipe


@dataclass(frozen=True)
class MakeClassImages:
    """Asks for a share of the class images."""

    required: ClassImages


@dataclass(frozen=True)
class Train:
    """Asks to train a settled recipe, with the memory plan of the run's log if it has one."""

    recipe: Recipe
    memory_plan: MemoryPlan | None


def follow(ranks: Ranks, open_model: Callable[[Recipe], Model]) -> None:
    """Do what rank 0 asks for until it ends, which raises LeaderEndedError."""
    model: Model | None = None
    while True:
        task = ranks.receive()
        if isinstance(task, OpenBase):
            model = open_model(task.recipe)
        elif isinstance(task, MakeClassImages) and model:
            for _ in generate_class_images(model, task.required, ranks):
                pass
        elif isinstance(task, Train) and model:
            _train(ranks, model, task)


def _train(ranks: Ranks, model: Model, task: Train) -> None:
    images = task.recipe.read_images()
    plan = TrainingPlan.of(task.recipe, model, len(images))
    class_images = read_class_images(model, plan.class_images)
    trainer = ConceptTrainer(model, plan, images, class_images, ranks)
    share_state(ranks, trainer, images)
    session = TrainingSession(model, [trainer], ranks)
    session.memory_plan = task.memory_plan
    try:
        for step in train(session):
            if trainer.error:
                continue
            last = not trainer.unfinished
            if step.is_due(trainer.plan.recipe.preview_every, last=last):
                before_denoise(model, torch.zeros(1), torch.zeros(1, dtype=torch.long))
                with suppress(NotFiniteError), previewed(trainer) as shown:  # rank 0 tells the user
                    preview_images(shown, (), ranks)
            if step.is_due(trainer.plan.recipe.save_every, last=False):
                gather_weights(trainer)
            if step.is_due(trainer.plan.recipe.checkpoint_every, last=last):
                gather_state(trainer)
    except BaseException as error:
        if trainer.division.divided:  # rank 0 may save the last step
            with suppress(RunError), ranks.ending(error):
                gather_state(trainer)
        raise
