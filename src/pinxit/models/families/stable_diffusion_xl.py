# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion XL: two text encoders and a U-Net with pooled text and size conditioning."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.conditioning import Conditioning
from pinxit.models.family import COMPVIS_PREFIXES, FamilyFacts, KohyaNames
from pinxit.models.model import Placement
from pinxit.models.source import Source
from pinxit.models.text_encoder import EncodedPrompt
from pinxit.models.unet_model import UNetModel


class StableDiffusionXl(UNetModel):
    """Stable Diffusion XL (arXiv:2307.01952): the base model and its fine-tunes, no refiner."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        released="2023-07",
        architecture="stable-diffusion-xl-v1-base",
        native_size=1024,
        networks={"unet": "denoiser", "text_encoder": "text", "text_encoder_2": "text_2"},
        text_widths=(768, 1280),
        context_width=2048,
        single_file_prefixes={
            **COMPVIS_PREFIXES,
            "text_encoder": "conditioner.embedders.0.",
            "text_encoder_2": "conditioner.embedders.1.",
        },
        kohya=KohyaNames(
            "sdxl_base_v1-0",
            {"denoiser": "unet", "text": "te1", "text_2": "te2"},
            original_unet=True,
            own_layers=r"^text_2\.|transformer_blocks\.[1-9]",
        ),
    )

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        text_encoders = [
            ClipEncoder(kind, source, number, placement, penultimate=True)
            for number, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection), 1)
        ]
        return cls(source, placement, text_encoders)

    def _additions(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The pooled states, and the sizes of images that are neither cropped nor resized."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[2:])
        # Not in the latents' dtype: half precision cannot represent every size.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device)
        return {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(latents), -1)}

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:
        """The concatenated states of both text encoders and the pooled states of the second.

        Empty prompts are encoded as zeros, as in the base model's training.
        """
        states = torch.cat([encoding.states for encoding in encodings], -1)
        pooled = encodings[1].pooled
        assert pooled is not None
        if self.source.config("").get("force_zeros_for_empty_prompt", True):
            has_text = states.new_tensor([bool(prompt.strip()) for prompt in prompts])
            states, pooled = states * has_text[:, None, None], pooled * has_text[:, None]
        return Conditioning(states, pooled)
