# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion 3 and 3.5: two CLIP text encoders, optional T5, a rectified-flow transformer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import ModelError, RequestError
from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.latent_model import LatentModel, clip_text_encoder
from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Flow
from pinxit.models.prompt import plain_text
from pinxit.models.source import Source, read_json
from pinxit.models.text_encoder import EncodedPrompt, PromptParsing, TextEncoder

# Number of T5 positions in the transformer's text input; they are zeros without T5.
_T5_LENGTH = 256


class StableDiffusion3(LatentModel):
    """Stable Diffusion 3 and 3.5 (arXiv:2403.03206). T5 is optional, as in the original.

    Placeholder tokens are trained in the CLIP text encoders. T5 receives the text they stand for,
    without attention weights and truncated to one chunk.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Stable Diffusion 3 or 3.5",
        released="2024-06",
        architecture="stable-diffusion-v3",
        native_size=1024,
        networks={"transformer": "denoiser", "text_encoder": "text", "text_encoder_2": "text_2"},
        frozen_networks=("text_encoder_3", "vae"),
        text_widths=(768, 1280),
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
    }

    def __init__(
        self, source: Source, placement: Placement, text_encoders: Sequence[TextEncoder]
    ) -> None:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        transformer = load_network(
            SD3Transformer2DModel,
            source,
            "transformer",
            placement,
            int8_layers=self.layer_groups["int8"],
        )
        schedule = Flow(source.config("scheduler").get("shift", 1.0))
        super().__init__(source, placement, transformer, text_encoders, schedule)
        config: Any = transformer.config
        self._patch_size: int = config.patch_size
        self._max_size: int = config.pos_embed_max_size * self.size_multiple
        self._text_width: int = config.joint_attention_dim
        self._t5 = _T5(source, placement) if source.has("text_encoder_3") else None

    @property
    def size_multiple(self) -> int:
        """The side of one transformer patch, in pixels."""
        return self.vae_scale_factor * self._patch_size

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has a transformer and two CLIP text encoders."""
        return all(map(source.has, ("transformer", "vae", "text_encoder", "text_encoder_2")))

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        from transformers import CLIPTextModelWithProjection

        text_encoders = [
            clip_text_encoder(
                CLIPTextModelWithProjection, source, number, placement, penultimate=True
            )
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

    def _combine(
        self,
        prompts: Sequence[str],
        parsing: PromptParsing,
        encodings: Sequence[EncodedPrompt],
    ) -> Conditioning:
        """The states of both CLIP encoders, padded to T5's width, followed by T5's or zeros."""
        clip = torch.cat([encoding.states for encoding in encodings], -1)
        clip = F.pad(clip, (0, self._text_width - clip.shape[-1]))
        if self._t5 is None:
            t5 = clip.new_zeros(len(clip), _T5_LENGTH, self._text_width)
        else:
            t5 = self._t5.states(
                [
                    plain_text(prompt, self.placeholders, weights=parsing.weights)
                    for prompt in prompts
                ]
            )
        pooled = [encoding.pooled for encoding in encodings if encoding.pooled is not None]
        return Conditioning(torch.cat([clip, t5], 1), torch.cat(pooled, -1))


class _T5:
    """T5's encoder with its tokenizer, which is read from tokenizer.json only."""

    def __init__(self, source: Source, placement: Placement) -> None:
        file = source.tokenizer("tokenizer_3") / "tokenizer.json"
        read_json(file)  # checks the size and depth, which the tokenizers library does not
        try:
            self._tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the tokenizers library raises no more specific class
            raise ModelError(
                f"{file} is not a valid tokenizer: {str(error).splitlines()[0]}",
                "copy it again from the model's page, or remove text_encoder_3: T5 is optional",
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        from transformers import T5EncoderModel

        # The hidden states exceed the range of fp16.
        dtype = torch.bfloat16 if placement.precision == "fp16" else placement.dtype
        self._encoder = load_network(T5EncoderModel, source, "text_encoder_3", placement, dtype)
        self._device = placement.device

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of the texts (B, L, D), with the padding."""
        config: Any = self._encoder.config
        ids = torch.full((len(texts), _T5_LENGTH), config.pad_token_id, device=self._device)
        for row, text in zip(ids, texts, strict=True):
            text_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            text_ids = [*text_ids[: _T5_LENGTH - 1], config.eos_token_id]
            row[: len(text_ids)] = torch.tensor(text_ids)
        return self._encoder(ids).last_hidden_state.float()
