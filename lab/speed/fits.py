# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
"""Computes what training needs on base models of full size, without weights.

`python -m lab.speed.fits` prints it as JSON: `docs/figures/fits.json`. It is the prediction that
`pinxit train` says before the first step, for one image at a time at the native resolution in
bf16, or with the denoiser in 4 bits (nf4). Tensors have shapes and no content.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from lab.speed import bases
from pinxit.adapters.adapter import Adapter, applied
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig
from pinxit.models.conditioning import Conditioning
from pinxit.models.kernels.quantize import stored_tensors, weight_shape
from pinxit.models.model import Model, Placement, Precision
from pinxit.models.open_base import family_of
from pinxit.models.ranks import ALONE
from pinxit.models.source import FolderSource
from pinxit.training.batches import Batch
from pinxit.training.division import Division
from pinxit.training.losses import denoising_losses
from pinxit.training.memory import usable
from pinxit.training.memory_trial import Trial
from pinxit.training.optimizer import ParameterGroup
from pinxit.training.optimizers.adamw import Adamw

CARDS = (8, 12, 16, 24, 48)  # GiB
_PROMPT = "a photo of a <mytoy> on a wooden table in front of a window, in the evening"

Parts = dict[str, nn.Module]


@dataclass(frozen=True)
class Base:
    """A base model of full size: its networks by folder, and its native resolution in pixels.

    `weights` is the number of weights of the denoiser, so that a wrong config is noticed.
    """

    size: int
    weights: int
    parts: Callable[[], Parts]


def _known(name: str) -> Parts:
    return {part: bases.build(name, part) for part in bases.networks(name)}


def _clip(kind: Any, sizes: dict[str, Any]) -> nn.Module:
    return kind(transformers.CLIPTextConfig(**{**bases.CLIP, **sizes}))


def _t5() -> nn.Module:
    sizes = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return transformers.T5EncoderModel(
        transformers.T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu")
    )


def _stable_diffusion_2() -> Parts:
    text = bases.SECOND | {"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 1024}
    text |= {"num_hidden_layers": 23, "num_attention_heads": 16}
    unet = diffusers.UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    vae = bases.build("sd15", "vae")
    return {"unet": unet, "vae": vae, "text_encoder": _clip(transformers.CLIPTextModel, text)}


def _stable_diffusion_3(layers: int, dual_layers: int, positions: int) -> Parts:
    transformer = diffusers.SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=layers,
        caption_projection_dim=64 * layers,
        dual_attention_layers=tuple(range(dual_layers)),
        qk_norm="rms_norm",
        pos_embed_max_size=positions,
    )
    projected = transformers.CLIPTextModelWithProjection
    return {
        "transformer": transformer,
        "vae": bases.build("z-image", "vae"),
        "text_encoder": _clip(projected, bases.FIRST),
        "text_encoder_2": _clip(projected, bases.SECOND),
        "text_encoder_3": _t5(),
    }


def _flux_1() -> Parts:
    return {
        "transformer": diffusers.FluxTransformer2DModel(guidance_embeds=True),
        "vae": bases.build("z-image", "vae"),
        "text_encoder": _clip(transformers.CLIPTextModel, bases.FIRST),
        "text_encoder_2": _t5(),
    }


def _chroma() -> Parts:
    return {
        "transformer": diffusers.ChromaTransformer2DModel(),
        "vae": bases.build("z-image", "vae"),
        "text_encoder": _t5(),
    }


def _z_image() -> Parts:
    sizes = bases.QWEN | {"num_hidden_layers": 36, "vocab_size": 151936}
    text = transformers.Qwen3Model(transformers.Qwen3Config(**sizes))
    return _known("z-image") | {"text_encoder": text}


BASES = {
    "Stable Diffusion 1.5": Base(512, 859_520_964, partial(_known, "sd15")),
    "Stable Diffusion 2.1": Base(768, 865_910_724, _stable_diffusion_2),
    "Stable Diffusion XL": Base(1024, 2_567_463_684, partial(_known, "xl")),
    "Stable Diffusion 3.5 medium": Base(
        1024, 2_243_171_520, partial(_stable_diffusion_3, 24, 13, 384)
    ),
    "Stable Diffusion 3.5 large": Base(
        1024, 8_056_627_520, partial(_stable_diffusion_3, 38, 0, 192)
    ),
    "FLUX.1": Base(1024, 11_901_408_320, _flux_1),
    "Chroma": Base(1024, 8_899_983_424, _chroma),
    "Z-Image": Base(1024, 6_154_908_736, _z_image),
}
METHODS = ("textual-inversion", "lora", "lora, nf4", "dreambooth")


class _Shapes(FolderSource):
    """A folder of configs and tokenizers. Its weights have shapes and no content."""

    def __init__(self, folder: Path, name: str, parts: Parts) -> None:
        super().__init__(folder, name)
        self._shapes = {part: network.state_dict() for part, network in parts.items()}
        for part, network in parts.items():
            described: Any = network
            is_diffusers = hasattr(network, "save_config")
            save = described.save_config if is_diffusers else described.config.save_pretrained
            save(folder / part)
            if isinstance(network, transformers.CLIPPreTrainedModel):
                bases.write_clip_tokenizer(folder / part.replace("text_encoder", "tokenizer"))
            elif part.startswith("text_encoder"):
                tokenizer = bases.language_tokenizer()
                tokenizer.save_pretrained(folder / part.replace("text_encoder", "tokenizer"))
        flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        noise: Any = diffusers.DDIMScheduler(**bases.NOISE) if "unet" in parts else flow
        noise.save_pretrained(folder / "scheduler")

    def weights(self, part: str) -> dict[str, Tensor]:
        """New tensors with the shapes of a part."""
        shapes = self._shapes[part].items()
        return {name: torch.empty(one.shape, dtype=torch.bfloat16) for name, one in shapes}


def open_shapes(name: str, base: Base, folder: Path, precision: Precision) -> Model:
    """A base model of full size; must be called, and used, inside a FakeTensorMode."""
    with unset_fake_temporarily(), torch.device("meta"):
        source = _Shapes(folder, name, base.parts())
    # The CPU stands for any device, so its own layers are left out. Betas have no content to check.
    no_check = patch("pinxit.models.noise_schedule.Diffusion.__post_init__")
    with patch("pinxit.models.latent_model.optimize_for_cpu"), no_check:
        return family_of(source).open(source, Placement(torch.device("cpu"), precision))


def trainable(model: Model, method: str) -> Adapter:
    """What a method trains with its default options."""
    if method == "lora":
        config = LoraConfig("lora", 4, 4.0, "transformer")
        with patch("pinxit.adapters.kinds.lora.initial_weights", _factors):
            return LoraAdapter.of(model, "denoiser", config, 0)
    if method == "dreambooth":
        return FullWeightsAdapter.of(model, "denoiser")
    tables = {name: torch.zeros(1, one.width) for name, one in model.text_encoders.items()}
    return EmbeddingAdapter("<mytoy>", "toy", tables)


def _factors(layer: nn.Module, _: object, rank: int) -> dict[str, nn.Parameter]:
    """New weights of a LoRA: peft would copy the layer, which torch cannot without content."""
    outputs, *inputs = weight_shape(layer)
    up = (outputs, rank, *[1] * (len(inputs) - 1))
    return {
        "lora_A.weight": nn.Parameter(torch.empty(rank, *inputs)),
        "lora_B.weight": nn.Parameter(torch.empty(up)),
    }


def needs(model: Model, method: str, size: int) -> dict[str, float]:
    """Gigabytes of the weights in memory, and of a step without and with checkpointing."""
    adapter = trainable(model, method)
    weights = list(adapter.weights().values())
    optimizer = Adamw([ParameterGroup(weights, 1e-4)])
    trainer: Any = SimpleNamespace(
        weights=weights,
        optimizer=optimizer,
        division=Division(ALONE, weights, divided=False),
        state=dict,
    )
    latents = torch.zeros(2, *model.latent_shape(size, size))
    ones = torch.ones(2)
    # Two samples, of which one is computed at a time: gradients are summed.
    batch = Batch(latents, latents, 500 * ones, ones, ones.long(), (_PROMPT,) * 2)
    condition: Any = model.condition
    if not adapter.changes_conditioning:
        with torch.no_grad():
            # Which positions a mask removes depends on values, and a dry pass has none.
            states = replace(model.condition([_PROMPT]), mask=None)
        condition = partial(lambda states, _: states, states)
        model.offload(*model.text_encoders, *model.frozen_text_encoders)
    model.offload("vae")
    with applied(model, [adapter]):
        model.network("denoiser")
        trial = Trial(model, [trainer], [batch], condition, denoising_losses, 0)
        sizes = {
            "weights": trial.weight_bytes(),
            "bf16": trial.step_bytes(1, False),
            "checkpointing": trial.step_bytes(1, True),
        }
    return {key: value / 1e9 for key, value in sizes.items()}


def measure(name: str, base: Base, method: str) -> dict[str, Any]:
    """What a method needs, in gigabytes, and the first setting that fits on each card."""
    # Everything is on one device, and torch cannot move modules of such tensors.
    no_move = patch.object(nn.Module, "to", lambda module, *_, **__: module)
    # Chroma cuts padding off, which depends on values: here its prompt has the full length.
    whole_prompt = patch(
        "pinxit.models.families.chroma.Chroma._combine",
        lambda _self, _prompts, encodings: Conditioning(encodings[0].states),
    )
    # An accelerator computes in bf16, whatever the layers of the denoiser have.
    bf16 = property(lambda one: torch.float32 if one.precision == "fp32" else torch.bfloat16)
    dtype = patch.object(Placement, "dtype", bf16)
    method, _, precision = method.partition(", ")
    with TemporaryDirectory() as folder, no_move, whole_prompt, dtype, FakeTensorMode():
        model = open_shapes(name, base, Path(folder), "nf4" if precision else "bf16")
        assert precision or model.num_parameters == base.weights, model.num_parameters
        networks = [model.network(part) for part in model.all_networks]  # they are read lazily
        # The denoiser leaves memory while the others encode, unless all its weights are trained.
        encoding = networks if method == "dreambooth" else [*networks[1:]]
        whole = sum(weight.nbytes for one in encoding for weight in stored_tensors(one)) / 1e9
        row: dict[str, Any] = {"size": base.size, "open": whole} | needs(model, method, base.size)
    for card in CARDS:
        bytes_free = card * 2**30 - row["weights"] * 1e9
        settings = {"bf16": precision or "bf16", "checkpointing": "checkpointing"}
        fits = [text for s, text in settings.items() if row[s] * 1e9 <= usable(int(bytes_free))]
        opens = whole * 1e9 <= card * 2**30
        row[f"{card} GB"] = (fits[0] if opens else "not to encode") if fits else "no"
    return row


def main() -> None:
    """Print the memory of each method on each base model, or on those that are named."""
    names = sys.argv[1:] or list(BASES)
    figures = {
        name: {
            method: measure(name, BASES[name], method)
            for method in METHODS
            if (name, method) != ("Z-Image", "textual-inversion")  # no text encoder for it
        }
        for name in names
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
