"""Batches of images with several aspect ratios, and masks that limit the loss to the subject."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.errors import RunError
from pinxit.images import folder as image_folder
from pinxit.images.decode import decode
from pinxit.images.folder import PixelCache, TrainingImage, read_images
from pinxit.images.inspect import check_folder
from pinxit.images.tensors import to_pixels
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.runs.run import Run
from pinxit.training.batches import collate
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.losses import denoising_losses
from pinxit.training.memory import MemoryPlan
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, train
from tests.short_runs import concept_trainer

RESOLUTION = 64
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
    subject = {"images": folder, "token": "<mytoy>", "class_noun": "toy"}
    schedule = {"steps": 4, "batch_size": 3, "resolution": RESOLUTION, "preview_every": 0}
    return Recipe.model_validate({"method": "textual-inversion", **subject, **schedule, **changed})


def session_for(model: Model, folder: Path, **changed: object) -> TrainingSession:
    return TrainingSession(model, [concept_trainer(model, recipe(folder, **changed))])


def save_mask(folder: Path, name: str, box: tuple[int, int, int, int]) -> None:
    with Image.open(folder / name) as image:
        mask = Image.new("L", image.size)
    mask.paste(255, box)
    mask.save((folder / name).with_suffix(".mask.png"))


def test_square_images_are_resized_and_encoded(model: Model, pictures: Path) -> None:
    for number, path in enumerate(sorted(pictures.iterdir())):
        noise((50 + number, 50 + number), number).save(path)
    batches = session_for(model, pictures, resolution=32, flip=False).batches(5)
    assert len(batches) == 1
    assert batches[0].mask is None
    images = [image.open() for image in sorted_by_hash(pictures)]
    resized = [ImageOps.fit(image, (32, 32), Image.Resampling.LANCZOS) for image in images]
    levels = torch.from_numpy(np.stack([np.asarray(image, dtype="f4") for image in resized]))
    latents = model.encode((levels / 127.5 - 1).permute(0, 3, 1, 2))
    encoded = encoded_images(session_for(model, pictures, resolution=32))
    for number in range(3):
        assert torch.equal(encoded[number][0].mean, latents.mean[number])
        assert torch.equal(encoded[number][0].std, latents.std[number])


def encoded_images(session: TrainingSession) -> Any:
    samples = session.trainers[0].samples
    samples.ensure_encoded()
    return samples._encoded["own"]


def sorted_by_hash(folder: Path) -> list[TrainingImage]:
    return sorted(read_images(folder), key=lambda image: image.sha256)


def test_without_masks_the_loss_is_the_plain_mean(model: Model, pictures: Path) -> None:
    (batch,) = session_for(model, pictures, resolution=32).batches(0)

    def conditioner(prompts: Sequence[str]) -> Conditioning:
        return model.condition(["a toy"] * len(prompts))

    losses = denoising_losses(model, batch, conditioner)
    timesteps, schedule = batch.timesteps, model.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, timesteps)
    prediction = model.denoise(noisy, timesteps, conditioner(batch.prompts))
    target = schedule.target(batch.latents, batch.noise, timesteps)
    expected = (prediction - target).square().mean(dim=(1, 2, 3)) * batch.weights
    assert torch.equal(losses, expected * schedule.loss_weight(timesteps, None))
    masked = replace(batch, mask=torch.ones_like(batch.latents[:, :1]))
    assert torch.allclose(denoising_losses(model, masked, conditioner), losses, rtol=1e-5)


def test_there_is_one_batch_for_each_shape(model: Model, folder: Path) -> None:
    session = session_for(model, folder)
    counts = Counter[tuple[int, ...]]()
    for step in range(8):
        batches = session.batches(step)
        shapes = [batch.latents.shape[2:] for batch in batches]
        assert len(set(shapes)) == len(shapes)
        assert sum(len(batch.latents) for batch in batches) == 3
        assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1.0)
        for batch in batches:
            counts[tuple(batch.latents.shape[2:])] += len(batch.latents)
    # 24 samples of 4 images, 6 of each; the bucket of an aspect ratio of 1.67 is 80x48 pixels.
    assert counts == {(8, 8): 12, (10, 6): 6, (6, 10): 6}


def test_batches_of_several_shapes_are_one_step(model: Model, folder: Path) -> None:
    """The loss and gradient of a step are the sums of those of its samples, apart from rounding."""
    step = next(iter(train(session_for(model, folder))))
    samples = session_for(model, folder).trainers[0].samples.draw_samples(0, 0)
    assert len({sample.latents.shape for sample in samples}) > 1
    session = session_for(model, folder)
    losses: list[float] = []
    with applied(model, session.adapters):
        conditioner = session.conditioner()
        for sample in samples:
            (batch,) = collate([sample], model.device)
            with torch.enable_grad():
                loss = denoising_losses(model, batch, conditioner).sum()
                loss.backward()
            losses.append(float(loss.detach()))
        norm = float(torch.stack([w.grad.norm() for w in session.trainers[0].weights]).norm())
    assert step.loss == pytest.approx(sum(losses), rel=1e-5)
    assert step.norms[0] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    "family",
    ["nano", *(pytest.param(f, marks=pytest.mark.long) for f in registry.names("families"))],
)
@pytest.mark.parametrize(
    "method", ["textual-inversion", pytest.param("dreambooth", marks=pytest.mark.long)]
)
def test_every_family_trains_with_every_shape(
    method: str, family: str, opened: Callable[[str], Model], folder: Path
) -> None:
    if method == "textual-inversion" and not opened(family).text_encoders:
        pytest.skip("it has no text encoder for embeddings; tests/models checks the refusal")
    options = {"class_images": 2} if method == "dreambooth" else {}
    save_mask(folder, "wide.png", (10, 10, 40, 40))
    session = session_for(opened(family), folder, method={"name": method, **options}, steps=3)
    steps = list(train(session))
    assert [step.number for step in steps] == [1, 2, 3]
    assert all(np.isfinite(step.loss) and step.norms[0] > 0 for step in steps)


def test_a_continued_run_with_many_shapes_is_the_same(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path / "whole", recipe(folder))
    for _ in whole.train(model):
        pass
    half = Run.create(tmp_path / "half", recipe(folder))
    training = half.train(model)
    for event in training:
        if isinstance(event, StepResult) and event.number == 2:
            training.close()
    continued = Run.open(half.folder)
    for _ in continued.train(model):
        pass
    for one, other in zip(whole.concept.parts, continued.concept.parts, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_files_are_decoded_once_before_training(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_mask(folder, "square.png", (0, 0, 40, 80))
    decoded: list[Path] = []
    monkeypatch.setattr(image_folder, "decode", lambda path: decoded.append(path) or decode(path))
    checks = check_folder(folder, RESOLUTION)
    run = Run.create(tmp_path / "run", recipe(folder, steps=1))
    for _ in run.train(model, checks.images):
        pass
    assert sorted(decoded) == sorted(folder.iterdir())
    assert all(image.cache and image.cache.get(image.path) is None for image in run.images)
    run.images[0].open()
    assert len(decoded) == len(list(folder.iterdir())) + 1


def test_the_pixel_cache_is_bounded(folder: Path) -> None:
    cache, image = PixelCache(max_bytes=4 * 40 * 40), Image.new("RGB", (40, 40))
    cache.add(folder / "one.png", image, None)
    cache.add(folder / "two.png", image, None)
    assert cache.get(folder / "one.png") == (image, None)
    assert cache.get(folder / "two.png") is None


def test_the_loss_has_no_gradient_outside_the_mask(model: Model, folder: Path) -> None:
    save_mask(folder, "square.png", (0, 0, 40, 80))
    (image,) = [image for image in read_images(folder) if image.mask]
    plan = TrainingPlan.of(recipe(folder, flip=False), model, 1)
    trainer = ConceptTrainer(model, plan, [image])
    (batch,) = TrainingSession(model, [trainer]).batches(0)
    assert batch.mask is not None
    assert batch.mask.shape == (3, 1, 8, 8)
    assert torch.equal(batch.mask[0, 0], torch.tensor([[1.0] * 4 + [0.0] * 4] * 8))
    predictions: list[Tensor] = []

    def denoise(noisy: Tensor, _timesteps: Tensor, _conditioning: object) -> Tensor:
        predictions.append(torch.zeros_like(noisy).requires_grad_(True))
        return predictions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "denoise", denoise)
        denoising_losses(model, batch, lambda _: None).sum().backward()
        denoising_losses(model, replace(batch, mask=None), lambda _: None).sum().backward()
    with_mask, without = (prediction.grad for prediction in predictions)
    assert with_mask is not None
    assert without is not None
    assert (with_mask[..., 4:] == 0).all()
    assert (with_mask[..., :4] != 0).all()
    assert (without != 0).all()  # the control
    # The loss is the mean over the mask: half the image is hidden, so the rest counts twice.
    assert torch.allclose(with_mask[..., :4], 2 * without[..., :4], rtol=1e-5)


def test_a_mask_is_mirrored_and_cropped_with_its_image(model: Model, folder: Path) -> None:
    save_mask(folder, "square.png", (0, 0, 40, 80))
    save_mask(folder, "wide.png", (60, 20, 80, 40))
    session = session_for(model, folder)
    encoded = encoded_images(session)
    by_shape = {(*e[0].mean.shape[1:], e[0].mask is not None): e for e in encoded}
    plain, mirrored = by_shape[8, 8, True]
    assert torch.equal(plain.mask.flip(-1), mirrored.mask)
    assert not torch.equal(plain.mask, mirrored.mask)
    image = next(i for i in read_images(folder) if i.path.name == "square.png").open()
    pixels = to_pixels(image, RESOLUTION, RESOLUTION)
    assert torch.allclose(plain.mean, model.encode(pixels).mean[0], atol=1e-5)
    assert torch.allclose(mirrored.mean, model.encode(pixels.flip(-1)).mean[0], atol=1e-5)
    wide, _ = by_shape[6, 10, True]
    center = float((wide.mask[0].sum(0) * torch.arange(10)).sum() / wide.mask.sum())
    assert center == pytest.approx(6.5, abs=0.3)  # 70 of 100 across
    assert len([e for e in encoded if e[0].mask is None]) == 2
    batches = [batch for step in range(6) for batch in session.batches(step)]
    masks = [batch.mask for batch in batches if batch.mask is not None]
    assert masks
    # An image without a mask in the same batch has a mask of ones.
    assert any((mask == 1).all(dim=(1, 2, 3)).any() for mask in masks)


def test_mask_sources(folder: Path) -> None:
    layer = noise((80, 80), 9).convert("RGBA")
    alpha = Image.new("L", (80, 80))
    alpha.paste(255, (20, 20, 60, 60))
    layer.putalpha(alpha)
    layer.save(folder / "layer.png")
    save_mask(folder, "square.png", (0, 0, 40, 80))
    images = {source: read_images(folder, source) for source in ("files", "alpha", "none")}
    names = {source: [i.path.name for i in images[source] if i.mask] for source in images}
    assert names == {"files": ["square.png"], "alpha": ["layer.png"], "none": []}
    assert {len(each) for each in images.values()} == {5}  # a mask is not a training image
    (cut_out,) = (image for image in images["alpha"] if image.mask)
    assert np.array_equal(np.asarray(cut_out.open_with_mask()[1]), np.asarray(alpha))


def test_a_run_is_not_continued_with_another_mask(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    save_mask(folder, "square.png", (0, 0, 40, 80))
    run = Run.create(tmp_path / "run", recipe(folder, steps=1))
    for _ in run.train(model):
        pass
    save_mask(folder, "square.png", (0, 0, 40, 79))
    with pytest.raises(RunError, match=r"images have changed .*: mask of square\.png"):
        for _ in Run.open(run.folder, steps=2).train(model):
            pass


def test_layers_are_not_visited_without_gradient_checkpointing(
    model: Model, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(model, "enable_gradient_checkpointing", switched.append)
    images = read_images(pictures)
    plan = TrainingPlan.of(recipe(pictures, steps=2), model, len(images))
    session = TrainingSession(model, [ConceptTrainer(model, plan, images)])
    assert len(list(train(session))) == 2
    assert not switched
    session = TrainingSession(model, [ConceptTrainer(model, plan, images)])
    session.memory_plan = MemoryPlan(8, gradient_checkpointing=True)
    assert len(list(train(session))) == 2
    assert switched == [True, False] * 2
