"""Learning: one training step for every family and method, yielded one at a time."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pinxit.adapter import Adapter, injected
from pinxit.batches import Batch, Draws, Samples, batch
from pinxit.durable import undisturbed
from pinxit.errors import RunError
from pinxit.method import Learnable
from pinxit.model import Conditioning, Model
from pinxit.pictures import Picture
from pinxit.recipe import Recipe

Tell = Callable[[Sequence[str]], Conditioning]


class DivergedError(RunError):
    """A loss or a gradient, or what they made of the weights, is no finite number."""


@dataclass(frozen=True)
class Step:
    """One step of learning: its number from 1 on, and each concept's loss and gradient norm."""

    number: int
    total: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    rate: float
    seconds: float

    @property
    def loss(self) -> float:
        """The mean loss of the concepts."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Learner:
    """One concept being learned: what is trained for it, and on what."""

    learnables: tuple[Learnable, ...]
    samples: Samples

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All its adapters, in order."""
        return tuple(learnable.adapter for learnable in self.learnables)

    @property
    def weights(self) -> list[nn.Parameter]:
        """All its trained weights."""
        return [weight for adapter in self.adapters for weight in adapter.weights().values()]


class Lesson:
    """Concepts learned together on one model: what is trained, and how far it is.

    `state` and `restore` move it between processes to the last bit; nothing random is in it, for
    all draws follow from the recipe's seed and the step.
    """

    def __init__(self, model: Model, recipe: Recipe, learners: Sequence[Learner]) -> None:
        self.model = model
        self.recipe = recipe
        self.learners = tuple(learners)
        self.done = 0
        self.pace = 1.0
        self.last: Step | None = None
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": list(learnable.adapter.weights().values()),
                    "lr": learnable.rate,
                    "weight_decay": learnable.decay,
                }
                for learner in self.learners
                for learnable in learner.learnables
                if learnable.adapter.weights()
            ],
            fused=True,
        )

    @classmethod
    def of(cls, model: Model, recipe: Recipe, pictures: tuple[Picture, ...]) -> "Lesson":
        """A settled recipe's lesson, at its beginning; all that must be prepared is there."""
        assert recipe.batch_size and recipe.rate and recipe.steps, "the recipe is not settled"
        subject = recipe.subject
        pools = recipe.method.pools(model, subject, pictures)
        draws = Draws(recipe.seed, subject.token, recipe.batch_size, recipe.flip)
        learnables = recipe.method.adapters(model, subject, recipe.rate)
        samples = Samples(model, pools, draws, recipe.size or model.picture_size)
        return cls(model, recipe, [Learner(learnables, samples)])

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters of all concepts."""
        return tuple(adapter for learner in self.learners for adapter in learner.adapters)

    def slow_down(self, factor: float) -> None:
        """Learn at a share of the rate from now on; it is part of the state."""
        self.pace *= factor
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def state(self) -> dict[str, Tensor]:
        """Everything that changes as it learns: weights, moments, step, pace."""
        pace = torch.tensor(self.pace, dtype=torch.float64)
        kept = {"done": torch.tensor(self.done), "pace": pace}
        for number, weight in enumerate(self._weights()):
            kept[f"weight.{number}"] = weight.detach()
            for name, moment in self.optimizer.state[weight].items():
                kept[f"{name}.{number}"] = moment
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that was kept."""
        self.done = int(state["done"])
        self.slow_down(float(state["pace"]))
        for number, weight in enumerate(self._weights()):
            with torch.no_grad():
                _ = weight.copy_(state[f"weight.{number}"])
            # A layer whose answer nobody takes, as the last of some towers, has no moments.
            moments = ("step", "exp_avg", "exp_avg_sq") if f"step.{number}" in state else ()
            for name in moments:
                kept = state[f"{name}.{number}"].to(weight.device)
                # The fused step walks weights and moments in memory: they must lie the same way.
                like = kept if name == "step" else weight.detach()
                self.optimizer.state[weight][name] = torch.empty_like(like).copy_(kept)

    def batch(self, step: int) -> Batch:
        """The batch of a step, of all concepts."""
        drawn = [
            sample
            for concept, learner in enumerate(self.learners)
            for sample in learner.samples.draw(step, concept)
        ]
        return batch(drawn, self.model.device)

    def tell(self) -> Tell:
        """How prompts are told to the denoiser: anew each step where learning changes that."""
        reading = self.recipe.reading
        if any(adapter.touches_text for adapter in self.adapters):
            return lambda wanted: self.model.condition(wanted, reading)
        prompts = [prompt for learner in self.learners for prompt in learner.samples.prompts]
        with torch.no_grad():
            every = dict.fromkeys(prompts)
            kept = {prompt: self.model.condition([prompt], reading) for prompt in every}
        return lambda wanted: Conditioning.stack([kept[prompt] for prompt in wanted])

    def _weights(self) -> list[nn.Parameter]:
        return [weight for learner in self.learners for weight in learner.weights]


def objective(model: Model, drawn: Batch, tell: Tell, min_snr: float | None = None) -> Tensor:
    """Each sample's weighted denoising error, (B,), for any family and any method."""
    schedule = model.schedule
    noisy = schedule.add_noise(drawn.latents, drawn.noise, drawn.times)
    answer = model.denoise(noisy, drawn.times, tell(drawn.prompts))
    target = schedule.target(drawn.latents, drawn.noise, drawn.times)
    errors = (answer - target).square().mean(dim=(1, 2, 3))
    return errors * drawn.weights * schedule.weight(drawn.times, min_snr)


def train(lesson: Lesson) -> Generator[Step]:
    """Learn, a step each time it is asked for the next, until the recipe's last.

    The adapters are in the model from the first step until the generator is closed. RunError if a
    loss or gradient is not finite; the lesson is then as it was before that step.
    """
    model, recipe = lesson.model, lesson.recipe
    total = recipe.steps or 0
    with injected(model, lesson.adapters):
        tell = lesson.tell()
        while lesson.done < total:
            began = time.perf_counter()
            drawn = lesson.batch(lesson.done)
            with torch.enable_grad():
                errors = objective(model, drawn, tell, recipe.min_snr)
                losses = errors.new_zeros(len(lesson.learners)).index_add(0, drawn.concepts, errors)
                losses.sum().backward()
            norms = tuple(
                float(nn.utils.clip_grad_norm_(learner.weights, recipe.clip))
                for learner in lesson.learners
            )
            number, told = lesson.done + 1, tuple(map(float, losses.detach()))
            _must_be_finite(lesson, errors, norms)
            with undisturbed():
                lesson.optimizer.step()
                lesson.optimizer.zero_grad()
                lesson.done = number
                seconds = time.perf_counter() - began
                lesson.last = Step(
                    number, total, told, norms, (recipe.rate or 0.0) * lesson.pace, seconds
                )
            yield lesson.last


def _must_be_finite(lesson: Lesson, errors: Tensor, norms: Sequence[float]) -> None:
    """DivergedError if a sample's error or a gradient is not, naming the pictures it came from."""
    good = errors.detach().isfinite().tolist()
    if all(good) and all(map(math.isfinite, norms)):
        return
    shown = [name for learner in lesson.learners for name in learner.samples.shown(lesson.done)]
    blamed = (
        shown if all(good) else [name for name, fine in zip(shown, good, strict=True) if not fine]
    )
    raise DivergedError(
        f"learning went wrong at step {lesson.done + 1}: the errors of the samples are "
        f"{', '.join(f'{error:.3g}' for error in errors.tolist())}, the gradient's norm "
        f"{', '.join(f'{norm:.3g}' for norm in norms)}, with {', '.join(dict.fromkeys(blamed))}",
        "try a lower --rate, or --precision fp32; what was kept before is sound",
    )
