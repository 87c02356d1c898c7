"""How much memory a training step needs: found by a forward and a backward pass before it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pinxit.models.conditioning import Conditioning
from pinxit.models.device import free_memory
from pinxit.models.model import SMALL, Model
from pinxit.training.batches import Batch
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.live_bytes import dry_peak_bytes, peak_bytes, storage_address
from pinxit.training.memory import MemoryPlan, gradient_checkpointing, plan_memory, usable

Conditioner = Callable[[Sequence[str]], Conditioning]


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
        self._pass_bytes: dict[tuple[int, bool], int] = {}

    def plan(self) -> MemoryPlan:
        """The plan with the largest micro-batch that fits; RunError if not even one sample does."""
        count, usable_bytes = sum(map(len, self._batches)), usable(self._free_bytes)
        micro_batch, checkpointing, step_bytes = plan_memory(count, self.step_bytes, usable_bytes)
        networks = self._model.all_networks.items()
        offloaded = [name for name, one in networks if not next(one.parameters()).numel()]
        return MemoryPlan(
            micro_batch,
            checkpointing,
            step_bytes,
            self.weight_bytes(),
            self._free_bytes,
            tuple(offloaded),
        )

    def weight_bytes(self) -> int:
        """The bytes of all weights that are in memory, and of the state of training."""
        networks = self._model.all_networks.values()
        frozen = (t for one in networks for t in (*one.parameters(), *one.buffers()))
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
        if micro_batch < sum(map(len, self._batches)):
            extra += gradients  # those of earlier parts of the batch
        return self._pass(micro_batch, checkpointing) + new_state + extra

    def _pass(self, micro_batch: int, checkpointing: bool) -> int:
        """The bytes of a forward and a backward pass."""
        key = micro_batch, checkpointing
        if key not in self._pass_bytes:
            parts = (one[:micro_batch] for one in self._batches)
            part = max(parts, key=lambda one: one.latents.numel())
            dry = self._try(part, checkpointing, dry=True) if self._dry else None
            self._dry = dry is not None
            self._pass_bytes[key] = dry or self._real_pass(part, checkpointing)
        return self._pass_bytes[key]

    def _real_pass(self, part: Batch, checkpointing: bool) -> int:
        whole = len(part) * self._pass(1, checkpointing) if len(part) > 1 else 0
        if whole > usable(self._free_bytes):  # some systems kill a process that tries it
            return whole
        return self._try(part, checkpointing, dry=False) or max(whole, self._free_bytes + 1)

    def _try(self, part: Batch, checkpointing: bool, *, dry: bool) -> int | None:
        """The bytes of a pass; None if a dry one fails, or a real one runs out of memory."""

        def compute(inputs: tuple[Model, Batch, Conditioner, list[nn.Parameter]]) -> object:
            model, part, conditioner, trained = inputs
            with torch.enable_grad(), gradient_checkpointing(model, checkpointing):
                loss = self._losses(model, part, conditioner).sum()
                return torch.autograd.grad(loss, trained, allow_unused=True)

        inputs = self._model, part, self._conditioner, self._trained
        try:
            if dry:
                return dry_peak_bytes(compute, inputs, [self._model.source])
            return peak_bytes(lambda: compute(inputs))
        except Exception as error:  # such as an operation that torch has no shapes for
            if dry or isinstance(error, torch.OutOfMemoryError):
                return None
            raise
