# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""The plain loop: what usual training scripts do at each step, with diffusers and peft.

At each step images are opened and encoded by the VAE, and prompts by the text encoder, in fp32 (on
a GPU: mixed bf16) and torch's default memory format, with torch's AdamW. Textual inversion has
gradients, moments and weight decay for the whole embedding table, and restores all rows but the
new one after each step. Nothing is cached between steps.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lab.speed.job import GUIDANCE, TOKEN, Job

logging.disable_progress_bar()
logging.set_verbosity_error()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
_RARE = "sks"
LORA_RANK = 4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class ImageSet:
    """Images that make up a part of each batch, and the possible prompts of each image."""

    images: tuple[Path, ...]
    prompts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Settings:
    """Training settings; `clip` is the maximum gradient norm, None for no clipping."""

    rate: float
    decay: float = 1e-2
    clip: float | None = None
    batch: int = 1
    size: int = 512
    seed: int = 0


class Loop(ABC):
    """Loads a base model and trains on it step by step."""

    settings: ClassVar[Settings]
    exact: ClassVar[str] = ""  # the network with trained weights, which stays in fp32

    def __init__(
        self, base: str, shown: Sequence[ImageSet], settings: Settings, device: str, precision: str
    ) -> None:
        torch.manual_seed(settings.seed)
        self.draws = random.Random(settings.seed)
        self.image_sets, self.settings, self.device = tuple(shown), settings, torch.device(device)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.noise: Any = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.text: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
        self.vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae")
        self.unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        for name in ("text", "vae", "unet"):
            dtype = torch.float32 if name == self.exact else self.dtype
            getattr(self, name).requires_grad_(False).to(self.device, dtype)
        self.weights = self.trainable()
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=settings.rate,
            weight_decay=settings.decay,
            betas=(0.9, 0.999),
            eps=1e-8,
        )

    @abstractmethod
    def trainable(self) -> list[nn.Parameter]:
        """The parameters to train, with gradients switched on."""

    def steps(self) -> Iterator[float]:
        """Train without end; yields the loss of each step."""
        while True:
            with self._mixed():
                loss = self._loss()
            loss.backward()
            if self.settings.clip is not None:
                nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
            self.optimizer.step()
            self.after_step()
            yield loss.detach().item()

    def prepare(self, noun: str) -> None:  # noqa: B027
        """Called before the first step; only textual inversion uses the class noun."""

    @abstractmethod
    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained weights by name; an embedding by its token."""

    def after_step(self) -> None:
        """Called after each step."""
        self.optimizer.zero_grad()

    def _loss(self) -> Tensor:
        """The sum over all image sets of the mean squared error of the noise."""
        drawn = [self._sample(share) for share in self.image_sets]
        pixels = torch.cat([pixels for pixels, _ in drawn]).to(self.device, self.dtype)
        ids = torch.cat([ids for _, ids in drawn]).to(self.device)
        latents = self.vae.encode(pixels).latent_dist.sample().detach()
        latents = latents * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        steps = self.noise.config.num_train_timesteps
        times = torch.randint(0, steps, (len(latents),), device=self.device)
        noisy = self.noise.add_noise(latents, noise, times)
        states = self.text(ids)[0].to(self.dtype)
        answer = self.unet(noisy, times, states).sample
        errors = functional.mse_loss(answer.float(), noise.float(), reduction="none")
        return torch.stack([share.mean() for share in errors.chunk(len(self.image_sets))]).sum()

    def _sample(self, share: ImageSet) -> tuple[Tensor, Tensor]:
        """Random images of a set as pixels in [-1, 1], and their prompts as token ids."""
        which = [self.draws.randrange(len(share.images)) for _ in range(self.settings.batch)]
        prompts = [self.draws.choice(share.prompts[at]) for at in which]
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        pixels = [self._pixels(share.images[at]) for at in which]
        return torch.stack(pixels), tokens.input_ids

    def _pixels(self, path: Path) -> Tensor:
        side = self.settings.size
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        if self.draws.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)

    def _mixed(self) -> Any:
        half = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext()


class TextualInversion(Loop):
    """Trains the whole embedding table and restores all rows but the new one."""

    settings = Settings(rate=5e-3)
    exact = "text"

    def trainable(self) -> list[nn.Parameter]:
        """The whole table."""
        self.tokenizer.add_tokens([TOKEN])
        self.row: int = self.tokenizer.convert_tokens_to_ids(TOKEN)
        self.text.resize_token_embeddings(len(self.tokenizer))
        self.table = self.text.get_input_embeddings()
        self.table.requires_grad_(True)
        self.originals = self.table.weight.detach().clone()
        self.text.train()
        return [self.table.weight]

    def prepare(self, noun: str) -> None:
        """Copy the class noun's embedding to the new row."""
        (first, *_) = self.tokenizer(noun, add_special_tokens=False).input_ids
        with torch.no_grad():
            self.table.weight[self.row] = self.table.weight[first].clone()

    def trained_tensors(self) -> dict[str, Tensor]:
        """The new row."""
        return {TOKEN: self.table.weight[self.row].detach().clone()}

    def after_step(self) -> None:
        """Restore all rows but the new one."""
        super().after_step()
        others = torch.ones(len(self.tokenizer), dtype=torch.bool)
        others[self.row] = False
        with torch.no_grad():
            self.table.weight[others] = self.originals[others]


class Lora(Loop):
    """LoRA on the attention layers, by peft."""

    settings = Settings(rate=5e-4, clip=1.0)

    def trainable(self) -> list[nn.Parameter]:
        """Both factors of each layer."""
        settings = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_RANK,
            init_lora_weights="gaussian",
            target_modules=ATTENTION,
        )
        self.unet.add_adapter(settings)
        self.unet.train()
        trained = [weight for weight in self.unet.parameters() if weight.requires_grad]
        for weight in trained:
            weight.data = weight.data.float()
        return trained

    def trained_tensors(self) -> dict[str, Tensor]:
        """Both factors and the alpha of each layer."""
        named = self.unet.named_parameters()
        tensors = {
            name.replace(".default", ""): weight.detach()
            for name, weight in named
            if weight.requires_grad
        }
        layers = {name.partition(".lora_")[0] for name in tensors}
        return tensors | {f"{layer}.alpha": torch.tensor(float(LORA_RANK)) for layer in layers}


class Dreambooth(Loop):
    """Trains the whole U-Net; the text encoder is frozen."""

    settings = Settings(rate=5e-6, clip=1.0)
    exact = "unet"

    def trainable(self) -> list[nn.Parameter]:
        """The whole U-Net."""
        self.unet.requires_grad_(True).train()
        return list(self.unet.parameters())

    def trained_tensors(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: weight.detach() for name, weight in self.unet.named_parameters()}

    def after_step(self) -> None:
        """Fill gradients with zeros and keep their memory, as the scripts do."""
        self.optimizer.zero_grad(set_to_none=False)


LOOPS: dict[str, type[Loop]] = {
    "textual-inversion": TextualInversion,
    "lora": Lora,
    "dreambooth": Dreambooth,
}


def training_steps(job: Job) -> Iterator[None]:
    """Training: yields when ready, then after each step."""
    kind = LOOPS[job.method]
    settings = Settings(kind.settings.rate, clip=kind.settings.clip, batch=job.batch, size=job.size)
    word = TOKEN if kind is TextualInversion else f"{_RARE} {job.noun}"
    files = tuple(sorted(job.images.glob("*.png")))
    shown = [ImageSet(files, ((f"a photo of a {word}",),) * len(files))]
    if kind is Dreambooth:
        shown.append(ImageSet(files, ((f"a photo of a {job.noun}",),) * len(files)))
    loop = kind(job.base, shown, settings, job.device, job.precision)
    loop.prepare(job.noun)
    yield
    for number, _ in enumerate(loop.steps(), 1):
        yield
        if number == job.steps:
            return


def generation_steps(job: Job) -> Iterator[None]:
    """Generation: yields when ready, after an image of two steps, then after each whole image."""
    half = torch.bfloat16 if job.precision == "bf16" else torch.float32
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        job.base, safety_checker=None, requires_safety_checker=False, dtype=half
    ).to(job.device)
    pipe.set_progress_bar_config(disable=True)
    yield
    for number in range(job.steps):
        draws = torch.Generator().manual_seed(number)
        pipe(
            f"a photo of a {job.noun}",
            height=job.size,
            width=job.size,
            num_inference_steps=job.sampling_steps if number else 2,
            guidance_scale=GUIDANCE,
            generator=draws,
        )
        yield
