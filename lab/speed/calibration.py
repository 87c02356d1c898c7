"""The machine's rate of large matrix products, to compare measurements with."""

import time
from functools import cache

import torch

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SECONDS = 0.3  # for each precision: half precision is slow on some processors


@cache
def product_rates(device: torch.device) -> dict[str, float]:
    """The highest rate of a large matrix product in each precision, in GFLOP/s."""
    side = 8192 if device.type == "cuda" else 1024
    return {
        name: _rate(torch.randn(side, side, device=device, dtype=dtype))
        for name, dtype in _PRECISIONS.items()
    }


def _rate(matrix: torch.Tensor) -> float:
    best, last = float("inf"), time.perf_counter() + _SECONDS
    while best == float("inf") or time.perf_counter() < last:
        _synchronize(matrix.device)
        began = time.perf_counter()
        _ = matrix @ matrix
        _synchronize(matrix.device)
        best = min(best, time.perf_counter() - began)
    return 2 * len(matrix) ** 3 / best / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
