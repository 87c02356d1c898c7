# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion XL: two text towers, a U-Net that is also told of the whole and of sizes."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pinxit.models.latent_model import NoisePredictor, clip_tower
from pinxit.models.model import Conditioning, Placement
from pinxit.models.source import Source
from pinxit.models.text_encoder import Reading, Told


class StableDiffusionXl(NoisePredictor):
    """Stable Diffusion XL (arXiv:2307.01952), the base and its fine-tunes, not the refiner."""

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Whether the base has a U-Net and two text towers."""
        return all(map(source.has, ("unet", "vae", "text_encoder", "text_encoder_2")))

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base, frozen, laid out for its device."""
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        towers = [
            clip_tower(kind, source, number, placement, penultimate=True)
            for number, kind in enumerate(kinds, 1)
        ]
        return cls(source, placement, towers)

    def _answer(
        self, network: Any, latents: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The U-Net's answer for pictures that were never cropped nor of another size."""
        height, width = (side * self.factor for side in latents.shape[2:])
        # Half precision does not hold every number of pixels.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device)
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(latents), -1)}
        told = conditioning.states
        return network(latents, times, told, added_cond_kwargs=added, return_dict=False)[0]

    def _joined(
        self,
        prompts: Sequence[str],
        reading: Reading,  # noqa: ARG002
        found: Sequence[Told],
    ) -> Conditioning:
        """Both towers' states side by side, the second's of the whole.

        A prompt that says nothing is told as nothing at all, as the base was trained with.
        """
        states, pooled = torch.cat([one.states for one in found], -1), found[1].pooled
        assert pooled is not None
        if self.source.config("").get("force_zeros_for_empty_prompt", True):
            said = states.new_tensor([bool(prompt.strip()) for prompt in prompts])
            states, pooled = states * said[:, None, None], pooled * said[:, None]
        return Conditioning(states, pooled)
