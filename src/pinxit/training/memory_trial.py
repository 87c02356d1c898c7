"""Memory and time of a training step, measured by a trial pass before the first step."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pinxit.models.conditioning import Conditioning
from pinxit.models.device import free_memory
from pinxit.models.kernels.quantize import stored_tensors
from pinxit.models.model import SMALL, Model
from pinxit.training.batches import Batch
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.live_bytes import LiveBytes, count, dry_count, storage_address
from pinxit.training.memory import MemoryPlan, gradient_checkpointing, plan_memory, usable
from pinxit.training.step_time import predicted_seconds, seconds_of

Conditioner = Callable[[Sequence[str]], Conditioning]
_T = TypeVar("_T")
_Inputs = tuple[Model, Batch, Conditioner, list[nn.Parameter]]


class Trial:
    """The first step, tried to find the largest micro-batch that fits into free memory.

    The pass is a dry one; or a real one for a small base model, whose dry one would take longer,
    and where torch cannot do without the content of tensors. `buffer` is the
    largest number of bytes in which several processes sum their gradients.
    """

    def __init__(
        self,
        model: Model,
        trainers: Sequence[ConceptTrainer],
        batches: Sequence[Batch],
        conditioner: Conditioner,
        losses: Callable[[Model, Batch, Conditioner], Tensor],
        buffer: int,
    ) -> None:
        self._model, self._trainers, self._batches = model, trainers, batches
        self._conditioner, self._losses, self._buffer = conditioner, losses, buffer
        self._trained = [weight for trainer in trainers for weight in trainer.weights]
        self._free_bytes = free_memory(model.device)
        self._dry = model.num_parameters >= SMALL
        self._num_samples = sum(map(len, batches))
        self._pass_bytes: dict[tuple[int, bool], int] = {}
        self._dry_passes: dict[tuple[int, bool], LiveBytes] = {}

    def plan(self) -> MemoryPlan:
        """The plan with the largest micro-batch that fits; RunError if not even one sample does."""
        micro_batch, checkpointing, step_bytes = plan_memory(
            self._num_samples, self.step_bytes, usable(self._free_bytes)
        )
        networks = self._model.all_networks.items()
        offloaded = [name for name, one in networks if not next(one.parameters()).numel()]
        return MemoryPlan(
            micro_batch,
            checkpointing,
            step_bytes,
            self.weight_bytes(),
            self._free_bytes,
            tuple(offloaded),
            self._step_seconds(micro_batch, checkpointing),
        )

    def weight_bytes(self) -> int:
        """The bytes of all weights that are in memory, and of the state of training."""
        networks = self._model.all_networks.values()
        frozen = (tensor for one in networks for tensor in stored_tensors(one))
        state = (t for trainer in self._trainers for t in trainer.state().values())
        tensors = *frozen, *self._trained, *state
        return sum({storage_address(t): t.nbytes for t in tensors}.values())

    def step_bytes(self, micro_batch: int, checkpointing: bool) -> int:
        """The bytes of a step besides the weights."""
        new_state = sum(
            trainer.optimizer.bytes_for(weight) - weight.nbytes
            for trainer in self._trainers
            for weight in trainer.division.own_weights
            if weight not in trainer.optimizer.state
        )
        gradients = sum(weight.nbytes for weight in self._trained)
        extra = min(gradients, self._buffer)
        if micro_batch < self._num_samples:
            extra += gradients  # those of earlier parts of the batch
        return self._pass(micro_batch, checkpointing) + new_state + extra

    def _step_seconds(self, micro_batch: int, checkpointing: bool) -> float:
        """The approximate seconds of a step, from those of a trial pass; 0 if memory runs out."""
        counter = self._dry_passes.get((self._num_samples, checkpointing))
        part = self._part(self._num_samples if counter else micro_batch)
        device = self._model.device
        if counter:
            seconds = predicted_seconds(device, counter)
        else:
            seconds = self._measured(part, checkpointing, partial(seconds_of, device)) or 0
        return seconds * sum(one.latents.numel() for one in self._batches) / part.latents.numel()

    def _part(self, micro_batch: int) -> Batch:
        """The samples of a pass."""
        return max(
            (one[:micro_batch] for one in self._batches), key=lambda one: one.latents.numel()
        )

    def _pass(self, micro_batch: int, checkpointing: bool) -> int:
        """The bytes of a forward and a backward pass."""
        key = micro_batch, checkpointing
        if key not in self._pass_bytes:
            part = self._part(micro_batch)
            if dry := self._dry_pass(part, checkpointing):
                self._dry_passes[key] = dry
            self._pass_bytes[key] = dry.peak if dry else self._real_pass(part, checkpointing)
        return self._pass_bytes[key]

    def _dry_pass(self, part: Batch, checkpointing: bool) -> LiveBytes | None:
        shared = [self._model.source]
        with suppress(Exception):  # such as an operation that torch has no shapes for
            if self._dry:
                return dry_count(partial(self._compute, checkpointing), self._inputs(part), shared)
        self._dry = False
        return None

    def _real_pass(self, part: Batch, checkpointing: bool) -> int:
        whole = len(part) * self._pass(1, checkpointing) if len(part) > 1 else 0
        if whole > usable(self._free_bytes):  # some systems kill a process that tries it
            return whole
        real = self._measured(part, checkpointing, count)
        return real.peak if real else max(whole, self._free_bytes + 1)

    def _measured(
        self, part: Batch, checkpointing: bool, measure: Callable[[Callable[[], object]], _T]
    ) -> _T | None:
        """What is measured of a real pass; None if memory runs out."""
        with suppress(torch.OutOfMemoryError):
            return measure(partial(self._compute, checkpointing, self._inputs(part)))
        return None

    def _inputs(self, part: Batch) -> _Inputs:
        return self._model, part, self._conditioner, self._trained

    def _compute(self, checkpointing: bool, inputs: _Inputs) -> object:
        model, part, conditioner, trained = inputs
        # Otherwise torch.compile skips for ever what is first called while operations are counted.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.enable_grad(), gradient_checkpointing(model, checkpointing):
            loss = self._losses(model, part, conditioner).sum()
            return torch.autograd.grad(loss, trained, allow_unused=True)
