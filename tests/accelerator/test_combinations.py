"""Every family, method and number format trains, resumes, previews and generates on a device."""

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pinxit import registry
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.generation.schedulers import SCHEDULERS
from pinxit.models.model import Model, Precision
from pinxit.models.open_base import open_base
from pinxit.reports.comparison import evaluate
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs.events import Preview
from pinxit.runs.many import train_many
from pinxit.runs.run import Run, train_run
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult
from tests.accelerator.conftest import DEVICE, Open
from tests.contracts.test_controls import save_controlnet
from tests.seeing import save_seeing

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
METHODS: dict[str, dict[str, Any]] = {
    "textual-inversion": {"num_vectors": 2},
    "lora": {"layers": "all", "placeholder": "new-embedding", "train_text_encoder": True},
    "dreambooth": {"class_images": 2, "train_text_encoder": True},
}
FAMILIES = ("nano", *registry.names("families"))
PROMPT = "a red <zwx> on the beach"
MakeRecipe = Callable[..., Recipe]

pytestmark = pytest.mark.accelerator
families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES]
)
precisions = pytest.mark.parametrize("precision", PRECISIONS)


def generated(
    model: Model, concepts: tuple[Path, ...] = (), **options: Any
) -> list[GeneratedImage]:
    request = {"prompt": PROMPT, "steps": 2, "num_images": 2, "guidance_scale": 2.0, **options}
    images = generate_images(model, GenerationRequest.model_validate(request), concepts)
    assert {image.latents.device.type for image in images} == {DEVICE}
    assert all(image.latents.isfinite().all() for image in images)
    return images


def train_with_a_stop(model: Model, recipe: Recipe, folder: Path) -> Run:
    """Train a run that is stopped after its first step and continued."""
    with closing(Run.create(folder, recipe).train(model)) as events:
        next(event for event in events if isinstance(event, StepResult))
    run = Run.open(folder)
    assert run.state.saved_step == 1
    events = list(run.train(model))
    losses = [event.loss for event in events if isinstance(event, StepResult)]
    assert losses and all(map(math.isfinite, losses))
    assert any(isinstance(event, Preview) for event in events)
    return run


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@families
def test_a_base_model_in_few_bits(
    open_on_device: Open, recipe: MakeRecipe, tmp_path: Path, family: str, precision: Precision
) -> None:
    """Weights are computed again on the device, in bf16."""
    model = open_on_device(family, precision)
    method = {"name": "lora", "class_images": 0, "placeholder": "rare-token"}
    run = train_with_a_stop(model, recipe(model, method, preview_every=2), tmp_path / "run")
    generated(model, (run.folder,))
    weights = list(model.networks["denoiser"].parameters())
    assert {weight.device.type for weight in weights} == {DEVICE}
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.bfloat16}
    assert not all(weight.is_floating_point() for weight in weights)


@precisions
@pytest.mark.parametrize("method", METHODS)
@families
def test_training_and_generation(
    open_on_device: Open,
    recipe: MakeRecipe,
    tmp_path: Path,
    family: str,
    method: str,
    precision: Precision,
) -> None:
    model = open_on_device(family, precision)
    assert (model.device.type, model.placement.precision) == (DEVICE, precision)
    options = {"steps": 3, "preview_every": 3, "checkpoint_every": 1}
    settings = recipe(model, {"name": method, **METHODS[method]}, **options)
    run = train_with_a_stop(model, settings, tmp_path / "run")
    with_concept = generated(model, (run.folder,))
    without = generated(model)
    assert not torch.equal(with_concept[0].latents, without[0].latents)
    assert torch.equal(with_concept[0].latents, generated(model, (run.folder,))[0].latents)


@precisions
@families
def test_transfer(open_on_device: Open, tmp_path: Path, family: str, precision: Precision) -> None:
    model = open_on_device(family, precision)
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(image)
    Image.linear_gradient("L").resize((32, 32)).save(mask)
    controls: list[dict[str, Any]] = [
        {"name": "img2img", "image": image},
        {"name": "mask", "image": image, "mask": mask},
    ]
    if "queries-keys" in model.layer_groups:
        controls += [{"name": name, "image": image} for name in ("inversion", "masactrl")]
        controls.append({"name": "same-seed", "source_prompt": "a cat"})
    if hasattr(model.networks["denoiser"], "up_blocks"):
        net = str(save_controlnet(model, tmp_path / "net"))
        controls.append({"name": "controlnet", "image": image, "weights": net, "edges": True})
    plain = generated(model)
    for control in controls:
        result = generated(model, controls=[control])
        assert not torch.equal(result[0].latents, plain[0].latents) or control["name"] == "mask"


@families
def test_losses_are_those_of_the_cpu(
    open_on_device: Open,
    bases: Callable[[str], Path],
    recipe: MakeRecipe,
    tmp_path: Path,
    family: str,
) -> None:
    cpu = open_base(bases(family), "cpu", "fp32")
    method = {"name": "lora", **METHODS["lora"]}
    losses = [
        [step.loss for step in train_run(model, recipe(model, method), tmp_path / kind).state.steps]
        for kind, model in (("cpu", cpu), ("device", open_on_device(family, "fp32")))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("adapter", ["dora", "loha", "lokr", "oft"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kinds_of_adapter(
    open_on_device: Open, recipe: MakeRecipe, tmp_path: Path, adapter: str, precision: Precision
) -> None:
    model = open_on_device("stable-diffusion-1", precision)
    method = {"name": "lora", "adapter": adapter, "layers": "all", "rank": 2}
    run = train_run(model, recipe(model, method), tmp_path / "run")
    assert all(math.isfinite(step.loss) for step in run.state.steps)
    generated(model, (Path(f"{run.folder}:0.5"),))


def test_options_of_training(open_on_device: Open, recipe: MakeRecipe, tmp_path: Path) -> None:
    model = open_on_device("stable-diffusion-2", "fp16")
    images = tmp_path / "masked"
    images.mkdir()
    for number, size in enumerate([(40, 48), (64, 32)]):
        image = Image.effect_noise(size, 60).convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(size))
        image.save(images / f"{number}.png")
    options = {"masks": "alpha", "min_snr_gamma": 5.0, "clip_skip": 2, "steps": 4}
    options |= {"early_stop": 0.05, "validate_every": 1, "images": images, "save_every": 1}
    run = train_run(
        model, recipe(model, {"name": "dreambooth", "class_images": 2}, **options), tmp_path / "run"
    )
    assert run.finished
    assert len(run.state.validation_losses) >= 2


def test_several_concepts_in_one_batch(
    open_on_device: Open, recipe: MakeRecipe, tmp_path: Path
) -> None:
    model = open_on_device("stable-diffusion-xl", "bf16")
    for method in METHODS:
        names = ("<zwx>", "<qvj>")
        runs = [
            Run.create(
                tmp_path / method / name,
                recipe(model, {"name": method, **METHODS[method]}, token=name),
            )
            for name in names
            if method != "dreambooth"
        ]
        for _ in train_many(model, runs):
            pass
        assert all(run.finished for run in runs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(open_on_device: Open, scheduler: str, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "image.png")
    model = open_on_device("stable-diffusion-1", "fp32")
    cpu = open_base(model.name, "cpu", "fp32")
    for options in ({}, {"init_image": tmp_path / "image.png", "denoising_strength": 0.5}):
        request = {"scheduler": scheduler, "steps": 4, **options}
        ours, theirs = (
            generate_images(one, GenerationRequest.model_validate({"prompt": "a dog", **request}))[
                0
            ]
            for one in (model, cpu)
        )
        assert torch.allclose(ours.latents.cpu(), theirs.latents, rtol=1e-3, atol=1e-3)


def test_weights_in_long_prompts(open_on_device: Open) -> None:
    model = open_on_device("stable-diffusion-xl", "bf16")
    prompt = "a red dog on the beach in the style of a painting, " * 8
    plain, weighted = (
        generated(model, prompt=text, negative_prompt="a (cat:1.5)")[0].latents
        for text in (prompt, f"{prompt} (toy:1.3)")
    )
    assert not torch.equal(plain, weighted)


def test_evaluation(open_on_device: Open, recipe: MakeRecipe, tmp_path: Path) -> None:
    model = open_on_device("stable-diffusion-3", "bf16")
    run = train_run(model, recipe(model, "textual-inversion"), tmp_path / "run")
    judges = {}
    for kind in ("dino", "clip"):
        (tmp_path / kind).mkdir()
        judges[f"{kind}_model"] = str(save_seeing(kind, tmp_path / kind))
    settings = EvaluationSettings(prompts="pocket-styles", num_images=2, steps=1, **judges)
    results = evaluate([run.folder], tmp_path / "out", lambda _: model, lambda _: None, settings)
    assert (tmp_path / "out" / "report.html").is_file()
    assert results
