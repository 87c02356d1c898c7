"""Prodigy (arXiv:2306.06101): AdamW that finds its own learning rate; leave that at 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pinxit.models.device import widest_dtype
from pinxit.training.optimizer import REST, ParameterGroup, PlainOptimizer, State, scaled_gradient

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_DECAY = _BETAS[1] ** 0.5  # of the sums that estimate the distance
_FIRST_DISTANCE = 1e-6


class Prodigy(PlainOptimizer):
    """Adam with steps in proportion to the estimated distance to the solution.

    Each group of weights has its own estimate, which only grows; the learning rate multiplies it.
    """

    # `distance` and `numerator` are those of the group, repeated for each weight.
    state_names = (
        "exp_avg",
        "exp_avg_sq",
        "gradient_sum",
        "initial",
        "distance",
        "numerator",
        REST,
    )

    separable = elementwise = False
    rest_dtype = torch.float32  # the first steps are of size 1e-6

    @classmethod
    def default_rate(cls, adamw_rate: float) -> float:  # noqa: ARG003
        """1: the estimated distance is the learning rate."""
        return 1.0

    def fp32_state(self, weight: Tensor) -> State:
        """Moments, the weighted sum of the gradients, the initial weight, and the estimate."""
        names = ("exp_avg", "exp_avg_sq", "gradient_sum")
        scalar = torch.zeros((), dtype=widest_dtype(weight.device), device=weight.device)
        return {
            **{name: torch.zeros_like(weight) for name in names},
            "initial": weight.clone(),
            "distance": scalar + _FIRST_DISTANCE,
            "numerator": scalar,
        }

    def prepare(
        self, weights: Sequence[nn.Parameter], gradient_scale: Tensor, group: ParameterGroup
    ) -> None:
        """Update the moments, and then the estimate of the distance."""
        if not weights or group.learning_rate == 0:
            return
        first = self.state[weights[0]]
        distance, numerator = first["distance"], _DECAY * first["numerator"]
        denominator = torch.zeros_like(numerator)
        for weight in weights:
            state, gradient = self.state[weight], scaled_gradient(weight, gradient_scale)
            current = weight.detach().float() + state.get(REST, 0)
            factor = distance / _FIRST_DISTANCE * distance * group.learning_rate
            numerator = numerator + factor * (gradient * (state["initial"] - current)).sum()
            size = distance.float()
            state["exp_avg"].lerp_(gradient * size, 1 - _BETAS[0])
            state["exp_avg_sq"].lerp_((gradient * size).square_(), 1 - _BETAS[1])
            state["gradient_sum"].mul_(_DECAY).add_(gradient * factor.float())
            denominator = denominator + state["gradient_sum"].abs().sum()
        estimate = torch.where(denominator > 0, numerator / denominator, distance)
        for weight in weights:
            self.state[weight]["previous"] = distance
            self.state[weight]["distance"] = torch.maximum(distance, estimate)
            self.state[weight]["numerator"] = numerator

    def update(self, value: Tensor, gradient: Tensor, state: State, group: ParameterGroup) -> None:  # noqa: ARG002
        """A step of Adam in units of the estimate."""
        if group.learning_rate == 0:
            return
        size = (state.pop("previous") * group.learning_rate).float()
        value.sub_(value * (size * group.weight_decay))
        scale = state["exp_avg_sq"].sqrt().add_(_EPS * state["distance"].float())
        value.sub_(state["exp_avg"] / scale * size)
