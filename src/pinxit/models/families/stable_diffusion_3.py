# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion 3 and 3.5: two CLIP text encoders, optional T5, a rectified-flow transformer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import RequestError
from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.latent_model import LatentModel
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Flow
from pinxit.models.source import Source
from pinxit.models.t5_encoder import T5Encoder
from pinxit.models.text_encoder import EncodedPrompt, PlaceholderEncoder

# Number of T5 positions in the transformer's text input; they are zeros without T5.
_T5_LENGTH = 256

# The layers of the authors' code, which ComfyUI and kohya use.
_BLOCK, _IMAGE, _TEXT = (
    "transformer_blocks.{}",
    "joint_blocks.{}.x_block",
    "joint_blocks.{}.context_block",
)
_ORIGINAL_LAYERS = {
    f"{_IMAGE}.attn.qkv": tuple(f"{_BLOCK}.attn.to_{letter}" for letter in "qkv"),
    f"{_IMAGE}.attn.proj": (f"{_BLOCK}.attn.to_out.0",),
    f"{_IMAGE}.attn2.qkv": tuple(f"{_BLOCK}.attn2.to_{letter}" for letter in "qkv"),
    f"{_IMAGE}.attn2.proj": (f"{_BLOCK}.attn2.to_out.0",),
    f"{_IMAGE}.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
    f"{_IMAGE}.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
    f"{_IMAGE}.adaLN_modulation.1": (f"{_BLOCK}.norm1.linear",),
    f"{_TEXT}.attn.qkv": tuple(f"{_BLOCK}.attn.add_{letter}_proj" for letter in "qkv"),
    f"{_TEXT}.attn.proj": (f"{_BLOCK}.attn.to_add_out",),
    f"{_TEXT}.mlp.fc1": (f"{_BLOCK}.ff_context.net.0.proj",),
    f"{_TEXT}.mlp.fc2": (f"{_BLOCK}.ff_context.net.2",),
    f"{_TEXT}.adaLN_modulation.1": (f"{_BLOCK}.norm1_context.linear",),
}


class StableDiffusion3(LatentModel):
    """Stable Diffusion 3 and 3.5 (arXiv:2403.03206). T5 is optional, as in the original.

    Placeholder tokens are trained in the CLIP text encoders. T5 receives the text they stand for,
    without attention weights and truncated to one chunk.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Stable Diffusion 3 or 3.5",
        pipeline="StableDiffusion3Pipeline",
        released="2024-06",
        architecture="stable-diffusion-v3",
        native_size=1024,
        config_key="pos_embed_max_size",
        networks={"transformer": "denoiser", "text_encoder": "text", "text_encoder_2": "text_2"},
        frozen_networks={"text_encoder_3": "text_3", "vae": "vae"},
        text_widths=(768, 1280),
        original_layers=_ORIGINAL_LAYERS,
    )

    # A diffusion transformer has only joint attention of image and text.
    layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.attn2?\.",
        "attention": r"\.attn2?\.",
        "transformer": r"^transformer_blocks\.\d+\.",
        "all": r"^transformer_blocks\.\d+\.",
        "int8": r"^transformer_blocks\.(?!.*(time|norm))",
        "queries-keys": r"^transformer_blocks\.\d+\.attn\.to_[qk]$",
        "keys-values": r"^transformer_blocks\.\d+\.attn\.to_[kv]$",
        "text-keys-values": r"\.add_[kv]_proj$",
    }

    def __init__(
        self, source: Source, placement: Placement, text_encoders: Sequence[PlaceholderEncoder]
    ) -> None:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        transformer = self.load_denoiser(SD3Transformer2DModel, source, placement)
        schedule = Flow(source.config("scheduler").get("shift", 1.0))
        t5 = [T5Encoder(source, 3, placement, _T5_LENGTH)] if source.has("text_encoder_3") else []
        super().__init__(source, placement, transformer, text_encoders, schedule, t5)
        config: Any = transformer.config
        self.patch_size = config.patch_size
        self._max_size: int = config.pos_embed_max_size * self.size_multiple
        self._text_width: int = config.joint_attention_dim

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModelWithProjection

        text_encoders = [
            ClipEncoder(CLIPTextModelWithProjection, source, number, placement, penultimate=True)
            for number in (1, 2)
        ]
        return cls(source, placement, text_encoders)

    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The transformer's prediction; RequestError if the image is too large for it."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[2:])
        if max(height, width) > self._max_size:
            raise RequestError(
                f"{self.name} cannot generate {width}x{height} pixels",
                f"use a width and height of at most {self._max_size}",
            )
        assert conditioning.pooled is not None
        # The scheduler's timesteps are on the CPU, and this transformer does not move them.
        timesteps = timesteps.to(latents.device).expand(len(latents))
        return network(
            latents, conditioning.states, conditioning.pooled, timesteps, return_dict=False
        )[0]

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        """Both CLIP encoders' states at T5's width, then T5's states, or zeros without T5."""
        clip = torch.cat([encoding.states for encoding in encodings[:2]], -1)
        clip = F.pad(clip, (0, self._text_width - clip.shape[-1]))
        if len(encodings) > 2:
            t5 = encodings[2].states
        else:
            t5 = clip.new_zeros(len(clip), _T5_LENGTH, self._text_width)
        pooled = [encoding.pooled for encoding in encodings if encoding.pooled is not None]
        return Conditioning(torch.cat([clip, t5], 1), torch.cat(pooled, -1))
