"""Base classes of the families with a U-Net."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.conditioning import Conditioning
from pinxit.models.config_limits import check_diffusion_config
from pinxit.models.latent_model import LatentModel
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Diffusion
from pinxit.models.source import Source
from pinxit.models.text_encoder import EncodedPrompt, PlaceholderEncoder

_ATTENTION = r"up_blocks\..+\.attn1"


class UNetModel(LatentModel):
    """A U-Net with a diffusion schedule."""

    layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.attn2\.",
        "attention": r"\.attn[12]\.",
        "transformer": r"\.attentions\.\d+\.",
        "all": r"(attentions|resnets|downsamplers|upsamplers)\.\d+\.",
        # Layers inside a block, which are applied at every image position.
        "int8": r"^(down_blocks|mid_block|up_blocks)\.(?!.*(time|norm))",
        # Which positions attend to each other (Plug-and-Play, arXiv:2211.12572).
        "queries-keys": rf"^{_ATTENTION}\.to_[qk]$",
        # What is attended to (MasaCtrl, arXiv:2304.08465).
        "keys-values": rf"^{_ATTENTION}\.to_[kv]$",
        # How images read the text (Custom Diffusion, arXiv:2212.04488).
        "text-keys-values": r"\.attn2\.to_[kv]$",
        # The layout of the image: features of the decoder's second level (Plug-and-Play).
        "decoder-features": r"^up_blocks\.1\.resnets\.[01]\.conv2$",
    }

    def __init__(
        self, source: Source, placement: Placement, text_encoders: Sequence[PlaceholderEncoder]
    ) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        unet = self.load_denoiser(UNet2DConditionModel, source, placement)
        check_diffusion_config(source.config("scheduler"), f"{source.name}/scheduler")
        scheduler: Any = DDPMScheduler.from_config(source.config("scheduler"))
        schedule = Diffusion(scheduler.alphas_cumprod, scheduler.config.prediction_type)
        super().__init__(source, placement, unet, text_encoders, schedule)

    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return network(
            latents,
            timesteps,
            conditioning.states,
            added_cond_kwargs=self._additions(latents, conditioning),
            encoder_attention_mask=conditioning.mask,
            return_dict=False,
        )[0]

    def _additions(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Any] | None:  # noqa: ARG002
        """What the U-Net gets besides prompts; nothing for most."""
        return None


class SingleTextEncoder(UNetModel):
    """A U-Net with one text encoder, whose last hidden states are the conditioning.

    `linear_projection` tells families apart: whether the projections around attention layers are
    linear layers instead of convolutions.
    """

    linear_projection: ClassVar[bool]

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has all parts of the family and no second text encoder."""
        parts = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
        is_linear = bool(source.config("unet").get("use_linear_projection"))
        complete = all(map(source.has, parts)) and not source.has("text_encoder_2")
        return complete and is_linear == cls.linear_projection

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModel

        # A U-Net that pools the text states was trained with prompts of one chunk.
        long_prompts = source.config("unet").get("addition_embed_type") != "text"
        text_encoder = ClipEncoder(CLIPTextModel, source, 1, placement, long_prompts=long_prompts)
        return cls(source, placement, [text_encoder])

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        return Conditioning(encodings[0].states)
