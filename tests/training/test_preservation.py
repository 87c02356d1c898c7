"""Preservation of the class without class images: answers of the base model, and pulled weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.errors import RecipeError
from pinxit.models.model import Model
from pinxit.runs.file_names import result_file
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train

METHODS = ("dreambooth", "lora")
on_every_base = pytest.mark.parametrize(
    "model", ["nano", *registry.names("families")], indirect=True
)


@pytest.fixture
def model(request: pytest.FixtureRequest, opened: Callable[[str], Model]) -> Model:
    return opened(getattr(request, "param", "nano"))


def recipe(method: str, pictures: Path, **options: object) -> Recipe:
    table = {"name": method, **options}
    subject = {"method": table, "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    return Recipe.model_validate({**subject, "steps": 4, "batch_size": 2, "preview_every": 0})


def session(model: Model, recipe: Recipe) -> TrainingSession:
    images = recipe.read_images()
    trainer = ConceptTrainer(model, TrainingPlan.of(recipe, model, len(images)), images)
    return TrainingSession(model, [trainer])


def change(session: TrainingSession, origins: list[Tensor]) -> float:
    """The distance of all trained weights from other ones."""
    weights = session.trainers[0].weights
    pairs = zip(weights, origins, strict=True)
    return float(
        torch.stack([(w.detach() - o).float().square().sum() for w, o in pairs]).sum().sqrt()
    )


@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_targets_are_what_the_base_predicts_for_the_class(
    method: str, model: Model, pictures: Path
) -> None:
    options = {"preserve": "base-answer", "train_text_encoder": method == "dreambooth"}
    training = session(model, recipe(method, pictures, **options))
    for step, _ in enumerate(train(training)):  # the adapters are applied and trained here
        (batch,) = training.batches(step)
        assert batch.answers is not None
        assert batch.answers.isnan().all(dim=(1, 2, 3)).tolist() == [True, True, False, False]
        assert set(batch.prompts[2:]) <= {"a photo of a toy", ""}
    (batch,) = training.batches(3)
    noisy = model.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)[2:]
    with torch.no_grad():  # and removed here
        expected = model.denoise(noisy, batch.timesteps[2:], model.condition(batch.prompts[2:]))
    assert batch.answers is not None
    assert torch.allclose(batch.answers[2:], expected, atol=1e-5)


def test_before_training_the_loss_of_the_answers_is_zero(model: Model, pictures: Path) -> None:
    training = session(model, recipe("lora", pictures, preserve="base-answer"))
    training.answer_with_base()
    with torch.no_grad(), applied(model, training.changes):
        losses = training.losses(training.batches(0)[0], training.conditioner())
    assert float(losses[:2].min()) > 1e-3
    assert float(losses[2:].abs().max()) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_has_the_bits_of_a_whole_one(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    for preserve in ("base-answer", "weights"):
        four_steps = recipe(method, pictures, preserve=preserve)
        whole = train_run(model, four_steps, tmp_path / f"whole-{preserve}")
        part = train_run(
            model, four_steps.model_copy(update={"steps": 2}), tmp_path / f"part-{preserve}"
        )
        resumed = Run.open(part.folder, steps=4)
        list(resumed.train(model))
        files = [result_file(run.folder) for run in (whole, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_weights_stay_nearer_to_the_base_the_stronger_the_pull(
    method: str, model: Model, pictures: Path
) -> None:
    distances: list[float] = []
    for strength in (0.0, 20.0):
        options = {"preserve": "weights", "prior_loss_weight": strength}
        training = session(model, recipe(method, pictures, **options))
        origins = [weight.detach().clone() for weight in training.trainers[0].weights]
        for _ in train(training):
            pass
        distances.append(change(training, origins))
    assert 0 < distances[1] < 0.8 * distances[0]


def test_old_recipes_choose_by_the_number_of_class_images(model: Model, pictures: Path) -> None:
    def counts(method: str = "dreambooth", **options: object) -> tuple[int, int]:
        """The number of class images, and of image pools without any."""
        old_recipe = recipe(method, pictures, **options)
        plan = TrainingPlan.of(old_recipe, model, 3)
        again = TrainingPlan.of(plan.recipe, model, 3)
        assert again == plan
        pools = plan.method.image_pools(old_recipe.subject, old_recipe.read_images())
        return plan.class_images.count, len(pools)

    assert counts() == counts(preserve="class-images") == (48, 1)
    assert counts("lora") == (0, 2)
    assert counts("lora", class_images=7) == (7, 1)
    assert counts(class_images=7) == (7, 1)
    assert counts(class_images=0) == counts(preserve="none") == counts(preserve="weights") == (0, 1)
    assert counts(preserve="base-answer") == (0, 2)
    with pytest.raises(RecipeError, match="contradicts 7 class images"):
        counts(preserve="weights", class_images=7)
    with pytest.raises(RecipeError, match="contradicts 0 class images"):
        counts(preserve="class-images", class_images=0)
