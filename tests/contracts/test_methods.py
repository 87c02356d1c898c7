"""Contract of training methods: every method, on the nano base model and on every family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.concepts.read import read_concept, write_concept
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.model import Model, Precision
from pinxit.models.open_base import open_base
from pinxit.models.text_encoder import PromptParsing
from pinxit.runs.events import Finished
from pinxit.runs.run import Run, train_run
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, denoising_losses, train
from tests.short_runs import concept_trainer

METHODS = registry.names("methods")
FAMILIES = registry.names("families")
long_families = [pytest.param(family, marks=pytest.mark.long) for family in FAMILIES]
on_every_base = pytest.mark.parametrize("model", ["nano", *FAMILIES], indirect=True)
on_every_base_if_long = pytest.mark.parametrize("model", ["nano", *long_families], indirect=True)
# Options with which a method changes more of the model than by default.
OPTIONS: dict[str, dict[str, object]] = {
    "custom-diffusion": {"class_images": 3},
    "dreambooth": {"train_text_encoder": True, "class_images": 3},
    "lora": {
        "train_text_encoder": True,
        "class_images": 3,
        "layers": "transformer",
        "placeholder": "new-embedding",
    },
    "textual-inversion": {"num_vectors": 3, "captions": True},
}


@pytest.fixture(autouse=True)
def without_embeddings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family in which no embedding can be trained has only the other methods."""
    values = request.node.callspec.params
    if "z-image" in values.values():
        if values["method"] in ("custom-diffusion", "textual-inversion"):
            pytest.skip("a language model reads the prompts: see tests/models/test_families.py")
        monkeypatch.setitem(OPTIONS, "lora", {**OPTIONS["lora"], "placeholder": "rare-token"})


@pytest.fixture
def model(request: pytest.FixtureRequest, opened: Callable[[str], Model]) -> Model:
    return opened(request.param)


def recipe_for(method: str, pictures: Path, **changed: object) -> Recipe:
    options = {"name": method, **OPTIONS.get(method, {})}
    subject = {"method": options, "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    schedule = {"steps": 4, "batch_size": 2, "preview_every": 0, "checkpoint_every": 100}
    return Recipe.model_validate({**subject, **schedule, **changed})


def session_for(model: Model, recipe: Recipe) -> TrainingSession:
    return TrainingSession(model, [concept_trainer(model, recipe)])


def weights_of(model: Model) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, network in model.networks.items()
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_training_leaves_the_model_unchanged(method: str, model: Model, pictures: Path) -> None:
    before = weights_of(model)
    copies = {name: tensor.detach().clone() for name, tensor in before.items()}
    session = session_for(model, recipe_for(method, pictures, learning_rate=0.1))
    for _ in train(session):
        assert model.placeholders
    after = weights_of(model)
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert tensor is before[name]
        assert torch.equal(tensor, copies[name])
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert not model.placeholders


@pytest.mark.parametrize("method", METHODS)
@on_every_base_if_long
def test_adapters_are_removed_after_an_exception(method: str, model: Model, pictures: Path) -> None:
    before = weights_of(model)
    session = session_for(model, recipe_for(method, pictures))
    with pytest.raises(KeyboardInterrupt), applied(model, session.adapters):
        assert model.placeholders
        raise KeyboardInterrupt
    assert all(tensor is before[name] for name, tensor in weights_of(model).items())
    assert not model.placeholders


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@on_every_base_if_long
def test_the_loss_falls(method: str, model: Model, pictures: Path) -> None:
    learning_rate = 1e-2 if method == "textual-inversion" else 1e-3
    recipe = recipe_for(method, pictures, steps=25, batch_size=4, learning_rate=learning_rate)
    session = session_for(model, recipe)

    def loss() -> float:
        """The mean loss of samples that are the same each time, and not those of the steps."""
        with torch.no_grad(), applied(model, session.adapters):
            batches = [session.batches(10_000 + n)[0] for n in range(8)]
            losses = [denoising_losses(model, b, session.conditioner()) for b in batches]
            return float(torch.stack(losses).sum() / len(losses))

    before = loss()
    steps = list(train(session))
    assert [step.number for step in steps] == list(range(1, 26))
    assert loss() < before


@pytest.mark.parametrize("method", METHODS)
@on_every_base
def test_a_concept_survives_its_file(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe_for(method, pictures), tmp_path / "run")
    concept = run.concept
    write_concept(concept, tmp_path / "copy.safetensors")
    copy = read_concept(tmp_path / "copy.safetensors")
    assert copy.provenance == concept.provenance
    assert concept.provenance.base_hash == model.hash
    assert Recipe.model_validate_json(run.recipe.model_dump_json()) == run.recipe
    request = GenerationRequest(prompt="a photo of <mytoy> on the beach", steps=3)
    latents = [
        generate_images(model, request, [source])[0].latents
        for source in (concept, copy, run.folder)
    ]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])
    assert not torch.equal(latents[0], generate_images(model, request)[0].latents)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model", "stops"),
    [("nano", (0, 1, 3)), ("stable-diffusion-xl", (2,))],  # the second has two text encoders
    indirect=["model"],
    ids=["nano", "xl"],
)
def test_a_continued_run_is_the_same_after_any_step(
    method: str, model: Model, stops: tuple[int, ...], pictures: Path, tmp_path: Path
) -> None:
    whole = train_run(model, recipe_for(method, pictures), tmp_path / "whole")
    for stop in stops:
        run = Run.create(tmp_path / f"stopped-{stop}", recipe_for(method, pictures))
        training = run.train(model)
        for event in training:
            if (isinstance(event, StepResult) and event.number == stop) or stop == 0:
                training.close()
        continued = Run.open(run.folder) if stop else run
        for event in continued.train(model):
            assert not isinstance(event, StepResult) or event.number > stop
        for part, other in zip(whole.concept.parts, continued.concept.parts, strict=True):
            assert part.tensors.keys() == other.tensors.keys()
            assert all(
                torch.equal(part.tensors[name], other.tensors[name]) for name in part.tensors
            )
        assert losses(continued) == losses(whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["stable-diffusion-1"], indirect=True)
def test_brackets_in_captions_are_not_weights(method: str, model: Model, pictures: Path) -> None:
    (pictures / "0.txt").write_text("a (red:1.5) toy")
    recipe = recipe_for(method, pictures, clip_skip=2)
    method_options = recipe.method.model_copy(update={"captions": True})
    session = session_for(model, recipe.model_copy(update={"method": method_options}))
    caption = next(prompt for prompt in session.trainers[0].samples.prompts if "(" in prompt)
    assert caption == "a (red:1.5) <mytoy>"
    with applied(model, session.adapters):
        states = session.conditioner()([caption]).states
        assert torch.equal(states, model.condition([caption], PromptParsing(clip_skip=2)).states)
        for parsing in (PromptParsing(), PromptParsing(weights=True, clip_skip=2)):
            other_states = model.condition([caption], parsing).states
            assert not torch.allclose(states, other_states, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@on_every_base_if_long
def test_equal_seeds_give_equal_losses(method: str, model: Model, pictures: Path) -> None:
    first, same, other = (
        [step.losses for step in train(session_for(model, recipe))]
        for recipe in (recipe_for(method, pictures, steps=2, seed=seed) for seed in (0, 0, 1))
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize("method", METHODS)
@on_every_base_if_long
def test_ctrl_c_in_the_consumer_saves(
    method: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", recipe_for(method, pictures))
    training = run.train(model)
    with pytest.raises(KeyboardInterrupt):
        for event in training:
            if isinstance(event, StepResult) and event.number == 2:
                training.throw(KeyboardInterrupt())
    assert run.concept.provenance.steps == 2
    assert not model.placeholders
    events = list(Run.open(run.folder).train(model))
    assert [event.number for event in events if isinstance(event, StepResult)] == [3, 4]
    assert isinstance(events[-1], Finished)


def losses(run: Run) -> list[object]:
    return [entry.losses for entry in run.state.steps]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_training_in_half_precision(
    method: str, family: str, precision: Precision, bases: Callable[[str], Path], pictures: Path
) -> None:
    half = open_base(bases(family), precision=precision)
    before = {name: tensor.clone() for name, tensor in weights_of(half).items()}
    # T5 exceeds the range of fp16.
    dtypes = {name.startswith("denoiser."): tensor.dtype for name, tensor in before.items()}
    assert dtypes[True] == half.placement.dtype
    assert set(dtypes.values()) <= {half.placement.dtype, torch.bfloat16}
    session = session_for(half, recipe_for(method, pictures, steps=2))
    weights = [weight for trainer in session.trainers for weight in trainer.weights]
    initial = [weight.detach().clone() for weight in weights]
    assert len(list(train(session))) == 2
    after = weights_of(half)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with applied(half, session.adapters):
        (image,) = generate_images(half, GenerationRequest(prompt="<mytoy>", steps=2))
        assert image.latents.isfinite().all()
    assert not all(map(torch.equal, initial, weights))
