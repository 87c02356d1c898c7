"""The interface of an optimizer: groups of weights, a state that is saved, and a step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

# Name of the state tensor with the rounding error of a half-precision weight.
REST = "rest"
_NORM_CHUNK = 2**20  # weights in 16 bits that are converted to fp32 at once for a norm
State = dict[str, Tensor]


@dataclass(frozen=True)
class ParameterGroup:
    """Weights with a common learning rate and weight decay.

    After each step, the weights are moved by the fraction `pull` of the way to `origins`, which
    have their shapes.
    """

    weights: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    pull: float = 0.0
    origins: Sequence[Tensor] = ()

    def scaled(self, lr_multiplier: float) -> "ParameterGroup":
        """The group with another learning rate and pull."""
        return replace(
            self, learning_rate=self.learning_rate * lr_multiplier, pull=self.pull * lr_multiplier
        )


class Optimizer(ABC):
    """Updates weights from their gradients. `state_names` are the tensors for each weight.

    If it is `separable`, the update of a weight does not depend on other weights; if also
    `elementwise`, that of a number not on other numbers, and the state has one for each.
    """

    state_names: ClassVar[tuple[str, ...]]
    separable: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self.groups = tuple(groups)
        self.state: dict[nn.Parameter, State] = {}

    @classmethod
    def default_rate(cls, adamw_rate: float) -> float:
        """The learning rate to use where AdamW has this one."""
        return adamw_rate

    @abstractmethod
    def initial_state(self, weight: Tensor) -> State:
        """The state of a weight before its first step, on its device."""

    @abstractmethod
    def step(self, gradient_scale: Tensor, lr_multiplier: float = 1.0) -> None:
        """Update every weight that has a gradient.

        Gradients are multiplied by `gradient_scale`, a scalar, and learning rates by
        `lr_multiplier`.
        """

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None

    def bytes_for(self, weight: Tensor) -> int:
        """Bytes that the optimizer needs for a weight, including its gradient."""
        state = self.initial_state(weight.to("meta"))
        return weight.nbytes + sum(tensor.nbytes for tensor in state.values())


class PlainOptimizer(Optimizer):
    """An optimizer that computes one weight at a time, in fp32.

    A half-precision weight has its rounding error in the state, so that small steps add up.
    """

    rest_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @abstractmethod
    def fp32_state(self, weight: Tensor) -> State:
        """The state before the first step for a weight in fp32."""

    @abstractmethod
    def update(self, value: Tensor, gradient: Tensor, state: State, group: ParameterGroup) -> None:
        """Change a weight's fp32 value and its state in place."""

    def prepare(
        self, weights: Sequence[nn.Parameter], gradient_scale: Tensor, group: ParameterGroup
    ) -> None:
        """What must be known of all weights of a group before the first is changed."""

    def initial_state(self, weight: Tensor) -> State:
        """The state for fp32, and the rounding error of a weight in half precision."""
        half = weight.dtype.itemsize == 2
        rest = {REST: torch.zeros_like(weight, dtype=self.rest_dtype)} if half else {}
        return self.fp32_state(weight.detach().float()) | rest

    @torch.no_grad()
    def step(self, gradient_scale: Tensor, lr_multiplier: float = 1.0) -> None:
        """Update every weight that has a gradient, one after the other."""
        for group in (group.scaled(lr_multiplier) for group in self.groups):
            weights = [weight for weight in group.weights if weight.grad is not None]
            for weight in weights:
                if weight not in self.state:
                    self.state[weight] = self.initial_state(weight)
            self.prepare(weights, gradient_scale, group)
            origins = dict(zip(group.weights, group.origins, strict=False))
            for weight in weights:
                state, value = self.state[weight], weight.detach().float()
                rest = state.get(REST)
                if rest is not None:
                    value += rest
                self.update(value, scaled_gradient(weight, gradient_scale), state, group)
                if weight in origins:
                    origin = origins[weight].float()
                    value.sub_(origin).mul_(1 - group.pull).add_(origin)
                weight.copy_(value)
                if rest is not None:
                    rest.copy_(value - weight.float())


def scaled_gradient(weight: nn.Parameter, gradient_scale: Tensor) -> Tensor:
    """The gradient of a weight as fp32, multiplied by the scale of gradient clipping."""
    assert weight.grad is not None
    return weight.grad.float() * gradient_scale


def chunk_norms(tensor: Tensor) -> Tensor:
    """The norm of each chunk of a tensor, (chunks,), in fp32 or fp64.

    A tensor of 32 or 64 bits is one chunk.
    """
    chunks = in_memory(tensor).split(_NORM_CHUNK) if tensor.dtype.itemsize == 2 else (tensor,)
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.stack([torch.linalg.vector_norm(chunk.to(dtype)) for chunk in chunks])


def norms_without_gradient(tensor: Tensor, *, whole: bool) -> Tensor:
    """The chunk norms where there is no gradient: zeros if `whole`, else none, (0,)."""
    chunks = -(-tensor.numel() // _NORM_CHUNK) if tensor.dtype.itemsize == 2 else 1
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.zeros(chunks if whole else 0, dtype=dtype, device=tensor.device)


def in_memory(tensor: Tensor) -> Tensor:
    """A dense tensor as a vector in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))
