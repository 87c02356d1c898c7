"""What the machine can do: the rate of a large matrix product, which figures are read against."""

import time

import torch

_ROUNDS = 5


def product_rates(device: torch.device) -> dict[str, float]:
    """The best rate of a large product of matrices in each precision, GFLOP/s."""
    side = 8192 if device.type == "cuda" else 2048
    return {
        name: _rate(torch.randn(side, side, device=device, dtype=dtype))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }


def _rate(matrix: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        _synchronize(matrix.device)
        began = time.perf_counter()
        _ = matrix @ matrix
        _synchronize(matrix.device)
        best = min(best, time.perf_counter() - began)
    return 2 * len(matrix) ** 3 / best / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
