# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Stable Diffusion 1.x: one CLIP text tower, a U-Net in the latents of a KL autoencoder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pinxit.errors import ModelError
from pinxit.model import Conditioning, Encoded, Model, Placement
from pinxit.schedule import Schedule
from pinxit.text import TextTower

# They would draw progress bars of their own into ours.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.set_verbosity_error()
logging.disable_progress_bar()


class StableDiffusion(Model):
    """Stable Diffusion 1.x (arXiv:2112.10752), of any width, depth and size of picture."""

    # Components are of the classes below whatever model_index.json names: a file chooses no code.
    parts = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")

    def __init__(
        self,
        folder: Path,
        name: str,
        placement: Placement,
        tower: TextTower,
        encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
    ) -> None:
        self.folder = folder
        self.name = name
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
        self.solver_config = _json(folder / "scheduler" / "scheduler_config.json")
        noise: Any = DDPMScheduler.from_config(self.solver_config)
        self.schedule = Schedule(noise.alphas_cumprod, noise.config.prediction_type)
        self._scale: float = scale.scaling_factor
        self._shift: float = scale.get("shift_factor") or 0.0

    @classmethod
    def suits(cls, folder: Path) -> bool:
        """Whether the folder has these parts and no second text tower."""
        has_parts = all((folder / part).is_dir() for part in cls.parts)
        return has_parts and not (folder / "text_encoder_2").exists()

    @classmethod
    def open(cls, folder: Path, name: str, placement: Placement) -> Self:
        """The base in the folder, in fp32 and frozen, laid out for its device."""
        # A folder kept in half precision would else open with a half text tower and a float U-Net.
        fp32 = {"torch_dtype": torch.float32}
        unet = _read(UNet2DConditionModel, folder / "unet", fp32)
        vae = _read(AutoencoderKL, folder / "vae", fp32)
        encoder = _read(CLIPTextModel, folder / "text_encoder", {"dtype": torch.float32})
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        for network in (unet, vae, encoder):
            network.eval().requires_grad_(False).to(placement.device)
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
        listed = folder / "tokenizer" / "rare_words.txt"
        rare = listed.read_text(encoding="utf-8").split() if listed.is_file() else ()
        length = encoder.config.max_position_embeddings
        tower = TextTower("text", tokenizer, encoder, length, rare)
        return cls(folder, name, placement, tower, encoder, unet, vae)

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


def _read(part: Any, folder: Path, precision: dict[str, torch.dtype]) -> Any:
    """One network of the base, from safetensors only; ModelError says which part is missing."""
    try:
        return part.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **precision
        )
    except (OSError, ValueError, RuntimeError) as trouble:
        raise ModelError(
            f"{folder} cannot be opened as a {part.__name__}: {str(trouble).splitlines()[0]}",
            "the folder must hold config.json and its weights as safetensors",
        ) from trouble


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as trouble:
        raise ModelError(f"{path} cannot be read: {trouble}", "copy the base again") from trouble
