"""Training on a distilled base model with an assistant, and previews on another checkpoint."""

import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

from pinxit.adapters.lora_part import LoraPart
from pinxit.cli import main
from pinxit.errors import RecipeError, RunError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.images.tensors import contact_sheet
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs import preview_base
from pinxit.runs.run import Run, train_run
from pinxit.training.train import StepResult
from tests.short_runs import lora_recipe, stopped_run

LAYER = "layers.0.attention.to_q"


@pytest.fixture
def turbo(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with Z-Image-Turbo, which differs from Z-Image in its weights and its shift."""
    folder = Path(shutil.copytree(bases("z-image"), tmp_path / "turbo"))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    file = next((folder / "transformer").glob("*.safetensors"))
    save_file({n: 1.1 * t for n, t in load_file(file).items()}, file)
    return folder


@pytest.fixture
def assistant(tmp_path: Path) -> Path:
    """A LoRA as the training adapters of Z-Image-Turbo are, with ComfyUI's names."""
    torch.manual_seed(0)
    tensors = {
        f"diffusion_model.{LAYER}.lora_A.weight": torch.randn(2, 16),
        f"diffusion_model.{LAYER}.lora_B.weight": torch.randn(16, 2),
    }
    save_file(tensors, tmp_path / "assistant.safetensors")
    return tmp_path / "assistant.safetensors"


def losses(model: Model, run: Run) -> list[float]:
    return [event.losses[0] for event in run.train(model) if isinstance(event, StepResult)]


def tensors_of(run: Run) -> Mapping[str, torch.Tensor]:
    (part,) = (part for part in run.concept.parts if isinstance(part, LoraPart))
    return part.tensors


@pytest.mark.long
def test_losses_are_with_the_assistant_and_the_result_is_without(
    turbo: Path, assistant: Path, pictures: Path, tmp_path: Path
) -> None:
    """As on a base model into whose weights the assistant is merged, with one that is zero."""
    lora = load_file(assistant)
    save_file({name: torch.zeros_like(t) for name, t in lora.items()}, tmp_path / "zero")
    merged = Path(shutil.copytree(turbo, tmp_path / "merged"))
    file = next((merged / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    down, up = (lora[f"diffusion_model.{LAYER}.lora_{letter}.weight"] for letter in "AB")
    weights[f"{LAYER}.weight"] += up @ down
    save_file(weights, file)
    runs: dict[str, Run] = {}
    results: dict[str, list[float]] = {}
    for name, base, lora_file in (
        ("on", turbo, assistant),
        ("merged", merged, tmp_path / "zero"),
        ("off", turbo, tmp_path / "zero"),
    ):
        recipe = lora_recipe(pictures, assistant=str(lora_file), learning_rate=0.1)
        runs[name] = Run.create(tmp_path / f"run {name}", recipe)
        results[name] = losses(open_base(base), runs[name])
    assert results["on"] == pytest.approx(results["merged"], rel=1e-4)
    assert results["on"] != pytest.approx(results["off"], rel=1e-3)
    tensors = {name: tensors_of(run) for name, run in runs.items()}
    assert tensors["on"].keys() == tensors["off"].keys()
    for name, tensor in tensors["on"].items():
        assert torch.allclose(tensor, tensors["merged"][name], atol=2e-3)
    size, plain_size = (runs[name].folder / "concept.safetensors" for name in ("on", "off"))
    assert abs(size.stat().st_size - plain_size.stat().st_size) < 100


def test_previews_are_without_the_assistant(
    turbo: Path, assistant: Path, pictures: Path, tmp_path: Path
) -> None:
    model = open_base(turbo)
    recipe = lora_recipe(
        pictures, assistant=str(assistant), steps=1, preview_every=1, score_previews=False
    )
    run = train_run(model, recipe, tmp_path / "run")
    request = GenerationRequest(prompt="a photo of a <mytoy>", num_images=4)
    images = [one.image for one in generate_images(model, request, [run.concept])]
    with Image.open(run.state.previews[1]) as preview:
        assert difference(preview, contact_sheet(images)) <= 1
    changed = [one.image for one in generate_images(model, request, [run.concept, assistant])]
    with Image.open(run.state.previews[1]) as preview:
        assert difference(preview, contact_sheet(changed)) > 1


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a value, 0 to 255."""
    extrema = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()
    return max(high for _, high in extrema)  # pyright: ignore[reportGeneralTypeIssues]


def test_a_run_with_an_assistant_resumes_and_checks_its_file(
    turbo: Path, assistant: Path, pictures: Path, tmp_path: Path
) -> None:
    model, recipe = open_base(turbo), lora_recipe(pictures, assistant=f"{assistant}:0.5")
    whole = train_run(model, recipe, tmp_path / "whole")
    stopped = stopped_run(model, recipe, tmp_path / "runs" / "stopped")
    assistant.rename(tmp_path / "runs" / assistant.name)
    shutil.copytree(stopped.folder, tmp_path / "runs" / "copy")
    assert len(losses(model, Run.open(stopped.folder))) == 1
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensor, tensors_of(stopped)[name])
    other = {
        name: tensor + 1 for name, tensor in load_file(tmp_path / "runs" / assistant.name).items()
    }
    save_file(other, tmp_path / "runs" / assistant.name)
    with pytest.raises(RunError, match=r"inputs have changed.*assistant assistant\.safetensors"):
        losses(model, Run.open(tmp_path / "runs" / "copy"))


def test_an_assistant_must_be_a_lora(turbo: Path, pictures: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(1, 24)}, tmp_path / "word.safetensors")
    recipe = lora_recipe(pictures, assistant=str(tmp_path / "word.safetensors"))
    with pytest.raises(RecipeError, match=r"must be a LoRA, but has embedding"):
        losses(open_base(turbo), Run.create(tmp_path / "run", recipe))


@pytest.mark.long
def test_previews_are_generated_on_a_distilled_partner(
    opened: Callable[[str], Model],
    turbo: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = opened("z-image")
    bases: list[str] = []

    def opening(base: str, *others: Any) -> Model:
        bases.append(base)
        return open_base(base, *others)

    monkeypatch.setattr(preview_base, "_open_base", cache(opening))
    options = {"preview_base": str(turbo), "learning_rate": 0.1, "score_previews": False}
    train_run(model, lora_recipe(pictures, **options), tmp_path / "without")
    assert not bases
    run = train_run(model, lora_recipe(pictures, **options, preview_every=3), tmp_path / "run")
    assert bases == [str(turbo)]
    request = GenerationRequest(
        prompt="a photo of a <mytoy>", num_images=4, steps=8, guidance_scale=1
    )
    sheets = {
        name: contact_sheet([one.image for one in generate_images(base, request, [run.concept])])
        for name, base in (("partner", open_base(turbo)), ("own", model))
    }
    with Image.open(run.state.previews[3]) as preview:
        assert difference(preview, sheets["partner"]) <= 1
        assert difference(preview, sheets["own"]) > 1
    assert tensors_of(run).keys() == tensors_of(Run.open(tmp_path / "without")).keys()
    for name, tensor in tensors_of(run).items():
        assert torch.equal(tensor, tensors_of(Run.open(tmp_path / "without"))[name])


def test_a_preview_base_that_does_not_fit_is_refused(
    opened: Callable[[str], Model],
    bases: Callable[[str], Path],
    turbo: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    model, options = opened("z-image"), {"preview_every": 1, "score_previews": False}
    other = lora_recipe(pictures, preview_base=str(bases("flux-1")), **options)
    with pytest.raises(RecipeError, match=r"it is FLUX\.1, but .* is Z-Image"):
        losses(model, Run.create(tmp_path / "other", other))
    method = {"name": "dreambooth", "class_images": 0}
    full = lora_recipe(pictures, preview_base=str(turbo), method=method, **options)
    with pytest.raises(RecipeError, match="full weights cannot be previewed"):
        losses(model, Run.create(tmp_path / "full", full))


def test_a_concept_works_on_all_members_of_its_family(
    bases: Callable[[str], Path],
    turbo: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, run = str(bases("z-image")), tmp_path / "run"
    train_run(open_base(base), lora_recipe(pictures), run)
    typed = ["generate", "a photo of <mytoy>", "--concept", str(run), "--out", str(tmp_path)]
    assert main([*typed, "--base", str(turbo)]) == 0
    assert f"<mytoy> was trained on {base}, not on {turbo}" in capsys.readouterr().err
    assert main(["inspect", str(run)]) == 0
    assert f"base model {base}" in " ".join(capsys.readouterr().out.split())
