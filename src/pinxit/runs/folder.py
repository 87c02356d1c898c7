"""A run's folder: recipe, training log, previews, checkpoints and the trained concept."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept, write_concept
from pinxit.errors import DiskError, PinxitError, RunError, typed
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import defer_signals, make_folder, write_text
from pinxit.generation.finite import NotFiniteError
from pinxit.images.folder import TrainingImage, fingerprints
from pinxit.models.ranks import ALONE, Ranks
from pinxit.progress import Notice, Progress
from pinxit.runs.best import save_if_best
from pinxit.runs.checkpoint import Manifest, newest_checkpoint, save_checkpoint
from pinxit.runs.events import (
    EarlyStop,
    Event,
    Finished,
    LearningRateReduction,
    RunFailure,
    SavedCheckpoint,
    SavedConcept,
    ValidationLoss,
)
from pinxit.runs.file_names import (
    CHECKPOINTS,
    CONCEPT,
    CONCEPTS,
    JOURNAL,
    PREVIEWS,
    RECIPE,
    result_file,
)
from pinxit.runs.journal import TrainingLog
from pinxit.runs.preview import save_preview
from pinxit.runs.preview_base import previewed
from pinxit.runs.provenance import changed_options, provenance
from pinxit.runs.reader import RunState, read_run, saved_step
from pinxit.runs.written_files import check_next_files, remove_run_drafts
from pinxit.training.concept_trainer import ConceptTrainer, DivergedError
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.self_test import check_saved
from pinxit.training.shared_state import gather_state, gather_weights
from pinxit.training.step_result import StepResult

# Multiplier of the learning rate after training has diverged.
_LR_MULTIPLIER = 0.5
_FLAT = "have only one colour; a lower --learning-rate or --precision fp32 may help"


class RunFolder:
    """The files of a run. Nothing else writes into the folder.

    `saved_step` is the last step that is surely on the disk, `judge` scores the previews. `plan`
    is set when the base model is open. `ranks` are the processes that train it; this is rank 0.
    While `preview_now` is true, each step makes previews; it is for a single process. `is_new` is
    true until a new run starts.
    """

    plan: TrainingPlan
    ranks: Ranks = ALONE
    is_new = False

    def __repr__(self) -> str:
        recipe = self.recipe
        steps = f"{saved_step(self.folder / CONCEPT) or 0} of {recipe.steps or '?'} steps"
        return f"<Run {self.folder}: {recipe.method.name}, {recipe.token}, {steps}>"

    def __fspath__(self) -> str:
        return str(self.folder)

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.images: tuple[TrainingImage, ...] = ()
        self.log = TrainingLog(folder / JOURNAL)
        self.saved_step = self._logged_step = 0
        self.judge: Judge | None = None
        self.preview_now = False
        self._validated_step = -1  # the step of the last validation in the log
        self._disk_full, self._base_hash = False, ""
        self._next_progress = 0.0  # when a line of progress is due in the log

    @property
    def concept(self) -> Concept:
        """The concept as of the last save; ConceptError if nothing is saved yet."""
        return read_concept(self.folder / CONCEPT)

    @property
    def state(self) -> RunState:
        """What is in the folder now, with the options of this recipe."""
        options = {"steps": self.recipe.steps, "early_stop": self.recipe.early_stop}
        return replace(read_run(self.folder), recipe=options)

    def write_recipe(self) -> None:
        """Write the recipe if it is not there: from now on the run can be resumed."""
        if not (self.folder / RECIPE).is_file():
            with self.resume_hint():
                write_text(self.folder / RECIPE, self.recipe.to_toml())

    def restore(self, trainer: ConceptTrainer, error: str | None = None) -> Generator[Event]:
        """Restore a new trainer from the last checkpoint.

        `error` says why training diverged before: then an earlier checkpoint is used, and a lower
        learning rate.
        """
        # Hashing may take long, so it must not happen inside `defer_signals`, where it cannot be
        # stopped.
        self._base_hash = trainer.model.hash
        with self.resume_hint():
            remove_run_drafts(self.folder)
            every = self.recipe.checkpoint_every if error else 1
            if checkpoint := newest_checkpoint(self.folder / CHECKPOINTS, every):
                images = fingerprints(self.images)
                inputs, steps = trainer.inputs(), trainer.plan.steps
                checkpoint.manifest.check_compatible(trainer.model, images, inputs, steps)
                trainer.restore(checkpoint.state)
                for notice in changed_options(self.folder / CONCEPT, self._provenance(trainer)):
                    yield self.record(notice)
                step = trainer.steps_done
                for file in checkpoint.damaged:
                    yield self._record_notice(f"{file} is damaged: continuing from step {step}")
            elif not error:
                yield from self._start_over()
            self.saved_step = self._logged_step = step = trainer.steps_done
            check_next_files(self.folder, step)
            write_text(self.folder / RECIPE, self.recipe.to_toml())
            make_folder(self.folder / PREVIEWS)
            self.log.drop_after(step)
            self._validated_step = max(self.state.validation_losses, default=-1)
            self._log_validation(trainer, step)
            yield from self._check_early_stop(trainer)
            if error:
                trainer.lr_multiplier *= _LR_MULTIPLIER
                self.log.append(LearningRateReduction(step + 1, trainer.lr_multiplier, error))
                rate = f"{_LR_MULTIPLIER:.0%} of the learning rate"
                yield self._record_notice(f"continuing from step {step} with {rate}")
            elif checkpoint and not self._is_saved(self._provenance(trainer)):
                self._save_concept(trainer)

    def after_step(
        self, step: StepResult, trainer: ConceptTrainer, answer: Callable[[], Tensor]
    ) -> Generator[Event]:
        """After a logged step: write previews, concepts and checkpoints that are due.

        After the last step, the saved concept is tested with `answer`, which returns the answer of
        the denoiser to a fixed sample.
        """
        yield step
        while trainer.notices:
            yield self._record_notice(trainer.notices.pop(0))
        if trainer.error:  # the validation loss after this step is not finite
            return
        yield from self._check_early_stop(trainer)
        last = not trainer.unfinished
        if self.preview_now or step.is_due(self.recipe.preview_every, last=last):
            try:
                yield from self._preview(step, trainer)
            except NotFiniteError as error:
                yield self._record_notice(f"no preview of step {step.number}: {error.message}")
        if step.is_due(self.recipe.save_every, last=False):
            with self.resume_hint():
                make_folder(self.folder / CONCEPTS)
                gather_weights(trainer)
                name = f"{CONCEPTS}/{step.number:07}.safetensors"
                self._save_concept(trainer, name)
            yield self.record(SavedConcept(step.number, self.folder / name))
        if step.is_due(self.recipe.checkpoint_every, last=last):
            self.save(trainer)
            yield self.record(SavedCheckpoint(step.number, self.folder / CONCEPT))
        if last:
            try:
                with trainer.averaged_weights():
                    check_saved(trainer.adapters, self.concept.parts, answer)
            except PinxitError as error:
                yield self.record(RunFailure(error))
                return
            yield self.record(Finished(step.number, result_file(self.folder)))

    def _preview(self, step: StepResult, trainer: ConceptTrainer) -> Generator[Event]:
        """Save previews and, if their scores are the best so far, the concept."""
        with self.resume_hint(), previewed(trainer) as model:
            folder = self.folder / PREVIEWS
            preview, findings = save_preview(
                model, self.recipe, step.number, folder, self.judge, self.ranks
            )
        yield self.record(preview)
        if preview.num_flat:
            yield self._record_notice(f"{preview.num_flat} previews of step {step.number} {_FLAT}")
        if findings:
            with self.resume_hint(), self._averaged_concept(trainer) as concept:
                scores = save_if_best(self.folder, concept, findings)
            yield self.record(scores)

    def log_step(self, step: StepResult, trainer: ConceptTrainer) -> None:
        """Log a step and the validation losses around it, unless they are in the log already."""
        with self.resume_hint(), defer_signals():
            self._log_validation(trainer, step.number - 1)
            if step.number > self._logged_step:
                self.log.append(step)
                self._logged_step = step.number
            self._log_validation(trainer, step.number)

    def record(self, event: Event) -> Event:
        """Log an event, and return it; of a task's progress at most one line in a second."""
        if isinstance(event, Progress) and event.done < event.total:
            if time.monotonic() < self._next_progress:
                return event
            self._next_progress = time.monotonic() + 1
        with self.resume_hint():
            self.log.append(event)
        return event

    def _record_notice(self, message: str) -> Event:
        return self.record(Notice(message))

    def record_end(self, event: Event) -> None:
        """Log how an attempt to train the run ended; nothing if the disk is full or fails."""
        with suppress(DiskError):
            if not self._disk_full:
                self.log.append(event)

    def save(self, trainer: ConceptTrainer) -> None:
        """Save a checkpoint and the concept, if there are steps that are not saved yet.

        Nothing is saved after divergence or on a full disk. DivergedError if a tensor has values
        that are not finite.
        """
        unsaved = trainer.steps_done > self.saved_step and not trainer.error
        if self._disk_full or not unsaved or not (state := gather_state(trainer)):
            return
        num_broken = sum(not tensor.isfinite().all() for tensor in state.values())
        if num_broken:
            raise DivergedError(
                f"training diverged by step {trainer.steps_done}: {num_broken} of {len(state)} "
                "tensors have values that are not finite",
                "try a lower --learning-rate, or --precision fp32; earlier checkpoints are intact",
            )
        with self.resume_hint():
            self.log.flush()
            images, inputs = fingerprints(self.images), trainer.inputs()
            manifest = Manifest(trainer.steps_done, self._base_hash, images, inputs)
            every = self.recipe.checkpoint_every
            save_checkpoint(self.folder / CHECKPOINTS, state, manifest, every)
            self._save_concept(trainer)
            self.saved_step = trainer.steps_done

    @contextmanager
    def resume_hint(self) -> Generator[None]:
        """Add to a DiskError inside the block how to resume the run."""
        try:
            yield
        except DiskError as error:
            self._disk_full = True
            raise DiskError(
                error.message,
                f"{error.hint}, then continue with: pinxit train --resume {typed(self.folder)} "
                f"(saved up to step {self.saved_step})",
            ) from error

    def _start_over(self) -> Iterator[Event]:
        """Start at step 1 without a checkpoint; RunError if checkpoints were deleted."""
        if (self.folder / CONCEPT).is_file():
            raise RunError(
                f"the checkpoints of {self.folder} are missing",
                f"restore its folder {CHECKPOINTS} from a backup, or start a new run",
            )
        if num_lost := len(self.state.steps):
            yield self._record_notice(f"{num_lost} steps were not saved: starting again at step 1")

    def _save_concept(self, trainer: ConceptTrainer, name: str = CONCEPT) -> None:
        with self._averaged_concept(trainer) as concept:
            write_concept(concept, self.folder / name)

    @contextmanager
    def _averaged_concept(self, trainer: ConceptTrainer) -> Generator[Concept]:
        """The concept with averaged weights; its tensors are valid only inside the block."""
        with trainer.averaged_weights():
            parts = tuple(adapter.part() for adapter in trainer.adapters)
            yield Concept(parts, self._provenance(trainer))

    def _log_validation(self, trainer: ConceptTrainer, until: int) -> None:
        for step, loss in trainer.validation_losses.items():
            if self._validated_step < step <= until:
                self.log.append(ValidationLoss(step, loss))
                self._validated_step = step

    def _check_early_stop(self, trainer: ConceptTrainer) -> Iterator[Event]:
        """Log and yield that training has stopped early."""
        if trainer.steps_done == trainer.total_steps < trainer.plan.steps:
            event = EarlyStop(trainer.steps_done)
            if self.state.early_stop != trainer.steps_done:
                self.record(event)
            yield event

    def _is_saved(self, provenance: Provenance) -> bool:
        """Whether the saved concept is intact and belongs to this step and recipe."""
        try:
            return self.concept.provenance == provenance
        except PinxitError:
            return False

    def _provenance(self, trainer: ConceptTrainer) -> Provenance:
        return provenance(
            self.recipe, trainer.model, self._base_hash, trainer.steps_done, self.images
        )
