# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""pocket's U-Net: how it is built, what it is shown in which order, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from pinxit.pocket import autoencoder, data, text_training
from pinxit.pocket.captions import caption
from pinxit.pocket.state import Trainer, halves
from pinxit.pocket.world import PLACES, STYLES, Scene

SIZES = {"small": (64, 128, 192), "medium": (96, 192, 256), "large": (160, 320, 480)}
BATCH = 32
RATE = 1e-3
MIN_SNR = 5.0
SUBJECT_WEIGHT = 1.0  # how much more an error counts on the subject
UNSAID = 0.1  # share of pictures whose caption is dropped
GROUND_FIRST = 700  # first steps, mostly with a plain background
STYLED_SHARE = 0.5  # share of images in a named style of the style space, if there are shards of it
FULLER = 0.5  # share drawn from fuller scenes alone, until the rate falls
SCALE = "scale.txt"  # in the work folder: what brings the latents to a deviation of one
SOFT_TIMES = (20, 300)  # timesteps from which the U-Net predicts latents for the decoder
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}


def build(size: str = "small") -> UNet2DConditionModel:
    """An untrained U-Net of one of SIZES; the pooled text also shifts and scales every layer."""
    torch.manual_seed(14)
    network = UNet2DConditionModel(
        sample_size=16,
        in_channels=autoencoder.LATENTS,
        out_channels=autoencoder.LATENTS,
        block_out_channels=SIZES[size],
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_training.TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
    )
    network.set_attn_processor(AttnProcessor())  # few places: the fused kernel takes longer
    return network.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Encoded:
    """All training pictures as latents: mean and std (N, 6, 16, 16) half, subject (N, 16, 16)."""

    mean: Tensor
    std: Tensor
    subject: Tensor
    scenes: list[Scene]
    plain: Tensor  # indices of pictures with a plain background
    fuller: Tensor  # indices of those of two things, poses, things worn, known individuals
    styled: Tensor  # indices of those in the space of styles
    scale: float


@torch.no_grad()
def encode(folder: Path, vae: AutoencoderKL, device: str = "cpu") -> Encoded:
    """Encode every shard once (cached next to it) and measure the latents' scale, once."""
    means, stds, subjects, scenes = [], [], [], []
    for path in training_shards(folder):
        cache = folder / "latents" / path.with_suffix(".npz").name
        if not cache.exists():
            cache.parent.mkdir(exist_ok=True)
            _encode_shard(path, cache, vae, device)
        with np.load(cache) as file:
            means.append(torch.from_numpy(file["mean"]))
            stds.append(torch.from_numpy(file["std"]))
            subjects.append(torch.from_numpy(file["subject"]))
        scenes += data.scenes_of(path)
    mean = torch.cat(means)
    plain = torch.tensor([i for i, s in enumerate(scenes) if s.background == PLACES[-1]])
    fuller = torch.tensor([i for i, s in enumerate(scenes) if _is_fuller(s)])
    styled = torch.tensor([i for i, s in enumerate(scenes) if s.style not in STYLES])
    scale_file = folder / SCALE
    if not scale_file.exists():
        scale_file.write_text(
            f"{1 / float(mean[:: max(1, len(mean) // 4000)].float().std()):.5f}\n"
        )
    scale = float(scale_file.read_text())
    return Encoded(mean, torch.cat(stds), torch.cat(subjects), scenes, plain, fuller, styled, scale)


def training_shards(folder: Path) -> list[Path]:
    """The shards that the U-Net sees: the six styles with words, then named ones of the space."""
    seeds = (1, data.NAMED_STYLE_SEED)
    return [p for s in seeds for p in sorted((folder / "shards").glob(f"shard-{s}-*.npz"))]


def _is_fuller(scene: Scene) -> bool:
    return bool(scene.other or scene.worn or scene.name) or scene.pose != "standing"


def _encode_shard(path: Path, cache: Path, vae: AutoencoderKL, device: str) -> None:
    shard = data.load(path)
    mean, std = [], []
    for part in np.array_split(shard.images, max(1, len(shard.images) // 100)):
        posterior = vae.encode(autoencoder.pixels(part).to(device)).latent_dist
        mean.append(posterior.mean.half().cpu())
        std.append(posterior.std.half().cpu())
    mask = torch.from_numpy(shard.masks).float().div(255)
    subject = F.avg_pool2d(mask[:, None], 4)[:, 0].half()
    draft = cache.with_name(f".{cache.name}")
    np.savez(draft, mean=torch.cat(mean), std=torch.cat(std), subject=subject)
    draft.replace(cache)


def chosen(encoded: Encoded, step: int, steps: int) -> np.ndarray:
    """The pictures of a step, a share of them in named styles of the space."""
    rows = _chosen(encoded, step, steps)
    if len(encoded.styled) == 0:
        return rows
    rng = np.random.default_rng((43, step))
    styled = encoded.styled[rng.integers(len(encoded.styled), size=BATCH)].numpy()
    return np.where(rng.random(BATCH) < STYLED_SHARE, styled, rows)


def _chosen(encoded: Encoded, step: int, steps: int) -> np.ndarray:
    """The pictures of a step: first mostly plain ground, then fuller scenes often, then all."""
    rng = np.random.default_rng((41, step))
    rows = rng.integers(len(encoded.scenes) - len(encoded.styled), size=BATCH)
    if step < GROUND_FIRST:
        bare = encoded.plain[rng.integers(len(encoded.plain), size=BATCH)].numpy()
        return np.where(rng.random(BATCH) < 0.6, bare, rows)
    if step > 2 / 3 * steps:
        return rows
    fuller = encoded.fuller[rng.integers(len(encoded.fuller), size=BATCH)].numpy()
    return np.where(rng.random(BATCH) < FULLER, fuller, rows)


def words(encoded: Encoded, rows: np.ndarray, step: int, steps: int) -> list[str]:
    """A caption for each image, dense at first; some are empty, for guidance."""
    rng = np.random.default_rng((42, step))
    dense = 0.9 if step < 0.75 * steps else 0.7
    captions = [caption(encoded.scenes[int(i)], rng, dense) for i in rows]
    return ["" if rng.random() < UNSAID else text for text in captions]


@torch.no_grad()
def condition(text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """The text encoder's states (N, 32, width) for captions, padded as Stable Diffusion does."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return text(tokens.input_ids.to(text.device)).last_hidden_state


def softener(folder: Path, device: str = "cpu", size: str = "small") -> autoencoder.Soften:
    """What makes latents as soft as generated ones: the U-Net's prediction from a little noise.

    A decoder that is trained on these learns to sharpen what it will be given.
    """
    tokenizer = text_training.open_tokenizer(folder)
    text = text_training.trained_text(folder, tokenizer, device)
    network = painting(folder, 1, device, size).averaged().requires_grad_(False)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    scale = float((folder / SCALE).read_text())

    def soften(latents: Tensor, scenes: list[Scene], step: int) -> Tensor:
        random = torch.Generator().manual_seed(step)
        t = torch.randint(*SOFT_TIMES, (len(latents),), generator=random).to(device)
        noise = torch.randn(latents.shape, generator=random).to(device)
        a = alphas[t][:, None, None, None]
        noisy = a.sqrt() * latents.float() * scale + (1 - a).sqrt() * noise
        captions = [caption(scene, np.random.default_rng((44, step)), 0.9) for scene in scenes]
        states = condition(text, tokenizer, captions)
        with halves(noisy.device):
            guess = network(noisy, t, encoder_hidden_states=states).sample.float()
        return (noisy - (1 - a).sqrt() * guess) / a.sqrt() / scale

    return soften


def painting(folder: Path, steps: int, device: str = "cpu", size: str = "small") -> Trainer:
    """The training of a U-Net of a size as it stands in the work folder."""
    path, network = folder / f"painter-{size}.safetensors", build(size).to(device)
    return Trainer(path, network, RATE, steps, 100, 0.999)


def train(run: Trainer, folder: Path, seconds: float) -> Iterator[str]:
    """Train for a chunk of time; yields a line of figures now and then."""
    tokenizer = text_training.open_tokenizer(folder)
    device = str(next(run.network.parameters()).device)
    text = text_training.trained_text(folder, tokenizer, device)
    encoded = encode(folder, autoencoder.trained(folder, device), device)
    yield from learn(run, text, tokenizer, encoded, seconds)


def learn(
    run: Trainer, text: CLIPTextModel, tokenizer: CLIPTokenizer, encoded: Encoded, seconds: float
) -> Iterator[str]:
    """Train on encoded pictures for a chunk of time; yields a line of figures now and then."""
    device = next(run.network.parameters()).device
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    mean_loss = math.nan
    for step in run.chunk(seconds):
        rows = chosen(encoded, step, run.steps)
        states = condition(text, tokenizer, words(encoded, rows, step, run.steps))
        loss = _loss(run.network, encoded, rows, states, alphas, step)
        run.learn(loss)
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 50 == 0:
            yield f"painter {step}/{run.steps} loss {mean_loss:.4f}"
    yield f"painter {run.step}/{run.steps} loss {mean_loss:.4f}"


def _loss(
    network: nn.Module,
    encoded: Encoded,
    rows: np.ndarray,
    states: Tensor,
    alphas: Tensor,
    step: int,
) -> Tensor:
    """The weighted error of the guessed noise (min-SNR weighting, arXiv:2303.09556)."""
    noise = torch.Generator().manual_seed(step)
    mean, std = encoded.mean[rows].float(), encoded.std[rows].float()
    clean = (mean + std * torch.randn(mean.shape, generator=noise)) * encoded.scale
    extra = torch.randn(mean.shape, generator=noise).to(states)
    t = torch.randint(1000, (len(rows),), generator=noise).to(alphas.device)
    a = alphas[t][:, None, None, None]
    noisy = a.sqrt() * clean.to(states) + (1 - a).sqrt() * extra
    noisy = noisy.to(memory_format=torch.channels_last)
    with halves(noisy.device):
        guess = network(noisy, t, encoder_hidden_states=states).sample.float()
    weight = 1 + SUBJECT_WEIGHT * encoded.subject[rows].float().to(states)[:, None]
    error = ((guess - extra).square() * weight).mean((1, 2, 3)) / weight.mean()
    snr = alphas[t] / (1 - alphas[t])
    return (error * snr.clamp(max=MIN_SNR) / snr).mean()
