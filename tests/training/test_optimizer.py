"""AdamW: the steps of torch for fp32, and small steps that add up in half precision."""

import pytest
import torch
from torch import nn

from pinxit.training.optimizer import AdamW, ParameterGroup

SHAPES = ((7,), (30, 50), (3, 3, 8, 8))


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng).to(dtype)) for shape in SHAPES]


def test_fp32_steps_are_those_of_torch() -> None:
    ours, others = weights(torch.float32), weights(torch.float32)
    optimizer = AdamW([ParameterGroup(ours[:1], 1e-2), ParameterGroup(ours[1:], 1e-3, 0.1)])
    reference = torch.optim.AdamW(
        [
            {"params": others[:1], "lr": 1e-2, "weight_decay": 0.0},
            {"params": others[1:], "lr": 1e-3, "weight_decay": 0.1},
        ],
        fused=True,
    )
    rng = torch.Generator().manual_seed(1)
    for _ in range(5):
        for one, other in zip(ours, others, strict=True):
            gradient = torch.randn(one.shape, generator=rng)
            one.grad, other.grad = gradient.clone(), gradient * 0.5
        optimizer.step(torch.tensor(0.5))
        reference.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_in_half_precision(dtype: torch.dtype) -> None:
    (weight,) = [nn.Parameter(torch.ones(64, dtype=dtype))]
    optimizer = AdamW([ParameterGroup([weight], 1e-4)])
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.step(torch.ones(()))
    # Each step is 1e-4, less than half the distance to the next smaller number.
    assert weight.detach().float().mean().item() == pytest.approx(0.98, abs=2e-3)
    assert int(optimizer.state[weight]["step"]) == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pull_moves_weights_towards_their_origins(dtype: torch.dtype) -> None:
    (weight,) = [nn.Parameter(torch.full((8,), 1.5, dtype=dtype))]
    origin = torch.ones(8, dtype=dtype)
    optimizer = AdamW([ParameterGroup([weight], 1e-9, pull=1e-3, origins=[origin])])
    for _ in range(500):
        weight.grad = torch.ones_like(weight)
        optimizer.step(torch.ones(()))
    # Each pull is less than half the distance of two numbers in half precision.
    assert weight.detach().float().mean().item() == pytest.approx(1 + 0.5 * 0.999**500, abs=4e-3)
