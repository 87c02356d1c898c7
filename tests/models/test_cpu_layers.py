"""Convolutions as matrix products equal torch's, in the forward and the backward pass."""

import subprocess
import sys
from platform import libc_ver

import pytest
import torch
from torch import Tensor, nn

from pinxit.models.kernels import cpu


def output_and_gradients(layer: nn.Module, images: Tensor, grad: Tensor) -> list[Tensor]:
    layer.zero_grad()
    input = images.clone().requires_grad_()
    output = layer(input)
    output.backward(grad)
    assert input.grad is not None
    return [
        output,
        input.grad,
        *(weight.grad.clone() for weight in layer.parameters() if weight.grad is not None),
    ]


@pytest.mark.parametrize("max_values", [2**25, 3000])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (3, 2, 0)]
)
@pytest.mark.parametrize("trained", [True, False])
def test_convolutions_equal_torchs(
    max_values: int,
    kernel: int,
    stride: int,
    padding: int,
    trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_MAX_PATCH_VALUES", max_values)
    layer = nn.Conv2d(12, 20, kernel, stride, padding, dtype=torch.float64).requires_grad_(trained)
    network = nn.Sequential(layer).to(memory_format=torch.channels_last)
    images = torch.randn(2, 12, 17, 13, dtype=torch.float64)
    grad = torch.randn_like(layer(images))
    expected = output_and_gradients(network, images, grad)
    names = list(network.state_dict())
    cpu.optimize_for_cpu(network)
    actual = output_and_gradients(network, images, grad)
    assert type(layer) is not nn.Conv2d
    assert isinstance(layer, nn.Conv2d)
    assert list(network.state_dict()) == names
    assert len(actual) == len(expected) == (4 if trained else 2)
    for tensor, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=1e-12, atol=1e-12)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


def test_frozen_convolutions_do_not_save_their_input() -> None:
    saved_sizes: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        saved_sizes.append(tensor.numel())
        return tensor

    for trained in (False, True):
        network = nn.Sequential(nn.Conv2d(8, 8, 3)).requires_grad_(trained)
        cpu.optimize_for_cpu(network)
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            network(torch.randn(1, 8, 32, 32, requires_grad=True))
        assert (8 * 32 * 32 in saved_sizes) == trained


_ALLOCATES = """
import resource
from pathlib import Path
import torch
from pinxit.models.kernels import cpu

def pages_of(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.zeros(2**24) for _ in range(2)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

pages = 2**27 // resource.getpagesize()
assert pages_of(5) > 4 * pages, "glibc maps large blocks anew each time"
cpu.keep_freed_memory()
pages_of(5)
assert pages_of(5) < pages, "freed memory is used again"
size = resident()
cpu.release_freed_memory()
assert size - resident() > pages / 2, "freed memory is given back"
"""


@pytest.mark.long
@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again_until_it_is_released() -> None:
    """In a process of its own, because the C library's settings stay."""
    subprocess.run([sys.executable, "-c", _ALLOCATES], check=True)
