"""The training loop, the same for every family and method; yields one result per step."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinxit.adapters.adapter import Adapter, Batchable, ModelChange, PerConcept, applied
from pinxit.errors import RunError
from pinxit.files.atomic_write import defer_signals
from pinxit.images.folder import TrainingImage
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.models.text_encoder import PromptParsing
from pinxit.training.batches import Batch, collate
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.early_stopping import VALIDATION_SAMPLES
from pinxit.training.memory import MemoryPlan, SavedTensors, free_memory, plan_memory
from pinxit.training.optimizer import optimizer_bytes
from pinxit.training.plan import TrainingPlan

Conditioner = Callable[[Sequence[str]], Conditioning]


@dataclass(frozen=True)
class StepResult:
    """The losses and gradient norms of one training step, one for each concept in `concepts`.

    `number` counts steps from 1. `concepts` are numbers of concepts in the session; those that
    have finished or failed are missing.
    """

    number: int
    total: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    learning_rate: float
    seconds: float
    concepts: tuple[int, ...] = (0,)

    @property
    def loss(self) -> float:
        """The mean loss of the concepts."""
        return sum(self.losses) / len(self.losses)

    def per_concept(self) -> Iterator[tuple[int, "StepResult"]]:
        """The number of each concept and its own result, with an equal part of the time."""
        seconds = self.seconds / max(1, len(self.concepts))
        for concept, loss, norm in zip(self.concepts, self.losses, self.norms, strict=True):
            result = replace(self, losses=(loss,), norms=(norm,), seconds=seconds, concepts=(0,))
            yield concept, result


class TrainingSession:
    """Concepts that are trained together on one model.

    The samples of a batch do not influence each other, and every concept has its own sampling,
    gradient clipping and optimizer, so that each is trained as it would be alone, apart from
    rounding. Their recipes must have the same prompt parsing and min-SNR weighting.
    """

    def __init__(self, model: Model, trainers: Sequence[ConceptTrainer]) -> None:
        self.model = model
        self.trainers = tuple(trainers)
        self.recipe = self.trainers[0].plan.recipe
        self.changes = tuple(self._changes())
        self.memory_plan: MemoryPlan | None = None
        self.last_result: StepResult | None = None

    @classmethod
    def for_plan(
        cls,
        model: Model,
        plan: TrainingPlan,
        images: tuple[TrainingImage, ...],
        class_images: tuple[TrainingImage, ...] = (),
    ) -> "TrainingSession":
        """A session of one concept, with the class images that its plan requires."""
        return cls(model, [ConceptTrainer(model, plan, images, class_images)])

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters of all concepts."""
        return tuple(adapter for trainer in self.trainers for adapter in trainer.adapters)

    @property
    def changes_conditioning(self) -> bool:
        """Whether training changes the encoding of prompts."""
        return any(adapter.changes_conditioning for adapter in self.adapters)

    def batches(self, step: int, concepts: Sequence[int] = ()) -> tuple[Batch, ...]:
        """The samples of a step, of the given concepts or all, as one batch for each shape."""
        samples = [
            sample
            for concept in concepts or range(len(self.trainers))
            for sample in self.trainers[concept].samples.draw_samples(step, concept)
        ]
        return collate(samples, self.model.device)

    def losses(self, batch: Batch, conditioner: Conditioner) -> Tensor:
        """The weighted loss of each sample, (B,)."""
        self.select_concepts(batch.concepts)
        return denoising_losses(self.model, batch, conditioner, self.recipe.min_snr_gamma)

    def select_concepts(self, concepts: Tensor) -> None:
        """Set the concept of each sample of the next batch, (B,); one number means all samples."""
        for change in self.changes:
            if isinstance(change, PerConcept):
                change.select(concepts)

    def offload_unused(self) -> None:
        """Offload the VAE, and the text encoders if prompts are already encoded."""
        for trainer in self.trainers:
            trainer.samples.ensure_encoded()
        self.model.offload("vae", *(() if self.changes_conditioning else self.model.text_encoders))

    def conditioner(self) -> Conditioner:
        """A function from prompts to conditioning.

        Prompts are encoded once if training does not change their encoding, else in every step.
        """
        parsing = self.recipe.prompt_parsing
        if self.changes_conditioning:
            return lambda prompts: _condition_unique(self.model, prompts, parsing)
        prompts = [prompt for trainer in self.trainers for prompt in trainer.samples.prompts]
        with torch.no_grad():
            conditioning = {
                prompt: self.model.condition([prompt], parsing) for prompt in dict.fromkeys(prompts)
            }
        return lambda prompts: Conditioning.stack([conditioning[prompt] for prompt in prompts])

    def _changes(self) -> Iterator[ModelChange]:
        """The adapters, those of several concepts as one batched adapter where necessary."""
        for adapters in zip(*(trainer.adapters for trainer in self.trainers), strict=True):
            first = adapters[0]
            if len(adapters) > 1 and isinstance(first, Batchable):
                yield first.batched(adapters)
            else:
                yield from adapters


def _condition_unique(model: Model, prompts: Sequence[str], parsing: PromptParsing) -> Conditioning:
    """The conditioning of prompts, in which equal prompts are encoded once."""
    indices = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    conditioning = model.condition(list(indices), parsing)
    return conditioning[torch.tensor([indices[prompt] for prompt in prompts])]


def denoising_losses(
    model: Model, batch: Batch, conditioner: Conditioner, min_snr_gamma: float | None = None
) -> Tensor:
    """The weighted denoising loss of each sample, (B,), for any family and method."""
    schedule = model.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    prediction = model.denoise(noisy, batch.timesteps, conditioner(batch.prompts))
    target = schedule.target(batch.latents, batch.noise, batch.timesteps)
    losses = _masked_mean((prediction - target).square(), batch.mask)
    return losses * batch.weights * schedule.loss_weight(batch.timesteps, min_snr_gamma)


def _masked_mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """The mean error of each sample, (B,), over the whole image or where the mask is set."""
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    return (errors.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def train(session: TrainingSession) -> Generator[StepResult]:
    """Train all concepts of a session, one step per iteration, until all are finished or failed.

    The adapters stay applied until the generator is closed. Concepts that are steps ahead of others
    (after a crash) wait, but their samples stay in the batch, so that its shape and all rounding
    depend only on the step. Raises RunError if one image needs too much memory.
    """
    trainers = session.trainers
    with applied(session.model, session.changes):
        conditioner = session.conditioner()
        while any(trainer.unfinished for trainer in trainers):
            start = time.perf_counter()
            session.offload_unused()
            step, concepts = _next_step(trainers)
            batches = session.batches(step, concepts)
            if _validate(session, conditioner, batches):
                continue
            losses = _backward(session, batches, conditioner)
            current = [n for n in concepts if trainers[n].steps_done == step]
            norms = _clip_gradients(trainers, current, losses)
            overflows = [trainers[n].lower_loss_scale() for n in current]
            updated = tuple(n for n in current if not trainers[n].error and not any(overflows))
            with defer_signals():
                for n in updated:
                    trainers[n].step()
                for n in concepts:
                    trainers[n].optimizer.zero_grad()
                if any(overflows):  # the same step again with a smaller loss scale
                    continue
                session.last_result = StepResult(
                    number=step + 1,
                    total=max(trainer.total_steps for trainer in trainers),
                    losses=tuple(losses[n].total for n in updated),
                    norms=tuple(norms[n] for n in updated),
                    learning_rate=_learning_rate(session, current),
                    seconds=time.perf_counter() - start,
                    concepts=updated,
                )
            _validate(session, conditioner, batches)
            yield session.last_result


def _next_step(trainers: Sequence[ConceptTrainer]) -> tuple[int, list[int]]:
    """The next step, counted from 0, and the numbers of the concepts in its batch."""
    step = min(trainer.steps_done for trainer in trainers if trainer.unfinished)
    concepts = [
        n for n, trainer in enumerate(trainers) if not trainer.error and step < trainer.total_steps
    ]
    return step, concepts


def _clip_gradients(
    trainers: Sequence[ConceptTrainer], concepts: Sequence[int], losses: Sequence["_Loss"]
) -> dict[int, float]:
    """The gradient norm of each concept, which clips its gradients in the next step."""
    return {n: trainers[n].clip_gradients(losses[n].total, losses[n].by_image) for n in concepts}


def _learning_rate(session: TrainingSession, concepts: Sequence[int]) -> float:
    """The smallest learning rate of the concepts, for the training log."""
    multiplier = min(session.trainers[n].lr_multiplier for n in concepts)
    return session.trainers[0].plan.learning_rate * multiplier


@torch.no_grad()
def _validate(session: TrainingSession, conditioner: Conditioner, batches: Sequence[Batch]) -> bool:
    """Compute the validation losses that are due; returns whether a concept finished by that.

    Every concept is validated alone, so that the other concepts do not change a bit of its loss.
    Most losses are computed after a step; before a step only at the start of a training or where
    it was interrupted at this point.
    """
    plan = session.memory_plan = session.memory_plan or _plan_memory(session, batches, conditioner)
    num_unfinished = sum(trainer.unfinished for trainer in session.trainers)
    for n, trainer in enumerate(session.trainers):
        if trainer.validation_due:
            samples = trainer.samples.validation_samples(VALIDATION_SAMPLES, n)
            micro_batches = _split(collate(samples, session.model.device), plan.micro_batch)
            with trainer.averaged_weights():
                loss = sum(float(session.losses(b, conditioner).sum()) for b in micro_batches)
                trainer.add_validation_loss(loss)
    return sum(trainer.unfinished for trainer in session.trainers) < num_unfinished


@dataclass
class _Loss:
    """The loss of a concept for one step, and the loss of each image in the batch by file name."""

    total: float
    by_image: dict[str, float]


def _backward(
    session: TrainingSession, batches: Sequence[Batch], conditioner: Conditioner
) -> list[_Loss]:
    """The loss of each concept; its gradients, times the loss scale, are left in the weights.

    If memory runs out, tries again with a smaller micro-batch or gradient checkpointing.
    """
    model, trainers = session.model, session.trainers
    loss_scales = torch.tensor([trainer.loss_scale for trainer in trainers], device=model.device)
    while True:
        plan = session.memory_plan
        assert plan
        if plan.gradient_checkpointing:
            model.enable_gradient_checkpointing(True)
        totals = torch.zeros(len(trainers), device=model.device)
        by_image: list[dict[str, float]] = [{} for _ in trainers]
        try:
            for batch in _split(batches, plan.micro_batch):
                with torch.enable_grad():
                    losses = session.losses(batch, conditioner)
                    (losses * loss_scales[batch.concepts]).sum().backward()
                totals = totals.index_add(0, batch.concepts, losses.detach().to(totals))
                concepts, values = batch.concepts.tolist(), losses.tolist()
                for n, image_name, loss in zip(concepts, batch.image_names, values, strict=True):
                    by_image[n][image_name] = loss
            return [_Loss(*loss) for loss in zip(totals.tolist(), by_image, strict=True)]
        except torch.OutOfMemoryError as error:
            for trainer in trainers:
                trainer.optimizer.zero_grad()
            session.memory_plan = plan.smaller()
            if session.memory_plan is None:
                raise RunError(
                    f"not enough memory on {model.device} to train on a single image",
                    "choose a smaller --resolution, or a method that trains fewer weights (lora, "
                    "textual-inversion)",
                ) from error
        finally:
            if plan.gradient_checkpointing:
                model.enable_gradient_checkpointing(False)


def _split(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    for batch in batches:
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


def _plan_memory(
    session: TrainingSession, batches: Sequence[Batch], conditioner: Conditioner
) -> MemoryPlan:
    """A memory plan from the memory that one sample of the largest shape needs."""
    largest = max(batches, key=lambda batch: batch.latents[0].numel())
    weights = [weight for trainer in session.trainers for weight in trainer.weights]
    networks = ["denoiser", *(session.model.text_encoders if session.changes_conditioning else ())]
    frozen = [w for name in networks for w in session.model.networks[name].parameters()]
    with torch.enable_grad(), SavedTensors([*weights, *frozen]) as saved:
        session.losses(largest[:1], conditioner)
    optimizer_state_bytes = sum(
        optimizer_bytes(weight)
        for trainer in session.trainers
        for weight in trainer.weights
        if weight not in trainer.optimizer.state
    )
    num_samples = sum(map(len, batches))
    free_bytes = free_memory(session.model.device)
    return plan_memory(num_samples, saved.bytes, optimizer_state_bytes, free_bytes)
