"""Requirements that every kind of adapter must meet."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import Adapter, applied, before_denoise
from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.kinds.weight_difference import WeightDifference
from pinxit.adapters.lora_part import LoraConfig
from pinxit.models.model import Model


def difference_part(model: Model) -> DifferencePart:
    """Differences of a matrix, a kernel, a norm and biases."""
    layers = ("conv_in", "conv_norm_out", "time_embedding.linear_1")
    weights = dict(model.networks["denoiser"].named_parameters())
    names = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    draws = torch.Generator().manual_seed(3)
    return DifferencePart(
        "denoiser", {n: 0.05 * torch.randn(weights[n].shape, generator=draws) for n in names}
    )


# A trainable adapter of each kind, which may have no effect yet.
NEW: dict[str, Callable[[Model], Adapter]] = {
    "alias": lambda _: AliasAdapter("<mytoy>", "a red dog"),
    "embedding": lambda model: EmbeddingAdapter.of(model, "<mytoy>", "dog", 2),
    "full-weights": lambda model: FullWeightsAdapter.of(model, "denoiser"),
    "weight-difference": lambda model: WeightDifference.restore(difference_part(model), model),
    "lora": lambda model: LoraAdapter.of(model, "denoiser", LoraConfig("lora", 2, 2.0, "all"), 0),
}
KINDS = registry.names("kinds")


def trained(kind: str, model: Model) -> Adapter:
    """An adapter as after training."""
    adapter, draws = NEW[kind](model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draws))
    return adapter


def output(model: Model, *adapters: Adapter) -> Tensor:
    """The denoiser's output for fixed noise and a prompt with the token."""
    side = model.default_size // model.vae_scale_factor
    size = (1, model.latent_channels, side, side)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), applied(model, adapters):
        before_denoise(model, torch.tensor([500]))
        conditioning = model.condition(["a photo of <mytoy>"])
        return model.denoise(noise, torch.tensor([500]), conditioning)


def state(model: Model) -> dict[str, Tensor]:
    """Copies of all weights."""
    return {
        f"{network}.{name}": tensor.clone()
        for network, module in model.networks.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_undone_to_the_bit(kind: str, model: Model) -> None:
    weights, plain = state(model), output(model)
    adapter = trained(kind, model)
    again = adapter.restore(adapter.part(), model)
    assert not torch.equal(output(model, adapter), plain)
    assert not torch.equal(output(model, again), plain)
    for one in (adapter, again):
        with pytest.raises(ZeroDivisionError), applied(model, [one]):
            raise ZeroDivisionError
        assert not model.placeholders and not model.changes
        after = state(model)
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
        assert torch.equal(output(model), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_restored_to_the_bit(kind: str, model: Model) -> None:
    part = trained(kind, model).part()
    assert part.kind == kind
    stored = part.from_stored(part.settings, part.tensors)
    again = registry.load("kinds", kind).restore(stored, model).part()
    assert (again.kind, again.settings, again.key) == (part.kind, part.settings, part.key)
    assert again.tensors.keys() == part.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in part.tensors.items())
    assert part.describe()
    assert not part.problems()
