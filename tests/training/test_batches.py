"""Pictures of several shapes in one batch, and masks that keep the loss on the subject."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import injected
from pinxit.errors import RunError
from pinxit.images.folder import Picture, read_pictures
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model
from pinxit.runs.run import Run
from pinxit.training.batches import parts
from pinxit.training.concept_trainer import Learner
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step, objective, train

SIDE = 64
SHAPES = {
    "square.png": (80, 80),
    "tall.png": (60, 100),
    "wide.png": (100, 60),
    "more.png": (70, 70),
}


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype="u1")
    return Image.fromarray(levels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    path.mkdir()
    for seed, (name, size) in enumerate(SHAPES.items()):
        noise(size, seed).save(path / name)
    return path


def recipe(folder: Path, **changed: object) -> Recipe:
    given = {"method": "textual-inversion", "pictures": folder, "token": "<mytoy>"}
    small = {"class_noun": "toy", "steps": 4, "batch_size": 3, "size": SIDE, "preview_every": 0}
    return Recipe.model_validate({**given, **small, **changed})


def lesson(model: Model, folder: Path, **changed: object) -> Lesson:
    asked = recipe(folder, **changed)
    pictures = asked.read_pictures()
    asked = asked.settled(model, len(pictures))
    for _ in asked.method.prepare(model, asked.subject):
        pass
    return Lesson.of(model, asked, pictures)


def masked(folder: Path, name: str, where: tuple[int, int, int, int]) -> None:
    with Image.open(folder / name) as image:
        mask = Image.new("L", image.size)
    mask.paste(255, where)
    mask.save((folder / name).with_suffix(".mask.png"))


def test_square_pictures_are_what_they_always_were(model: Model, pictures: Path) -> None:
    for number, path in enumerate(sorted(pictures.iterdir())):
        noise((50 + number, 50 + number), number).save(path)
    drawn = lesson(model, pictures, size=32, flip=False).batches(5)
    assert len(drawn) == 1
    assert drawn[0].mask is None
    shown = [ImageOps.fit(p.open(), (32, 32), Image.Resampling.LANCZOS) for p in by_sha(pictures)]
    levels = torch.from_numpy(np.stack([np.asarray(image, dtype="f4") for image in shown]))
    found = model.encode((levels / 127.5 - 1).permute(0, 3, 1, 2))
    view = views_of(lesson(model, pictures, size=32))
    for number in range(3):
        assert torch.equal(view[number][0].mean, found.mean[number])
        assert torch.equal(view[number][0].spread, found.spread[number])


def views_of(one: Lesson) -> Any:
    samples = one.learners[0].samples
    list(samples.encode())
    return samples._latents["own"]


def by_sha(folder: Path) -> list[Picture]:
    return sorted(read_pictures(folder), key=lambda picture: picture.sha256)


def test_no_masks_is_the_same_loss_to_the_bit(model: Model, pictures: Path) -> None:
    one = lesson(model, pictures, size=32)
    (drawn,) = one.batches(0)
    tell = lambda wanted: model.condition(["a toy"] * len(wanted))  # noqa: E731
    found = objective(model, drawn, tell)
    times = drawn.times
    noisy = model.schedule.add_noise(drawn.latents, drawn.noise, times)
    answer = model.denoise(noisy, times, tell(drawn.prompts))
    target = model.schedule.target(drawn.latents, drawn.noise, times)
    plain = (answer - target).square().mean(dim=(1, 2, 3)) * drawn.weights
    assert torch.equal(found, plain * model.schedule.weight(times, None))
    whole = replace(drawn, mask=torch.ones_like(drawn.latents[:, :1]))
    assert torch.allclose(objective(model, whole, tell), found, rtol=1e-5)


def test_a_batch_is_in_parts_of_one_shape(model: Model, folder: Path) -> None:
    one = lesson(model, folder)
    seen = Counter[tuple[int, ...]]()
    for step in range(8):
        parts = one.batches(step)
        shapes = [part.latents.shape[2:] for part in parts]
        assert len(set(shapes)) == len(shapes)
        assert sum(len(part.latents) for part in parts) == 3
        assert sum(float(part.weights.sum()) for part in parts) == pytest.approx(1.0)
        for part in parts:
            seen[tuple(part.latents.shape[2:])] += len(part.latents)
    # 24 samples of 4 pictures, each seen 6 times; 1.67 to 1 is learned at 80x48 pixels.
    assert seen == {(8, 8): 12, (10, 6): 6, (6, 10): 6}


def test_parts_add_up_to_the_batch(model: Model, folder: Path) -> None:
    """A step's loss and gradient are those of its samples one by one, to rounding."""
    together, alone = lesson(model, folder), lesson(model, folder, batch_size=1)
    for word in (together, alone):
        word.learners[0].weights[0].requires_grad_(True)
    step = next(iter(train(together)))
    samples = lesson(model, folder).learners[0].samples.draw(0, 0)
    assert len({sample.latents.shape for sample in samples}) > 1
    one = lesson(model, folder)
    losses: list[float] = []
    with injected(model, one.adapters):
        tell = one.tell()
        for sample in samples:
            (drawn,) = parts([sample], model.device)
            with torch.enable_grad():
                error = objective(model, drawn, tell).sum()
                error.backward()
            losses.append(float(error.detach()))
        norm = float(torch.stack([w.grad.norm() for w in one.learners[0].weights]).norm())
    assert step.loss == pytest.approx(sum(losses), rel=1e-5)
    assert step.norms[0] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    "family",
    ["nano", *(pytest.param(f, marks=pytest.mark.long) for f in registry.names("families"))],
)
@pytest.mark.parametrize(
    "method", ["textual-inversion", pytest.param("dreambooth", marks=pytest.mark.long)]
)
def test_every_family_learns_from_every_shape(
    method: str, family: str, opened: Callable[[str], Model], folder: Path
) -> None:
    small = {"prior_pictures": 2} if method == "dreambooth" else {}
    masked(folder, "wide.png", (10, 10, 40, 40))
    one = lesson(opened(family), folder, method={"name": method, **small}, steps=3)
    steps = list(train(one))
    assert [step.number for step in steps] == [1, 2, 3]
    assert all(np.isfinite(step.loss) and step.norms[0] > 0 for step in steps)


def test_a_run_of_many_shapes_goes_on_to_the_same_bits(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path / "whole", recipe(folder))
    for _ in whole.learn(model):
        pass
    half = Run.create(tmp_path / "half", recipe(folder))
    for event in (learning := half.learn(model)):
        if isinstance(event, Step) and event.number == 2:
            learning.close()
    for _ in (again := Run.open(half.folder)).learn(model):
        pass
    for one, other in zip(whole.concept.parts, again.concept.parts, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_outside_the_mask_nothing_is_learned(model: Model, folder: Path) -> None:
    masked(folder, "square.png", (0, 0, 40, 80))
    (picture,) = [p for p in read_pictures(folder) if p.mask]
    one = Learner(model, recipe(folder, flip=False).settled(model, 1), [picture])
    (drawn,) = Lesson(model, [one]).batches(0)
    assert drawn.mask is not None
    assert drawn.mask.shape == (3, 1, 8, 8)
    assert torch.equal(drawn.mask[0, 0], torch.tensor([[1.0] * 4 + [0.0] * 4] * 8))
    answers: list[Tensor] = []

    def denoise(noisy: Tensor, _times: Tensor, _told: object) -> Tensor:
        answers.append(torch.zeros_like(noisy).requires_grad_(True))
        return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "denoise", denoise)
        objective(model, drawn, lambda _: None).sum().backward()
        objective(model, replace(drawn, mask=None), lambda _: None).sum().backward()
    with_mask, without = (answer.grad for answer in answers)
    assert with_mask is not None
    assert without is not None
    assert (with_mask[..., 4:] == 0).all()
    assert (with_mask[..., :4] != 0).all()
    assert (without != 0).all()  # the control
    # What is inside counts twice as much, half being hidden: the loss is a mean over the subject.
    assert torch.allclose(with_mask[..., :4], 2 * without[..., :4], rtol=1e-5)


def test_a_mask_is_mirrored_and_cropped_with_its_picture(model: Model, folder: Path) -> None:
    masked(folder, "square.png", (0, 0, 40, 80))
    masked(folder, "wide.png", (60, 20, 80, 40))
    one = lesson(model, folder)
    views = views_of(one)
    found = {(*v[0].mean.shape[1:], v[0].mask is not None): v for v in views}
    plain, mirrored = found[8, 8, True]
    assert torch.equal(plain.mask.flip(-1), mirrored.mask)
    assert not torch.equal(plain.mask, mirrored.mask)
    image = next(p for p in read_pictures(folder) if p.path.name == "square.png").open()
    pixels = to_pixels(image, SIDE, SIDE)
    assert torch.allclose(plain.mean, model.encode(pixels).mean[0], atol=1e-5)
    assert torch.allclose(mirrored.mean, model.encode(pixels.flip(-1)).mean[0], atol=1e-5)
    wide, _ = found[6, 10, True]
    middle = float((wide.mask[0].sum(0) * torch.arange(10)).sum() / wide.mask.sum())
    assert middle == pytest.approx(6.5, abs=0.3)  # 70 of 100 across
    whole = [v for v in views if v[0].mask is None]
    assert len(whole) == 2
    masks = [part.mask for n in range(6) for part in one.batches(n) if part.mask is not None]
    assert masks
    assert any((mask == 1).all(dim=(1, 2, 3)).any() for mask in masks)  # one without, beside


def test_where_masks_are_taken_from(folder: Path) -> None:
    layer = noise((80, 80), 9).convert("RGBA")
    alpha = Image.new("L", (80, 80))
    alpha.paste(255, (20, 20, 60, 60))
    layer.putalpha(alpha)
    layer.save(folder / "layer.png")
    masked(folder, "square.png", (0, 0, 40, 80))
    by = {kind: read_pictures(folder, kind) for kind in ("beside", "alpha", "none")}
    names = {kind: [p.path.name for p in found if p.mask] for kind, found in by.items()}
    assert names == {"beside": ["square.png"], "alpha": ["layer.png"], "none": []}
    assert {len(found) for found in by.values()} == {5}  # a mask is never a picture
    (cut_out,) = (p for p in by["alpha"] if p.mask)
    assert np.array_equal(np.asarray(cut_out.opened()[1]), np.asarray(alpha))


def test_a_run_is_not_continued_with_another_mask(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    masked(folder, "square.png", (0, 0, 40, 80))
    run = Run.create(tmp_path / "run", recipe(folder, steps=1))
    for _ in run.learn(model):
        pass
    masked(folder, "square.png", (0, 0, 40, 79))
    with pytest.raises(RunError, match=r"pictures have changed .*: square\.png"):
        for _ in Run.open(run.folder, steps=2).learn(model):
            pass
