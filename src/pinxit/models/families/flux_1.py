# pyright: standard, reportPrivateImportUsage=false
"""FLUX.1: CLIP and T5, a rectified-flow transformer with guidance as an input."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.model import Placement
from pinxit.models.packed_model import ORIGINAL_LAYERS, PackedModel
from pinxit.models.source import Source
from pinxit.models.t5_encoder import T5Encoder
from pinxit.models.text_encoder import EncodedPrompt, PlaceholderEncoder

# Numbers of T5 positions in the transformer's text input (black-forest-labs/flux, src/flux/cli.py).
_DEV_LENGTH, _SCHNELL_LENGTH = 512, 256
# The guidance scale that training uses: the prediction without guidance.
_NO_GUIDANCE = 1.0
# Only here; the layers that make modulations of the last block are left out, because their halves
# have another order.
_MODULATIONS = {
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
}


class Flux1(PackedModel):
    """FLUX.1 dev and schnell. The transformer of dev takes the guidance scale as an input.

    Placeholder tokens have embeddings for CLIP and for T5. CLIP's pooled states alone would not
    tell the transformer where in the prompt the subject is.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="FLUX.1",
        released="2024-08",
        architecture="flux-1-dev",
        native_size=1024,
        pipeline="FluxPipeline",
        config_key="num_single_layers",
        networks={"transformer": "denoiser", "text_encoder": "text", "text_encoder_2": "text_2"},
        text_widths=(768, 4096),
        context_width=3072,
        context_layer="single_transformer_blocks.0.attn.to_q",
        denoiser_layers=r"single_transformer_blocks\.\d+\."
        r"(?:attn\.(?:to_[qkv]|norm_[qk])|norm\.linear|proj_mlp|proj_out)",
        original_layers=ORIGINAL_LAYERS | _MODULATIONS,
    )

    def __init__(
        self, source: Source, placement: Placement, text_encoders: Sequence[PlaceholderEncoder]
    ) -> None:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        transformer = self.load_denoiser(FluxTransformer2DModel, source, placement)
        schedule = self.schedule_of(source)
        super().__init__(source, placement, transformer, text_encoders, schedule)
        network_config: Any = transformer.config
        self._has_guidance: bool = network_config.guidance_embeds
        self._is_schnell = _is_schnell(source)

    @property
    def trainable_partner(self) -> str | None:
        """FLUX.1-dev for schnell, which has four steps and no guidance."""
        return "black-forest-labs/FLUX.1-dev" if self._is_schnell else None

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """Four steps for schnell; 28 steps and a scale of 3.5 as input of dev."""
        # schnell: src/flux/cli.py of github.com/black-forest-labs/flux, which has for dev the same
        # scale and 50 steps; 28 are those of diffusers' FluxPipeline.
        if self._is_schnell:
            return {"steps": 4, "guidance_scale": 1.0}
        return {"steps": 28, "guidance_scale": 3.5} if self._has_guidance else {}

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModel

        clip = ClipEncoder(CLIPTextModel, source, 1, placement, long_prompts=False)
        length = _SCHNELL_LENGTH if _is_schnell(source) else _DEV_LENGTH
        return cls(source, placement, [clip, T5Encoder(source, 2, placement, length)])

    def guided(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, scale: float
    ) -> Tensor:
        """The prediction with the scale as an input if the transformer takes it.

        Then negative prompts have no effect, and with schnell the scale has none either.
        Otherwise this is classifier-free guidance.
        """
        if self._has_guidance or self._is_schnell:
            prompts = conditioning[-len(latents) :]
            return self.denoise(latents, timestep, prompts, guidance=scale)
        return super().guided(latents, timestep, conditioning, scale)

    def _predict(
        self,
        network: Any,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance: float = _NO_GUIDANCE,
    ) -> Tensor:
        """The transformer's prediction; `guidance` is ignored if it takes none."""
        scales = torch.full((len(latents),), guidance, device=latents.device)
        pooled, scale = conditioning.pooled, scales if self._has_guidance else None
        inputs = {"pooled_projections": pooled, "guidance": scale}
        return self._packed_prediction(network, latents, timesteps, conditioning, **inputs)

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        """T5's states, and CLIP's pooled states."""
        return Conditioning(encodings[1].states, encodings[0].pooled)


def _is_schnell(source: Source) -> bool:
    """Whether neither guidance nor a shift by the number of tokens is in the configs."""
    has_guidance = source.config("transformer").get("guidance_embeds", False)
    return not (has_guidance or source.config("scheduler").get("use_dynamic_shifting", False))
