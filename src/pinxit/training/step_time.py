# pyright: standard, reportPrivateImportUsage=false
"""About how many seconds a computation takes on a device: from its operations, or by running it."""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from pinxit.training.live_bytes import LiveBytes, count

_CALIBRATION_SECONDS = 0.005


def predicted_seconds(device: torch.device, counter: LiveBytes) -> float:
    """About how long a device takes for what was counted.

    The rates are measured once in a process, in less than 50 ms. An accelerator computes while the
    next operations are called.
    """
    computed = counter.moved * _seconds_of_byte(device) + sum(
        number * _seconds_of_product(device, dtype) for dtype, number in counter.products.items()
    )
    called = counter.calls * _seconds_of_call(device)
    return computed + called if device.type == "cpu" else max(computed, called)


def seconds_of(device: torch.device, compute: Callable[[], object]) -> float:
    """How long a computation takes on a device."""
    start = time.perf_counter()
    compute()
    torch.ones((), device=device).item()  # waits until an accelerator has computed
    return time.perf_counter() - start


@cache
def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    """Of one floating-point operation in a product of matrices."""
    side = 256 if device.type == "cpu" else 4096
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    product = torch._int_mm if dtype == torch.int8 else torch.mm
    return _shortest_seconds(device, lambda: product(matrix, matrix)) / (2 * side**3)


@cache
def _seconds_of_byte(device: torch.device) -> float:
    """Of one byte that an activation function reads or writes."""
    values = torch.ones(2**22 if device.type == "cpu" else 2**26, device=device)
    return _shortest_seconds(device, lambda: nn.functional.silu(values)) / (2 * values.nbytes)


@cache
def _seconds_of_call(device: torch.device) -> float:
    """Of one operation of a network that computes almost nothing."""
    network = nn.Sequential(*[nn.LayerNorm(8, device=device), nn.SiLU()] * 16)

    def compute() -> None:
        with torch.enable_grad():
            network(torch.ones(8, 8, device=device)).sum().backward()

    return _shortest_seconds(device, compute) / count(compute).calls


def _shortest_seconds(device: torch.device, compute: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds; the first is only a preparation."""
    compute()
    seconds = [seconds_of(device, compute)]
    while sum(seconds) < _CALIBRATION_SECONDS:
        seconds.append(seconds_of(device, compute))
    return min(seconds)
