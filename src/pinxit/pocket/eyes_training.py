# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""How pocket's eyes are trained to see what a picture shows, with a finished text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from pinxit.pocket import data
from pinxit.pocket.autoencoder import pixels
from pinxit.pocket.captions import caption
from pinxit.pocket.eyes import ANSWERS, JOINT, NUMBERS, SHADES, Eyes, Seen
from pinxit.pocket.state import Trainer, halves
from pinxit.pocket.text_training import TEXT_WIDTH, open_tokenizer, trained_text
from pinxit.pocket.truths import Truths, cross_entropy, truth
from pinxit.pocket.world import Scene

BATCH = 64
STYLE_SEEDS = (data.NAMED_STYLE_SEED, data.DRAWN_STYLE_SEED)
FOURS = BATCH // 4  # a batch is of neighbours in a shard, four and four
EYES_STEPS = 9_600
STYLE_WEIGHT = 12.0
DOUBLES = 0.5  # share drawn from pictures of two things and their neighbours, which are seen last


Pool = tuple[data.Shard, list[Scene], Truths, NDArray[np.int64]]


class Pair(nn.Module):
    """Eyes with a finished text encoder."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        torch.manual_seed(15)
        self.eyes = Eyes(TEXT_WIDTH).to(memory_format=torch.channels_last)
        self.text = text.requires_grad_(False)


def hidden_error(guess: Tensor, hidden: Tensor, own_colour: Tensor) -> Tensor:
    """Error of the hidden parameters; the body colour counts only if it is the subject's own."""
    numbers = (guess[:, :NUMBERS] - hidden[:, :NUMBERS]).abs()
    numbers = torch.cat([numbers[:, :3] * own_colour[:, None], numbers[:, 3:]], 1)
    emblem = -(guess[:, NUMBERS:].clamp_min(1e-4).log() * hidden[:, NUMBERS:]).sum(1)
    return numbers.mean(1) + 0.08 * emblem


def alike(embedding: Tensor, who: Tensor) -> Tensor:
    """Supervised contrast: views of one individual together, all others apart."""
    logits = embedding @ embedding.T / 0.1
    itself = torch.eye(len(who), dtype=torch.bool, device=who.device)
    logits = logits.masked_fill(itself, -1e4)
    same = (who[:, None] == who[None]) & ~itself
    rows = same.any(1)
    log_p = logits.log_softmax(1)
    return -((log_p * same).sum(1) / same.sum(1).clamp_min(1))[rows].mean()


def eyes_loss(seen: Seen, truths: Truths, mask: Tensor, points: Tensor) -> Tensor:
    """Every question, and of things that are alone their hidden parameters, mask, key points."""
    right, hidden, style = truths
    own = (right["colour"] == len(SHADES) - 1).float()
    alone = (right["other"] == 0).float()
    alone = alone / alone.mean().clamp_min(1e-3)
    losses = [cross_entropy(seen.answers[q], right[q]) for q in ANSWERS]
    if seen.style is not None:
        losses.append(STYLE_WEIGHT * F.l1_loss(seen.style, style))
    masks = F.binary_cross_entropy(seen.mask, mask, reduction="none").mean((1, 2))
    closely = (seen.keypoints - points).abs().mean((1, 2))
    off = 12 * hidden_error(seen.hidden, hidden, own) + masks + 4 * closely
    return torch.stack(losses).sum() + (alone * off).mean()


def eyes_trainer(folder: Path, tokenizer: CLIPTokenizer, device: str = "cpu") -> Trainer:
    """The state of the training of the classifier, with the finished text encoder."""
    pair = Pair(trained_text(folder, tokenizer, device)).to(device)
    return Trainer(folder / "eyes.safetensors", pair, 1.2e-3, EYES_STEPS, decay=0.998)


def _in_halves(forward: Callable[[Tensor], Tensor], device: torch.device, x: Tensor) -> Tensor:
    with halves(device):
        return forward(x).float()


def trained_eyes(folder: Path, tokenizer: CLIPTokenizer) -> Eyes:
    """The eyes as they stand in the work folder, with their averaged weights."""
    pair = eyes_trainer(folder, tokenizer).averaged()
    assert isinstance(pair, Pair)
    return pair.eyes.requires_grad_(False).eval()


def train_eyes(run: Trainer, folder: Path, seconds: float) -> Iterator[str]:
    """Train the classifier for a chunk of time; yields a line of figures now and then."""
    pair, tokenizer = run.network, open_tokenizer(folder)
    assert isinstance(pair, Pair)
    for part in (*pair.eyes.fine, *pair.eyes.coarse, pair.eyes.mask):
        part.forward = partial(_in_halves, part.forward, pair.eyes.text.weight.device)
    scenery, views = _open(folder, (1, *STYLE_SEEDS)), _open(folder, (3,))
    for step in run.chunk(seconds):
        rng = np.random.default_rng((32, step))
        pool = views if rng.random() < 0.3 else scenery
        shard, scenes, truths, doubles = pool[int(rng.integers(len(pool)))]
        starts = rng.integers(len(scenes) // 4, size=FOURS) * 4
        if len(doubles):
            starts = np.where(rng.random(FOURS) < DOUBLES, rng.choice(doubles, FOURS), starts)
        rows = (starts[:, None] + np.arange(4)).ravel()
        tokens = tokenizer(
            [caption(scenes[i], rng) for i in rows], padding=True, return_tensors="pt"
        )
        noise = torch.Generator().manual_seed(step)
        loss, joint = _loss(pair, shard, rows, truths, tokens.input_ids, noise, scenes)
        run.learn(loss)
        if step % 50 == 0:
            yield f"eyes {step}/{run.steps} loss {loss.item():.3f} joint {joint:.3f}"
    yield f"eyes {run.step}/{run.steps}"


def _loss(
    pair: Pair,
    shard: data.Shard,
    rows: NDArray[np.int64],
    truths: Truths,
    ids: Tensor,
    noise: torch.Generator,
    scenes: list[Scene],
) -> tuple[Tensor, float]:
    """All losses of the classifier for a batch, and how often four attributes are right."""
    device = pair.eyes.text.weight.device
    x = pixels(shard.images[rows])
    x = x + 0.04 * torch.randn(x.shape, generator=noise)
    x = x.to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        pooled = pair.text(ids.to(device)).pooler_output
    seen, texts = pair.eyes(x), F.normalize(pair.eyes.text(pooled), dim=1)
    right = {q: r[rows].to(device) for q, r in truths[0].items()}
    hidden, style = truths[1][rows].to(device), truths[2][rows].to(device)
    mask = F.avg_pool2d(torch.from_numpy(shard.masks[rows]).float().div(255)[:, None], 4)[:, 0]
    points = torch.from_numpy(shard.keypoints[rows])
    match = seen.shared @ texts.T * pair.eyes.temperature.exp().clamp(max=50)
    pairs = torch.arange(len(rows), device=device)
    people = {scenes[i].subject: k for k, i in enumerate(rows)}
    who = torch.tensor([people[scenes[i].subject] for i in rows], device=device)
    loss = (
        eyes_loss(seen, (right, hidden, style), mask.to(device), points.to(device))
        + 0.25 * (F.cross_entropy(match, pairs) + F.cross_entropy(match.T, pairs))
        + 0.5 * alike(seen.instance, who)
    )
    hits = torch.stack([seen.answers[q].argmax(1) == right[q] for q in JOINT])
    return loss, float(hits.all(0).float().mean())


def _open(folder: Path, seeds: tuple[int, ...]) -> list[Pool]:
    """The shards of some seeds and round trips, the right answers, which fours show two things."""
    pools: list[Pool] = []
    paths = [p for seed in seeds for p in sorted((folder / "shards").glob(f"shard-{seed}-*.npz"))]
    for path in paths:
        scenes, shard = data.scenes_of(path), data.load(path)
        doubles = np.array([i for i, s in enumerate(scenes) if s.other], np.int64) // 4 * 4
        pools.append((shard, scenes, truth(scenes), np.unique(doubles)))
        back = folder / "round trips" / path.name
        if back.exists():
            with np.load(back) as file:
                pools.append((replace(shard, images=file["images"]), *pools[-1][1:]))
    return pools


@torch.no_grad()
def make_round_trip(folder: Path, path: Path, vae: AutoencoderKL) -> None:
    """Encode and decode a shard, so that the classifier also learns decoded images."""
    back = folder / "round trips" / path.name
    if back.exists():
        return
    back.parent.mkdir(exist_ok=True)
    parts = []
    for images in np.array_split(data.load(path).images, 80):
        x = pixels(images).to(vae.device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        parts.append((y.cpu() + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())
    draft = back.with_name(f".{back.name}")
    np.savez(draft, images=np.concatenate(parts))
    draft.replace(back)
