# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""What the families share: an autoencoder's latents, CLIP's text towers, and a U-Net's noise."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pinxit.families._networks import clip_tokenizer, network, rare_words
from pinxit.model import Conditioning, Encoded, Model, Placement
from pinxit.schedule import Diffusion, Schedule
from pinxit.source import Source
from pinxit.text import LITERALLY, Reading, TextTower, Told, told


class LatentModel(Model):
    """A denoiser of an autoencoder's latents that CLIP's text towers tell what to paint."""

    # Some autoencoders overflow in half precision, and say so in their settings.
    heeds_upcast: ClassVar[bool] = False

    def __init__(
        self,
        source: Source,
        placement: Placement,
        denoiser: nn.Module,
        towers: Sequence[TextTower],
        schedule: Schedule,
    ) -> None:
        self.source = source
        self.placement = placement
        self.schedule = schedule
        self.solver_config = source.config("scheduler")
        self.vae = network(AutoencoderKL, source, "vae", placement, exact=True)
        self.towers = {tower.name: tower for tower in towers}
        encoders: dict[str, Any] = {tower.name: tower.encoder for tower in towers}
        self.networks = {"denoiser": denoiser, **encoders}
        self.words = {}
        shape: Any = denoiser.config
        scale: Any = self.vae.config
        self.factor = 2 ** (len(scale.block_out_channels) - 1)
        self.latent_channels = shape.in_channels
        self.picture_size = shape.sample_size * self.factor
        self._scale: float = scale.scaling_factor
        self._shift: float = scale.get("shift_factor") or 0.0
        self._exact = self.heeds_upcast and bool(scale.force_upcast)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Encoded:
        """Pictures to latents, shifted and scaled as the denoiser takes them."""
        with self._coding():
            found = self.vae.encode(pixels.to(self.device), return_dict=False)[0]
        mean = (found.mean.float() - self._shift) * self._scale
        return Encoded(mean, found.std.float() * self._scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures."""
        with self._coding():
            unscaled: Any = latents / self._scale + self._shift
            return self.vae.decode(unscaled, return_dict=False)[0].float()

    def condition(self, prompts: Sequence[str], reading: Reading = LITERALLY) -> Conditioning:
        """What the towers say of the prompts, put together as the denoiser takes it."""
        with self.computing():
            found = told(tuple(self.towers.values()), prompts, self.words, reading)
            return self._joined(prompts, reading, found)

    @abstractmethod
    def _joined(
        self, prompts: Sequence[str], reading: Reading, found: Sequence[Told]
    ) -> Conditioning:
        """What the towers found in the prompts, as the denoiser takes it."""

    def _coding(self) -> AbstractContextManager[object]:
        """The numbers that the autoencoder computes in."""
        return nullcontext() if self._exact else self.computing()


class NoisePredictor(LatentModel):
    """A U-Net on a diffusion's schedule."""

    def __init__(self, source: Source, placement: Placement, towers: Sequence[TextTower]) -> None:
        self.unet = network(UNet2DConditionModel, source, "unet", placement)
        noise: Any = DDPMScheduler.from_config(source.config("scheduler"))
        schedule = Diffusion(noise.alphas_cumprod, noise.config.prediction_type)
        super().__init__(source, placement, self.unet, towers, schedule)


class OneTower(NoisePredictor):
    """A U-Net that one text tower speaks to: the last hidden states it was trained with."""

    @classmethod
    def has_one_tower(cls, source: Source) -> bool:
        """Whether the base has these parts and no second text tower."""
        parts = all(map(source.has, ("text_encoder", "tokenizer", "unet", "vae", "scheduler")))
        return parts and not source.has("text_encoder_2")

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base, frozen, laid out for its device."""
        # Where the U-Net also pools the text, it has learned to do so over one window.
        long = source.config("unet").get("addition_embed_type") != "text"
        return cls(source, placement, [clip_tower(CLIPTextModel, source, 1, placement, long=long)])

    def denoise(self, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's answer."""
        with self.computing():
            return self.unet(latents, times, conditioning.states, return_dict=False)[0].float()

    def _joined(
        self,
        prompts: Sequence[str],  # noqa: ARG002
        reading: Reading,  # noqa: ARG002
        found: Sequence[Told],
    ) -> Conditioning:
        """Its tower's states as they are."""
        return Conditioning(found[0].states)


def clip_tower(
    kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection],
    source: Source,
    number: int,
    placement: Placement,
    *,
    penultimate: bool = False,
    long: bool = True,
) -> TextTower:
    """The so-many-th text tower of a base, with its tokenizer."""
    end = f"_{number}" if number > 1 else ""
    encoder: Any = network(kind, source, f"text_encoder{end}", placement)
    tokenizer: Any = clip_tokenizer(source, f"tokenizer{end}")
    rare = rare_words(source, f"tokenizer{end}")
    return TextTower(
        f"text{end}", tokenizer, encoder, penultimate=penultimate, long=long, rare=rare
    )
