# pyright: standard, reportPrivateImportUsage=false
"""Chroma: T5 with a mask, FLUX.1's transformer without CLIP and guidance as an input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Flow
from pinxit.models.packed_model import ORIGINAL_LAYERS, PackedModel
from pinxit.models.source import Source
from pinxit.models.t5_encoder import T5Encoder
from pinxit.models.text_encoder import EncodedPrompt

_TEXT_LENGTH = 512
_BETA = 0.6  # the exponent of the distribution of sampling steps


@dataclass(frozen=True)
class _BetaFlow(Flow):
    """A flow whose sampling steps are quantiles of a beta distribution (arXiv:2407.12173)."""

    def scheduler_config(self, latent_shape: Sequence[int]) -> Mapping[str, object]:
        """The shift, and that the scheduler must not compute the quantiles again."""
        return {**super().scheduler_config(latent_shape), "use_beta_sigmas": False}

    def sigmas(self, steps: int) -> list[float]:
        """The noise level of each sampling step before the shift, from 1 to 1 / steps."""
        quantiles = _beta_quantiles(np.linspace(1, 0, steps))
        return [1 / steps + float(quantile) * (1 - 1 / steps) for quantile in quantiles]


def _beta_quantiles(fractions: Any) -> Any:
    """Quantiles of the beta distribution with twice the same exponent, that of diffusers.

    The distribution function is a sum over angles, whose squared sines are the quantiles.
    """
    angles = np.linspace(0, np.pi / 2, 2**15 + 1)
    density = np.sin(angles[:-1] + angles[1:]) ** (2 * _BETA - 1)
    total = np.append(0, density.cumsum())
    return np.sin(np.interp(fractions, total / total[-1], angles)) ** 2


class Chroma(PackedModel):
    """Chroma, made from FLUX.1-schnell. Small layers compute the modulations of all blocks.

    The transformer reads the prompt and one position of the padding after it.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Chroma",
        released="2025-08",
        architecture="chroma",
        native_size=1024,
        pipeline="ChromaPipeline",
        config_key="approximator_num_channels",
        networks={"transformer": "denoiser", "text_encoder": "text"},
        text_widths=(4096,),
        denoiser_layers=r"distilled_guidance_layer\."
        r"(?:in_proj|out_proj|norms\.\d+|layers\.\d+\.linear_[12])",
        original_layers=ORIGINAL_LAYERS,
    )

    def __init__(self, source: Source, placement: Placement, text_encoder: T5Encoder) -> None:
        from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel

        buffers = {"time_text_embed.mod_proj": _modulation_numbers}
        transformer = self.load_denoiser(ChromaTransformer2DModel, source, placement, buffers)
        for block in transformer.single_transformer_blocks:
            block.register_forward_pre_hook(_add_mask, with_kwargs=True)
        schedule = self.schedule_of(source)
        if source.config("scheduler").get("use_beta_sigmas", False):
            schedule = _BetaFlow(schedule.shift)
        super().__init__(source, placement, transformer, [text_encoder], schedule)

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """The steps and the guidance scale of the example in diffusers' documentation."""
        # https://huggingface.co/docs/diffusers/main/en/api/pipelines/chroma
        return {"steps": 40, "guidance_scale": 3.0}

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        return cls(source, placement, T5Encoder(source, 1, placement, _TEXT_LENGTH, masked=True))

    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The transformer's prediction, in which padding of other prompts is masked."""
        mask, text = None, conditioning.mask
        if text is not None and not text.all():
            tokens = latents[0, 0].numel() // self.packing**2
            mask = F.pad(text > 0, (0, tokens), value=True)
        # diffusers gives the mask to these blocks only without gradient checkpointing.
        for block in network.single_transformer_blocks:
            block.text_mask = mask
        return self._packed_prediction(
            network, latents, timesteps, conditioning, attention_mask=mask
        )

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        """T5's states of the prompts, each with one position of padding."""
        states, mask = encodings[0].states, encodings[0].mask
        assert mask is not None
        mask = F.pad(mask, (1, 0), value=1)[:, :-1]
        length = int(mask.sum(dim=1).max())
        return Conditioning(states[:, :length], mask=mask[:, :length])


def _modulation_numbers(buffer: Tensor) -> Tensor:
    """Sinusoidal embeddings of the indices of all modulations, one in each row of the buffer."""
    from diffusers.models.embeddings import get_timestep_embedding

    count, width = buffer.shape
    return get_timestep_embedding(
        torch.arange(count) * 1000, width, flip_sin_to_cos=True, downscale_freq_shift=0
    )


def _add_mask(block: nn.Module, arguments: Any, inputs: dict[str, Any]) -> Any:
    return arguments, {"attention_mask": block.text_mask, **inputs}
