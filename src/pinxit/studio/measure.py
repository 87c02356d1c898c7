"""What a worker without a job finds out for the pages: tokenizers, and the cost of trainings."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pinxit.errors import RunError
from pinxit.files.atomic_write import make_folder, write_text
from pinxit.models.model import Model
from pinxit.models.open_base import Bases
from pinxit.studio.views import cost_text
from pinxit.studio.workspace import ROOM, TOKENIZER, Workspace
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, applied

_NUM_IMAGES = 8
_NOUN = "dog"  # every base model knows it


def measure_next(workspace: Workspace, bases: Bases, device: str) -> bool:
    """Find out one thing that is not known yet; False if there is none.

    Each is tried once, even if it ends the process. Base models other than pocket, which may be
    large, are only opened when there are images to train on.
    """
    for base in workspace.known_bases():
        if base != "pocket" and not any((workspace.folder / "images").iterdir()):
            continue
        costs = {
            workspace.cost_file(base, method, device): method for method in _methods(workspace)
        }
        for file in (workspace.base_folder(base) / TOKENIZER, *costs):
            if file.exists():
                continue
            make_folder(file.parent)
            write_text(file, "")
            model = bases.open(base, device)
            if file in costs:
                write_text(file, f"expected: {_expected_cost(model, base, costs[file])}")
            else:
                _write_tokenizer(model, file)
            return True
    return False


def _methods(workspace: Workspace) -> Sequence[str]:
    return [*workspace.options["methods"]]


def _write_tokenizer(model: Model, file: Path) -> None:
    """Copy the tokenizer of the first text encoder that shows its tokens."""
    for encoder in [*model.text_encoders.values()][:1]:
        write_text(file.with_name(ROOM), str(encoder.room))
        write_text(file, encoder.backend.to_str())


def _expected_cost(model: Model, base: str, method: str) -> str:
    """What a training with the default settings would take, as its memory plan predicts it."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(_NUM_IMAGES):
            color = (number, 0, 0)
            image = Image.new("RGB", (model.default_size, model.default_size), color)
            image.save(Path(name, f"{number}.png"))
        values = {"images": name, "token": "<cost>", "class_noun": _NOUN, "base": base}
        recipe = Recipe.model_validate({**values, "method": {"name": method}})
        images = recipe.read_images()
        plan = TrainingPlan.of(recipe, model, len(images))
        class_images = tuple(images) if plan.class_images.count else ()
        session = TrainingSession(model, [ConceptTrainer(model, plan, images, class_images)])
        try:
            with applied(model, session.changes):
                memory = session.plan_memory(session.next_batch(), session.conditioner())
        except RunError as error:  # it does not fit
            return error.message
    return cost_text(plan.steps, memory.seconds, memory.description(""))
