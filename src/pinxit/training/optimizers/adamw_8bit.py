"""AdamW with both moments in 8 bits (arXiv:2110.02861): for many weights and little memory."""

import torch
from torch import Tensor

from pinxit.training.optimizer import REST, ParameterGroup, PlainOptimizer, State

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_BLOCK = 256  # numbers with a common scale
# Codes stand for the powers of their fraction of the scale: small numbers are finer.
_POWERS = {"exp_avg": 2, "exp_avg_sq": 4}
# Rounding with the fraction of n times the golden ratio has no bias over the steps: a moment that
# changes by less than a code would never change otherwise.
_GOLDEN = 0.6180339887498949


class Adamw8bit(PlainOptimizer):
    """The steps of AdamW; moments are stored as codes of 8 bits, with a scale for 256 numbers."""

    state_names = ("step", "exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale", REST)
    elementwise = False

    def fp32_state(self, weight: Tensor) -> State:
        """The number of steps, and codes and scales of the moments, as vectors."""
        count = weight.numel()
        scale = torch.zeros(-(-count // _BLOCK), device=weight.device)
        return {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros(count, dtype=torch.int8, device=weight.device),
            "exp_avg_scale": scale,
            "exp_avg_sq": torch.zeros(count, dtype=torch.uint8, device=weight.device),
            "exp_avg_sq_scale": scale.clone(),
        }

    def update(self, value: Tensor, gradient: Tensor, state: State, group: ParameterGroup) -> None:
        """A step of AdamW with the moments of the state."""
        flat, step = gradient.flatten(), state["step"].add_(1)
        mean = _decoded(state, "exp_avg").lerp_(flat, 1 - _BETAS[0])
        square = _decoded(state, "exp_avg_sq").lerp_(flat.square(), 1 - _BETAS[1])
        dither = step * _GOLDEN % 1
        _encode(mean, state, "exp_avg", dither)
        _encode(square, state, "exp_avg_sq", dither)
        rate = group.learning_rate / (1 - _BETAS[0] ** step)
        scale = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPS)
        value.mul_(1 - group.learning_rate * group.weight_decay)
        value.sub_((mean.div_(scale).mul_(rate)).view(value.shape))


def _blocks(values: Tensor) -> Tensor:
    """A vector as rows of one block each, filled up with zeros."""
    missing = -len(values) % _BLOCK
    return torch.nn.functional.pad(values, (0, missing)).view(-1, _BLOCK)


def _decoded(state: State, name: str) -> Tensor:
    """A moment in fp32, as a vector."""
    codes = _blocks(state[name].float())
    fractions = codes / torch.iinfo(state[name].dtype).max
    powers = fractions.abs().pow_(_POWERS[name]).copysign_(codes)
    return (powers * state[f"{name}_scale"][:, None]).flatten()[: len(state[name])]


def _encode(values: Tensor, state: State, name: str, dither: Tensor) -> None:
    """Store a moment as codes, rounded up for the fraction `dither` of the numbers between."""
    blocks, codes = _blocks(values), state[name]
    scale = blocks.abs().amax(1)
    state[f"{name}_scale"].copy_(scale)
    fractions = (blocks.abs() / scale.clamp(min=1e-38)[:, None]).pow_(1 / _POWERS[name])
    rounded = (fractions * torch.iinfo(codes.dtype).max + dither).floor_()
    if name == "exp_avg_sq":  # 0 would make the next step of this weight too large
        rounded = rounded.clamp_(min=1)
    rounded = rounded.clamp_(max=torch.iinfo(codes.dtype).max).copysign_(blocks)
    codes.copy_(rounded.flatten()[: len(codes)])
