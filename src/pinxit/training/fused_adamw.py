# pyright: basic
"""AdamW for bf16 weights on a CPU in one pass over memory, compiled by numba (`pinxit[fast]`).

The step is limited by memory: operation by operation, chunks of each tensor are converted to fp32
and back, which takes several times as long (docs/results/performance.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinxit.training.optimizer import ParameterGroup

# Values that a thread computes at a time: enough to make starting it cheap.
_THREAD_VALUES = 2**20


@cache
def is_available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def coefficients(
    scale: float, group: ParameterGroup, betas: tuple[float, float], eps: float, step: int
) -> list[Any]:
    """The factors of the loop in fp32, computed in fp64 as torch does.

    `scale` multiplies the gradient, and `step` counts from 1.
    """
    beta1, beta2 = betas
    shrink = 1 - group.learning_rate * group.weight_decay
    size = group.learning_rate / (1 - beta1**step)
    root = (1 - beta2**step) ** -0.5
    values = (scale, shrink, size, 1 - beta1, beta2, 1 - beta2, root, eps)
    return [np.float32(value) for value in values]


def step(tensors: Sequence[Tensor], factors: Sequence[Any], dither: int) -> None:
    """One AdamW step, in place.

    `tensors` are vectors of bf16: weight, gradient, both moments and the rounding error of the
    weight. `factors` are the `coefficients`, and `dither` is added to the second moment's bits
    before they are cut.
    """
    kernel = _kernel()
    arrays: list[Any] = [tensor.view(torch.uint16).numpy() for tensor in tensors]

    def update(start: int) -> None:
        parts = [array[start : start + _THREAD_VALUES] for array in arrays]
        kernel(*parts, *factors, np.uint32(dither))

    if len(arrays[0]) <= _THREAD_VALUES:  # most tensors; starting a thread would take longer
        update(0)
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(update, range(0, len(arrays[0]), _THREAD_VALUES)))


@cache
def _kernel() -> Callable[..., None]:
    """The compiled loop; it takes half a second to compile and releases the GIL while it runs."""
    import numba

    @numba.njit(inline="always")
    def to_fp32(half):
        return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)

    @numba.njit(inline="always")
    def to_bf16(value):  # to the nearest, or the even one of two
        bits = np.float32(value).view(np.uint32)
        even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(32767) + even) >> np.uint32(16))

    @numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
    def loop(  # noqa: PLR0913
        weight, grad, mean, square, rest, scale, shrink, size, mix1, beta2, mix2, root, eps, added
    ):
        for i in range(weight.size):
            g = to_fp32(grad[i]) * scale
            m = to_fp32(mean[i])
            m += mix1 * (g - m)
            v = beta2 * to_fp32(square[i]) + mix2 * (g * g)
            p = (to_fp32(weight[i]) + to_fp32(rest[i])) * shrink
            p -= size * m / (np.sqrt(v) * root + eps)
            rounded = to_bf16(p)
            weight[i] = rounded
            rest[i] = to_bf16(p - to_fp32(rounded))
            mean[i] = to_bf16(m)
            bits = np.float32(v).view(np.uint32)
            square[i] = np.uint16(np.uint32(bits + added) >> np.uint32(16))

    return loop
