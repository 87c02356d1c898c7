"""The training loop, the same for every family and method; yields one result per step."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pinxit.adapters.adapter import Adapter, Batchable, ModelChange, applied, before_denoise
from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.errors import RunError
from pinxit.files.atomic_write import defer_signals
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, BUCKET_BYTES, Ranks
from pinxit.models.text_encoder import PromptParsing
from pinxit.training.batches import Batch, collate, split
from pinxit.training.concept_trainer import ConceptLoss, ConceptTrainer
from pinxit.training.early_stopping import VALIDATION_SAMPLES
from pinxit.training.losses import denoising_losses, padded_losses
from pinxit.training.memory import SMALLEST, MemoryPlan, gradient_checkpointing, smallest
from pinxit.training.memory_trial import Conditioner, Trial
from pinxit.training.step_result import StepResult


@dataclass(frozen=True)
class StepBatch:
    """The samples of a step, counted from 0, as one batch for each shape.

    `concepts` are the numbers of the concepts that have samples.
    """

    step: int
    concepts: tuple[int, ...]
    batches: tuple[Batch, ...]
    start_time: float


class TrainingSession:
    """Concepts that are trained together on one model.

    The samples of a batch do not influence each other, and every concept has its own sampling,
    gradient clipping and optimizer, so that each is trained as it would be alone, apart from
    rounding. Their recipes must have the same prompt parsing, min-SNR weighting and assistant.

    Of several processes, each computes the gradients of its samples; their sum, and with it
    everything else, is the same in all.
    """

    def __init__(
        self, model: Model, trainers: Sequence[ConceptTrainer], ranks: Ranks = ALONE
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.trainers = tuple(trainers)
        self.recipe = self.trainers[0].plan.recipe
        self.changes = tuple(self._changes())
        self.memory_plan: MemoryPlan | None = None
        self.last_result: StepResult | None = None
        self._conditioner: Conditioner | None = None

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

    def answer_with_base(self) -> None:
        """Compute the targets that are predictions of the base model, before adapters change it."""
        first = min(trainer.steps_done for trainer in self.trainers)
        for trainer in self.trainers:
            for _ in trainer.answer_with_base(first):
                pass

    def losses(self, batch: Batch, conditioner: Conditioner) -> Tensor:
        """The weighted loss of each sample, (B,)."""
        return denoising_losses(self.model, batch, conditioner, self.recipe.min_snr_gamma)

    def offload_unused(self) -> None:
        """Offload the VAE, and the text encoders if prompts are already encoded."""
        for trainer in self.trainers:
            trainer.samples.ensure_encoded()
        encoders = (*self.model.text_encoders, *self.model.frozen_text_encoders)
        self.model.offload("vae", *(() if self.changes_conditioning else encoders))

    def conditioner(self) -> Conditioner:
        """A function from prompts to conditioning.

        Prompts are encoded once if training does not change their encoding, else in every step.
        """
        parsing = self.recipe.prompt_parsing
        if self.changes_conditioning:
            self._conditioner = partial(_condition_unique, self.model, parsing)
        else:
            cache = self.trainers[0].samples.cache
            prompts = dict.fromkeys(p for one in self.trainers for p in one.samples.prompts)
            conditioning = {prompt: cache.condition(prompt, parsing) for prompt in prompts}
            self._conditioner = partial(_stacked, conditioning)
        return self._conditioner

    @torch.no_grad()
    def answer(self, n: int) -> Tensor:
        """What the denoiser predicts for a fixed sample of concept `n`, (1, C, H, W)."""
        conditioner = self._conditioner or self.conditioner()
        (batch,) = collate(self.trainers[n].samples.validation_samples(1, n), self.model.device)
        before_denoise(self.model, batch.timesteps, batch.concepts)
        noisy = self.model.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        return self.model.denoise(noisy, batch.timesteps, conditioner(batch.prompts))

    @property
    def finished(self) -> bool:
        """Whether every concept is trained to its last step, has converged or has failed."""
        return not any(trainer.unfinished for trainer in self.trainers)

    def next_batch(self) -> StepBatch:
        """The samples of the next step; networks that the step does not need are offloaded.

        Concepts that are steps ahead of others (after a crash) have samples too, so that the
        batch's shape and all rounding depend only on the step.
        """
        start_time = time.perf_counter()
        self.offload_unused()
        trainers = self.trainers
        step = min(trainer.steps_done for trainer in trainers if trainer.unfinished)
        concepts = tuple(
            n
            for n, trainer in enumerate(trainers)
            if not trainer.error and step < trainer.total_steps
        )
        return StepBatch(step, concepts, self.batches(step, concepts), start_time)

    def plan_memory(self, batch: StepBatch, conditioner: Conditioner) -> MemoryPlan:
        """How steps are computed: chosen for the first, smaller after memory has run out."""
        if self.trainers[0].division.networks:
            self.memory_plan = SMALLEST
        self.memory_plan = self.memory_plan or _plan_memory(self, batch, conditioner)
        return self.memory_plan

    def backward(self, batch: StepBatch, conditioner: Conditioner) -> list[ConceptLoss]:
        """The loss of each concept; its gradients, times the loss scale, are left in the weights.

        If memory runs out, in any process, tries again with a smaller micro-batch or gradient
        checkpointing. Raises RunError if a single image does not fit.
        """
        while True:
            plan = self.plan_memory(batch, conditioner)
            losses = None
            checkpointing = gradient_checkpointing(self.model, plan.gradient_checkpointing)
            passes = self._passes(batch.batches, plan)
            with suppress(torch.OutOfMemoryError), checkpointing, passes as (micro_batches, more):
                losses = self._add_gradients(micro_batches, conditioner)
                self._add_gradients(more, conditioner)
            parts = [part for part in self._sum_gradients(losses) if part]
            if len(parts) == self.ranks.size:
                return [ConceptLoss.added(of_concept) for of_concept in zip(*parts, strict=True)]
            for trainer in self.trainers:
                trainer.optimizer.zero_grad()
            self.memory_plan = plan.smaller()
            if self.memory_plan is None:
                raise RunError(
                    f"not enough memory on {self.model.device} to train on a single image",
                    "choose a smaller --resolution, or a method that trains fewer weights "
                    "(lora, textual-inversion)",
                )

    def step(self, batch: StepBatch, losses: Sequence[ConceptLoss]) -> StepResult | None:
        """Clip the gradients of each concept and update its weights.

        None if fp16 gradients overflowed: then the same step must be done again, with a smaller
        loss scale.
        """
        current = [n for n in batch.concepts if self.trainers[n].steps_done == batch.step]
        norms = {n: self.trainers[n].clip_gradients(losses[n]) for n in current}
        overflows = [self.trainers[n].lower_loss_scale() for n in current]
        updated = tuple(n for n in current if not self.trainers[n].error and not any(overflows))
        # For the log: that of the concept that trains slowest.
        multipliers = [self.trainers[n].lr_multiplier_of(batch.step) for n in current]
        for n in updated:
            self.trainers[n].check_gradients([p for one in batch.batches for p in one.prompts])
        with defer_signals():
            for n in updated:
                self.trainers[n].step()
            for n in batch.concepts:
                self.trainers[n].optimizer.zero_grad()
            if any(overflows):
                return None
            self.last_result = StepResult(
                number=batch.step + 1,
                total=max(trainer.total_steps for trainer in self.trainers),
                losses=tuple(losses[n].total for n in updated),
                norms=tuple(norms[n] for n in updated),
                learning_rate=self.trainers[0].plan.learning_rate * min(multipliers),
                seconds=time.perf_counter() - batch.start_time,
                concepts=updated,
            )
        return self.last_result

    @torch.no_grad()
    def validate(self, conditioner: Conditioner) -> None:
        """Compute the validation losses that are due; they may end the training of a concept.

        Every concept is validated alone, so that the other concepts do not change a bit of its
        loss.
        """
        due = [n for n, trainer in enumerate(self.trainers) if trainer.validation_due]
        for n in due:
            plan = self.memory_plan or self.plan_memory(self.next_batch(), conditioner)
            trainer = self.trainers[n]
            samples = trainer.samples.validation_samples(VALIDATION_SAMPLES, n)
            batches = collate(samples, self.model.device)
            with trainer.averaged_weights(), self._passes(batches, plan) as (micro_batches, more):
                losses = [
                    float(self.losses(micro_batch, conditioner).sum())
                    for micro_batch in (*micro_batches, *more)
                ]
            parts = self.ranks.exchange(losses)
            trainer.add_validation_loss(sum(loss for part in parts for loss in part))

    @contextmanager
    def _passes(
        self, batches: Sequence[Batch], plan: MemoryPlan
    ) -> Generator[tuple[Sequence[Batch], Sequence[Batch]]]:
        """Micro-batches, and those without weight that this process must compute too."""
        micro_batches, first = list(split(batches, plan.micro_batch)), self.trainers[0]
        with first.division.equal_passes(len(micro_batches)) as missing:
            sample = [first.samples.weightless_sample(0)] if missing else []
            yield micro_batches, collate(sample, self.model.device) * missing

    def _sum_gradients(self, losses: list[ConceptLoss] | None) -> list[list[ConceptLoss] | None]:
        """Sum the gradients of all processes; returns the losses of each."""
        if self.trainers[0].division.networks:  # the passes have summed them
            self.trainers[0].division.take_gradients()
            return self.ranks.exchange(losses)
        weights = [weight for trainer in self.trainers for weight in trainer.weights]
        owners = [owner for trainer in self.trainers for owner in trainer.division.owners]
        return self.ranks.sum_gradients(weights, losses, owners)

    def _add_gradients(
        self, batches: Iterable[Batch], conditioner: Conditioner
    ) -> list[ConceptLoss]:
        """Backpropagate the losses of batches; returns the loss of each concept."""
        device = self.model.device
        loss_scales = torch.tensor([t.loss_scale for t in self.trainers], device=device)
        totals = torch.zeros(len(self.trainers), device=device)
        by_image: list[dict[str, float]] = [{} for _ in self.trainers]
        for batch in batches:
            with torch.enable_grad():
                losses = self.losses(batch, conditioner)
                (losses * loss_scales[batch.concepts]).sum().backward()
            totals = totals.index_add(0, batch.concepts, losses.detach().to(totals))
            concepts, values = batch.concepts.tolist(), losses.tolist()
            for n, image_name, loss in zip(concepts, batch.image_names, values, strict=True):
                by_image[n][image_name] = loss
        return [ConceptLoss(*loss) for loss in zip(totals.tolist(), by_image, strict=True)]

    def _changes(self) -> Iterator[ModelChange]:
        """The adapters, those of several concepts as one batched adapter where necessary."""
        for adapters in zip(*(trainer.adapters for trainer in self.trainers), strict=True):
            first = adapters[0]
            if len(adapters) > 1 and isinstance(first, Batchable):
                yield first.batched(adapters)
            else:
                yield from adapters


def _stacked(conditioning: Mapping[str, Conditioning], prompts: Sequence[str]) -> Conditioning:
    """The conditioning of prompts that are encoded already."""
    return Conditioning.stack([conditioning[prompt] for prompt in prompts])


def _condition_unique(model: Model, parsing: PromptParsing, prompts: Sequence[str]) -> Conditioning:
    """The conditioning of prompts, in which equal prompts are encoded once."""
    indices = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    conditioning = model.condition(list(indices), parsing)
    return conditioning[torch.tensor([indices[prompt] for prompt in prompts])]


def train(session: TrainingSession) -> Generator[StepResult]:
    """Train all concepts of a session, one step per iteration, until all are finished or failed.

    The adapters stay applied until the generator is closed. Raises RunError if a single image
    needs too much memory.
    """
    with closing(train_with_plans(session)) as events:
        yield from (event for event in events if isinstance(event, StepResult))


def train_with_plans(session: TrainingSession) -> Generator[StepResult | MemoryPlan]:
    """Like `train`, with every new memory plan: the first one comes before the first step."""
    plan = session.memory_plan
    session.answer_with_base()
    with ExitStack() as changes:
        changes.enter_context(session.trainers[0].assistant.applied(session.model))
        # Text encoders leave memory before adapters bring the denoiser back.
        aliases = [one for one in session.adapters if isinstance(one, AliasAdapter)]
        with applied(session.model, aliases):
            conditioner = session.conditioner()
        session.offload_unused()
        changes.enter_context(applied(session.model, session.changes))
        session.validate(conditioner)  # at the start, or if training was interrupted here
        while not session.finished:
            batch = session.next_batch()
            if plan != (chosen := session.plan_memory(batch, conditioner)):
                yield (plan := chosen)
            losses = session.backward(batch, conditioner)
            if plan != (chosen := session.plan_memory(batch, conditioner)):  # memory ran out
                yield (plan := chosen)
            if result := session.step(batch, losses):  # else the same step again
                session.validate(conditioner)
                yield result


def _plan_memory(
    session: TrainingSession, batch: StepBatch, conditioner: Conditioner
) -> MemoryPlan:
    """The memory plan that fits into every process, from what each needs for its samples."""
    model = session.model
    encoders = (*model.text_encoders, *model.frozen_text_encoders)
    for name in ("denoiser", *(encoders if session.changes_conditioning else ())):
        model.network(name)  # if it is offloaded, it is read before free memory is measured
    trial = Trial(
        model,
        session.trainers,
        batch.batches,
        conditioner,
        partial(padded_losses, session.recipe.min_snr_gamma),
        BUCKET_BYTES if session.ranks.size > 1 else 0,
    )
    own = trial.plan() if batch.batches else None
    return smallest(plan for plan in session.ranks.exchange(own) if plan)
