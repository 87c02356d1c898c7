"""The interface of a base model."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pinxit.models.family import FamilyFacts
from pinxit.models.noise_schedule import Schedule
from pinxit.models.prompt import TokenEmbedding
from pinxit.models.source import Source
from pinxit.models.text_encoder import DEFAULT_PARSING, PromptParsing, TextEncoder

Precision = Literal["fp32", "fp16", "bf16", "int8"]

# Denoisers with fewer parameters are small: on a CPU they run in fp32, which is fast enough.
SMALL = 100_000_000

# With int8 only the denoiser's layers are quantized; everything else stays in fp32.
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """The device of a model and the precision of its weights and computations."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of everything that is not quantized."""
        return _DTYPES.get(self.precision, torch.float32)


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's output for images: mean and standard deviation, (B, C, H, W) each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts for the denoiser: states (B, L, D) and pooled states (B, P)."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def stack(cls, batches: Sequence["Conditioning"]) -> "Conditioning":
        """Several batches of equal length as one batch."""
        pooled = [batch.pooled for batch in batches if batch.pooled is not None]
        return cls(
            torch.cat([batch.states for batch in batches]), torch.cat(pooled) if pooled else None
        )

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The same conditioning in another dtype."""
        return Conditioning(
            self.states.to(dtype), None if self.pooled is None else self.pooled.to(dtype)
        )

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return Conditioning(self.states[index], None if self.pooled is None else self.pooled[index])


class Model(ABC):
    """A base model: encodes images and prompts, denoises latents, and decodes latents to images.

    `placeholders` are the active placeholder tokens and `networks` the parts that can be trained
    ("denoiser" and the text encoders); only adapters change either. All weights are frozen.
    Weights can be offloaded; they are read again from the source when they are needed.

    `layer_groups` and `text_layer_groups` are regular expressions that find the layers of a group
    in the denoiser and in a text encoder by their names. The groups are those of LoRA
    ("cross-attention", "attention", "transformer", "all"), the layers that become 8-bit ("int8"),
    and the layers whose outputs controls share ("queries-keys", "keys-values",
    "decoder-features").
    """

    facts: ClassVar[FamilyFacts]
    layer_groups: ClassVar[Mapping[str, str]]
    text_layer_groups: ClassVar[Mapping[str, str]]
    source: Source
    placement: Placement
    schedule: Schedule
    text_encoders: Mapping[str, TextEncoder]
    networks: Mapping[str, nn.Module]
    scheduler_config: Mapping[str, object]
    default_size: int
    vae_scale_factor: int
    latent_channels: int
    placeholders: dict[str, TokenEmbedding]

    @classmethod
    @abstractmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source is a base model of this family."""

    @classmethod
    @abstractmethod
    def check_usable(cls, source: Source) -> None:
        """Raise ModelError if a base model of this family cannot be used, and say why."""

    @classmethod
    @abstractmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> LatentDistribution:
        """Images (B, 3, H, W) in [-1, 1] to latents, scaled as the denoiser expects them."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, H, W), nominally in [-1, 1]."""

    @abstractmethod
    def condition(
        self, prompts: Sequence[str], parsing: PromptParsing = DEFAULT_PARSING
    ) -> Conditioning:
        """Encode prompts with the active placeholder tokens, padded or truncated to one length."""

    @abstractmethod
    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction (B, C, H, W), fp32, at timesteps (B,) or ()."""

    @abstractmethod
    def offload(self, *names: str) -> None:
        """Remove the weights of these networks, or of all, from memory until they are needed.

        The names are those of `networks`, and "vae".
        """

    @abstractmethod
    def emptied(self, name: str) -> nn.Module:
        """A network without weights, to be given other ones; `offload` brings back its own."""

    @abstractmethod
    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.placement.device

    @property
    def size_multiple(self) -> int:
        """Width and height of images must be multiples of this, in pixels."""
        return self.vae_scale_factor

    @property
    def name(self) -> str:
        """The base model's name in messages and recipes."""
        return self.source.name

    @property
    def hash(self) -> str:
        """Fingerprint of the base model: SHA-256 over the files of its parts."""
        return self.source.hash

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters of the denoiser; defaults of recipes depend on it."""
        return sum(weight.numel() for weight in self.networks["denoiser"].parameters())

    def layer_pattern(self, network: str, group: str) -> re.Pattern[str]:
        """The names of the layers of a group, to be searched; nothing for an unknown group."""
        is_text = network in self.text_encoders
        groups = self.text_layer_groups if is_text else self.layer_groups
        return re.compile(groups.get(group, "(?!)"))

    def truncated_text(self, prompt: str, parsing: PromptParsing = DEFAULT_PARSING) -> str:
        """The end of a prompt that all text encoders truncate, "" if the prompt fits."""
        endings = [
            text_encoder.truncated_text(prompt, self.placeholders, parsing)
            for text_encoder in self.text_encoders.values()
        ]
        return min(endings, key=len)
