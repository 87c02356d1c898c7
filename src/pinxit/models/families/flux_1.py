# pyright: standard, reportPrivateImportUsage=false
"""FLUX.1: CLIP and T5, a rectified-flow transformer with guidance as an input."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.latent_model import LatentModel, clip_text_encoder
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Flow, TokenShift
from pinxit.models.source import Source
from pinxit.models.t5_encoder import T5Encoder
from pinxit.models.text_encoder import EncodedPrompt, PlaceholderEncoder

# Number of T5 positions in the transformer's text input, as in the authors' code for dev.
_T5_LENGTH = 512
# The guidance scale that training uses: the prediction without guidance.
_NO_GUIDANCE = 1.0


# The layers of the authors' code, which ComfyUI and kohya use, and at the end those of XLabs. The
# layers that make modulations of the last block are left out: their halves have another order.
_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_QKV = tuple(f"{_DOUBLE}.attn.to_{letter}" for letter in "qkv")
_ADDED_QKV = tuple(f"{_DOUBLE}.attn.add_{letter}_proj" for letter in "qkv")
_SINGLE_QKV = tuple(f"{_SINGLE}.attn.to_{letter}" for letter in "qkv")
_ORIGINAL_LAYERS = {
    "double_blocks.{}.img_attn.qkv": _QKV,
    "double_blocks.{}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.qkv": _ADDED_QKV,
    "double_blocks.{}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "double_blocks.{}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.{}.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp*4"),
    "single_blocks.{}.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.{}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "double_blocks.{}.qkv_lora1": _QKV,
    "double_blocks.{}.proj_lora1": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.qkv_lora2": _ADDED_QKV,
    "double_blocks.{}.proj_lora2": (f"{_DOUBLE}.attn.to_add_out",),
    "single_blocks.{}.qkv": _SINGLE_QKV,
    "single_blocks.{}.proj": (f"{_SINGLE}.proj_out",),
}


class Flux1(LatentModel):
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
        networks={"transformer": "denoiser", "text_encoder": "text", "text_encoder_2": "text_2"},
        text_widths=(768, 4096),
        context_width=3072,
        context_layer="single_transformer_blocks.0.attn.to_q",
        denoiser_layers=r"single_transformer_blocks\.\d+\."
        r"(?:attn\.(?:to_[qkv]|norm_[qk])|norm\.linear|proj_mlp|proj_out)",
        original_layers=_ORIGINAL_LAYERS,
    )

    # Image and text attend to each other in all blocks; in single blocks they are one sequence.
    layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.attn\.",
        "attention": r"\.attn\.",
        "transformer": r"^(single_)?transformer_blocks\.\d+\.",
        "all": r"^(single_)?transformer_blocks\.\d+\.",
        "int8": r"^(single_)?transformer_blocks\.(?!.*norm)",
        "queries-keys": r"^transformer_blocks\.\d+\.attn\.to_[qk]$",
        "keys-values": r"^transformer_blocks\.\d+\.attn\.to_[kv]$",
        "text-keys-values": r"\.add_[kv]_proj$",
    }
    packing: ClassVar[int] = 2

    def __init__(
        self, source: Source, placement: Placement, text_encoders: Sequence[PlaceholderEncoder]
    ) -> None:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        transformer = self.load_denoiser(FluxTransformer2DModel, source, placement)
        config = source.config("scheduler")
        shift = config.get("shift", 1.0)
        is_dynamic = config.get("use_dynamic_shifting", False)
        if is_dynamic:
            shift = TokenShift.from_config(config, self.packing)
        schedule = Flow(shift, even_steps=True)
        super().__init__(source, placement, transformer, text_encoders, schedule)
        network_config: Any = transformer.config
        self._has_guidance: bool = network_config.guidance_embeds
        self._is_schnell = not (self._has_guidance or is_dynamic)

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

    @property
    def size_multiple(self) -> int:
        """The side of one packed token, in pixels."""
        return self.vae_scale_factor * self.packing

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has two text encoders, and a transformer with single blocks."""
        parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
        return all(map(source.has, parts)) and "num_single_layers" in source.config("transformer")

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModel

        clip = clip_text_encoder(CLIPTextModel, source, 1, placement, long_prompts=False)
        return cls(source, placement, [clip, T5Encoder(source, 2, placement, _T5_LENGTH)])

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
        """The transformer's prediction, of latents packed to tokens with their positions."""
        count, _, height, width = latents.shape
        rows, columns = height // self.packing, width // self.packing
        device = latents.device
        positions = torch.zeros(rows, columns, 3, device=device)
        positions[..., 1] = torch.arange(rows, device=device)[:, None]
        positions[..., 2] = torch.arange(columns, device=device)
        # Not in the latents' dtype: half precision rounds the timesteps.
        fractions = timesteps.to(device).float().expand(count) / Flow.steps
        tokens = network(
            F.pixel_unshuffle(latents, self.packing).flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.states,
            pooled_projections=conditioning.pooled,
            timestep=fractions,
            img_ids=positions.flatten(0, 1),
            txt_ids=positions.new_zeros(conditioning.states.shape[1], 3),
            guidance=fractions.new_full((count,), guidance) if self._has_guidance else None,
            return_dict=False,
        )[0]
        patches = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(patches, self.packing)

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        """T5's states, and CLIP's pooled states."""
        return Conditioning(encodings[1].states, encodings[0].pooled)
