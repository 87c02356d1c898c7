# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Stable Diffusion 1.x: one CLIP text tower, a U-Net in the latents of a KL autoencoder."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers import CLIPTextModel

from pinxit.families._networks import clip_tokenizer, network, rare_words
from pinxit.model import Conditioning, Encoded, Model, Placement
from pinxit.schedule import Schedule
from pinxit.source import Source
from pinxit.text import TextTower


class StableDiffusion(Model):
    """Stable Diffusion 1.x (arXiv:2112.10752), of any width, depth and size of picture."""

    _PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")

    def __init__(
        self,
        source: Source,
        placement: Placement,
        tower: TextTower,
        encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
    ) -> None:
        self.source = source
        self.placement = placement
        self.encoder = encoder
        self.unet = unet
        self.vae = vae
        self.towers = {tower.name: tower}
        self.networks = {"denoiser": unet, tower.name: encoder}
        self.words = {}
        shape: Any = unet.config
        scale: Any = vae.config
        self.factor = 2 ** (len(scale.block_out_channels) - 1)
        self.latent_channels = shape.in_channels
        self.picture_size = shape.sample_size * self.factor
        self.solver_config = source.config("scheduler")
        noise: Any = DDPMScheduler.from_config(self.solver_config)
        self.schedule = Schedule(noise.alphas_cumprod, noise.config.prediction_type)
        self._scale: float = scale.scaling_factor
        self._shift: float = scale.get("shift_factor") or 0.0

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Whether the base has these parts and no second text tower."""
        return all(map(source.has, cls._PARTS)) and not source.has("text_encoder_2")

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base, in fp32 and frozen, laid out for its device."""
        unet = network(UNet2DConditionModel, source, "unet", placement)
        vae = network(AutoencoderKL, source, "vae", placement)
        encoder: Any = network(CLIPTextModel, source, "text_encoder", placement)
        tokenizer: Any = clip_tokenizer(source, "tokenizer")
        length = encoder.config.max_position_embeddings
        rare = rare_words(source, "tokenizer")
        tower = TextTower("text", tokenizer, encoder, length, rare)
        return cls(source, placement, tower, encoder, unet, vae)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Encoded:
        """Pictures to latents, shifted and scaled as the U-Net takes them."""
        with self.computing():
            found = self.vae.encode(pixels.to(self.device), return_dict=False)[0]
        mean = (found.mean.float() - self._shift) * self._scale
        return Encoded(mean, found.std.float() * self._scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures."""
        with self.computing():
            unscaled: Any = latents / self._scale + self._shift
            return self.vae.decode(unscaled, return_dict=False)[0].float()

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The last hidden states of the text tower, normalised."""
        tower = self.towers["text"]
        tokens = tower.tokens(prompts, self.words)
        with self.computing():
            found = tower.encode(tokens, self.encoder)
        return Conditioning(found.last_hidden_state.float())

    def denoise(self, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's answer."""
        with self.computing():
            return self.unet(latents, times, conditioning.states, return_dict=False)[0].float()
