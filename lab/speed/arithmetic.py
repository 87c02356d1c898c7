# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Counts the operations of each method on real networks without weights.

Networks are built on torch's meta device, and the operations of a step's forward and backward pass
are counted as they are called: a frozen layer has no weight gradient, and layers before the first
trained weight have no gradients at all. Attention is counted as two matrix products in the forward
pass and the necessary ones in the backward pass; its score matrix is not stored. Activations are
the tensors stored for the backward pass, without weights.

`python -m lab.speed.arithmetic` prints it as JSON: `docs/figures/arithmetic.json`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lab.speed import bases

SIZES = {"sd15": (256, 512), "xl": (1024,)}
KINDS = ("convolution", "linear", "attention")

# Published values that the counts must agree with: weights of the U-Nets of SD 1.5 and SDXL, and
# multiply-adds of SD 1.5's forward pass at 512 pixels, without the products of attention.
PUBLISHED = {"sd15": 859.5e6, "xl": 2567.5e6}
PUBLISHED_MULTIPLY_ADDS = 339e9


@dataclass(frozen=True)
class Count:
    """Operations of a forward and backward pass by kind (2 per multiply-add), and activations."""

    forward: dict[str, int]
    backward: dict[str, int]
    activations: int

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(self.forward.values()) + sum(self.backward.values())


@dataclass(frozen=True)
class Need:
    """The necessary operations of a step, and those of the plain loop (`plain`).

    `trained` and `frozen` count weights that must be in memory, `activations` the values stored
    for the backward pass. A step of generation is an image of 25 steps with guidance.
    """

    operations: int
    by_kind: dict[str, int]
    plain: int
    trained: int
    frozen: int
    activations: int

    def gigabytes(self, frozen: int = 2, stored: int = 2) -> float:
        """The necessary memory; `frozen` and `stored` are bytes per frozen weight and activation.

        A trained weight is in fp32 with its gradient and both moments.
        """
        return (16 * self.trained + frozen * self.frozen + stored * self.activations) / 1e9


class Networks:
    """The networks of a base model on the meta device."""

    def __init__(self, name: str, parts: dict[str, nn.Module], size: int) -> None:
        self.name, self.parts, self.size = name, parts, size
        vae: Any = parts["vae"].config
        self.side = size // 2 ** (len(vae.block_out_channels) - 1)
        self.channels: int = vae.latent_channels

    @classmethod
    def shaped(cls, name: str, size: int) -> "Networks":
        """The networks of a known base model."""
        with torch.device("meta"):
            parts = {part: bases.build(name, part) for part in bases.networks(name)}
        for part in parts.values():
            part.requires_grad_(False)
        return cls(name, parts, size)

    def count(self, answer: Callable[[], Tensor]) -> Count:
        """Count the operations to compute a tensor."""
        return count_operations(answer, self.parts)

    def weights(self, *parts: str) -> int:
        """The number of weights of these parts."""
        return sum(w.numel() for part in parts for w in self.parts[part].parameters())

    @property
    def text_encoders(self) -> list[str]:
        """The names of the text encoders."""
        return [part for part in self.parts if part.startswith("text_encoder")]

    def denoise(self, *, context: bool = False) -> Callable[[], Tensor]:
        """A function that runs the U-Net on one sample; `context`: with text gradients."""
        unet: Any = self.parts["unet"]
        width = unet.config.cross_attention_dim
        size_conditions: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            size_conditions = {"text_embeds": _empty(1, 1280), "time_ids": _empty(1, 6)}
        text_encoder: Any = self.parts["text_encoder"]
        length: int = text_encoder.config.max_position_embeddings

        def answer() -> Tensor:
            states = _empty(1, length, width).requires_grad_(context)
            latents = _empty(1, self.channels, self.side, self.side)
            return unet(latents, _empty(1), states, added_cond_kwargs=size_conditions).sample

        return answer

    def read(self) -> Callable[[], Tensor]:
        """A function that runs all text encoders on one prompt."""
        text_encoders: list[Any] = [self.parts[text_encoder] for text_encoder in self.text_encoders]

        def states() -> Tensor:
            found = [
                text_encoder(torch.zeros(1, length, dtype=torch.long, device="meta"))[0].sum()
                for text_encoder in text_encoders
                for length in [text_encoder.config.max_position_embeddings]
            ]
            return torch.stack(found)

        return states

    def encoded(self) -> Tensor:
        """The latents of one image."""
        vae: Any = self.parts["vae"]
        return vae.encode(_empty(1, 3, self.size, self.size)).latent_dist.mean

    def decoded(self) -> Tensor:
        """The decoded image of latents."""
        vae: Any = self.parts["vae"]
        return vae.decode(_empty(1, self.channels, self.side, self.side)).sample


def needs(networks: Networks) -> dict[str, Need]:
    """The needs of a step of each method with batch size 1 (DreamBooth: plus one class image)."""
    parts = networks.parts
    read, encoded = networks.count(networks.read()), networks.count(networks.encoded)
    unet, text_encoders = networks.weights("unet"), networks.weights(*networks.text_encoders)
    denoising = networks.count(networks.denoise())
    decoded = networks.count(networks.decoded)
    by_method = {
        "generation": Need(
            50 * denoising.operations + decoded.operations,
            _added([denoising] * 50 + [decoded]),
            50 * denoising.operations + decoded.operations + 2 * read.operations,
            0,
            unet,
            0,
        )
    }
    read_by: list[Any] = [parts[text_encoder] for text_encoder in networks.text_encoders]
    tables: list[Any] = [text_encoder.get_input_embeddings() for text_encoder in read_by]
    for table in tables:
        table.requires_grad_(True)
    text_counts = networks.count(networks.read())
    for table in tables:
        table.requires_grad_(False)
    shown = networks.count(networks.denoise(context=True))
    row = sum(table.weight.shape[1] for table in tables)
    by_method["textual-inversion"] = _need(
        [shown, text_counts], [encoded], row, unet + text_encoders
    )
    tuned: Any = parts["unet"].requires_grad_(True)
    whole = networks.count(networks.denoise())
    by_method["dreambooth"] = _need([whole] * 2, [encoded, read] * 2, unet, 0)
    adapted = _with_lora(tuned.requires_grad_(False))
    lora_counts = networks.count(networks.denoise())
    by_method["lora"] = _need([lora_counts], [encoded, read], adapted, unet)
    return by_method


@contextmanager
def _stored(parts: Mapping[str, nn.Module]) -> Iterator[dict[int, tuple[Any, int]]]:
    """The storages that are kept for the backward pass, and their sizes; no weights."""
    storages: dict[int, tuple[torch.UntypedStorage, int]] = {}
    weights = {w.untyped_storage()._cdata for part in parts.values() for w in part.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage, storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def stored_values(answer: Callable[[], Tensor], parts: Mapping[str, nn.Module]) -> int:
    """The number of values that a forward pass stores for the backward pass."""
    with torch.device("meta"), _products_for_attention(), _stored(parts) as storages:
        result = answer()
        assert result.requires_grad
        return sum(size for _, size in storages.values())


def count_operations(answer: Callable[[], Tensor], parts: Mapping[str, nn.Module]) -> Count:
    """Count a forward pass, and a backward pass if there are gradients, without stored weights."""
    with torch.device("meta"), _products_for_attention(), FlopCounterMode(display=False) as flops:
        with _stored(parts) as storages:
            result = answer()
        forward = _kinds(flops)
        if result.requires_grad:
            result.sum().backward()
        backward = Counter(_kinds(flops))
    backward.subtract(forward)
    return Count(forward, dict(backward), sum(size for _, size in storages.values()))


class _Attention(torch.autograd.Function):
    """Attention that stores its result but no scores, like fused kernels."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        answer = (q @ k.transpose(-1, -2)) @ v
        ctx.save_for_backward(q, k, v, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, _ = ctx.saved_tensors
        for_q, for_k, for_v = ctx.needs_input_grad
        scores = _empty(*q.shape[:-1], k.shape[-2])  # computed again; not counted
        if for_q or for_k:
            scores = gradient @ v.transpose(-1, -2)
        return (
            scores @ k if for_q else None,
            scores.transpose(-1, -2) @ q if for_k else None,
            scores.transpose(-1, -2) @ gradient if for_v else None,
        )


@contextmanager
def _products_for_attention() -> Iterator[None]:
    """Replace the attention kernel by plain matrix products, in diffusers and transformers."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value)  # pyright: ignore[reportReturnType]

    with patch.object(functional, "scaled_dot_product_attention", attention):
        yield


def _kinds(flops: FlopCounterMode) -> dict[str, int]:
    """The operations so far, by kind."""
    sums: dict[str, int] = dict.fromkeys(KINDS, 0)
    for operation, count in flops.get_flop_counts().get("Global", {}).items():
        name = str(operation)
        kind = "convolution" if "conv" in name else "attention" if "bmm" in name else "linear"
        sums[kind] += count
    return sums


def _with_lora(unet: Any) -> int:
    """Add LoRA to the attention layers; returns the number of its weights."""
    from peft import LoraConfig

    from lab.speed.plain import ATTENTION, LORA_RANK

    unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=ATTENTION))
    return sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)


def _need(own: list[Count], plain: list[Count], trained: int, frozen: int) -> Need:
    operations = sum(count.operations for count in own)
    wasted = sum(count.operations for count in plain)
    activations = sum(count.activations for count in own)
    return Need(operations, _added(own), operations + wasted, trained, frozen, activations)


def _added(counts: list[Count]) -> dict[str, int]:
    return {k: sum(one.forward[k] + one.backward[k] for one in counts) for k in KINDS}


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def measure_base(name: str, size: int) -> dict[str, Any]:
    """All counts of a base model; AssertionError if they differ from published values."""
    networks = Networks.shaped(name, size)
    unet = networks.weights("unet")
    assert abs(unet / PUBLISHED[name] - 1) < 1e-4, f"{name}'s U-Net has {unet} weights"
    forward = networks.count(networks.denoise()).forward
    if (name, size) == ("sd15", 512):
        adds = (forward["convolution"] + forward["linear"]) / 2
        assert abs(adds / PUBLISHED_MULTIPLY_ADDS - 1) < 2e-3, f"{adds / 1e9} G multiply-adds"
    return {
        "weights": {part: networks.weights(part) for part in networks.parts},
        "forward": forward,
        "encode": networks.count(networks.encoded).operations,
        "decode": networks.count(networks.decoded).operations,
        "text": networks.count(networks.read()).operations,
        "methods": {
            method: {**asdict(need), "gigabytes": need.gigabytes()}
            for method, need in needs(networks).items()
        },
    }


def main() -> None:
    """Print the counts of all base models at all resolutions."""
    figures = {
        f"{name} {size}": measure_base(name, size)
        for name, sizes in SIZES.items()
        for size in sizes
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
