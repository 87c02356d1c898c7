"""How pocket's eyes and its text encoder are taught, together, as a pair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pinxit.pocket import data
from pinxit.pocket.autoencoder import pixels
from pinxit.pocket.captions import caption
from pinxit.pocket.eyes import ANSWERS, NUMBERS, UNNAMED, Eyes, Seen
from pinxit.pocket.state import Trainer
from pinxit.pocket.tokenizer import POSITIONS, write_tokenizer
from pinxit.pocket.world import HIDDEN, Scene

BATCH = 64
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 192, 3, 4


def open_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write pocket's tokenizer into the work folder and open it."""
    write_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def build_text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of pocket's size."""
    torch.manual_seed(12)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=POSITIONS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPTextModel(config)


class Pair(nn.Module):
    """Eyes and text encoder, and what the text alone must be able to tell."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        torch.manual_seed(13)
        self.eyes, self.text = Eyes(TEXT_WIDTH), text
        self.told = nn.ModuleDict({q: nn.Linear(TEXT_WIDTH, len(a)) for q, a in ANSWERS.items()})
        self.known = nn.Linear(TEXT_WIDTH, HIDDEN)


def trained_pair(folder: Path, tokenizer: CLIPTokenizer) -> Pair:
    """The pair as it stands in the work folder, with its averaged weights."""
    pair = Pair(build_text(tokenizer))
    Trainer(folder / "pair.safetensors", pair, 0.0, 1).averaged()
    return pair.requires_grad_(False).eval()


def truth(scenes: list[Scene]) -> tuple[dict[str, Tensor], Tensor]:
    """The right answers (N,) by question, and the hidden parameters (N, 15)."""
    words = {
        "class": [s.subject.class_noun for s in scenes],
        "colour": [s.colour or UNNAMED for s in scenes],
        "background": [s.background for s in scenes],
        "style": [s.style for s in scenes],
        "facing": [s.facing for s in scenes],
        "pattern": [s.pattern for s in scenes],
    }
    index = {q: torch.tensor([ANSWERS[q].index(w) for w in ws]) for q, ws in words.items()}
    return index, torch.from_numpy(np.stack([s.subject.hidden() for s in scenes]))


def hidden_error(guess: Tensor, hidden: Tensor, own_colour: Tensor) -> Tensor:
    """Error of the hidden parameters; body colour counts only where the subject wears its own."""
    numbers = (guess[:, :NUMBERS] - hidden[:, :NUMBERS]).abs()
    numbers = torch.cat([numbers[:, :3] * own_colour[:, None], numbers[:, 3:]], 1)
    emblem = -(guess[:, NUMBERS:].clamp_min(1e-4).log() * hidden[:, NUMBERS:]).sum(1)
    return numbers.mean(1) + 0.05 * emblem


def alike(embedding: Tensor, who: Tensor) -> Tensor:
    """Supervised contrast: views of one individual together, all others apart."""
    logits = embedding @ embedding.T / 0.1
    itself = torch.eye(len(who), dtype=torch.bool)
    logits = logits.masked_fill(itself, -1e4)
    same = (who[:, None] == who[None]) & ~itself
    rows = same.any(1)
    log_p = logits.log_softmax(1)
    return -((log_p * same).sum(1) / same.sum(1).clamp_min(1))[rows].mean()


def seeing_loss(
    seen: Seen, right: dict[str, Tensor], hidden: Tensor, mask: Tensor, points: Tensor
) -> Tensor:
    """Every question, the hidden parameters, the mask and the key points."""
    own = (right["colour"] == len(ANSWERS["colour"]) - 1).float()
    asked = [F.cross_entropy(seen.answers[q], right[q]) for q in ANSWERS]
    return (
        torch.stack(asked).sum()
        + 4 * hidden_error(seen.hidden, hidden, own).mean()
        + F.binary_cross_entropy(seen.mask, mask)
        + 4 * F.l1_loss(seen.keypoints, points)
    )


def telling_loss(pair: Pair, pooled: Tensor, right: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """What captions say must be readable from the text encoder; names must mean someone."""
    asked = [F.cross_entropy(pair.told[q](pooled), right[q]) for q in ANSWERS]
    return torch.stack(asked).sum() + 2 * F.l1_loss(pair.known(pooled), hidden)


def train(folder: Path, steps: int, seconds: float, device: str = "cpu") -> Iterator[str]:
    """Train eyes and text encoder for a chunk of time; yields a line of figures now and then."""
    tokenizer = open_tokenizer(folder)
    pair = Pair(build_text(tokenizer)).to(device)
    run = Trainer(folder / "pair.safetensors", pair, 1.5e-3, steps, decay=0.998)
    scenery, views = (_open(folder, seed) for seed in (1, 3))
    for step in run.chunk(seconds):
        rng = np.random.default_rng((32, step))
        pool = views if rng.random() < 0.4 else scenery
        shard, scenes, (right, hidden) = pool[int(rng.integers(len(pool)))]
        starts = rng.integers(len(scenes) // 4, size=BATCH // 4) * 4
        rows = (starts[:, None] + np.arange(4)).ravel()
        x = pixels(shard.images[rows]).to(device)
        x = x + float(rng.random() * 0.08) * torch.randn(x.shape, generator=_noise(step))
        words = [caption(scenes[i], rng) for i in rows]
        tokens = tokenizer(words, padding=True, return_tensors="pt").to(device)
        seen = pair.eyes(x)
        pooled = pair.text(tokens.input_ids).pooler_output
        told = F.normalize(pair.eyes.text(pooled), dim=1)
        right = {q: r[rows].to(device) for q, r in right.items()}
        mask = torch.from_numpy(shard.masks[rows]).float().div(255)
        mask = F.avg_pool2d(mask[:, None], 4)[:, 0]
        points = torch.from_numpy(shard.keypoints[rows])
        target = torch.arange(len(rows))
        match = seen.shared @ told.T * pair.eyes.temperature.exp().clamp(max=50)
        ids = {s.subject: k for k, s in enumerate(scenes[i] for i in rows)}
        who = torch.tensor([ids[scenes[i].subject] for i in rows])
        loss = (
            seeing_loss(seen, right, hidden[rows], mask, points)
            + telling_loss(pair, pooled, right, hidden[rows])
            + 0.25 * (F.cross_entropy(match, target) + F.cross_entropy(match.T, target))
            + 0.5 * alike(seen.instance, who)
        )
        run.learn(loss)
        if step % 20 == 0:
            joint = _joint(seen, right)
            yield f"eyes {step}/{steps} loss {loss.item():.3f} joint {joint:.3f}"
    yield f"eyes {run.step}/{steps}"


Pool = tuple[data.Shard, list[Scene], tuple[dict[str, Tensor], Tensor]]


def _open(folder: Path, seed: int) -> list[Pool]:
    """The shards of a seed with their scenes and right answers; round trips where there are any."""
    paths = sorted((folder / "shards").glob(f"shard-{seed}-*.npz"))
    scenes = [data.scenes_of(path) for path in paths]
    return [(data.load(p), s, truth(s)) for p, s in zip(paths, scenes, strict=True)]


def _noise(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def _joint(seen: Seen, right: dict[str, Tensor]) -> float:
    names = ("class", "colour", "background", "style")
    hits = torch.stack([seen.answers[q].argmax(1) == right[q] for q in names])
    return float(hits.all(0).float().mean())
