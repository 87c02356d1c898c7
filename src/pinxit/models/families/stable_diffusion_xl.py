# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion XL: two text encoders and a U-Net with pooled text and size conditioning."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pinxit.models.latent_model import UNetModel, clip_text_encoder
from pinxit.models.model import Conditioning, Placement
from pinxit.models.source import Source
from pinxit.models.text_encoder import EncodedPrompt, PromptParsing


class StableDiffusionXl(UNetModel):
    """Stable Diffusion XL (arXiv:2307.01952): the base model and its fine-tunes, no refiner."""

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has a U-Net and two text encoders."""
        return all(map(source.has, ("unet", "vae", "text_encoder", "text_encoder_2")))

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        text_encoders = [
            clip_text_encoder(kind, source, number, placement, penultimate=True)
            for number, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection), 1)
        ]
        return cls(source, placement, text_encoders)

    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The U-Net's prediction for images that are neither cropped nor resized."""
        height, width = (side * self.vae_scale_factor for side in latents.shape[2:])
        # Not in the latents' dtype: half precision cannot represent every size.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device)
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(latents), -1)}
        return network(
            latents, timesteps, conditioning.states, added_cond_kwargs=added, return_dict=False
        )[0]

    def _combine(
        self,
        prompts: Sequence[str],
        parsing: PromptParsing,  # noqa: ARG002
        encodings: Sequence[EncodedPrompt],
    ) -> Conditioning:
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
