# pyright: standard
"""pocket's eyes: one small network that says what a picture of its world shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pinxit.pocket.world import (
    CLASSES,
    COLOURS,
    FACINGS,
    HELD_OUT_STYLES,
    HIDDEN,
    PATTERNS,
    PLACES,
    POSES,
    STYLES,
    WORN,
)
from pinxit.pocket.world.style_parameters import NUMBERS_OF_A_STYLE

UNNAMED, NONE = "unnamed", "none"
SHADES = (*COLOURS, UNNAMED)
ANSWERS: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "colour": SHADES,
    "background": PLACES,
    "style": (*STYLES, *HELD_OUT_STYLES),
    "facing": FACINGS,
    "pattern": PATTERNS,
    "pose": POSES,
    "worn": (NONE, *WORN),
    "worn colour": (NONE, *COLOURS),
    "rug": (NONE, *COLOURS),
    "other": (NONE, *CLASSES),
    "other colour": (NONE, *SHADES),
    # of two things side by side the left one is the first
    "relation": (NONE, "left", "on", "before"),
}
JOINT = ("class", "colour", "background", "style")  # what must be right together
WIDTHS = (32, 64, 128, 160)
FEATURES = 320
GAZES = 8  # places a picture is looked at closely
INSTANCE, SHARED = 64, 128  # widths of the instance embedding and of the text/image space
NUMBERS = HIDDEN - 4  # hidden parameters that are numbers; the last four say which emblem


@dataclass(frozen=True)
class Seen:
    """The output of the classifier for N images.

    answers: logits (N, choices) by question; hidden (N, 15) in 0..1; instance (N, 64) and shared
    (N, 128) of length one; mask (N, 16, 16) in 0..1; keypoints (N, 4, 2) in fractions; style
    (N, 23) in 0..1, as `StyleParameters.vector` has it, or None from eyes that do not read it.
    """

    answers: dict[str, Tensor]
    hidden: Tensor
    instance: Tensor
    shared: Tensor
    mask: Tensor
    keypoints: Tensor
    style: Tensor | None = None

    def named(self, question: str) -> list[str]:
        """The most likely answer to a question, for each image."""
        return [ANSWERS[question][i] for i in self.answers[question].argmax(1).tolist()]


class Block(nn.Module):
    """Two normalised 3x3 convolutions in parallel to an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Eyes(nn.Module):
    """A shared trunk of convolutions and a head for each question about a 64x64 picture."""

    def __init__(self, text_width: int = 192, reads_styles: bool = True) -> None:
        super().__init__()
        w = WIDTHS
        self.fine = nn.Sequential(
            nn.Conv2d(3, w[0], 4, 2, 1), Block(w[0]), nn.Conv2d(w[0], w[1], 4, 2, 1), Block(w[1])
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(w[1], w[2], 4, 2, 1), Block(w[2]), nn.Conv2d(w[2], w[3], 4, 2, 1), Block(w[3])
        )
        self.squeeze = nn.Conv2d(w[3], 32, 1)
        wide = 2 * w[3] + 32 * 16 + w[1] + 3
        self.wide = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, FEATURES), nn.SiLU())
        self.gaze = nn.Conv2d(w[2], GAZES, 1)
        close = GAZES * (w[2] + 2)
        self.close = nn.Sequential(nn.LayerNorm(close), nn.Linear(close, FEATURES), nn.SiLU())
        self.questions = nn.ModuleDict({q: nn.Linear(FEATURES, len(a)) for q, a in ANSWERS.items()})
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.instance = nn.Linear(FEATURES, INSTANCE)
        self.shared = nn.Linear(FEATURES, SHARED)
        self.keypoints = nn.Linear(FEATURES, 8)
        self.style = nn.Linear(FEATURES, NUMBERS_OF_A_STYLE) if reads_styles else None
        self.up = nn.Conv2d(w[3], 64, 1)
        self.mask = nn.Sequential(
            Block(w[1]), nn.GroupNorm(8, w[1]), nn.SiLU(), nn.Conv2d(64, 1, 1)
        )
        self.text = nn.Linear(text_width, SHARED, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.3))

    def forward(self, pixels: Tensor) -> Seen:
        """Look at pictures (N, 3, 64, 64) in -1..1; differentiable."""
        fine = self.fine(pixels)
        parts = self.coarse[:2](fine)
        coarse = self.coarse[2:](parts)
        deep = F.silu(coarse)
        pooled = [deep.mean((2, 3)), deep.amax((2, 3)), self.squeeze(deep).flatten(1)]
        features = self.wide(torch.cat([*pooled, fine.mean((2, 3)), pixels.mean((2, 3))], 1))
        features = features + self.close(self.gazed(parts))
        up = F.interpolate(self.up(coarse), size=fine.shape[-2:], mode="bilinear")
        hidden = self.hidden(features)
        return Seen(
            answers={q: head(features) for q, head in self.questions.items()},
            hidden=torch.cat([hidden[:, :NUMBERS].sigmoid(), hidden[:, NUMBERS:].softmax(1)], 1),
            instance=F.normalize(self.instance(features), dim=1),
            shared=F.normalize(self.shared(features), dim=1),
            mask=self.mask(fine + up)[:, 0].sigmoid(),
            keypoints=self.keypoints(features).view(-1, 4, 2),
            style=None if self.style is None else self.style(features).sigmoid(),
        )

    def gazed(self, parts: Tensor) -> Tensor:
        """What the gazes rest on in a map (N, C, H, W), and where: (N, GAZES * (C + 2))."""
        where = self.gaze(parts).flatten(2).softmax(2)
        n, _, h, w = parts.shape
        line = torch.linspace(-1, 1, h, device=parts.device)
        at = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(n, 2, h, w)
        seen = torch.cat([F.silu(parts), at], 1).flatten(2)
        return torch.einsum("ngp,ncp->ngc", where, seen).flatten(1)

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """Open the packaged eyes, or those in a folder: in float32 and frozen."""
        path = (folder or Path(__file__).parent / "weights") / "eyes" / "eyes.safetensors"
        tensors = {n: t.float() for n, t in load_file(path).items()}
        eyes = cls(tensors["text.weight"].shape[1], reads_styles="style.weight" in tensors)
        eyes.load_state_dict(tensors)
        return eyes.requires_grad_(False).eval()

    @torch.no_grad()
    def look(self, pixels: Tensor, batch: int = 64) -> Seen:
        """Look at any number of pictures (N, 3, H, W) in -1..1, brought to 64x64 where larger."""
        if pixels.shape[-2:] != (64, 64):
            pixels = F.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
        parts = [self(part) for part in pixels.split(batch)]
        answers = {q: torch.cat([p.answers[q] for p in parts]) for q in ANSWERS}
        style = None if self.style is None else torch.cat([p.style for p in parts])
        names = ("hidden", "instance", "shared", "mask", "keypoints")
        return Seen(
            answers, *(torch.cat([getattr(p, n) for p in parts]) for n in names), style=style
        )
