"""Controls one by one: against what they must equal, and against what they must not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pinxit.adapters.adapter import NewWord
from pinxit.cli import main
from pinxit.concepts.concept import Concept, Provenance
from pinxit.errors import ModelError, RequestError
from pinxit.generation.canny import edges
from pinxit.generation.control import Walk, plainly
from pinxit.generation.generate import Frame, Painted, Request, generate, paint
from pinxit.generation.paired import inverted
from pinxit.generation.schedulers import SOLVERS, Solver
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model, open_base
from pinxit.models.noise_schedule import Diffusion, Flow, Schedule
from pinxit.reports.demo.transfers import transfers
from pinxit.reports.demo.trial import Easel
from pinxit.training.recipe import Recipe

KEPT = torch.linspace(0.999, 0.01, 1000)
PROMPT = "a red dog on the beach"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (32, 32), "teal")
    ImageDraw.Draw(image).ellipse((8, 6, 24, 28), fill="orange")
    image.save(tmp_path / "given.png")
    return tmp_path / "given.png"


def latents(model: Model, *controls: dict[str, object], **changed: object) -> torch.Tensor:
    asked: dict[str, object] = {"prompt": PROMPT, "steps": 8, "controls": controls}
    return paint(model, Request.model_validate({**asked, **changed}))[0].latents


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_img2img_is_starting_from_the_picture(model: Model, picture: Path) -> None:
    for keep in (0.2, 0.7):
        held = latents(model, {"name": "img2img", "picture": picture, "keep": keep})
        assert torch.equal(held, latents(model, init=picture, strength=1 - keep))
        assert not torch.equal(held, latents(model, init=picture, strength=0.5))


@pytest.mark.parametrize(
    ("scheduler", "path"),
    [
        ("ddim", "inverted"),
        ("ddim", "noised"),
        ("euler-a", "inverted"),
        *(pytest.param(name, "inverted", marks=pytest.mark.long) for name in SOLVERS),
    ],
)
def test_the_picture_is_kept_on_its_way(
    model: Model, picture: Path, scheduler: str, path: str
) -> None:
    def halfway_and_end(prompt: str, keep: float) -> list[torch.Tensor]:
        control = {"name": "inversion", "picture": picture, "keep": keep, "path": path}
        asked = {"prompt": prompt, "controls": [{**control, "shows": PROMPT}], "steps": 8}
        request = Request.model_validate({**asked, "scheduler": scheduler})
        *frames, painted = generate(model, request)
        assert isinstance(painted, Painted)
        walk = [one.latents[0] for one in frames if isinstance(one, Frame)]
        passed = len(walk) - len(set(solver_times(model, scheduler))) * (path == "inverted")
        return [walk[len(walk) - passed + passed // 2 - 1], painted.latents]

    own = model.encode(to_pixels(Image.open(picture), 32, 32)).mean[0]
    halfway, end = halfway_and_end("a blue cat", 1)
    assert apart(end, own) < 1e-5
    # Nothing new is said: half of the way is the picture's own. And the controls.
    kept, free = halfway_and_end(PROMPT, 0.5)
    assert apart(kept, halfway) < 1e-3
    assert apart(free, own) > 0.01
    other, _ = halfway_and_end("a blue cat", 0.5)
    assert apart(other, halfway) > 0.003


def solver_times(model: Model, scheduler: str) -> list[float]:
    return Solver("diffusion", scheduler, model.solver_config, 8).times.tolist()


@pytest.mark.parametrize("family", ["pocket", "stable-diffusion-3"])
def test_noise_that_is_found_leads_back(
    opened: Callable[[str], Model], picture: Path, family: str
) -> None:
    # Only a network that has learned tells noise from pictures, or one that all take for a line.
    model = open_base() if family == "pocket" else opened(family)
    kind = model.schedule.kind

    def fresh() -> Solver:
        return Solver(kind, "ddim" if kind == "diffusion" else "euler", model.solver_config, 20)

    def back(prompt: str, begin: torch.Tensor) -> torch.Tensor:
        solver, rows = fresh(), begin
        for time in solver.times:
            rows = solver.step(model.denoise(rows, time, model.condition([prompt])), time, rows, [])
        return rows

    side = model.picture_size
    told = model.condition([PROMPT])
    walk = Walk(model, fresh, (side, side), (0,), [torch.Generator()], told, 1, 1)
    own = model.encode(walk.pixels(picture)).mean
    finding = inverted(walk, picture)
    while True:
        try:
            next(finding)
        except StopIteration as end:
            path = end.value
            break
    assert len(path) == 21
    assert torch.equal(path[-1], own)
    error = apart(back(PROMPT, path[0]), own)
    print(f"{family}: {error:.4f} off after 20 steps there and back")
    assert error < 0.12
    assert apart(back(PROMPT, torch.randn_like(path[0])), own) > 10 * error


@pytest.mark.parametrize(
    "schedule",
    [Diffusion(KEPT), Diffusion(KEPT, "v_prediction"), Flow(3.0)],
    ids=["noise", "velocity", "flow"],
)
def test_what_is_noised_parts_again(schedule: Schedule) -> None:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([3, 400, 998])
    noisy = schedule.add_noise(clean, noise, times)
    found = schedule.parted(noisy, schedule.target(clean, noise, times), times)
    assert apart(found[0], clean) < 1e-4
    assert apart(found[1], noise) < 1e-4


def test_the_same_seed_and_prompt_is_the_same_picture(model: Model) -> None:
    held = latents(model, {"name": "same-seed", "keep": 1, "shows": PROMPT})
    assert apart(held, latents(model)) < 1e-4
    whole, half, free = (
        latents(model, {"name": "same-seed", "keep": keep, "shows": PROMPT}, prompt="a blue cat")
        for keep in (1, 0.5, 0)
    )
    plain = latents(model)
    assert apart(whole, plain) < 1e-4
    assert 1e-3 < apart(half, plain) < 0.9 * apart(free, plain)


def test_prompts_without_learned_words() -> None:
    def learned(token: str, noun: str) -> Concept:
        about = Provenance(token, noun, "", "", "", 1, {}, "")
        return Concept((NewWord(token, noun, {"text": torch.ones(1, 2)}).part(),), about, "mine")

    toy, style = learned("<toy>", "plush toy"), learned("<hue>", "painting")
    assert plainly("a <toy> in the style of <hue>", [toy, style]) == "a plush toy"
    assert plainly("A <HUE> of a dog, in the style of <hue>", [style]) == "A painting of a dog"
    assert plainly("a mine of toys", []) == "a mine of toys"


def test_edges_are_thin_and_where_they_are() -> None:
    levels = np.zeros((32, 40, 3), np.uint8)
    levels[8:24, 10:30] = 200
    found = edges(levels)
    assert set(np.unique(found)) == {0, 255}
    ring = np.zeros((32, 40), bool)
    ring[6:26, 8:32] = True
    ring[10:22, 12:28] = False
    assert not found[~ring].any()
    assert 0.7 * 72 < (found > 0).sum() < 1.6 * 72  # its outline is 72 long
    assert not edges(np.full((16, 16, 3), 90, np.uint8)).any()


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([{"name": "inversoin"}], "there is no control `inversoin`"),
        ([{"name": "inversion"}], "the control inversion needs `picture`"),
        ([{"name": "same-seed", "keep": 1.5}], "`keep` of the control same-seed cannot be 1.5"),
        ([{"name": "img2img", "picture": "none.png"}], "there is no picture none.png"),
        ([{"name": "img2img", "picture": "GIVEN"}] * 2, "cannot begin with two others"),
        ([{"name": "mask", "picture": "GIVEN", "mask": "WIDE"}], "has another shape"),
        ([{"name": "controlnet", "picture": "GIVEN", "weights": "nowhere"}], "ControlNet"),
    ],
)
def test_controls_that_cannot_be(
    model: Model, picture: Path, controls: list[dict[str, object]], message: str
) -> None:
    wide = picture.with_name("wide.png")
    Image.new("L", (40, 32)).save(wide)
    files: dict[object, object] = {"GIVEN": picture, "WIDE": wide}
    given = [{key: files.get(value, value) for key, value in one.items()} for one in controls]
    with pytest.raises((RequestError, ModelError)) as caught:
        latents(model, *given)
    assert message in caught.value.message
    assert caught.value.hint


def test_one_text_in_every_style(model: Model, pictures: Path, tmp_path: Path) -> None:
    told: list[int] = []

    def tell(task: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG001
        told.append(done)

    easel = Easel(model, tell, count=1, steps=2)
    asked = {"method": "textual-inversion", "kind": "style", "steps": 1, "preview_every": 0}
    asked |= {"pictures": pictures, "token": "<mine>", "class_noun": "painting"}
    recipe = Recipe.model_validate({**asked, "base": model.name})
    lesson = easel.teach(recipe, tmp_path / "style", "learning")
    told.clear()
    found = transfers(easel, ["a red dog", "a blue cat"], [lesson, lesson])
    assert found.titles == ("from text", "<mine>", "<mine>")
    assert told == list(range(1, 13))
    assert len(found.images) == 6
    assert (
        found.images[3].tobytes()
        == paint(model, Request(prompt="a blue cat", seed=1, steps=2))[0].image.tobytes()
    )
    assert found.images[1].tobytes() == found.images[2].tobytes() != found.images[0].tobytes()
    assert found.sheet().width > 3 * 32


def test_transfer_is_typed_like_this(
    nano: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(picture.parent)
    small = ["--base", str(nano), "--steps", "2"]
    assert main(["transfer", "given.png", "a red cat", *small, "--keep", "0.4"]) == 0
    first = Path(capsys.readouterr().out.strip())
    request = Request.from_png(first)
    (control,) = request.model_dump()["controls"]
    assert control["name"] == "inversion"
    assert control["keep"] == 0.4
    assert control["picture"] == str(picture.resolve())
    assert request.guidance == 2
    assert main(["transfer", "given.png", "a red cat", *small, "--keep", "1"]) == 0
    told = capsys.readouterr()
    assert "the prompt says only what the picture shows" in told.err
    assert main(["generate", "--like", told.out.strip(), "--out", "again"]) == 0
    again = Path(capsys.readouterr().out.strip())
    assert again.read_bytes() == Path(told.out.strip()).read_bytes()

    painted = ["generate", "a dog", *small, "--seed", "7", "--count", "1", "--out", "dogs"]
    assert main(painted) == 0
    dog = capsys.readouterr().out.strip()
    assert main(["transfer", dog, "a blue dog"]) == 0
    said = capsys.readouterr()
    assert "painted by pinxit" in said.err
    again = Request.from_png(Path(said.out.strip()))
    assert again.seed == 7
    assert again.base == request.base
    (control,) = again.model_dump()["controls"]
    assert control == {"name": "same-seed", "keep": control["keep"], "shows": "a dog"}

    masked = ["--control", "img2img", "--mask", "given.png", "--outside"]
    assert main(["transfer", dog, "a cat", *small, *masked]) == 0
    names = [
        one["name"]
        for one in Request.from_png(Path(capsys.readouterr().out.strip())).model_dump()["controls"]
    ]
    assert names == ["img2img", "mask"]
    for wrong, message in (
        (["--control", "invert"], "there is no control `invert`"),
        (["--outside"], "--outside goes with a mask"),
        (["--control", "img2img", "--shows", "x"], "the control img2img has no `shows`"),
    ):
        assert main(["transfer", "given.png", "a cat", *small, *wrong]) == 2
        assert message in capsys.readouterr().err
