# pyright: standard, reportPrivateImportUsage=false, reportArgumentType=false
"""The plain loop with a LoRA on latents and prompts encoded before, for any denoiser.

What is left of a training script when nothing but the denoiser runs at each step: mixed bf16 (on a
CPU fp32), peft, torch's AdamW.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional

from lab.speed.arithmetic import Count, count_operations
from lab.speed.job import Job
from lab.speed.plain import ATTENTION, LORA_RANK, Lora

_FACTOR = 8  # pixels of a latent position, in every family here
_PROMPT = 64  # tokens of a prompt that a language model reads


def operations(base: Path, size: int) -> Count:
    """The operations of the denoiser with a LoRA on one sample of `size` pixels."""
    kind, part = _denoiser(base)
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(base / part))
    _add_lora(network)
    return count_operations(sample(network, size, 1), {"denoiser": network})


def sample(network: Any, size: int, batch: int, **options: Any) -> Callable[[], Tensor]:
    """A function that runs a denoiser on random latents and prompts; `options`: device, dtype."""
    side, config = size // _FACTOR, network.config

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, **options)

    def unet() -> Tensor:
        added: dict[str, Tensor] = {}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim
            pooled -= 6 * config.addition_time_embed_dim
            added = {"text_embeds": draw(batch, pooled), "time_ids": draw(batch, 6)}
        states = draw(batch, 77, config.cross_attention_dim)
        latents = draw(batch, config.in_channels, side, side)
        return network(latents, draw(batch).abs(), states, added_cond_kwargs=added).sample

    def z_image() -> Tensor:
        images = [draw(config.in_channels, 1, side, side) for _ in range(batch)]
        prompts = [draw(_PROMPT, config.cap_feat_dim) for _ in range(batch)]
        return torch.stack(network(images, draw(batch).abs(), prompts).sample)

    return unet if "cross_attention_dim" in config else z_image


def training_steps(job: Job) -> Iterator[None]:
    """Training: yields when ready, then after each step."""
    kind, part = _denoiser(Path(job.base))
    half = job.precision == "bf16"
    options = {"device": job.device, "dtype": torch.bfloat16 if half else torch.float32}
    network: Any = kind.from_pretrained(job.base, subfolder=part, torch_dtype=options["dtype"])
    weights = _add_lora(network.to(job.device))
    predict = sample(network, job.size, job.batch, **options)
    optimizer = torch.optim.AdamW(weights, lr=Lora.settings.rate)
    yield
    for _ in range(job.steps):
        mixed = torch.autocast(torch.device(job.device).type, torch.bfloat16)
        with mixed if half else nullcontext():
            prediction = predict().float()
            loss = functional.mse_loss(prediction, torch.randn_like(prediction))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        yield


def _denoiser(base: Path) -> tuple[Any, str]:
    """The class of a base model's denoiser and its folder."""
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    part = "unet" if "unet" in index else "transformer"
    return getattr(diffusers, index[part][1]), part


def _add_lora(network: Any) -> list[nn.Parameter]:
    """Add a LoRA to the attention layers of a frozen network; returns its weights, in fp32."""
    network.requires_grad_(False).train()
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=ATTENTION)
    network.add_adapter(config)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.data = weight.data.float()
    return trained
