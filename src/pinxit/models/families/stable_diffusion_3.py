# pyright: standard, reportPrivateImportUsage=false
"""Stable Diffusion 3 and 3.5: two CLIP towers and perhaps T5, a transformer on a rectified flow."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from pinxit.errors import ModelError, RequestError
from pinxit.models.latent_model import LatentModel, clip_tower
from pinxit.models.loading import network
from pinxit.models.model import Conditioning, Placement
from pinxit.models.noise_schedule import Flow
from pinxit.models.prompt import spoken
from pinxit.models.source import Source, read_json
from pinxit.models.text_encoder import Reading, TextTower, Told

# How many positions of the transformer's text are T5's, whether it is there or not.
_T5_LENGTH = 256


class StableDiffusion3(LatentModel):
    """Stable Diffusion 3 and 3.5 (arXiv:2403.03206); T5 may be left out, as with its authors.

    New words are learned in the CLIP towers; T5 reads what they stand for. Nothing has weights
    or windows there.
    """

    def __init__(self, source: Source, placement: Placement, towers: Sequence[TextTower]) -> None:
        transformer = network(SD3Transformer2DModel, source, "transformer", placement)
        schedule = Flow(source.config("scheduler").get("shift", 1.0))
        super().__init__(source, placement, transformer, towers, schedule)
        shape: Any = transformer.config
        self._patch: int = shape.patch_size
        self._most: int = shape.pos_embed_max_size * self.grain
        self._text_width: int = shape.joint_attention_dim
        self._t5 = _T5(source, placement) if source.has("text_encoder_3") else None

    @property
    def grain(self) -> int:
        """A patch's side: the transformer takes no half ones."""
        return self.factor * self._patch

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Whether the base has a transformer and two CLIP towers."""
        return all(map(source.has, ("transformer", "vae", "text_encoder", "text_encoder_2")))

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base, frozen, laid out for its device."""
        kind = CLIPTextModelWithProjection
        towers = [clip_tower(kind, source, n, placement, penultimate=True) for n in (1, 2)]
        return cls(source, placement, towers)

    def _answer(
        self, network: Any, latents: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The transformer's answer; RequestError for pictures beyond the places it knows."""
        height, width = (side * self.factor for side in latents.shape[2:])
        if max(height, width) > self._most:
            raise RequestError(
                f"{self.name} cannot paint {width}x{height} pixels",
                f"it knows at most {self._most} a side",
            )
        assert conditioning.pooled is not None
        told, pooled = conditioning.states, conditioning.pooled
        # The solvers' times lie on the CPU, and this transformer does not move them.
        times = times.to(latents.device).expand(len(latents))
        return network(latents, told, pooled, times, return_dict=False)[0]

    def _joined(
        self, prompts: Sequence[str], reading: Reading, found: Sequence[Told]
    ) -> Conditioning:
        """Both CLIP towers' states side by side, widened with zeros, and then T5's or zeros."""
        clip = torch.cat([one.states for one in found], -1)
        clip = F.pad(clip, (0, self._text_width - clip.shape[-1]))
        if self._t5 is None:
            t5 = clip.new_zeros(len(clip), _T5_LENGTH, self._text_width)
        else:
            t5 = self._t5.states(
                [spoken(one, self.words, weights=reading.weights) for one in prompts]
            )
        pooled = [one.pooled for one in found if one.pooled is not None]
        return Conditioning(torch.cat([clip, t5], 1), torch.cat(pooled, -1))


class _T5:
    """T5's encoder with its tokenizer, which is read from tokenizer.json alone."""

    def __init__(self, source: Source, placement: Placement) -> None:
        file = source.tokenizer("tokenizer_3") / "tokenizer.json"
        read_json(file)  # it has limits that the tokenizers library has not
        try:
            self._tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as trouble:  # the tokenizers library raises nothing narrower
            raise ModelError(
                f"{file} cannot be read: {str(trouble).splitlines()[0]}",
                "copy it from the base's page, or take text_encoder_3 out: T5 may be left out",
            ) from trouble
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Its largest states are beyond fp16's largest number.
        dtype = torch.bfloat16 if placement.precision == "fp16" else placement.dtype
        self._encoder = network(T5EncoderModel, source, "text_encoder_3", placement, dtype)
        self._device = placement.device

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """A state for each token of the texts (B, L, D), padding included."""
        settings: Any = self._encoder.config
        whole = torch.full((len(texts), _T5_LENGTH), settings.pad_token_id, device=self._device)
        for row, text in zip(whole, texts, strict=True):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids[: _T5_LENGTH - 1]
            row[: len(ids) + 1] = torch.tensor([*ids, settings.eos_token_id])
        return self._encoder(whole).last_hidden_state.float()
