"""Learning: one training step for every family and method, yielded one at a time."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pinxit.adapter import Adapter, injected
from pinxit.batches import Batch, Draws, Samples, parts
from pinxit.durable import undisturbed
from pinxit.errors import RunError
from pinxit.model import Conditioning, Model
from pinxit.pictures import Picture, by_content, fingerprint
from pinxit.recipe import Recipe

Tell = Callable[[Sequence[str]], Conditioning]


@dataclass(frozen=True)
class Step:
    """One step of learning: its number from 1 on, and each concept's loss and gradient norm.

    `concepts` are the places in the lesson of those that took it; not all do, if some have left.
    """

    number: int
    total: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    rate: float
    seconds: float
    concepts: tuple[int, ...] = (0,)

    @property
    def loss(self) -> float:
        """The mean loss of the concepts."""
        return sum(self.losses) / len(self.losses)

    def shares(self) -> Iterator[tuple[int, "Step"]]:
        """For each concept's place its own step, with an equal part of the time."""
        seconds = self.seconds / max(1, len(self.concepts))
        for place, loss, norm in zip(self.concepts, self.losses, self.norms, strict=True):
            alone = replace(self, losses=(loss,), norms=(norm,), seconds=seconds, concepts=(0,))
            yield place, alone


class Learner:
    """One concept being learned: what is trained for it, on what, and how far it is.

    `state` and `restore` move it between processes to the last bit; nothing random is in it, for
    all draws follow from the recipe's seed, the pictures and the step. `trouble` is why it cannot
    go on, if it cannot: it is then as it was before the step that failed.
    """

    def __init__(self, model: Model, recipe: Recipe, pictures: Sequence[Picture]) -> None:
        assert recipe.batch_size and recipe.rate and recipe.steps, "the recipe is not settled"
        self.model = model
        self.recipe = recipe
        self.total = recipe.steps
        self.done = 0
        self.trouble: RunError | None = None
        subject = recipe.subject
        pools = recipe.method.pools(model, subject, by_content(pictures))
        draws = Draws(recipe.seed, fingerprint(pictures), recipe.batch_size, recipe.flip)
        self.samples = Samples(model, pools, draws, recipe.size or model.picture_size)
        self.learnables = recipe.method.adapters(model, subject, recipe.rate)
        self.adapters = tuple(learnable.adapter for learnable in self.learnables)
        self.weights = [weight for one in self.adapters for weight in one.weights().values()]
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": list(learnable.adapter.weights().values()),
                    "lr": learnable.rate,
                    "weight_decay": learnable.decay,
                }
                for learnable in self.learnables
                if learnable.adapter.weights()
            ],
            fused=True,
        )

    @property
    def learning(self) -> bool:
        """Whether steps are ahead of it."""
        return self.trouble is None and self.done < self.total

    def state(self) -> dict[str, Tensor]:
        """Everything that changes as it learns: weights, moments, step."""
        kept = {"done": torch.tensor(self.done)}
        for number, weight in enumerate(self.weights):
            kept[f"weight.{number}"] = weight.detach()
            for name, moment in self.optimizer.state[weight].items():
                kept[f"{name}.{number}"] = moment
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that was kept."""
        self.done = int(state["done"])
        for number, weight in enumerate(self.weights):
            with torch.no_grad():
                _ = weight.copy_(state[f"weight.{number}"])
            # A layer whose answer nobody takes, as the last of some towers, has no moments.
            moments = ("step", "exp_avg", "exp_avg_sq") if f"step.{number}" in state else ()
            for name in moments:
                kept = state[f"{name}.{number}"].to(weight.device)
                # The fused step walks weights and moments in memory: they must lie the same way.
                like = kept if name == "step" else weight.detach()
                self.optimizer.state[weight][name] = torch.empty_like(like).copy_(kept)

    def clipped(self, loss: float) -> float:
        """The norm of its gradient, which is clipped; `trouble` is set if it is no step to take."""
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.recipe.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.trouble = RunError(
                f"learning went wrong at step {self.done + 1}: loss {loss}, gradient {norm}",
                "try a lower --rate, or --precision fp32; what was learned before is kept",
            )
        return norm


class Lesson:
    """Concepts learned together on one model.

    A sample is changed by no other of its batch, and draws, clipping and optimizer are each
    learner's own: what one learns is what it would learn alone, to rounding. Their recipes must
    read prompts alike and weigh times alike.
    """

    def __init__(self, model: Model, learners: Sequence[Learner]) -> None:
        self.model = model
        self.learners = tuple(learners)
        self.recipe = self.learners[0].recipe

    @classmethod
    def of(cls, model: Model, recipe: Recipe, pictures: tuple[Picture, ...]) -> "Lesson":
        """A settled recipe's lesson, at its beginning; all that must be prepared is there."""
        return cls(model, [Learner(model, recipe, pictures)])

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters of all concepts."""
        return tuple(adapter for learner in self.learners for adapter in learner.adapters)

    def batches(self, step: int, concepts: Sequence[int] = ()) -> tuple[Batch, ...]:
        """The batch of a step, of some concepts or all: in a part for each shape of pictures."""
        drawn = [
            sample
            for concept in concepts or range(len(self.learners))
            for sample in self.learners[concept].samples.draw(step, concept)
        ]
        return parts(drawn, self.model.device)

    def tell(self) -> Tell:
        """How prompts are told to the denoiser: anew each step where learning changes that."""
        reading = self.recipe.reading
        if any(adapter.touches_text for adapter in self.adapters):
            return lambda wanted: _each_once(
                lambda some: self.model.condition(some, reading), wanted
            )
        prompts = [prompt for learner in self.learners for prompt in learner.samples.prompts]
        with torch.no_grad():
            every = dict.fromkeys(prompts)
            kept = {prompt: self.model.condition([prompt], reading) for prompt in every}
        return lambda wanted: Conditioning.stack([kept[prompt] for prompt in wanted])


def _each_once(tell: Tell, wanted: Sequence[str]) -> Conditioning:
    """What is told of prompts, some of which may be the same."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(wanted))}
    return tell(list(places))[torch.tensor([places[prompt] for prompt in wanted])]


def objective(model: Model, drawn: Batch, tell: Tell, min_snr: float | None = None) -> Tensor:
    """Each sample's weighted denoising error, (B,), for any family and any method."""
    schedule = model.schedule
    noisy = schedule.add_noise(drawn.latents, drawn.noise, drawn.times)
    answer = model.denoise(noisy, drawn.times, tell(drawn.prompts))
    target = schedule.target(drawn.latents, drawn.noise, drawn.times)
    errors = _mean((answer - target).square(), drawn.mask)
    return errors * drawn.weights * schedule.weight(drawn.times, min_snr)


def _mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Each sample's mean error, (B,), over all of the picture or over what its mask shows."""
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    return (errors.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def train(lesson: Lesson) -> Generator[Step]:
    """Learn, a step each time it is asked for the next, until all learners are done or in trouble.

    The adapters are in the model from the first step until the generator is closed. Learners that
    are ahead of others, as after a crash between two checkpoints, wait for them; their samples
    stay in the batch meanwhile, so that its shape, and with it all rounding, follows from the step.
    """
    model, learners = lesson.model, lesson.learners
    with injected(model, lesson.adapters):
        tell = lesson.tell()
        while any(learner.learning for learner in learners):
            began = time.perf_counter()
            step = min(learner.done for learner in learners if learner.learning)
            there = [n for n, one in enumerate(learners) if not one.trouble and step < one.total]
            losses = torch.zeros(len(learners), device=model.device)
            for drawn in lesson.batches(step, there):
                with torch.enable_grad():
                    errors = objective(model, drawn, tell, lesson.recipe.min_snr)
                    errors.sum().backward()
                losses = losses.index_add(0, drawn.concepts, errors.detach())
            told = losses.tolist()
            turn = [n for n in there if learners[n].done == step]
            norms = {n: learners[n].clipped(told[n]) for n in turn}
            well = tuple(n for n in turn if not learners[n].trouble)
            with undisturbed():
                for n in well:
                    learners[n].optimizer.step()
                    learners[n].done = step + 1
            for n in there:
                learners[n].optimizer.zero_grad()
            yield Step(
                number=step + 1,
                total=max(learner.total for learner in learners),
                losses=tuple(told[n] for n in well),
                norms=tuple(norms[n] for n in well),
                rate=lesson.recipe.rate or 0.0,
                seconds=time.perf_counter() - began,
                concepts=well,
            )
