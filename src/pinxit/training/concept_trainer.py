"""ConceptTrainer: the adapters, samples, optimizer and progress of one concept."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pinxit.errors import RunError
from pinxit.images.folder import TrainingImage, fingerprint, sort_by_content
from pinxit.models.model import Model
from pinxit.models.prompt import TokenEmbedding
from pinxit.models.ranks import ALONE, Ranks
from pinxit.progress import Progress
from pinxit.training.assistant import Assistant
from pinxit.training.batches import BatchSampling, TrainingSamples
from pinxit.training.division import Division
from pinxit.training.early_stopping import converged
from pinxit.training.encoding_cache import EncodingCache
from pinxit.training.method import TrainableAdapter
from pinxit.training.optimizer import Optimizer, ParameterGroup
from pinxit.training.plan import TrainingPlan
from pinxit.training.self_test import GradientCheck, prompts_with_token, unused_inputs

# Initial loss scale for fp16, whose gradients would underflow; halved when they overflow.
_FP16_LOSS_SCALE = 2.0**12
# The weight of step n in the average of the weights grows as n to this power.
_AVERAGING_POWER = 3


class DivergedError(RunError):
    """A loss, a gradient or a trained weight is not a finite number."""


@dataclass(frozen=True)
class ConceptLoss:
    """The loss of a concept in one step, and the loss of each image in the batch by file name."""

    total: float
    by_image: Mapping[str, float]

    @classmethod
    def added(cls, parts: Sequence["ConceptLoss"]) -> "ConceptLoss":
        """The loss of all samples, from the losses of parts of them."""
        by_image = {name: loss for part in parts for name, loss in part.by_image.items()}
        return cls(sum(part.total for part in parts), by_image)


class ConceptTrainer:
    """The training state of one concept: adapters, samples, optimizer and number of steps done.

    `state` and `restore` save and load it exactly. It has no random state: all random numbers
    depend only on the recipe's seed, the images and the step. `error` is set if training diverged;
    the state is then that before the failed step. `validation_losses` maps a step to the loss of
    the fixed validation samples; when it has converged, `total_steps` becomes `steps_done`.
    """

    def __init__(
        self,
        model: Model,
        plan: TrainingPlan,
        images: Sequence[TrainingImage],
        class_images: tuple[TrainingImage, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        recipe, subject = plan.recipe, plan.recipe.subject
        self.model, self.plan = model, plan
        self.total_steps = plan.steps
        self.steps_done = 0
        self.lr_multiplier = 1.0
        self.error: DivergedError | None = None
        self.validation_losses: dict[int, float] = {}
        pools = plan.method.image_pools(subject, sort_by_content(images), class_images)
        sampling = BatchSampling(
            recipe.seed, fingerprint(images), plan.batch_size, recipe.flip, recipe.caption_dropout
        )
        cache = EncodingCache(model, enabled=bool(recipe.cache_encodings))
        self.samples = TrainingSamples(model, pools, sampling, plan.resolution, cache, ranks)
        self.trainable_adapters = plan.method.create_adapters(model, subject, plan.learning_rate)
        self.assistant = Assistant(recipe.assistant)
        self.adapters = tuple(trainable.adapter for trainable in self.trainable_adapters)
        self.weights: list[nn.Parameter] = []
        self.averages: dict[int, Tensor] = {}
        groups = [self._add_weights(trainable) for trainable in self.trainable_adapters]
        self.optimizer: Optimizer = plan.optimizer(groups)
        divided = plan.method.trains_all_weights and self.optimizer.separable
        self.division = Division(ranks, self.weights, divided=divided)
        self.loss_scale = _FP16_LOSS_SCALE if model.placement.precision == "fp16" else 1.0
        self._gradient_scale = torch.ones(())
        self._prompts_with_token = prompts_with_token(
            model, self._own_prompts(), self.placeholders(), recipe.prompt_parsing
        )
        self._norms: Sequence[Tensor] = ()
        self._gradients = GradientCheck(self._weight_names(), self._prompts_with_token)
        self.notices: list[str] = []

    def _add_weights(self, trainable: TrainableAdapter) -> ParameterGroup:
        """The parameter group of an adapter, whose weights are trained, and averaged if asked."""
        recipe, rate = self.plan.recipe, trainable.learning_rate
        weights = list(trainable.adapter.weights().values())
        origins = [weight.detach().clone() for weight in weights] if trainable.pull else ()
        decay = trainable.weight_decay if recipe.weight_decay is None else recipe.weight_decay
        if trainable.adamw_rate:
            rate = self.plan.optimizer.default_rate(rate)
        if trainable.average or recipe.ema:
            numbered = enumerate(weights, len(self.weights))
            self.averages |= {number: weight.detach().clone() for number, weight in numbered}
        self.weights += weights
        return ParameterGroup(weights, rate, decay, trainable.pull, origins)

    def _weight_names(self) -> list[str]:
        """The names of the trained weights, each with that of its network."""
        return [
            f"{getattr(adapter, 'network', self.plan.recipe.token)}.{name}"
            for adapter in self.adapters
            for name in adapter.weights()
        ]

    def lr_multiplier_of(self, step: int) -> float:
        """The factor of the learning rate in a step, after divergence and by the schedule."""
        return self.lr_multiplier * self.plan.lr_factor(step)

    @property
    def unfinished(self) -> bool:
        """Whether there are steps left to train."""
        return self.error is None and self.steps_done < self.total_steps

    def inputs(self) -> dict[str, str]:
        """Fingerprints by name: of class images, prompts of training images, and the assistant."""
        return self.samples.inputs | self.assistant.fingerprint

    def cut_prompts(self) -> dict[str, str]:
        """The training prompts that are too long, and what the text encoders leave out of each."""
        parsing, tokens = self.plan.recipe.prompt_parsing, self.placeholders()
        prompts = self.samples.prompts
        cuts = {prompt: self.model.truncated_text(prompt, parsing, tokens) for prompt in prompts}
        return {prompt: cut for prompt, cut in cuts.items() if cut}

    def unused_inputs(self) -> Iterator[str]:
        """What never reaches the loss; RunError if no training prompt shows the token."""
        undrawn = self.samples.undrawn_images(self.total_steps)
        prompts, with_token = self._own_prompts(), self._prompts_with_token
        return unused_inputs(self.plan.recipe.token, prompts, with_token, undrawn)

    def check_gradients(self, prompts: Sequence[str]) -> None:
        """Look at the gradients of one of the first steps, which has these prompts, once clipped.

        What the user must know is added to `notices`. RunError if no weight has a gradient.
        """
        self.notices += self._gradients.add_step(prompts, self._norms)

    def _own_prompts(self) -> list[str]:
        """The prompts of the training images."""
        choices = self.samples.training_prompts.values()
        return list(dict.fromkeys(prompt for choice in choices for prompt in choice))

    def placeholders(self) -> dict[str, TokenEmbedding]:
        """The placeholder tokens of all adapters."""
        tokens: dict[str, TokenEmbedding] = {}
        for adapter in self.adapters:
            tokens |= adapter.placeholders()
        return tokens

    def answer_with_base(self, first: int | None = None) -> Iterator[Progress]:
        """Compute the targets of the steps left, or of those from `first`; yields progress."""
        first = self.steps_done if first is None else first
        steps, parsing = range(first, self.total_steps), self.plan.recipe.prompt_parsing
        with self.assistant.applied(self.model):
            yield from self.samples.answer_with_base(steps, parsing)

    @property
    def validation_due(self) -> bool:
        """Whether the validation loss must be computed before the next step."""
        due = self.plan.recipe.early_stop > 0 and self.steps_done % self.plan.validate_every == 0
        return due and self.unfinished and self.steps_done not in self.validation_losses

    def add_validation_loss(self, loss: float) -> None:
        """Record the validation loss at the current step; ends the training if it converged.

        Sets `error` if the loss is not finite.
        """
        if not math.isfinite(loss):
            self._set_diverged(f"after step {self.steps_done}: validation loss {loss}")
            return
        self.validation_losses[self.steps_done] = loss
        self._stop_if_converged()

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, for a checkpoint; of a division this process's part."""
        numbers = {"done": self.steps_done, "scale": self.loss_scale, "pace": self.lr_multiplier}
        state = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        for number, weight in enumerate(self.weights):
            state[f"weight.{number}"] = weight.detach()
            state |= self.optimizer_state(number)
        state |= {f"mean.{number}": average for number, average in self.averages.items()}
        if self.validation_losses:
            losses = list(self.validation_losses.items())
            state["looks"] = torch.tensor(losses, dtype=torch.float64)
        return state

    def optimizer_state(self, number: int) -> dict[str, Tensor]:
        """The state of a weight, by its number, as a checkpoint has it."""
        state = self.optimizer.state.get(self.weights[number], {})
        return {f"{name}.{number}": tensor for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of a checkpoint."""
        self.steps_done = int(state["done"])
        self.loss_scale, self.lr_multiplier = float(state["scale"]), float(state["pace"])
        losses = state["looks"].tolist() if "looks" in state else []
        self.validation_losses = {int(step): loss for step, loss in losses}
        self._stop_if_converged()
        waits = self.division.shards and not self.division.networks
        for number, weight in enumerate(self.weights):
            with torch.no_grad():
                weight.copy_(state[f"weight.{number}"])
            if number in self.averages:
                self.averages[number].copy_(state.get(f"mean.{number}", weight.detach()))
            # A layer whose output is not used, such as the last of some text encoders, never has a
            # gradient, and therefore no optimizer state.
            names = self.optimizer.state_names
            names = [name for name in names if f"{name}.{number}" in state]
            if names:
                # Of weights that are still to be divided, it stays in main memory.
                place = torch.empty(0) if waits else weight
                self.optimizer.state[weight] = {
                    name: _with_layout_of(place, state[f"{name}.{number}"]) for name in names
                }

    def _stop_if_converged(self) -> None:
        if converged(list(self.validation_losses.values()), self.plan.recipe.early_stop):
            self.total_steps = self.steps_done

    def clip_gradients(self, loss: ConceptLoss) -> float:
        """Compute the gradient norm and the factor that clips it; returns the norm.

        Sets `error` if the loss or the norm is not finite.
        """
        self._norms = self.division.gradient_norms()
        norm = torch.linalg.vector_norm(torch.cat(list(self._norms))) / self.loss_scale
        clip = (self.plan.recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self._gradient_scale = clip / self.loss_scale
        if not (math.isfinite(loss.total) and norm.isfinite()):
            names = [name for name, value in loss.by_image.items() if not math.isfinite(value)]
            losses = ", ".join(f"{value:.3g}" for value in loss.by_image.values())
            self._set_diverged(
                f"at step {self.steps_done + 1}: sample losses {losses}, "
                f"gradient norm {norm:.3g}, images {', '.join(names or loss.by_image)}"
            )
        return float(norm)

    def _set_diverged(self, where: str) -> None:
        """Set `error`: training diverged, or the base model is damaged."""
        self.error = DivergedError(
            f"training diverged {where}",
            "try a lower --learning-rate, or --precision fp32; "
            "what was saved before this step is valid",
        )
        # Trained weights that are NaN come from training, all others from the base model.
        finite = all(bool(weight.isfinite().all()) for weight in self.weights)
        trained = all(self.division.ranks.exchange(finite)) if self.division.networks else finite
        if trained and (damage := self.model.damage()):
            self.error = DivergedError(damage, "the base model is damaged: get it again")

    def step(self) -> None:
        """Update the weights with the clipped gradients, and their averages."""
        with self.division.sharing():
            for adapter in self.adapters:
                adapter.whole = None
            self.optimizer.step(self._gradient_scale, self.lr_multiplier_of(self.steps_done))
        self.steps_done += 1
        fraction = (_AVERAGING_POWER + 1) / (self.steps_done + _AVERAGING_POWER)
        for number, average in self.averages.items():
            average.lerp_(self.weights[number].detach(), fraction)

    @contextmanager
    def averaged_weights(self) -> Generator[None]:
        """Replace the weights by their averages while generating images or saving.

        Polynomial-decay averaging (Shamir and Zhang, arXiv:1212.1824) of about the last quarter of
        the steps; it does not depend on the total number of steps.
        """
        latest = {number: self.weights[number].detach().clone() for number in self.averages}
        self._set_weights(self.averages)
        try:
            yield
        finally:
            self._set_weights(latest)

    def _set_weights(self, values: Mapping[int, Tensor]) -> None:
        with torch.no_grad():
            for number, value in values.items():
                self.weights[number].copy_(value)
        for network in self.division.networks:
            network.reshard()

    def lower_loss_scale(self) -> bool:
        """Halve the loss scale and clear `error` if an fp16 overflow may have caused it.

        Returns whether it did; the step is then tried again.
        """
        if self.error is None or self.loss_scale <= 1:
            return False
        self.error = None
        self.loss_scale /= 2
        return True


def _with_layout_of(weight: Tensor, tensor: Tensor) -> Tensor:
    """A copy of an optimizer tensor with the device and memory layout of its weight."""
    layout = weight.detach() if tensor.shape == weight.shape else tensor
    return torch.empty_like(layout, dtype=tensor.dtype, device=weight.device).copy_(tensor)
