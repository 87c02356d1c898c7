"""Each control: what its results must equal, and what they must differ from."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.errors import ModelError, RequestError
from pinxit.generation.canny import canny_edges
from pinxit.generation.control import (
    ChangedWeights,
    SamplingContext,
    SamplingProgress,
    changed_weights,
    without_tokens,
)
from pinxit.generation.controls.inversion import Inversion
from pinxit.generation.paired import ddim_inversion
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import generate_images, sample_images
from pinxit.generation.schedulers import SCHEDULERS, Sampler
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model
from pinxit.models.noise_schedule import Diffusion, Flow, Schedule
from pinxit.models.open_base import open_base
from pinxit.progress import Notice, Progress
from pinxit.reports.demo import transfer_styles
from pinxit.reports.entrant import Entrant
from pinxit.runs.run import train_run
from pinxit.training.recipe import Recipe

ALPHAS_CUMPROD = torch.linspace(0.999, 0.01, 1000)
PROMPT = "a red dog on the beach"
T = TypeVar("T")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (32, 32), "teal")
    ImageDraw.Draw(image).ellipse((8, 6, 24, 28), fill="orange")
    image.save(tmp_path / "given.png")
    return tmp_path / "given.png"


def latents(model: Model, *controls: dict[str, object], **changed: object) -> torch.Tensor:
    options: dict[str, object] = {"prompt": PROMPT, "steps": 8, "controls": controls}
    return generate_images(model, GenerationRequest.model_validate({**options, **changed}))[
        0
    ].latents


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_img2img_equals_an_initial_image(model: Model, picture: Path) -> None:
    for preserve in (0.2, 0.7):
        result = latents(model, {"name": "img2img", "image": picture, "preserve": preserve})
        assert torch.equal(
            result, latents(model, init_image=picture, denoising_strength=1 - preserve)
        )
        assert not torch.equal(result, latents(model, init_image=picture, denoising_strength=0.5))


@pytest.mark.parametrize(
    ("scheduler", "noise"),
    [
        ("ddim", "inverted"),
        ("ddim", "random"),
        ("euler-a", "inverted"),
        *(pytest.param(name, "inverted", marks=pytest.mark.long) for name in SCHEDULERS),
    ],
)
def test_inversion_keeps_the_source_image(
    model: Model, picture: Path, scheduler: str, noise: str
) -> None:
    def halfway_and_end(prompt: str, preserve: float) -> list[torch.Tensor]:
        control = {
            "name": "inversion",
            "image": picture,
            "preserve": preserve,
            "initial_noise": noise,
        }
        options = {"prompt": prompt, "controls": [{**control, "source_prompt": PROMPT}], "steps": 8}
        request = GenerationRequest.model_validate({**options, "scheduler": scheduler})
        *steps, result = sample_images(model, request)
        assert isinstance(result, GeneratedImage)
        stages = [step.latents[0] for step in steps if isinstance(step, SamplingProgress)]
        inversion_steps = len(set(timesteps(model, scheduler))) if noise == "inverted" else 0
        stages = stages[inversion_steps:]
        return [stages[len(stages) // 2 - 1], result.latents]

    source = model.encode(to_pixels(Image.open(picture), 32, 32)).mean[0]
    halfway, end = halfway_and_end("a blue cat", 1)
    assert distance(end, source) < 1e-5
    # With the source prompt, the first half follows the source image; without it, it does not.
    same, end = halfway_and_end(PROMPT, 0.5)
    assert distance(same, halfway) < 1e-3
    assert distance(end, source) > 0.01
    other, _ = halfway_and_end("a blue cat", 0.5)
    assert distance(other, halfway) > 0.003


@pytest.mark.parametrize(
    ("changed", "expected"), [("none", "inverted"), ("style", "normalized"), ("object", "random")]
)
def test_the_noise_to_start_from(
    model: Model, picture: Path, changed: ChangedWeights, expected: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    context = SamplingContext(
        model, "ddim", 4, (32, 32), (5,), [generator], model.condition([PROMPT]), 1, 2, changed
    )

    def first(preserve: float, noise: str | None = None) -> torch.Tensor:
        generator.manual_seed(5)
        control = {"image": picture, "preserve": preserve, "initial_noise": noise}
        hooks = returned(Inversion.model_validate(control).prepare(context))
        latents = hooks.initial_latents(context.make_sampler())
        assert latents is not None
        return latents

    assert torch.equal(first(0.5), first(0.5, expected))
    noise = {"random", "inverted", "normalized"} - {expected}
    assert all(not torch.equal(first(0.5), first(0.5, other)) for other in noise)
    # The mean of a channel is what the noise has of the colours of the image.
    std, mean = torch.std_mean(first(0.5, "normalized"), (2, 3))
    assert mean.abs().max() < 1e-5
    assert (std - 1).abs().max() < 1e-5
    assert torch.std_mean(first(0.5, "inverted"), (2, 3))[1].abs().max() > 0.01


def test_normalized_noise_preserves_the_whole_image_as_well(model: Model, picture: Path) -> None:
    def end(noise: str, preserve: float) -> torch.Tensor:
        source = {"image": picture, "source_prompt": PROMPT}
        control: dict[str, object] = {"name": "inversion", "initial_noise": noise, **source}
        return latents(model, {**control, "preserve": preserve}, prompt="a blue cat")

    source = model.encode(to_pixels(Image.open(picture), 32, 32)).mean[0]
    assert distance(end("normalized", 1), source) < 1e-5
    # The first steps copy the source image under the same noise, not under its own.
    assert distance(end("normalized", 0.8), end("inverted", 0.8)) > 1e-3


@pytest.mark.parametrize(
    ("noise", "count", "expected"),
    [("inverted", 2, True), ("normalized", 2, True), ("random", 2, False), ("inverted", 1, False)],
)
def test_images_that_will_be_alike_are_announced(
    model: Model, picture: Path, noise: str, count: int, expected: bool
) -> None:
    control = {"name": "inversion", "image": picture, "initial_noise": noise}
    options = {"prompt": "a blue cat", "steps": 2, "controls": [control], "num_images": count}
    events = [*sample_images(model, GenerationRequest.model_validate(options))]
    images = [event.image.tobytes() for event in events if isinstance(event, GeneratedImage)]
    assert (len(set(images)) < len(images)) == expected
    texts = [event.message for event in events if isinstance(event, Notice)]
    assert any("the 2 images will be alike" in text for text in texts) == expected


def returned(generator: Generator[object, None, T]) -> T:
    """Run a generator to its end; returns its return value."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def timesteps(model: Model, scheduler: str) -> list[float]:
    return Sampler(
        model.schedule, scheduler, model.scheduler_config, 8, (4, 8, 8)
    ).timesteps.tolist()


@pytest.mark.long
@pytest.mark.parametrize("family", ["pocket", "stable-diffusion-3"])
def test_inverted_noise_leads_back_to_the_image(
    opened: Callable[[str], Model], picture: Path, family: str
) -> None:
    # This needs a trained network, or a tiny rectified flow, whose trajectories are nearly lines.
    model = open_base() if family == "pocket" else opened(family)
    scheduler = "ddim" if model.schedule.kind == "diffusion" else "euler"
    conditioning = model.condition([PROMPT])
    size = (model.default_size, model.default_size)
    context = SamplingContext(
        model, scheduler, 20, size, (0,), [torch.Generator()], conditioning, 1, 2
    )

    def denoise(prompt: str, noise: torch.Tensor) -> torch.Tensor:
        sampler, rows = context.make_sampler(), noise
        for time in sampler.timesteps:
            prediction = model.denoise(rows, time, model.condition([prompt]))
            rows = sampler.step(prediction, time, rows, [])
        return rows

    clean = model.encode(context.pixels(picture)).mean
    trajectory = context.trajectory(*returned(ddim_inversion(context, picture)))
    assert len(trajectory) == 21
    assert torch.equal(trajectory[-1], clean)
    error = distance(denoise(PROMPT, trajectory[0]), clean)
    print(f"{family}: error {error:.4f} after 20 steps of inversion and 20 of sampling")
    assert error < 0.12
    random = torch.randn_like(trajectory[0])
    assert distance(denoise(PROMPT, random), clean) > 10 * error


@pytest.mark.parametrize(
    "schedule",
    [Diffusion(ALPHAS_CUMPROD), Diffusion(ALPHAS_CUMPROD, "v_prediction"), Flow(3.0)],
    ids=["noise", "velocity", "flow"],
)
def test_schedules_separate_image_and_noise(schedule: Schedule) -> None:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([3, 400, 998])
    noisy = schedule.add_noise(clean, noise, times)
    parts = schedule.predict_clean_and_noise(noisy, schedule.target(clean, noise, times), times)
    assert distance(parts[0], clean) < 1e-4
    assert distance(parts[1], noise) < 1e-4


def test_same_seed_with_the_same_prompt_changes_nothing(model: Model) -> None:
    result = latents(model, {"name": "same-seed", "preserve": 1, "source_prompt": PROMPT})
    assert distance(result, latents(model)) < 1e-4
    whole, half, free = (
        latents(
            model,
            {"name": "same-seed", "preserve": preserve, "source_prompt": PROMPT},
            prompt="a blue cat",
        )
        for preserve in (1, 0.5, 0)
    )
    plain = latents(model)
    assert distance(whole, plain) < 1e-4
    assert 1e-3 < distance(half, plain) < 0.9 * distance(free, plain)


def test_prompts_without_tokens() -> None:
    def trained(token: str, noun: str) -> Concept:
        provenance = Provenance(token, noun, "", "", "", 1, {}, "")
        return Concept(
            (EmbeddingAdapter(token, noun, {"text": torch.ones(1, 2)}).part(),), provenance, "mine"
        )

    toy, style = trained("<toy>", "plush toy"), trained("<hue>", "painting")
    assert without_tokens("a <toy> in the style of <hue>", [toy, style]) == "a plush toy"
    assert (
        without_tokens("A <HUE> of a dog, in the style of <hue>", [style]) == "A painting of a dog"
    )
    assert without_tokens("a mine of toys", []) == "a mine of toys"


def test_what_a_prompt_calls_concepts_that_change_weights() -> None:
    def trained(token: str, *, lora: bool) -> Concept:
        provenance = Provenance(token, "dog", "", "", "", 1, {}, "")
        word = EmbeddingAdapter(token, "dog", {"text": torch.ones(1, 2)}).part()
        weights = LoraPart("denoiser", "lora", {})
        return Concept((word, weights) if lora else (word,), provenance)

    toy, hue = trained("<toy>", lora=True), trained("<hue>", lora=True)
    word = trained("<word>", lora=False)
    assert changed_weights("a <word> in the snow", [word]) == "none"
    assert changed_weights("a dog in the style of <hue>", [hue]) == "style"
    assert changed_weights("a <word>, in the style of <HUE>", [hue, word]) == "style"
    assert changed_weights("a dog", [hue]) == "style"
    assert changed_weights("a photo of <toy>", [toy]) == "object"
    assert changed_weights("a <toy> in the style of <hue>", [toy, hue]) == "object"
    assert changed_weights("a <toy> in the style of <toy>", [toy]) == "object"


def test_edges_are_thin_and_in_the_right_place() -> None:
    levels = np.zeros((32, 40, 3), np.uint8)
    levels[8:24, 10:30] = 200
    result = canny_edges(levels)
    assert set(np.unique(result)) == {0, 255}
    ring = np.zeros((32, 40), bool)
    ring[6:26, 8:32] = True
    ring[10:22, 12:28] = False
    assert not result[~ring].any()
    assert 0.7 * 72 < (result > 0).sum() < 1.6 * 72  # its outline has 72 pixels
    assert not canny_edges(np.full((16, 16, 3), 90, np.uint8)).any()


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([{"name": "inversoin"}], "unknown control `inversoin`"),
        ([{"name": "inversion"}], "`image` is missing"),
        (
            [{"name": "same-seed", "preserve": 1.5}],
            "`preserve` cannot be 1.5",
        ),
        ([{"name": "img2img", "image": "none.png"}], "there is no image none.png"),
        (
            [{"name": "img2img", "image": "GIVEN"}] * 2,
            "img2img and img2img cannot be used together",
        ),
        ([{"name": "mask", "image": "GIVEN", "mask": "WIDE"}], "has another aspect ratio"),
        ([{"name": "controlnet", "image": "GIVEN", "weights": "nowhere"}], "ControlNet"),
    ],
)
def test_wrong_controls(
    model: Model, picture: Path, controls: list[dict[str, object]], message: str
) -> None:
    wide = picture.with_name("wide.png")
    Image.new("L", (40, 32)).save(wide)
    files: dict[object, object] = {"GIVEN": picture, "WIDE": wide}
    options = [{key: files.get(value, value) for key, value in table.items()} for table in controls]
    with pytest.raises((RequestError, ModelError)) as caught:
        latents(model, *options)
    assert message in caught.value.message
    assert caught.value.hint


def test_two_images_to_start_from_are_refused_without_a_model(picture: Path) -> None:
    for preserve, name in ((0.5, "img2img"), (0.5, "inversion"), (0, "inversion")):
        controls = ({"name": name, "image": picture, "preserve": preserve},)
        values = {"prompt": "a toy", "init_image": picture, "controls": controls}
        request = GenerationRequest.model_validate(values)
        if preserve:
            with pytest.raises(RequestError, match=f"--init-image and {name} cannot be used"):
                request.check()
        else:
            request.check()


def test_transfers_of_one_prompt_into_each_style(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    options = {"method": "textual-inversion", "kind": "style", "steps": 1, "preview_every": 0}
    options |= {"images": pictures, "token": "<mine>", "class_noun": "painting"}
    recipe = Recipe.model_validate({**options, "base": model.name})
    train_run(model, recipe, tmp_path / "style")
    style = Entrant.from_path(tmp_path / "style", {})
    progress: list[Progress] = []
    columns = transfer_styles(
        model, ["a red dog", "a blue cat"], [style, style], 2, progress.append
    )
    assert [column.subtitle for column in columns] == ["", "<mine>", "<mine>"]
    assert [(event.done, event.total) for event in progress] == [(1, 2), (2, 2)]
    from_text, styled, again = (column.images for column in columns)
    request = GenerationRequest(prompt="a blue cat", seed=1, steps=2)
    assert from_text[1].tobytes() == generate_images(model, request)[0].image.tobytes()
    assert styled[0].tobytes() == again[0].tobytes() != from_text[0].tobytes()


@pytest.mark.long
def test_transfer_command(
    nano: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(picture.parent)
    small = ["--base", str(nano), "--steps", "2"]
    assert main(["transfer", "given.png", "a red cat", *small, "--preserve", "0.4"]) == 0
    first = Path(capsys.readouterr().out.strip())
    request = GenerationRequest.from_png(first)
    (control,) = request.model_dump()["controls"]
    assert control["name"] == "inversion"
    assert control["preserve"] == 0.4
    assert Path(control["image"]).resolve() == picture.resolve()
    assert request.guidance_scale == 2
    assert main(["transfer", "given.png", "a red cat", *small, "--keep", "1"]) == 0
    output = capsys.readouterr()
    assert "the prompt and the source prompt are the same" in output.err
    assert main(["generate", "--from-png", output.out.strip(), "--out", "again"]) == 0
    again = Path(capsys.readouterr().out.strip())
    assert again.read_bytes() == Path(output.out.strip()).read_bytes()

    generate = ["generate", "a dog", *small, "--seed", "7", "--count", "1", "--out", "dogs"]
    assert main(generate) == 0
    dog = capsys.readouterr().out.strip()
    assert main(["transfer", dog, "a blue dog"]) == 0
    captured = capsys.readouterr()
    assert "generated by pinxit" in captured.err
    again = GenerationRequest.from_png(Path(captured.out.strip()))
    assert again.seed == 7
    assert again.base == request.base
    (control,) = again.model_dump()["controls"]
    assert control == {
        "name": "same-seed",
        "preserve": control["preserve"],
        "source_prompt": "a dog",
    }

    masked = ["--control", "img2img", "--mask", "given.png", "--outside"]
    assert main(["transfer", dog, "a cat", *small, *masked]) == 0
    names = [
        one["name"]
        for one in GenerationRequest.from_png(Path(capsys.readouterr().out.strip())).model_dump()[
            "controls"
        ]
    ]
    assert names == ["img2img", "mask"]
    for wrong, message in (
        (["--control", "invert"], "unknown control `invert`"),
        (["--outside"], "--invert-mask needs a mask"),
        (["--control", "img2img", "--source-prompt", "x"], "has no `source_prompt`"),
    ):
        assert main(["transfer", "given.png", "a cat", *small, *wrong]) == 2
        assert message in capsys.readouterr().err
