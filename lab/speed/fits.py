# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Computes the memory of training on transformers of full size, without weights.

`python -m lab.speed.fits` prints it as JSON: `docs/figures/fits.json`. The networks are on torch's
meta device. Activations are the tensors that a forward pass stores for the backward pass. With
gradient checkpointing, the inputs of all blocks are stored, and the activations of one block.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn

from lab.speed.arithmetic import stored_values
from pinxit import registry

# Bytes of a frozen weight, of a stored activation, and of a weight that DreamBooth trains.
_FROZEN, _ACTIVATION, _TUNED, _ADAPTED = 2, 2, 10, 16
_CARDS = (8, 12, 16, 24, 48, 80)
_RANK = 4
# 1024 pixels are 128 latent positions; each token is a square of 2.
_TOKENS = 64 * 64


@dataclass(frozen=True)
class Size:
    """A denoiser of full size, and a call of it for one image of 1024 pixels.

    `width` is that of its blocks, and `text` are the weights of the text encoders in which an
    embedding is trained, 0 if there are none.
    """

    kind: Any
    width: int
    config: dict[str, Any]
    call: Callable[[Any, Callable[..., Tensor]], Any]
    text: int


def _stable_diffusion_3(network: Any, states: Callable[..., Tensor]) -> Any:
    latents = torch.empty(1, 16, 128, 128)
    return network(latents, states(1, 333, 4096), torch.empty(1, 2048), torch.ones(1)).sample


def _flux_1(network: Any, states: Callable[..., Tensor]) -> Any:
    return network(
        torch.empty(1, _TOKENS, 64),
        states(1, 512, 4096),
        torch.empty(1, 768),
        torch.ones(1),
        torch.zeros(_TOKENS, 3),
        torch.zeros(512, 3),
        torch.ones(1),
    ).sample


def _z_image(network: Any, states: Callable[..., Tensor]) -> Any:
    images = [torch.empty(16, 1, 128, 128)]
    return network(images, torch.ones(1), [states(64, 2560)]).sample[0]


SIZES = {
    "stable-diffusion-3": Size(
        diffusers.SD3Transformer2DModel,
        1536,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
            "pos_embed_max_size": 384,
        },
        _stable_diffusion_3,
        123_650_304 + 694_659_840,
    ),
    "flux-1": Size(
        diffusers.FluxTransformer2DModel, 3072, {"guidance_embeds": True}, _flux_1, 4_885_370_880
    ),
    "z-image": Size(diffusers.ZImageTransformer2DModel, 3840, {}, _z_image, 0),
}


def measure_family(name: str) -> dict[str, dict[str, Any]]:
    """The memory of each method on a family, in gigabytes."""
    size = SIZES[name]
    with torch.device("meta"):
        network = size.kind(**size.config).requires_grad_(False)
    blocks = [part for part in network.children() if isinstance(part, nn.ModuleList)]
    count = sum(len(part) for part in blocks)
    weights = sum(weight.numel() for weight in network.parameters())

    def activations(*, trained_text: bool = False) -> int:
        def states(*shape: int) -> Tensor:
            return torch.empty(*shape).requires_grad_(trained_text)

        return stored_values(lambda: size.call(network, states), {"denoiser": network})

    inputs = count * _TOKENS * size.width
    rows: dict[str, dict[str, Any]] = {}

    def add(method: str, stored: int, states: int) -> None:
        whole = (stored + _ACTIVATION * states) / 1e9
        checkpointed = (stored + _ACTIVATION * (states // count + inputs)) / 1e9
        fits = next((card for card in _CARDS if checkpointed < card), None)
        rows[method] = {
            "weights": stored / 1e9,
            "all": whole,
            "checkpointed": checkpointed,
            "fits": f"{fits} GB" if fits else f"more than {_CARDS[-1]} GB",
        }

    if size.text:
        states = activations(trained_text=True)
        add("textual-inversion", _FROZEN * (weights + size.text), states)
    network.requires_grad_(True)
    add("dreambooth", _TUNED * weights, activations())
    network.requires_grad_(False)
    pattern = registry.load("families", name).layer_groups["attention"]
    config = LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=_linear(network, pattern))
    with torch.device("meta"):
        network.add_adapter(config)
    adapted = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    add("lora", _FROZEN * weights + _ADAPTED * adapted, activations())
    return rows


def _linear(network: nn.Module, pattern: str) -> list[str]:
    layers = network.named_modules()
    return [n for n, one in layers if isinstance(one, nn.Linear) and re.search(pattern, n)]


def main() -> None:
    """Print the memory of each method on each family."""
    print(json.dumps({name: measure_family(name) for name in SIZES}))


if __name__ == "__main__":
    main()
