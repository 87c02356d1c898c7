"""The interface of a base model."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pinxit.errors import listed
from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.noise_schedule import Schedule
from pinxit.models.prompt import Placeholders, TokenEmbedding
from pinxit.models.sharding import own_tensor
from pinxit.models.source import Source
from pinxit.models.text_encoder import (
    DEFAULT_PARSING,
    PlaceholderEncoder,
    PromptParsing,
    TextEncoder,
)

Precision = Literal["fp32", "fp16", "bf16", "int8", "nf4"]

# Denoisers with fewer parameters are small: on a CPU they run in fp32, which is fast enough.
SMALL = 100_000_000

# Only layers of the denoiser are quantized.
QUANTIZED = ("int8", "nf4")
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """The device of a model and the precision of its weights and computations."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of everything that is not quantized, and of computations."""
        if self.is_quantized and self.device.type != "cpu":
            return torch.bfloat16
        return _DTYPES.get(self.precision, torch.float32)

    @property
    def is_quantized(self) -> bool:
        """Whether layers of the denoiser have 8 or 4 bits."""
        return self.precision in QUANTIZED


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's output for images: mean and standard deviation, (B, C, H, W) each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class LatentNormalization:
    """How an autoencoder's latents are shifted and scaled for the denoiser.

    `scale` and `shift` are numbers, or tensors (C, 1, 1) with a value for each channel.
    """

    scale: float | Tensor
    shift: float | Tensor

    def normalize(self, mean: Tensor, std: Tensor) -> LatentDistribution:
        """The latents for the denoiser, from the autoencoder's mean and standard deviation."""
        return LatentDistribution((mean - self.shift) * self.scale, std * self.scale)

    def restore(self, latents: Tensor) -> Tensor:
        """The latents for the autoencoder, from those of the denoiser."""
        return latents / self.scale + self.shift


class Model(ABC):
    """A base model: encodes images and prompts, denoises latents, and decodes latents to images.

    `placeholders` are the active placeholder tokens and `networks` the parts that can be trained
    ("denoiser" and the text encoders); only adapters change either, and `changes` are those that
    are applied. All weights are frozen.
    `frozen_text_encoders` receive the text that placeholder tokens stand for.
    The denoiser's tokens are squares of `patch_size` latent positions, 1 if it has no such tokens.
    Weights can be offloaded; they are read again from the source when they are needed.

    `layer_groups` and `text_layer_groups` are regular expressions that find the layers of a group
    in the denoiser and in a text encoder by their names. The groups are those of LoRA
    ("cross-attention", "attention", "transformer", "all"), the layers that become 8-bit ("int8"),
    the layers whose outputs controls share ("queries-keys", "keys-values", "decoder-features"),
    and those through which images read text ("text-keys-values").
    """

    facts: ClassVar[FamilyFacts]
    layer_groups: ClassVar[Mapping[str, str]]
    text_layer_groups: ClassVar[Mapping[str, str]]
    source: Source
    placement: Placement
    schedule: Schedule
    text_encoders: Mapping[str, PlaceholderEncoder]
    frozen_text_encoders: Mapping[str, TextEncoder]
    networks: Mapping[str, nn.Module]
    scheduler_config: Mapping[str, object]
    vae_scale_factor: int
    patch_size: int = 1
    placeholders: dict[str, TokenEmbedding]
    changes: list[Any]

    def __repr__(self) -> str:
        size, placement = self.default_size, self.placement
        return (
            f"<{type(self).__name__} {self.name}: {size}x{size} pixels, "
            f"{placement.precision} on {placement.device}>"
        )

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
    def resolution(cls, source: Source) -> int | None:
        """The resolution that a base model was trained at, in pixels, from its configs.

        None if they do not say it.
        """

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

    def guided(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, scale: float
    ) -> Tensor:
        """The prediction (B, C, H, W) with guidance away from the negative prompts.

        This is classifier-free guidance (arXiv:2207.12598). `conditioning` has the rows of the
        negative prompts and then those of the prompts; for a scale of at most 1 only the latter.
        Families whose denoiser takes the scale as an input override this method.
        """
        if scale <= 1:
            return self.denoise(latents, timestep, conditioning)
        doubled = latents.repeat(2, 1, 1, 1)
        without, with_prompt = self.denoise(doubled, timestep, conditioning).chunk(2)
        return without + scale * (with_prompt - without)

    @abstractmethod
    def offload(self, *names: str) -> None:
        """Remove the weights of these networks, or of all, from memory until they are needed.

        The names are those of `networks` and `frozen_text_encoders`, and "vae".
        """

    @abstractmethod
    def emptied(self, name: str) -> nn.Module:
        """A network without weights, to be given other ones; `offload` brings back its own."""

    @abstractmethod
    def replaced(self, name: str, network: nn.Module) -> AbstractContextManager[None]:
        """Compute with another network of the same class inside the block."""

    @property
    @abstractmethod
    def all_networks(self) -> Mapping[str, nn.Module]:
        """All networks by name, with those that cannot be trained; some may be offloaded."""

    def damage(self) -> str:
        """Which weights and embeddings of tokens are infinite or NaN, in words; "" if none is."""
        names = [
            f"`{weight_name}` of the {name} of {self.name}"
            for name, network in self.all_networks.items()
            for weight_name, weight in network.state_dict().items()
            if weight.is_floating_point() and not own_tensor(weight).isfinite().all()
        ] + [
            f"the embedding of {token} for `{encoder}`"
            for token, meaning in self.placeholders.items()
            for encoder, table in meaning.vectors.items()
            if not table.isfinite().all()
        ]
        return f"weights are infinite or NaN: {listed(names)}" if names else ""

    @abstractmethod
    def network(self, name: str) -> Any:
        """A network with its weights in memory; the names are those of `offload`."""

    @abstractmethod
    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.placement.device

    @property
    def trainable_partner(self) -> str | None:
        """The base model to train on instead of this one, if this one is distilled to few steps.

        Training undoes the distillation. A concept of the partner can be used with this one.
        """
        return None

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """The `steps` and `guidance_scale` that suit this checkpoint, if they are not the usual."""
        return {}

    @property
    @abstractmethod
    def default_size(self) -> int:
        """Width and height of generated images unless given, in pixels."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """The number of channels of latents."""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """The shape (C, H, W) of the latents of an image of this size in pixels."""
        factor = self.vae_scale_factor
        return self.latent_channels, height // factor, width // factor

    @property
    def size_multiple(self) -> int:
        """Width and height of images must be multiples of this, in pixels."""
        return self.vae_scale_factor * self.patch_size

    def to_pipeline(self, concepts: Any = ()) -> Any:
        """A diffusers pipeline of this model with one or several `pinxit.Concept` in its weights.

        It has copies of the networks, and the scheduler that pinxit generates with, so the same
        prompt, seed and number of steps give the same image. Write the tokens in its prompts, but
        no attention weights, and at most 75 tokens. Raises ModelError or ConceptError if the model
        or a concept cannot be in a pipeline.
        """
        # By name: generation is a layer above this one.
        return import_module("pinxit.generation.pipeline").to_pipeline(self, concepts)

    @staticmethod
    def from_pipeline(pipeline: Any) -> "Model":
        """A model with copies of the networks of a diffusers pipeline, on its device.

        Raises ModelError for pipelines of other families, and for one with LoRAs that are not
        fused.
        """
        return import_module("pinxit.models.from_pipeline").from_pipeline(pipeline)

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
        weights = self.networks["denoiser"].parameters()
        # A byte has two weights of 4 bits.
        return sum(weight.numel() * (1 + (weight.dtype == torch.uint8)) for weight in weights)

    def layer_pattern(self, network: str, group: str) -> re.Pattern[str]:
        """The names of the layers of a group, to be searched; nothing for an unknown group."""
        is_text = network in self.text_encoders
        groups = self.text_layer_groups if is_text else self.layer_groups
        return re.compile(groups.get(group, "(?!)"))

    def truncated_text(
        self,
        prompt: str,
        parsing: PromptParsing = DEFAULT_PARSING,
        placeholders: Placeholders | None = None,
    ) -> str:
        """The part of a prompt that all text encoders leave out, "" if the prompt fits.

        `placeholders` are the active ones if not given.
        """
        known = self.placeholders if placeholders is None else placeholders
        endings = [
            text_encoder.truncated_text(prompt, known, parsing)
            for text_encoder in (self.text_encoders or self.frozen_text_encoders).values()
        ]
        return min(endings, key=len, default="")
