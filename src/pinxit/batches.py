"""Batches: pictures encoded once, and drawn so that each sample follows from its place alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinxit.draw import generator
from pinxit.method import Pool
from pinxit.model import Model
from pinxit.pictures import Picture
from pinxit.pixels import to_pixels

_ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class Batch:
    """Samples to learn from: clean latents and noise (B, C, H, W), times, weights, concepts (B,).

    The weights of a concept's samples add up so that its loss is the weighted sum of their errors.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    weights: Tensor
    concepts: Tensor
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    noise: Tensor
    time: float
    weight: float
    concept: int
    prompt: str


class Samples:
    """One concept's pictures as latents, and the samples drawn from them.

    They are encoded at `side` pixels wide and high. Everything about a sample is drawn from (seed,
    concept, pool, step, slot).
    """

    def __init__(self, model: Model, pools: Sequence[Pool], draws: "Draws", side: int) -> None:
        self._pools = tuple(pools)
        self._draws = draws
        self._schedule = model.schedule
        self._latents = {pool.name: _encoded(model, pool.pictures, side) for pool in pools}

    def draw(self, step: int, concept: int) -> list[_Sample]:
        """The concept's samples in the batch of a step."""
        slots = range(self._draws.size)
        return [self._sample(pool, step, slot, concept) for pool in self._pools for slot in slots]

    def shown(self, step: int) -> list[str]:
        """The names of the pictures that the samples of a step are of, in the same order."""
        size = self._draws.size
        places = [(pool, step * size + slot) for pool in self._pools for slot in range(size)]
        which = [(pool, _shuffled(self._draws, pool, place)) for pool, place in places]
        return [pool.pictures[at].path.name for pool, at in which]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that can be drawn."""
        every = (prompt for pool in self._pools for some in pool.prompts for prompt in some)
        return tuple(dict.fromkeys(every))

    def _sample(self, pool: Pool, step: int, slot: int, concept: int) -> _Sample:
        draws = self._draws
        which = _shuffled(draws, pool, step * draws.size + slot)
        own = generator(draws.seed, draws.concept, pool.name, step, slot)
        prompts = pool.prompts[which]
        prompt = prompts[int(torch.randint(len(prompts), (), generator=own))]
        mirrored = int(torch.rand((), generator=own) < 0.5) if draws.flip else 0
        mean, spread = self._latents[pool.name][which][mirrored]
        latents = mean + spread * torch.randn(mean.shape, generator=own)
        noise = torch.randn(mean.shape, generator=own)
        time = self._schedule.draw(own)
        weight = pool.weight * pool.pictures[which].weight / draws.size
        return _Sample(latents, noise, time, weight, concept, prompt)


@dataclass(frozen=True)
class Draws:
    """What a concept's random draws follow from, and how many samples of each pool a step takes."""

    seed: int
    concept: str
    size: int
    flip: bool


def batch(samples: Sequence[_Sample], device: torch.device) -> Batch:
    """Samples of one or several concepts, together on the device."""
    return Batch(
        torch.stack([sample.latents for sample in samples]).to(device),
        torch.stack([sample.noise for sample in samples]).to(device),
        torch.tensor([sample.time for sample in samples], device=device),
        torch.tensor([sample.weight for sample in samples], device=device),
        torch.tensor([sample.concept for sample in samples], device=device),
        tuple(sample.prompt for sample in samples),
    )


def _shuffled(draws: Draws, pool: Pool, place: int) -> int:
    """Which picture is at a place of the endless row of shuffled rounds through the pool."""
    turn, at = divmod(place, len(pool.pictures))
    order = generator(draws.seed, draws.concept, pool.name, "round", turn)
    return int(torch.randperm(len(pool.pictures), generator=order)[at])


def _encoded(
    model: Model, pictures: Sequence[Picture], side: int
) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """For each picture mean and spread of its latents, as it is and mirrored; on the CPU."""
    kept: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
    for first in range(0, len(pictures), _ENCODED_TOGETHER):
        some = pictures[first : first + _ENCODED_TOGETHER]
        pixels = torch.cat([to_pixels(picture.open(), side, side) for picture in some])
        plain, mirrored = model.encode(pixels), model.encode(pixels.flip(-1))
        kept += [
            (
                (plain.mean[at].cpu(), plain.spread[at].cpu()),
                (mirrored.mean[at].cpu(), mirrored.spread[at].cpu()),
            )
            for at in range(len(some))
        ]
    return kept
