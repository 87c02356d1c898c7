"""Convolutions as products of matrices: the library's, forwards and backwards."""

import pytest
import torch
from torch import Tensor, nn

from pinxit.models.kernels import cpu


def gradients(layer: nn.Module, pictures: Tensor, answer: Tensor) -> list[Tensor]:
    layer.zero_grad()
    own = pictures.clone().requires_grad_()
    found = layer(own)
    found.backward(answer)
    assert own.grad is not None
    return [found, own.grad, *(w.grad.clone() for w in layer.parameters() if w.grad is not None)]


@pytest.mark.parametrize("numbers", [2**25, 3000])
@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (3, 2, 0)]
)
@pytest.mark.parametrize("trained", [True, False])
def test_they_are_the_librarys(
    numbers: int,
    side: int,
    stride: int,
    padding: int,
    trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_NUMBERS", numbers)
    layer = nn.Conv2d(12, 20, side, stride, padding, dtype=torch.float64).requires_grad_(trained)
    network = nn.Sequential(layer).to(memory_format=torch.channels_last)
    pictures = torch.randn(2, 12, 17, 13, dtype=torch.float64)
    answer = torch.randn_like(layer(pictures))
    wanted = gradients(network, pictures, answer)
    names = list(network.state_dict())
    cpu.suit_cpu(network)
    found = gradients(network, pictures, answer)
    assert type(layer) is not nn.Conv2d
    assert isinstance(layer, nn.Conv2d)
    assert list(network.state_dict()) == names
    assert len(found) == len(wanted) == (4 if trained else 2)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_frozen_ones_do_not_keep_what_they_need_not() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    for trained in (False, True):
        network = nn.Sequential(nn.Conv2d(8, 8, 3)).requires_grad_(trained)
        cpu.suit_cpu(network)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(1, 8, 32, 32, requires_grad=True))
        assert (8 * 32 * 32 in kept) == trained
