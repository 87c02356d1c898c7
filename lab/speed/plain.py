# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""The plain loop: what scripts of the field do at each step, on diffusers' and peft's parts.

At every step pictures are opened and encoded by the autoencoder, and prompts by the text encoder;
all is in fp32 (or, to compare on a GPU, in mixed bf16) and in torch's default layout, AdamW is
torch's default. Textual inversion has a gradient, moments and weight decay for the whole table of
embeddings, and puts all rows but the new one back after each step. Nothing is kept between steps.
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
class Shown:
    """Pictures that make up a share of each batch, with the prompts each may have."""

    pictures: tuple[Path, ...]
    prompts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Knobs:
    """How a loop learns: `clip` is the largest norm of the gradient, if it is cut at all."""

    rate: float
    decay: float = 1e-2
    clip: float | None = None
    batch: int = 1
    size: int = 512
    seed: int = 0


class Loop(ABC):
    """A base loaded part by part, and one step after the other on it."""

    knobs: ClassVar[Knobs]
    exact: ClassVar[str] = ""  # the network that is trained as a whole: it stays in fp32

    def __init__(
        self, base: str, shown: Sequence[Shown], knobs: Knobs, device: str, precision: str
    ) -> None:
        torch.manual_seed(knobs.seed)
        self.draws = random.Random(knobs.seed)
        self.shown, self.own, self.device = tuple(shown), knobs, torch.device(device)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.noise: Any = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.text: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
        self.vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae")
        self.unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        for name in ("text", "vae", "unet"):
            dtype = torch.float32 if name == self.exact else self.dtype
            getattr(self, name).requires_grad_(False).to(self.device, dtype)
        self.weights = self.trained()
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=knobs.rate, weight_decay=knobs.decay, betas=(0.9, 0.999), eps=1e-8
        )

    @abstractmethod
    def trained(self) -> list[nn.Parameter]:
        """What is trained; it needs a gradient from now on."""

    def steps(self) -> Iterator[float]:
        """Learn for ever, telling the loss of each step."""
        while True:
            with self._mixed():
                loss = self._loss()
            loss.backward()
            if self.own.clip is not None:
                nn.utils.clip_grad_norm_(self.weights, self.own.clip)
            self.optimizer.step()
            self.cleared()
            yield loss.detach().item()

    def begun(self, noun: str) -> None:  # noqa: B027
        """Before the first step; only a new word has to do with the class noun."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """What was learned: weights by their names, the new word's vector by the word."""

    def cleared(self) -> None:
        """After a step."""
        self.optimizer.zero_grad()

    def _loss(self) -> Tensor:
        """The mean squared error of the noise, of each share apart, summed."""
        drawn = [self._drawn(share) for share in self.shown]
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
        return torch.stack([share.mean() for share in errors.chunk(len(self.shown))]).sum()

    def _drawn(self, share: Shown) -> tuple[Tensor, Tensor]:
        """A share's pictures as pixels in [-1, 1], and their prompts as tokens."""
        which = [self.draws.randrange(len(share.pictures)) for _ in range(self.own.batch)]
        prompts = [self.draws.choice(share.prompts[at]) for at in which]
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        pixels = [self._pixels(share.pictures[at]) for at in which]
        return torch.stack(pixels), tokens.input_ids

    def _pixels(self, path: Path) -> Tensor:
        side = self.own.size
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        if self.draws.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)

    def _mixed(self) -> Any:
        half = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext()


class TextualInversion(Loop):
    """A new row in the text encoder's table; the whole table is trained, and put back."""

    knobs = Knobs(rate=5e-3)
    exact = "text"

    def trained(self) -> list[nn.Parameter]:
        """The whole table."""
        self.tokenizer.add_tokens([TOKEN])
        self.row: int = self.tokenizer.convert_tokens_to_ids(TOKEN)
        self.text.resize_token_embeddings(len(self.tokenizer))
        self.table = self.text.get_input_embeddings()
        self.table.requires_grad_(True)
        self.originals = self.table.weight.detach().clone()
        self.text.train()
        return [self.table.weight]

    def begun(self, noun: str) -> None:
        """The new row begins as the class noun's."""
        (first, *_) = self.tokenizer(noun, add_special_tokens=False).input_ids
        with torch.no_grad():
            self.table.weight[self.row] = self.table.weight[first].clone()

    def learned(self) -> dict[str, Tensor]:
        """The new row."""
        return {TOKEN: self.table.weight[self.row].detach().clone()}

    def cleared(self) -> None:
        """All rows but the new one are put back."""
        super().cleared()
        others = torch.ones(len(self.tokenizer), dtype=torch.bool)
        others[self.row] = False
        with torch.no_grad():
            self.table.weight[others] = self.originals[others]


class Lora(Loop):
    """Layers of low rank beside the attention's, by peft."""

    knobs = Knobs(rate=5e-4, clip=1.0)

    def trained(self) -> list[nn.Parameter]:
        """Both factors of every layer."""
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

    def learned(self) -> dict[str, Tensor]:
        """Both factors of every layer, and how much they count."""
        named = self.unet.named_parameters()
        found = {
            name.replace(".default", ""): weight.detach()
            for name, weight in named
            if weight.requires_grad
        }
        layers = {name.partition(".lora_")[0] for name in found}
        return found | {f"{layer}.alpha": torch.tensor(float(LORA_RANK)) for layer in layers}


class Dreambooth(Loop):
    """All of the U-Net; the text encoder is frozen."""

    knobs = Knobs(rate=5e-6, clip=1.0)
    exact = "unet"

    def trained(self) -> list[nn.Parameter]:
        """The whole U-Net."""
        self.unet.requires_grad_(True).train()
        return list(self.unet.parameters())

    def learned(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: weight.detach() for name, weight in self.unet.named_parameters()}

    def cleared(self) -> None:
        """The scripts fill gradients with zeros, and do not give them back."""
        self.optimizer.zero_grad(set_to_none=False)


LOOPS: dict[str, type[Loop]] = {
    "textual-inversion": TextualInversion,
    "lora": Lora,
    "dreambooth": Dreambooth,
}


def learned(job: Job) -> Iterator[None]:
    """Ready, then a step each time."""
    kind = LOOPS[job.method]
    knobs = Knobs(kind.knobs.rate, clip=kind.knobs.clip, batch=job.batch, size=job.size)
    word = TOKEN if kind is TextualInversion else f"{_RARE} {job.noun}"
    files = tuple(sorted(job.pictures.glob("*.png")))
    shown = [Shown(files, ((f"a photo of a {word}",),) * len(files))]
    if kind is Dreambooth:
        shown.append(Shown(files, ((f"a photo of a {job.noun}",),) * len(files)))
    loop = kind(job.base, shown, knobs, job.device, job.precision)
    loop.begun(job.noun)
    yield
    for number, _ in enumerate(loop.steps(), 1):
        yield
        if number == job.steps:
            return


def painted(job: Job) -> Iterator[None]:
    """Ready, a first picture of two steps, then a whole one each time."""
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
            num_inference_steps=job.painting if number else 2,
            guidance_scale=GUIDANCE,
            generator=draws,
        )
        yield
