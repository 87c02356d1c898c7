"""Short training runs, whole and stopped, and the trainer of a single concept."""

from pathlib import Path

from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.runs.class_images import read_class_images
from pinxit.runs.events import SavedCheckpoint
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe


def lora_recipe(pictures: Path, adapter: str = "lora", **changes: object) -> Recipe:
    """Three steps with a checkpoint after the second, without class images."""
    method = {"name": "lora", "adapter": adapter, "rank": 2, "class_images": 0}
    method["placeholder"] = "rare-token"
    subject = {"method": method, "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    schedule = {"steps": 3, "batch_size": 2, "preview_every": 0, "checkpoint_every": 2}
    return Recipe.model_validate({**subject, **schedule, **changes})


def stopped_run(model: Model, recipe: Recipe, folder: Path) -> Run:
    """A run that was stopped after its first checkpoint."""
    run = Run.create(folder, recipe)
    for event in (events := run.train(model)):
        if isinstance(event, SavedCheckpoint):
            events.close()
            break
    return run


def concept_trainer(model: Model, recipe: Recipe, ranks: Ranks = ALONE) -> ConceptTrainer:
    """The trainer of a recipe's concept, with the images and class images on the disk."""
    images = recipe.read_images()
    plan = TrainingPlan.of(recipe, model, len(images))
    class_images = read_class_images(model, plan.class_images)
    return ConceptTrainer(model, plan, images, class_images, ranks)
