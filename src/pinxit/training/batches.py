"""Batches: pictures encoded once, and drawn so that each sample follows from its place alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pinxit.images.crop import box, centring, shape_for
from pinxit.images.folder import Picture
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model
from pinxit.rng import generator
from pinxit.training.method import Pool, Preparing

# Pictures are encoded together while they have no more pixels than this in all, and so many.
_PIXELS = 2**16
_ENCODED_TOGETHER = 8
# A fixed sample's time is the middle one of so many, so that few samples see all times.
_TIMES_EACH = 15


@dataclass(frozen=True)
class Batch:
    """Samples to learn from: clean latents and noise (B, C, H, W), times, weights, concepts (B,).

    The weights of a concept's samples add up so that its loss is the weighted sum of their errors.
    `mask` (B, 1, H, W) says where errors count, from 0 to 1; everywhere if there is none. `shown`
    are the names of the pictures.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    weights: Tensor
    concepts: Tensor
    prompts: tuple[str, ...]
    mask: Tensor | None = None
    shown: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, at: slice) -> "Batch":
        return Batch(
            self.latents[at],
            self.noise[at],
            self.times[at],
            self.weights[at],
            self.concepts[at],
            self.prompts[at],
            None if self.mask is None else self.mask[at],
            self.shown[at],
        )


@dataclass(frozen=True)
class _View:
    """A picture as it is, or mirrored: mean and spread of its latents, and its mask (1, H, W)."""

    mean: Tensor
    spread: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    noise: Tensor
    time: float
    weight: float
    concept: int
    prompt: str
    mask: Tensor | None
    shown: str


class Samples:
    """One concept's pictures as latents, and the samples drawn from them.

    Square ones are encoded at `side` pixels wide and high, others in the shape of about that area
    that least is cut off for. Everything about a sample is drawn from (seed, the pictures' content,
    pool, step, slot).
    """

    def __init__(self, model: Model, pools: Sequence[Pool], draws: "Draws", side: int) -> None:
        self._pools = tuple(pools)
        self._draws = draws
        self._model = model
        self._side = side
        self._latents: dict[str, list[tuple[_View, _View]]] = {}

    def encode(self) -> Iterator[Preparing]:
        """Encode the pictures, telling how many are done."""
        total, before = sum(len(pool.pictures) for pool in self._pools), 0
        for pool in self._pools:
            kept: dict[int, tuple[_View, _View]] = {}
            for some in _encoded(self._model, pool.pictures, self._side):
                kept |= some
                yield Preparing("pictures encoded", before + len(kept), total)
            self._latents[pool.name] = [kept[number] for number in range(len(kept))]
            before += len(kept)

    def ready(self) -> None:
        """Encode the pictures if that was not done."""
        if not self._latents:
            for _ in self.encode():
                pass

    def draw(self, step: int, concept: int) -> list[_Sample]:
        """The concept's samples in the batch of a step."""
        self.ready()
        slots = range(self._draws.size)
        return [self._sample(pool, step, slot, concept) for pool in self._pools for slot in slots]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that can be drawn."""
        every = (prompt for pool in self._pools for some in pool.prompts for prompt in some)
        return tuple(dict.fromkeys(every))

    def fixed(self, count: int, concept: int) -> list[_Sample]:
        """Samples of the subject that are the same whenever they are asked for.

        Its pictures come in turn, and the times are spread as those that are learned from.
        """
        self.ready()
        pool, draws = self._pools[0], self._draws
        own = generator(draws.seed, draws.concept, "fixed times")
        times = sorted(self._model.schedule.draw(own) for _ in range(count * _TIMES_EACH))
        return [
            replace(
                self._at(pool, slot % len(pool.pictures), concept, "fixed", slot),
                time=times[slot * _TIMES_EACH + _TIMES_EACH // 2],
                weight=1 / count,
            )
            for slot in range(count)
        ]

    def _sample(self, pool: Pool, step: int, slot: int, concept: int) -> _Sample:
        which = _shuffled(self._draws, pool, step * self._draws.size + slot)
        return self._at(pool, which, concept, step, slot)

    def _at(self, pool: Pool, which: int, concept: int, *purpose: str | int) -> _Sample:
        """A sample of a picture of the pool, drawn for a purpose."""
        draws = self._draws
        own = generator(draws.seed, draws.concept, pool.name, *purpose)
        prompts = pool.prompts[which]
        prompt = prompts[int(torch.randint(len(prompts), (), generator=own))]
        mirrored = int(torch.rand((), generator=own) < 0.5) if draws.flip else 0
        view = self._latents[pool.name][which][mirrored]
        latents = view.mean + view.spread * torch.randn(view.mean.shape, generator=own)
        noise = torch.randn(view.mean.shape, generator=own)
        time = self._model.schedule.draw(own)
        shown = pool.pictures[which]
        weight = pool.weight * shown.weight / draws.size
        name = shown.path.name
        return _Sample(latents, noise, time, weight, concept, prompt, view.mask, name)


@dataclass(frozen=True)
class Draws:
    """What a concept's random draws follow from, and how many samples of each pool a step takes.

    `concept` is the fingerprint of its pictures: neither its word nor its folder's name matters.
    """

    seed: int
    concept: str
    size: int
    flip: bool


def parts(samples: Sequence[_Sample], device: torch.device) -> tuple[Batch, ...]:
    """Samples of one or several concepts on the device, those of one shape together."""
    shapes = dict.fromkeys(sample.latents.shape for sample in samples)
    return tuple(
        _batch([sample for sample in samples if sample.latents.shape == shape], device)
        for shape in shapes
    )


def _batch(samples: Sequence[_Sample], device: torch.device) -> Batch:
    return Batch(
        torch.stack([sample.latents for sample in samples]).to(device),
        torch.stack([sample.noise for sample in samples]).to(device),
        torch.tensor([sample.time for sample in samples], device=device),
        torch.tensor([sample.weight for sample in samples], device=device),
        torch.tensor([sample.concept for sample in samples], device=device),
        tuple(sample.prompt for sample in samples),
        _masks(samples, device),
        tuple(sample.shown for sample in samples),
    )


def _masks(samples: Sequence[_Sample], device: torch.device) -> Tensor | None:
    """The masks of all samples if any has one; one without is wholly its subject."""
    if all(sample.mask is None for sample in samples):
        return None
    whole = torch.ones_like(samples[0].latents[:1])
    return torch.stack([whole if one.mask is None else one.mask for one in samples]).to(device)


def _shuffled(draws: Draws, pool: Pool, place: int) -> int:
    """Which picture is at a place of the endless row of shuffled rounds through the pool."""
    turn, at = divmod(place, len(pool.pictures))
    order = generator(draws.seed, draws.concept, pool.name, "round", turn)
    return int(torch.randperm(len(pool.pictures), generator=order)[at])


def _encoded(
    model: Model, pictures: Sequence[Picture], side: int
) -> Iterator[dict[int, tuple[_View, _View]]]:
    """Pictures' views as they are and mirrored, by number, those of a shape together; on CPU."""
    waiting: dict[torch.Size, dict[int, tuple[Tensor, Tensor | None]]] = {}
    for number, picture in enumerate(pictures):
        pixels, mask = _framed(model, picture, side)
        group = waiting.setdefault(pixels.shape, {})
        group[number] = pixels, mask
        if len(group) >= min(_ENCODED_TOGETHER, max(1, _PIXELS // pixels[0, 0].numel())):
            yield _views(model, waiting.pop(pixels.shape))
    yield from (_views(model, group) for group in waiting.values())


def _views(
    model: Model, some: Mapping[int, tuple[Tensor, Tensor | None]]
) -> dict[int, tuple[_View, _View]]:
    pixels = torch.cat([pixels for pixels, _ in some.values()])
    both = model.encode(pixels), model.encode(pixels.flip(-1))
    masks = [mask for _, mask in some.values()]
    mirrored = [None if mask is None else mask.flip(-1) for mask in masks]
    plain, flipped = (
        [
            _View(mean.cpu(), spread.cpu(), mask)
            for mean, spread, mask in zip(found.mean, found.spread, kept, strict=True)
        ]
        for found, kept in zip(both, (masks, mirrored), strict=True)
    )
    return dict(zip(some, zip(plain, flipped, strict=True), strict=True))


def _framed(model: Model, picture: Picture, side: int) -> tuple[Tensor, Tensor | None]:
    """A picture cropped to the shape it is learned in, and its mask as the latents lie."""
    from PIL import Image

    image, mask = picture.opened()
    width, height = shape = shape_for(image.size, side, model.grain)
    centre = centring(image, shape, mask)
    pixels = to_pixels(image, width, height, centre)
    if mask is None:
        return pixels, None
    cells = (width // model.factor, height // model.factor)
    kept = mask.resize(cells, Image.Resampling.BOX, box(image.size, shape, centre))
    return pixels, torch.from_numpy(np.asarray(kept, dtype=np.float32) / 255).unsqueeze(0)
