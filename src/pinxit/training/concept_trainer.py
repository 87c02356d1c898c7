"""A learner: one concept's adapters, samples and optimizer, and how far it is."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pinxit.errors import RunError
from pinxit.images.folder import Picture, by_content, fingerprint
from pinxit.models.model import Model
from pinxit.training.batches import Draws, Samples
from pinxit.training.early_stopping import settled
from pinxit.training.optimizer import STATE, AdamW, Group, norm
from pinxit.training.recipe import Recipe

# Half-precision gradients of a loss as it is would round to nothing; halved when they overflow.
_FP16_SCALE = 2.0**12
# How much more later steps count in a mean: the n-th as n to this power.
_LATE = 3


class DivergedError(RunError):
    """A loss or a gradient, or what they made of the weights, is no finite number."""


class Learner:
    """One concept being learned: what is trained for it, on what, and how far it is.

    `state` and `restore` move it between processes to the last bit; nothing random is in it, for
    all draws follow from the recipe's seed, the pictures and the step. `trouble` is why it cannot
    go on, if it cannot: it is then as it was before the step that failed. `looks` is the loss of
    its fixed samples after some steps; once that has settled, no step is ahead.
    """

    def __init__(self, model: Model, recipe: Recipe, pictures: Sequence[Picture]) -> None:
        assert recipe.batch_size and recipe.rate and recipe.steps, "the recipe is not settled"
        self.model = model
        self.recipe = recipe
        self.total = recipe.steps
        self.done = 0
        self.pace = 1.0
        self.trouble: DivergedError | None = None
        self.looks: dict[int, float] = {}
        subject = recipe.subject
        pools = recipe.method.pools(model, subject, by_content(pictures))
        draws = Draws(recipe.seed, fingerprint(pictures), recipe.batch_size, recipe.flip)
        self.samples = Samples(model, pools, draws, recipe.size or model.picture_size)
        self.learnables = recipe.method.adapters(model, subject, recipe.rate)
        self.adapters = tuple(learnable.adapter for learnable in self.learnables)
        self.weights = [weight for one in self.adapters for weight in one.weights().values()]
        swings = [one.swings for one in self.learnables for _ in one.adapter.weights()]
        self.optimizer = AdamW(
            [
                Group(list(one.adapter.weights().values()), one.rate, one.decay)
                for one in self.learnables
            ]
        )
        self.means = {
            number: weight.detach().clone()
            for number, weight in enumerate(self.weights)
            if swings[number]
        }
        self.scale = _FP16_SCALE if model.placement.precision == "fp16" else 1.0
        self._share = torch.ones(())

    @property
    def learning(self) -> bool:
        """Whether steps are ahead of it."""
        return self.trouble is None and self.done < self.total

    @property
    def looks_now(self) -> bool:
        """Whether it is to look at its fixed samples before its next step."""
        due = self.recipe.stop > 0 and self.done % (self.recipe.look_every or 1) == 0
        return due and self.learning and self.done not in self.looks

    def look(self, loss: float) -> None:
        """What the loss of its fixed samples is now; it stops here if that has settled."""
        self.looks[self.done] = loss
        self._heed()

    def state(self) -> dict[str, Tensor]:
        """Everything that changes as it learns: weights, moments, step, pace."""
        told = {"done": self.done, "scale": self.scale, "pace": self.pace}
        kept = {name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}
        for number, weight in enumerate(self.weights):
            kept[f"weight.{number}"] = weight.detach()
            for name, moment in self.optimizer.state.get(weight, {}).items():
                kept[f"{name}.{number}"] = moment
        kept |= {f"mean.{number}": mean for number, mean in self.means.items()}
        if self.looks:
            kept["looks"] = torch.tensor(list(self.looks.items()), dtype=torch.float64)
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that was kept."""
        self.done = int(state["done"])
        self.scale, self.pace = float(state["scale"]), float(state["pace"])
        pairs = state["looks"].tolist() if "looks" in state else []
        self.looks = {int(step): loss for step, loss in pairs}
        self._heed()
        for number, weight in enumerate(self.weights):
            with torch.no_grad():
                weight.copy_(state[f"weight.{number}"])
            if number in self.means:
                self.means[number].copy_(state.get(f"mean.{number}", weight.detach()))
            # A layer whose answer nobody takes, as the last of some towers, has no moments.
            names = [name for name in STATE if f"{name}.{number}" in state]
            if names:
                self.optimizer.state[weight] = {
                    name: _lying_like(state[f"{name}.{number}"], weight) for name in names
                }

    def _heed(self) -> None:
        if settled(list(self.looks.values()), self.recipe.stop):
            self.total = self.done

    def clipped(self, loss: float, errors: Mapping[str, float]) -> float:
        """The norm of its gradient, which is clipped; `trouble` is set if it is no step to take.

        The errors are those of the pictures that were shown.
        """
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        total = norm(grads) / self.scale
        self._share = (self.recipe.clip / (total + 1e-6)).clamp(max=1.0) / self.scale
        if not (math.isfinite(loss) and total.isfinite()):
            bad = [name for name, error in errors.items() if not math.isfinite(error)]
            self.trouble = DivergedError(
                f"learning went wrong at step {self.done + 1}: the errors of the samples are "
                f"{', '.join(f'{error:.3g}' for error in errors.values())}, the gradient's norm "
                f"{total:.3g}, with {', '.join(bad or errors)}",
                "try a lower --rate, or --precision fp32; what was kept before is sound",
            )
        return float(total)

    def step(self) -> None:
        """Change what is trained by its gradient, as far as that was not clipped."""
        self.optimizer.step(self._share, self.pace)
        self.done += 1
        for number, mean in self.means.items():
            mean.lerp_(self.weights[number].detach(), (_LATE + 1) / (self.done + _LATE))

    @contextmanager
    def settled_down(self) -> Generator[None]:
        """With the mean of its later steps in place of weights that swing, to paint with or keep.

        The mean is Shamir and Zhang's (arXiv:1212.1824), of about the last quarter of the steps
        however many there are, so that a run for more steps is the same run.
        """
        last = {number: self.weights[number].detach().clone() for number in self.means}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(last)

    def _put(self, values: Mapping[int, Tensor]) -> None:
        with torch.no_grad():
            for number, value in values.items():
                self.weights[number].copy_(value)

    def overflowed(self) -> bool:
        """Whether halves may have been too small for its gradient; it is smaller from now on."""
        if self.trouble is None or self.scale <= 1:
            return False
        self.trouble = None
        self.scale /= 2
        return True


def _lying_like(kept: Tensor, weight: Tensor) -> Tensor:
    """A moment as its weight lies in memory: the step walks both; a count of steps as it is."""
    like = weight.detach() if kept.ndim else kept
    return torch.empty_like(like, dtype=kept.dtype, device=weight.device).copy_(kept)
