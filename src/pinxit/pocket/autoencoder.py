# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""pocket's autoencoder: 64x64 pictures to 6 channels of 16x16 latents and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pinxit.pocket import data
from pinxit.pocket.state import Trainer, halves
from pinxit.pocket.world import Scene

# Latents (N, 6, 16, 16), their scenes and the step, to latents as the U-Net leaves them.
Soften = Callable[[Tensor, list[Scene], int], Tensor]

CHANNELS = (16, 32, 64)
LATENTS = 6
BATCH = 8
LEAVES = 1  # of a batch, pictures with the statistics of photographs
KL_WEIGHT = 1e-4
SHARPNESS = 6.0  # weight of the error of high frequencies' amplitudes, for the decoder alone
FINE = (16, 32)  # radii of those frequencies, in periods across an image
WHOLE = 5_000  # steps of encoder and decoder together; then the decoder alone


def build() -> AutoencoderKL:
    """An untrained autoencoder of pocket's size."""
    torch.manual_seed(11)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    with torch.no_grad():  # begin nearly noiseless and nearly linear: the first minutes count
        vae.get_parameter("quant_conv.bias")[LATENTS:].fill_(-7.0)
        for layer in vae.modules():
            if isinstance(layer, ResnetBlock2D):
                layer.conv2.weight.mul_(0.1)
    return vae.to(memory_format=torch.channels_last)


def dead_leaves(rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """A picture with a photograph's statistics: overlapping shaded discs under 1/f noise."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    image = np.broadcast_to(rng.uniform(0, 1, 3), (size, size, 3)).astype(np.float32).copy()
    for radius in np.sort(rng.pareto(1.6, 24) * 0.06)[::-1]:
        cx, cy, angle = *rng.uniform(0, 1, 2), rng.uniform(0, 2 * np.pi)
        inside = np.hypot(x - cx, (y - cy) * rng.uniform(0.6, 1.6)) < min(radius, 0.6)
        shade = 1 + rng.uniform(0, 0.8) * ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle))
        image[inside] = (rng.uniform(0, 1, 3) * shade[..., None])[inside]
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size)))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    noise = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1 / size) ** 1.1)
    noise = noise.mean(0, keepdims=True) + 0.35 * noise
    noise *= rng.uniform(0.02, 0.22) / noise.std()
    return np.round(np.clip(image + noise.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) to floats (N, 3, H, W) in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return x.float().div(127.5).sub(1)


def amplitudes(x: Tensor) -> Tensor:
    """Amplitudes of the high spatial frequencies of square images (N, C, H, W): (N, C, count)."""
    size = x.shape[-1]
    rows, columns = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    radius = size * torch.hypot(rows[:, None], columns[None])
    band = (radius >= FINE[0]) & (radius < FINE[1])
    return torch.fft.rfft2(x, norm="ortho").abs()[..., band.to(x.device)]


def loss(
    vae: AutoencoderKL,
    x: Tensor,
    noise: torch.Generator,
    sharpness: float = 0.0,
    soften: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pixel errors, absolute and squared, errors of edges, and a touch of KL.

    A decoder that only minimises errors leaves out what it cannot place, so its images are soft;
    with `sharpness` it must have as much of high frequencies as there was, wherever they are. With
    `soften` it does so for latents like those that the U-Net generates.
    """
    with halves(x.device):
        posterior = vae.encode(x).latent_dist
        latents = posterior.sample(noise)
        y = vae.decode(soften(latents) if soften else latents).sample.float()
    error = y - x
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    edges = edges + (error[..., 1:] - error[..., :-1]).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    total = F.l1_loss(y, x) + 2.5 * error.square().mean() + 0.25 * edges + KL_WEIGHT * kl
    if sharpness:
        total = total + sharpness * F.l1_loss(amplitudes(y), amplitudes(x))
    return total


def whole(folder: Path, device: str = "cpu") -> Trainer:
    """The training of encoder and decoder together, as it stands in the work folder."""
    path, network = folder / "autoencoder.safetensors", build().to(device)
    return Trainer(path, network, 2e-3, WHOLE, decay=0.998, orthogonal=True)


def decoder(folder: Path, steps: int, device: str = "cpu") -> Trainer:
    """The training of the decoder alone, behind the finished encoder."""
    vae = whole(folder, device).averaged()
    assert isinstance(vae, AutoencoderKL)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    path = folder / "decoder.safetensors"
    return Trainer(path, vae, 2e-3, steps, decay=0.998, orthogonal=True)


def trained(folder: Path, device: str = "cpu") -> AutoencoderKL:
    """The autoencoder as it stands, with averaged weights, not to be trained."""
    vae = decoder(folder, 1, device).averaged()
    assert isinstance(vae, AutoencoderKL)
    return vae.requires_grad_(False).eval()


def train(
    run: Trainer, folder: Path, steps: int, seconds: float, soften: Soften | None = None
) -> Iterator[str]:
    """Train `whole` or `decoder` for a chunk of time; yields a line of figures now and then.

    With `soften`, the first half of each batch has latents as the U-Net leaves them.
    """
    vae = run.network
    assert isinstance(vae, AutoencoderKL)
    name = run.path.stem
    sharpness = 0.0 if vae.encoder.conv_in.weight.requires_grad else SHARPNESS
    seeds = (1, data.NAMED_STYLE_SEED) if soften else (1,)
    paths = [p for seed in seeds for p in sorted((folder / "shards").glob(f"shard-{seed}-*.npz"))]
    shards = [(data.load(path), data.scenes_of(path) if soften else []) for path in paths]
    for step in run.chunk(seconds, steps):
        rng = np.random.default_rng((21, step))
        shard, scenes = shards[int(rng.integers(len(shards)))]
        rows = rng.integers(len(shard.images), size=BATCH - LEAVES)
        images = shard.images[rows]
        leaves = np.stack([dead_leaves(rng) for _ in range(LEAVES)])
        x = pixels(np.concatenate([images, leaves]))
        x = x.to(vae.device, memory_format=torch.channels_last)
        noise = torch.Generator(vae.device).manual_seed(step)
        first = [scenes[i] for i in rows[: BATCH // 2]] if soften else []
        value = loss(vae, x, noise, sharpness, soften and partial(_first, soften, first, step))
        run.learn(value)
        if step % 100 == 0:
            yield f"{name} {step}/{steps} loss {value.item():.4f}"
    yield f"{name} {run.step}/{steps}"


@torch.no_grad()
def _first(soften: Soften, scenes: list[Scene], step: int, latents: Tensor) -> Tensor:
    count = len(scenes)
    return torch.cat([soften(latents[:count], scenes, step).to(latents), latents[count:]])


@torch.no_grad()
def psnr(vae: AutoencoderKL, x: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of a round trip, in dB."""
    y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    error = ((y - x) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())
