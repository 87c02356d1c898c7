"""Training batches: images are encoded once, and samples are drawn reproducibly."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinxit.images.folder import release_pixels
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.models.text_encoder import PromptParsing
from pinxit.progress import Progress
from pinxit.rng import generator
from pinxit.training.base_answers import LENGTH, BaseAnswer, trajectories
from pinxit.training.encoding_cache import EncodingCache
from pinxit.training.image_encoding import EncodedImage, encode_by_shape
from pinxit.training.method import ImagePool

# The timestep of a validation sample is the median of this many, so that few samples represent all
# timesteps.
_TIMESTEPS_PER_SAMPLE = 15


@dataclass(frozen=True)
class Batch:
    """Training samples of one shape.

    `latents` and `noise` are (B, C, H, W), `timesteps`, `weights` and `concepts` (B,). The loss of
    a concept is the sum of the losses of its samples times their weights. `mask` (B, 1, H, W) says
    how much the loss counts at each place, from 0 to 1; None is 1 everywhere. `answers`
    (B, C, H, W) are the predictions of the base model that are the targets of some samples, and
    NaN for the others; None if all are others. `image_names` are the file names of the images.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    weights: Tensor
    concepts: Tensor
    prompts: tuple[str, ...]
    mask: Tensor | None = None
    answers: Tensor | None = None
    image_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: slice) -> "Batch":
        parts = {name: None if part is None else part[index] for name, part in vars(self).items()}
        return replace(self, **parts)


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    noise: Tensor
    timestep: float
    weight: float
    concept: int
    prompt: str
    mask: Tensor | None
    image_name: str
    answer: Tensor | None = None


@dataclass(frozen=True)
class BatchSampling:
    """What the random numbers of a concept depend on, and the number of samples per image pool.

    `images_hash` is the fingerprint of the training images; the token and the folder's name do not
    matter.
    """

    seed: int
    images_hash: str
    batch_size: int
    flip: bool
    caption_dropout: float | None = None

    def drops_caption(self, *purpose: str | int) -> bool:
        """Whether a sample has an empty prompt; it has random numbers of its own."""
        if not self.caption_dropout:
            return False
        rng = self.generator("caption dropout", *purpose)
        return bool(torch.rand((), generator=rng) < self.caption_dropout)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A random number generator for one purpose."""
        return generator(self.seed, self.images_hash, *purpose)


class TrainingSamples:
    """The latents of a concept's images, and the training samples drawn from them.

    Non-square images use the aspect-ratio bucket of about resolution² pixels that crops least. The
    random numbers of a sample depend only on the seed, the images, the pool, the step and the
    sample's place in the batch. Of several processes, each draws its share of the places.
    """

    def __init__(
        self,
        model: Model,
        pools: Sequence[ImagePool],
        sampling: BatchSampling,
        resolution: int,
        cache: EncodingCache,
        ranks: Ranks = ALONE,
    ) -> None:
        self.cache = cache
        self._pools = tuple(pools)
        self._ranks = ranks
        self._sampling = sampling
        self._model = model
        self._resolution = resolution
        # By pool: each image as it is, and mirrored.
        self._encoded: dict[str, list[tuple[EncodedImage, EncodedImage]]] = {}
        # By step and slot: the prompt, and what the base model predicted.
        self._answers: dict[int, dict[int, tuple[str, BaseAnswer]]] = {}

    def encode_images(self) -> Iterator[Progress]:
        """Encode all images to latents and release their cached pixels; yields progress."""
        total, num_done = sum(len(pool.images) for pool in self._pools), 0
        for pool in self._pools:
            encoded: dict[int, tuple[EncodedImage, EncodedImage]] = {}
            for group in encode_by_shape(self._model, pool.images, self._resolution, self.cache):
                encoded |= group
                yield Progress("images encoded", num_done + len(encoded), total)
            self._encoded[pool.name] = [encoded[number] for number in range(len(encoded))]
            num_done += len(encoded)
        release_pixels(image for pool in self._pools for image in pool.images)

    def ensure_encoded(self) -> None:
        """Encode all images unless that was done before."""
        if not self._encoded:
            for _ in self.encode_images():
                pass

    def answer_with_base(self, steps: range, parsing: PromptParsing) -> Iterator[Progress]:
        """Let the base model answer for pools with `base_answer`, for some steps, if not yet done.

        No adapter may be applied to the model. Answers depend only on the step. Computed before
        training, they need no second copy of the weights. Yields progress.
        """
        self.ensure_encoded()
        rounds = {step // LENGTH: None for step in steps if step not in self._answers}
        for pool in self._pools if rounds else ():
            if pool.base_answer:
                prompts = dict.fromkeys(prompt for choice in pool.prompts for prompt in choice)
                conditions = {prompt: self.cache.condition(prompt, parsing) for prompt in prompts}
                for done, number in enumerate(rounds, 1):
                    self._answer_round(pool, number, conditions)
                    yield Progress("answers of the base model", done, len(rounds))

    def _answer_round(
        self, pool: ImagePool, number: int, conditions: Mapping[str, Conditioning]
    ) -> None:
        """The answers for `LENGTH` training steps, from a trajectory for each sample."""
        slots = self._own_slots(pool)
        if not slots:
            return
        generators = [self._sampling.generator(pool.name, "way", number, slot) for slot in slots]
        choices = pool.prompts[number % len(pool.prompts)]
        prompts = [
            choices[int(torch.randint(len(choices), (), generator=rng))] for rng in generators
        ]
        conditioning = Conditioning.stack([conditions[prompt] for prompt in prompts])
        shape = self._encoded[pool.name][number % len(pool.images)][0].mean.shape
        rng = self._sampling.generator(pool.name, "order", number)
        order = torch.randperm(LENGTH, generator=rng).tolist()
        answers = trajectories(self._model, conditioning, shape, generators)
        for place, some in zip(order, answers, strict=True):
            answered = zip(prompts, some, strict=True)
            self._answers[number * LENGTH + place] = dict(zip(slots, answered, strict=True))

    def draw_samples(self, step: int, concept: int) -> list[_Sample]:
        """The samples for a step, which are marked with the number of the concept."""
        self.ensure_encoded()
        samples: list[_Sample] = []
        for pool in self._pools:
            if pool.base_answer:
                answers = self._answers.get(step, {})
                samples += [self._answered(pool, answers[slot], concept) for slot in answers]
            else:
                samples += self._pool_samples(pool, step, concept)
        return samples

    def weightless_sample(self, concept: int) -> _Sample:
        """A sample that adds nothing to the loss, for a process that lacks one."""
        return replace(self._sample(self._pools[0], 0, concept, "weightless"), weight=0.0)

    def _answered(self, pool: ImagePool, answer: tuple[str, BaseAnswer], concept: int) -> _Sample:
        """The sample with an answer of the base model as its target."""
        prompt, way = answer
        clean, noise = way.clean_and_noise(self._model)
        weight, name = pool.weight / self._sampling.batch_size, "answers of the base model"
        return _Sample(clean, noise, way.timestep, weight, concept, prompt, None, name, way.answer)

    def _own_slots(self, pool: ImagePool) -> list[int]:
        """The places in the pool's part of the batch that this process has."""
        size = self._sampling.batch_size
        first = self._pools.index(pool) * size
        return [slot for slot in range(size) if self._ranks.owns(first + slot)]

    def _pool_samples(self, pool: ImagePool, step: int, concept: int) -> list[_Sample]:
        """The samples of this process in the pool's part of the batch."""
        sampling, samples = self._sampling, list[_Sample]()
        for slot in self._own_slots(pool):
            index = _shuffled_index(sampling, pool, step * sampling.batch_size + slot)
            sample = self._sample(pool, index, concept, step, slot)
            dropped = sampling.drops_caption(pool.name, step, slot)
            samples.append(replace(sample, prompt="") if dropped else sample)
        return samples

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that a sample may have."""
        prompts = [prompt for pool in self._pools for choice in pool.prompts for prompt in choice]
        if self._sampling.caption_dropout:
            prompts.append("")
        return tuple(dict.fromkeys(prompts))

    @property
    def training_prompts(self) -> dict[str, tuple[str, ...]]:
        """The possible prompts of each training image, by file name."""
        pool = self._pools[0]
        names = (image.path.name for image in pool.images)
        return dict(zip(names, pool.prompts, strict=True))

    def undrawn_images(self, steps: int) -> list[str]:
        """The file names of the training images that no sample of so many steps uses."""
        pool, places = self._pools[0], steps * self._sampling.batch_size
        if places >= len(pool.images):
            return []
        drawn = {_shuffled_index(self._sampling, pool, place) for place in range(places)}
        return [one.path.name for index, one in enumerate(pool.images) if index not in drawn]

    @property
    def inputs(self) -> dict[str, str]:
        """A fingerprint of each class image, and of the prompts of each training image, by name."""
        inputs: dict[str, str] = {}
        for pool in (pool for pool in self._pools if not pool.base_answer):
            for image, prompts in zip(pool.images, pool.prompts, strict=True):
                digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
                name = f"class image {image.path.name}" if image.class_image else ""
                name = name or f"caption of {image.path.name}"
                inputs[name] = f"{image.sha256}+{digest}" if image.class_image else digest
        return inputs

    def validation_samples(self, count: int, concept: int) -> list[_Sample]:
        """Fixed samples of the training images for the validation loss.

        They use the images in turn, and their timesteps cover the distribution that training uses.
        """
        self.ensure_encoded()
        pool = self._pools[0]
        rng = self._sampling.generator("fixed times")
        schedule, num_timesteps = self._model.schedule, count * _TIMESTEPS_PER_SAMPLE
        shape = self._encoded[pool.name][0][0].mean.shape
        timesteps = sorted(schedule.sample_timestep(rng, shape) for _ in range(num_timesteps))
        medians = timesteps[_TIMESTEPS_PER_SAMPLE // 2 :: _TIMESTEPS_PER_SAMPLE]
        samples: list[_Sample] = []
        for slot, timestep in enumerate(medians):
            sample = self._sample(pool, slot % len(pool.images), concept, "fixed", slot)
            samples.append(replace(sample, timestep=timestep, weight=1 / count))
        return self._ranks.share(samples)

    def _sample(self, pool: ImagePool, index: int, concept: int, *purpose: str | int) -> _Sample:
        """A sample of one image of a pool, with random numbers for one purpose."""
        sampling = self._sampling
        rng = sampling.generator(pool.name, *purpose)
        prompts = pool.prompts[index]
        prompt = prompts[int(torch.randint(len(prompts), (), generator=rng))]
        mirrored = int(torch.rand((), generator=rng) < 0.5) if sampling.flip else 0
        encoded = self._encoded[pool.name][index][mirrored]
        shape = encoded.mean.shape
        latents = encoded.mean + encoded.std * torch.randn(shape, generator=rng)
        noise = torch.randn(shape, generator=rng)
        timestep = self._model.schedule.sample_timestep(rng, shape)
        image = pool.images[index]
        weight = pool.weight * image.weight / sampling.batch_size
        mask = encoded.mask
        return _Sample(latents, noise, timestep, weight, concept, prompt, mask, image.path.name)


def collate(samples: Sequence[_Sample], device: torch.device) -> tuple[Batch, ...]:
    """Samples of one or several concepts as one batch for each shape, on the device."""
    groups: dict[torch.Size, list[_Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.latents.shape, []).append(sample)
    return tuple(_batch(group, device) for group in groups.values())


def split(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    """Batches with at most `size` samples."""
    for batch in batches:
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


def _batch(samples: Sequence[_Sample], device: torch.device) -> Batch:
    return Batch(
        torch.stack([sample.latents for sample in samples]).to(device),
        torch.stack([sample.noise for sample in samples]).to(device),
        torch.tensor([sample.timestep for sample in samples], device=device),
        torch.tensor([sample.weight for sample in samples], device=device),
        torch.tensor([sample.concept for sample in samples], device=device),
        tuple(sample.prompt for sample in samples),
        _stacked([s.mask for s in samples], torch.ones_like(samples[0].latents[:1]), device),
        _stacked([s.answer for s in samples], samples[0].latents * torch.nan, device),
        tuple(sample.image_name for sample in samples),
    )


def _stacked(
    tensors: Sequence[Tensor | None], missing: Tensor, device: torch.device
) -> Tensor | None:
    """The tensors in one, with `missing` in place of None; None if all are None."""
    if all(tensor is None for tensor in tensors):
        return None
    filled = [missing if tensor is None else tensor.to(missing) for tensor in tensors]
    return torch.stack(filled).to(device)


def _shuffled_index(sampling: BatchSampling, pool: ImagePool, place: int) -> int:
    """The index of an image in an endless sequence that shuffles the pool in every epoch."""
    epoch, index = divmod(place, len(pool.images))
    rng = sampling.generator(pool.name, "round", epoch)
    return int(torch.randperm(len(pool.images), generator=rng)[index])
