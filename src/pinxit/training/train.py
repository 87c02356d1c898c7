"""Learning: one training step for every family and method, yielded one at a time."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinxit.adapters.adapter import Adapter, Change, Joinable, Shared, injected
from pinxit.errors import RunError
from pinxit.files.atomic_write import undisturbed
from pinxit.images.folder import Picture
from pinxit.models.model import Conditioning, Model
from pinxit.training.batches import Batch, parts
from pinxit.training.concept_trainer import Learner
from pinxit.training.early_stopping import SAMPLES
from pinxit.training.memory import Choice, Saved, choose, free
from pinxit.training.optimizer import bytes_of_state
from pinxit.training.recipe import Recipe

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
        for place, loss, size in zip(self.concepts, self.losses, self.norms, strict=True):
            alone = replace(self, losses=(loss,), norms=(size,), seconds=seconds, concepts=(0,))
            yield place, alone


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
        self.changes = tuple(self._changes())
        self.choice: Choice | None = None
        self.last: Step | None = None

    @classmethod
    def of(cls, model: Model, recipe: Recipe, pictures: tuple[Picture, ...]) -> "Lesson":
        """A settled recipe's lesson, at its beginning; all that must be prepared is there."""
        return cls(model, [Learner(model, recipe, pictures)])

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters of all concepts."""
        return tuple(adapter for learner in self.learners for adapter in learner.adapters)

    @property
    def touches_text(self) -> bool:
        """Whether prompts mean something else after each step."""
        return any(adapter.touches_text for adapter in self.adapters)

    def batches(self, step: int, concepts: Sequence[int] = ()) -> tuple[Batch, ...]:
        """The batch of a step, of some concepts or all: in a part for each shape of pictures."""
        drawn = [
            sample
            for concept in concepts or range(len(self.learners))
            for sample in self.learners[concept].samples.draw(step, concept)
        ]
        return parts(drawn, self.model.device)

    def errors(self, some: Batch, tell: Tell) -> Tensor:
        """Each sample's weighted denoising error, (B,)."""
        self.serve(some.concepts)
        return objective(self.model, some, tell, self.recipe.min_snr)

    def serve(self, concepts: Tensor) -> None:
        """The samples (B,) that the model now gets are of these concepts; if one is given, all."""
        for change in self.changes:
            if isinstance(change, Shared):
                change.serve(concepts)

    def make_room(self) -> None:
        """Let what the next steps do not need leave memory, as after encoding or a preview."""
        for learner in self.learners:
            learner.samples.ready()
        self.model.rest("autoencoder", *(() if self.touches_text else self.model.towers))

    def tell(self) -> Tell:
        """How prompts are told to the denoiser: anew each step where learning changes that."""
        reading = self.recipe.reading
        if self.touches_text:
            return lambda wanted: _each_once(
                lambda some: self.model.condition(some, reading), wanted
            )
        prompts = [prompt for learner in self.learners for prompt in learner.samples.prompts]
        with torch.no_grad():
            every = dict.fromkeys(prompts)
            kept = {prompt: self.model.condition([prompt], reading) for prompt in every}
        return lambda wanted: Conditioning.stack([kept[prompt] for prompt in wanted])

    def _changes(self) -> Iterator[Change]:
        """What is to be in the model: the adapters, joined where they have to be."""
        for several in zip(*(learner.adapters for learner in self.learners), strict=True):
            first = several[0]
            if len(several) > 1 and isinstance(first, Joinable):
                yield first.joined(several)
            else:
                yield from several


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
    RunError if memory does not suffice.
    """
    learners = lesson.learners
    with injected(lesson.model, lesson.changes):
        tell = lesson.tell()
        while any(learner.learning for learner in learners):
            began = time.perf_counter()
            lesson.make_room()
            step, there = _next(learners)
            drawn = lesson.batches(step, there)
            if _look(lesson, tell, drawn):
                continue
            told = _gradients(lesson, drawn, tell)
            turn = [n for n in there if learners[n].done == step]
            norms = {n: learners[n].clipped(told[n].total, told[n].by_picture) for n in turn}
            again = any([learners[n].overflowed() for n in turn])
            well = tuple(n for n in turn if not learners[n].trouble and not again)
            with undisturbed():
                for n in well:
                    learners[n].step()
                for n in there:
                    learners[n].optimizer.zero_grad()
                if again:
                    continue
                lesson.last = Step(
                    number=step + 1,
                    total=max(learner.total for learner in learners),
                    losses=tuple(told[n].total for n in well),
                    norms=tuple(norms[n] for n in well),
                    rate=(lesson.recipe.rate or 0.0) * min(learners[n].pace for n in turn),
                    seconds=time.perf_counter() - began,
                    concepts=well,
                )
            _look(lesson, tell, drawn)
            yield lesson.last


def _next(learners: Sequence[Learner]) -> tuple[int, list[int]]:
    """The next step, counted from 0, and whose samples are in its batch."""
    step = min(learner.done for learner in learners if learner.learning)
    return step, [n for n, one in enumerate(learners) if not one.trouble and step < one.total]


@torch.no_grad()
def _look(lesson: Lesson, tell: Tell, drawn: Sequence[Batch]) -> bool:
    """Let learners that are due look at their fixed samples; whether one is done by that.

    Each looks alone, so that who else learns does not change a bit of what it sees. After a step
    none is due twice; before one only those are that begin, or were interrupted at this point.
    """
    choice = lesson.choice = lesson.choice or _fitting(lesson, drawn, tell)
    before = sum(learner.learning for learner in lesson.learners)
    for n, learner in enumerate(lesson.learners):
        if learner.looks_now:
            fixed = parts(learner.samples.fixed(SAMPLES, n), lesson.model.device)
            pieces = _cut(fixed, choice.together)
            with learner.settled_down():
                learner.look(sum(float(lesson.errors(some, tell).sum()) for some in pieces))
    return sum(learner.learning for learner in lesson.learners) < before


@dataclass
class _Loss:
    """A learner's loss on a batch, and the error of each picture that was in it."""

    total: float
    by_picture: dict[str, float]


def _gradients(lesson: Lesson, parts: Sequence[Batch], tell: Tell) -> list[_Loss]:
    """Each learner's loss on the parts of a batch, its gradients left with the weights, scaled.

    As much of the batch is worked on together as memory has room for.
    """
    model, learners = lesson.model, lesson.learners
    scales = torch.tensor([learner.scale for learner in learners], device=model.device)
    while True:
        choice = lesson.choice
        assert choice
        if choice.economise:
            model.economise(True)
        losses = torch.zeros(len(learners), device=model.device)
        pictures: list[dict[str, float]] = [{} for _ in learners]
        try:
            for some in _cut(parts, choice.together):
                with torch.enable_grad():
                    errors = lesson.errors(some, tell)
                    (errors * scales[some.concepts]).sum().backward()
                losses = losses.index_add(0, some.concepts, errors.detach().to(losses))
                found = zip(some.concepts.tolist(), some.shown, errors.tolist(), strict=True)
                for n, name, error in found:
                    pictures[n][name] = error
            return [_Loss(*both) for both in zip(losses.tolist(), pictures, strict=True)]
        except torch.OutOfMemoryError as trouble:
            for learner in learners:
                learner.optimizer.zero_grad()
            lesson.choice = choice.smaller()
            if lesson.choice is None:
                raise RunError(
                    f"there is not enough memory on {model.device} for one picture",
                    "take a smaller --size, or a method that trains less",
                ) from trouble
        finally:
            if choice.economise:
                model.economise(False)


def _cut(parts: Sequence[Batch], together: int) -> Iterator[Batch]:
    for part in parts:
        yield from (part[at : at + together] for at in range(0, len(part), together))


def _fitting(lesson: Lesson, parts: Sequence[Batch], tell: Tell) -> Choice:
    """How to work on such batches, by what one sample of the largest takes."""
    largest = max(parts, key=lambda part: part.latents[0].numel())
    weights = [weight for learner in lesson.learners for weight in learner.weights]
    awake = ["denoiser", *(lesson.model.towers if lesson.touches_text else ())]
    held = [w for name in awake for w in lesson.model.networks[name].parameters()]
    with torch.enable_grad(), Saved([*weights, *held]) as saved:
        lesson.errors(largest[:1], tell)
    states = sum(
        bytes_of_state(weight)
        for learner in lesson.learners
        for weight in learner.weights
        if weight not in learner.optimizer.state
    )
    return choose(sum(map(len, parts)), saved.bytes, states, free(lesson.model.device))
