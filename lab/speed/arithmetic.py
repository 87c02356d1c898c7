# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""The arithmetic of each method, counted on the real networks without their weights.

Networks are built on torch's meta device, and every operation of a step's forward and backward is
counted as it is called for: so a frozen layer has no weight's gradient, and what lies before the
first trained number has no gradient at all. Attention is counted as its two products forward and
those backward whose answers are needed, keeping no matrix of scores. What the backward has kept
from the forward (each storage once, weights left out) are the activations.

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

# What others have published, and this must agree with: weights of the U-Nets of 1.5 and XL, and
# the multiply-adds of 1.5's forward at 512 pixels, attention's products left out.
PUBLISHED = {"sd15": 859.5e6, "xl": 2567.5e6}
PUBLISHED_MULTIPLY_ADDS = 339e9


@dataclass(frozen=True)
class Count:
    """A forward and backward: operations (2 a multiply-add) by kind, and numbers that are kept."""

    forward: dict[str, int]
    backward: dict[str, int]
    activations: int

    @property
    def operations(self) -> int:
        """All of them."""
        return sum(self.forward.values()) + sum(self.backward.values())


@dataclass(frozen=True)
class Need:
    """What one step of a method cannot do without, and what the plain loop does.

    `trained` and `frozen` are numbers of weights that must be in memory; `activations` numbers
    kept for the backward. A step of generation is a picture of 25 steps with guidance.
    """

    operations: int
    by_kind: dict[str, int]
    plain: int
    trained: int
    frozen: int
    activations: int

    def gigabytes(self, frozen: int = 2, kept: int = 2) -> float:
        """The least memory, with frozen weights and activations of so many bytes a number.

        A trained weight is in fp32 with its gradient and both moments.
        """
        return (16 * self.trained + frozen * self.frozen + kept * self.activations) / 1e9


class Networks:
    """A base of known shapes on the meta device, counted part by part."""

    def __init__(self, name: str, parts: dict[str, nn.Module], size: int) -> None:
        self.name, self.parts, self.size = name, parts, size
        vae: Any = parts["vae"].config
        self.side = size // 2 ** (len(vae.block_out_channels) - 1)
        self.channels: int = vae.latent_channels

    @classmethod
    def shaped(cls, name: str, size: int) -> "Networks":
        """A base of real shapes."""
        with torch.device("meta"):
            parts = {part: bases.made(name, part) for part in bases.networks(name)}
        for part in parts.values():
            part.requires_grad_(False)
        return cls(name, parts, size)

    def counted(self, answer: Callable[[], Tensor]) -> Count:
        """What an answer takes."""
        return counted(answer, self.parts)

    def weights(self, *parts: str) -> int:
        """How many weights some parts have."""
        return sum(w.numel() for part in parts for w in self.parts[part].parameters())

    @property
    def towers(self) -> list[str]:
        """Its text encoders."""
        return [part for part in self.parts if part.startswith("text_encoder")]

    def denoise(self, *, context: bool = False) -> Callable[[], Tensor]:
        """The U-Net's answer for one sample; `context` if the text is to have a gradient."""
        unet: Any = self.parts["unet"]
        width = unet.config.cross_attention_dim
        told: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            told = {"text_embeds": _empty(1, 1280), "time_ids": _empty(1, 6)}
        tower: Any = self.parts["text_encoder"]
        length: int = tower.config.max_position_embeddings

        def answer() -> Tensor:
            states = _empty(1, length, width).requires_grad_(context)
            latents = _empty(1, self.channels, self.side, self.side)
            return unet(latents, _empty(1), states, added_cond_kwargs=told).sample

        return answer

    def read(self) -> Callable[[], Tensor]:
        """All text encoders' states for one prompt."""
        towers: list[Any] = [self.parts[tower] for tower in self.towers]

        def states() -> Tensor:
            found = [
                tower(torch.zeros(1, length, dtype=torch.long, device="meta"))[0].sum()
                for tower in towers
                for length in [tower.config.max_position_embeddings]
            ]
            return torch.stack(found)

        return states

    def encoded(self) -> Tensor:
        """A picture's latents."""
        vae: Any = self.parts["vae"]
        return vae.encode(_empty(1, 3, self.size, self.size)).latent_dist.mean

    def decoded(self) -> Tensor:
        """The picture of latents."""
        vae: Any = self.parts["vae"]
        return vae.decode(_empty(1, self.channels, self.side, self.side)).sample


def needs(networks: Networks) -> dict[str, Need]:
    """What a step of each method needs, batch 1 (DreamBooth: with a class picture beside)."""
    parts = networks.parts
    read, encoded = networks.counted(networks.read()), networks.counted(networks.encoded)
    unet, towers = networks.weights("unet"), networks.weights(*networks.towers)
    painting = networks.counted(networks.denoise())
    decoded = networks.counted(networks.decoded)
    found = {
        "generation": Need(
            50 * painting.operations + decoded.operations,
            _added([painting] * 50 + [decoded]),
            50 * painting.operations + decoded.operations + 2 * read.operations,
            0,
            unet,
            0,
        )
    }
    read_by: list[Any] = [parts[tower] for tower in networks.towers]
    tables: list[Any] = [tower.get_input_embeddings() for tower in read_by]
    for table in tables:
        table.requires_grad_(True)
    told = networks.counted(networks.read())
    for table in tables:
        table.requires_grad_(False)
    shown = networks.counted(networks.denoise(context=True))
    row = sum(table.weight.shape[1] for table in tables)
    found["textual-inversion"] = _need([shown, told], [encoded], row, unet + towers)
    tuned: Any = parts["unet"].requires_grad_(True)
    whole = networks.counted(networks.denoise())
    found["dreambooth"] = _need([whole] * 2, [encoded, read] * 2, unet, 0)
    adapted = _with_lora(tuned.requires_grad_(False))
    beside = networks.counted(networks.denoise())
    found["lora"] = _need([beside], [encoded, read], adapted, unet)
    return found


def counted(answer: Callable[[], Tensor], parts: Mapping[str, nn.Module]) -> Count:
    """A forward, and the backward if anything needs a gradient; the parts' weights are not kept."""
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}
    weights = {w.untyped_storage()._cdata for part in parts.values() for w in part.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage, storage.nbytes() // tensor.element_size()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), _products_for_attention(), FlopCounterMode(display=False) as flops:
        with hooks:
            found = answer()
        forward = _kinds(flops)
        if found.requires_grad:
            found.sum().backward()
        backward = Counter(_kinds(flops))
    backward.subtract(forward)
    return Count(forward, dict(backward), sum(size for _, size in kept.values()))


class _Attention(torch.autograd.Function):
    """Attention that keeps its answer and no scores, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        answer = (q @ k.transpose(-1, -2)) @ v
        ctx.save_for_backward(q, k, v, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, _ = ctx.saved_tensors
        for_q, for_k, for_v = ctx.needs_input_grad
        scores = _empty(*q.shape[:-1], k.shape[-2])  # made again; not counted
        if for_q or for_k:
            scores = gradient @ v.transpose(-1, -2)
        return (
            scores @ k if for_q else None,
            scores.transpose(-1, -2) @ q if for_k else None,
            scores.transpose(-1, -2) @ gradient if for_v else None,
        )


@contextmanager
def _products_for_attention() -> Iterator[None]:
    """Attention's products stand for its kernel, in diffusers as in transformers."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value)  # pyright: ignore[reportReturnType]

    with patch.object(functional, "scaled_dot_product_attention", attention):
        yield


def _kinds(flops: FlopCounterMode) -> dict[str, int]:
    """Operations so far by kind."""
    found: dict[str, int] = dict.fromkeys(KINDS, 0)
    for operation, count in flops.get_flop_counts().get("Global", {}).items():
        name = str(operation)
        kind = "convolution" if "conv" in name else "attention" if "bmm" in name else "linear"
        found[kind] += count
    return found


def _with_lora(unet: Any) -> int:
    """Put layers of low rank beside the attention's; how many weights they have."""
    from peft import LoraConfig

    from lab.speed.plain import ATTENTION, LORA_RANK

    unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=ATTENTION))
    return sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)


def _need(own: list[Count], plain: list[Count], trained: int, frozen: int) -> Need:
    operations = sum(count.operations for count in own)
    wasted = sum(count.operations for count in plain)
    kept = sum(count.activations for count in own)
    return Need(operations, _added(own), operations + wasted, trained, frozen, kept)


def _added(counts: list[Count]) -> dict[str, int]:
    return {k: sum(one.forward[k] + one.backward[k] for one in counts) for k in KINDS}


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def checked(name: str, size: int) -> dict[str, Any]:
    """A base's figures; an error if they are not those that are published."""
    networks = Networks.shaped(name, size)
    unet = networks.weights("unet")
    assert abs(unet / PUBLISHED[name] - 1) < 1e-4, f"{name}'s U-Net has {unet} weights"
    forward = networks.counted(networks.denoise()).forward
    if (name, size) == ("sd15", 512):
        adds = (forward["convolution"] + forward["linear"]) / 2
        assert abs(adds / PUBLISHED_MULTIPLY_ADDS - 1) < 2e-3, f"{adds / 1e9} G multiply-adds"
    return {
        "weights": {part: networks.weights(part) for part in networks.parts},
        "forward": forward,
        "encode": networks.counted(networks.encoded).operations,
        "decode": networks.counted(networks.decoded).operations,
        "text": networks.counted(networks.read()).operations,
        "methods": {
            method: {**asdict(need), "gigabytes": need.gigabytes()}
            for method, need in needs(networks).items()
        },
    }


def main() -> None:
    """Print every base's figures at every size."""
    found = {
        f"{name} {size}": checked(name, size) for name, sizes in SIZES.items() for size in sizes
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
