"""What every method there is must keep to, on the nano base and on every family's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import injected
from pinxit.concepts.concept import Concept
from pinxit.generation.generate import Request, paint
from pinxit.images.folder import read_pictures
from pinxit.models.model import Model, Precision, open_base
from pinxit.models.text_encoder import Reading
from pinxit.runs.folder import Saved
from pinxit.runs.run import Run, teach
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step, objective, train

METHODS = registry.names("methods")
FAMILIES = registry.names("families")
later = [pytest.param(family, marks=pytest.mark.long) for family in FAMILIES]
on_every_base = pytest.mark.parametrize("model", ["nano", *FAMILIES], indirect=True)
on_every_base_later = pytest.mark.parametrize("model", ["nano", *later], indirect=True)
# Knobs that make a method touch more of the model than its defaults do.
DEEPER: dict[str, dict[str, object]] = {
    "dreambooth": {"train_text_encoder": True, "prior_pictures": 3},
    "lora": {
        "train_text_encoder": True,
        "prior_pictures": 3,
        "layers": "transformer",
        "word": "new",
    },
    "textual-inversion": {"vectors": 3, "captions": True},
}


@pytest.fixture
def model(request: pytest.FixtureRequest, opened: Callable[[str], Model]) -> Model:
    return opened(request.param)


def recipe_for(method: str, pictures: Path, **changed: object) -> Recipe:
    knobs = {"name": method, **DEEPER.get(method, {})}
    values = {"method": knobs, "pictures": pictures, "token": "<mytoy>", "class_noun": "toy"}
    small = {"steps": 4, "batch_size": 2, "preview_every": 0, "checkpoint_every": 100}
    return Recipe.model_validate({**values, **small, **changed})


def lesson_for(model: Model, recipe: Recipe) -> Lesson:
    pictures = read_pictures(recipe.pictures)
    recipe = recipe.settled(model, len(pictures))
    for _ in recipe.method.prepare(model, recipe.subject):
        pass
    return Lesson.of(model, recipe, pictures)


def weights_of(model: Model) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, network in model.networks.items()
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_eject_restores_to_the_last_bit(method: str, model: Model, pictures: Path) -> None:
    before = weights_of(model)
    kept = {name: tensor.detach().clone() for name, tensor in before.items()}
    lesson = lesson_for(model, recipe_for(method, pictures, rate=0.1))
    for _ in train(lesson):
        assert model.words
    after = weights_of(model)
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert tensor is before[name]
        assert torch.equal(tensor, kept[name])
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert not model.words


@pytest.mark.parametrize("method", METHODS)
@on_every_base_later
def test_eject_happens_whatever_happens(method: str, model: Model, pictures: Path) -> None:
    before = weights_of(model)
    lesson = lesson_for(model, recipe_for(method, pictures))
    with pytest.raises(KeyboardInterrupt), injected(model, lesson.adapters):
        assert model.words
        raise KeyboardInterrupt
    assert all(tensor is before[name] for name, tensor in weights_of(model).items())
    assert not model.words


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@on_every_base_later
def test_the_loss_falls(method: str, model: Model, pictures: Path) -> None:
    rate = 1e-2 if method == "textual-inversion" else 1e-3
    lesson = lesson_for(model, recipe_for(method, pictures, steps=25, batch_size=4, rate=rate))

    def loss() -> float:
        """Over the same samples each time, which are not those of the steps."""
        with torch.no_grad(), injected(model, lesson.adapters):
            drawn = [lesson.batches(10_000 + n)[0] for n in range(8)]
            errors = [objective(model, batch, lesson.tell()) for batch in drawn]
            return float(torch.stack(errors).sum() / len(errors))

    before = loss()
    steps = list(train(lesson))
    assert [step.number for step in steps] == list(range(1, 26))
    assert loss() < before


@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_a_concept_survives_its_file(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = teach(model, recipe_for(method, pictures), tmp_path / "run")
    concept = run.concept
    concept.save(tmp_path / "copy.safetensors")
    again = Concept.load(tmp_path / "copy.safetensors")
    assert again.provenance == concept.provenance
    assert concept.provenance.base_hash == model.hash
    assert Recipe.model_validate_json(run.recipe.model_dump_json()) == run.recipe
    asked = Request(prompt="a photo of <mytoy> on the beach", steps=3)
    painted = [paint(model, asked, [one])[0].latents for one in (concept, again, run.folder)]
    assert torch.equal(painted[0], painted[1])
    assert torch.equal(painted[0], painted[2])
    assert not torch.equal(painted[0], paint(model, asked)[0].latents)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["nano", "stable-diffusion-xl"], indirect=True)
def test_resumed_after_any_step_it_is_the_same_run(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    whole = teach(model, recipe_for(method, pictures), tmp_path / "whole")
    for stop in range(4):
        run = Run.create(tmp_path / f"stopped-{stop}", recipe_for(method, pictures))
        learning = run.learn(model)
        for event in learning:
            if (isinstance(event, Step) and event.number == stop) or stop == 0:
                learning.close()
        for event in (again := Run.open(run.folder) if stop else run).learn(model):
            assert not isinstance(event, Step) or event.number > stop
        for number, part in enumerate(whole.concept.parts):
            for name, tensor in part.tensors.items():
                assert torch.equal(tensor, again.concept.parts[number].tensors[name])
        assert losses(again) == losses(whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["stable-diffusion-1"], indirect=True)
def test_what_is_learned_from_is_read_literally(method: str, model: Model, pictures: Path) -> None:
    (pictures / "0.txt").write_text("a (red:1.5) toy")
    recipe = recipe_for(method, pictures, clip_skip=2)
    knobs = recipe.method.model_copy(update={"captions": True})
    lesson = lesson_for(model, recipe.model_copy(update={"method": knobs}))
    caption = next(prompt for prompt in lesson.learners[0].samples.prompts if "(" in prompt)
    assert caption == "a (red:1.5) <mytoy>"
    with injected(model, lesson.adapters):
        told = lesson.tell()([caption]).states
        assert torch.equal(told, model.condition([caption], Reading(clip_skip=2)).states)
        for reading in (Reading(), Reading(weights=True, clip_skip=2)):
            assert not torch.allclose(told, model.condition([caption], reading).states, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@on_every_base_later
def test_the_seed_decides(method: str, model: Model, pictures: Path, tmp_path: Path) -> None:
    runs = [
        teach(model, recipe_for(method, pictures, seed=seed), tmp_path / f"run-{number}")
        for number, seed in enumerate((0, 0, 1))
    ]
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0]) != losses(runs[2])


@pytest.mark.parametrize("method", METHODS)
@on_every_base_later
def test_ctrl_c_in_the_consumer_saves(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", recipe_for(method, pictures))
    learning = run.learn(model)
    with pytest.raises(KeyboardInterrupt):
        for event in learning:
            if isinstance(event, Step) and event.number == 2:
                learning.throw(KeyboardInterrupt())
    assert run.concept.provenance.steps == 2
    assert not model.words
    events = list(Run.open(run.folder).learn(model))
    assert [event.number for event in events if isinstance(event, Step)] == [3, 4]
    assert isinstance(events[-1], Saved)


def losses(run: Run) -> list[object]:
    return [entry["losses"] for entry in run.journal()]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_in_half_precision_the_base_is_kept_and_computed_in_halves(
    method: str, family: str, precision: Precision, bases: Callable[[str], Path], pictures: Path
) -> None:
    half = open_base(bases(family), precision=precision)
    before = {name: tensor.clone() for name, tensor in weights_of(half).items()}
    assert {tensor.dtype for tensor in before.values()} == {half.placement.dtype}
    lesson = lesson_for(half, recipe_for(method, pictures, steps=2))
    start = [weight.detach().clone() for learner in lesson.learners for weight in learner.weights]
    assert len(list(train(lesson))) == 2
    after = weights_of(half)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with injected(half, lesson.adapters):
        assert paint(half, Request(prompt="<mytoy>", steps=2))[0].latents.isfinite().all()
    moved = [w for learner in lesson.learners for w in learner.weights]
    assert not all(torch.equal(one, other) for one, other in zip(start, moved, strict=True))
