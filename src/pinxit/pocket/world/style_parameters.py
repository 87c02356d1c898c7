"""A style as a small vector of numbers, and how such vectors are drawn and compared."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world.canvas import Colour

_NEUTRAL = 0.5


@dataclass(frozen=True)
class StyleParameters:
    """A style as numbers in 0..1; two colours are RGB.

    paper: the ground, and the light end of a duotone; ink: of lines, hatching and dots, and the
    dark end of a duotone. duotone: how far all colours are replaced by mixtures of both. saturation
    (0.5 leaves colours as they are), contrast and brightness (the same) form the tone curve.
    levels: posterisation. light: shadows and shading, 0 is flat. wash: blur of colours. ground and
    subject: how much of their colour covers the paper. line: strength of outlines, line_weight:
    their width. hatching and dots: strength of lines and dots of ink; spacing of both. tiles:
    mosaic. grain: noise. frame: paper left free at the border.
    """

    paper: Colour
    ink: Colour
    duotone: float = 0.0
    saturation: float = 0.5
    contrast: float = 0.5
    brightness: float = 0.5
    levels: float = 0.0
    light: float = 0.0
    wash: float = 0.0
    ground: float = 1.0
    subject: float = 1.0
    line: float = 0.0
    line_weight: float = 0.0
    hatching: float = 0.0
    dots: float = 0.0
    spacing: float = 0.5
    tiles: float = 0.0
    grain: float = 0.0
    frame: float = 0.0

    def vector(self) -> NDArray[np.float32]:
        """The numbers (23,) in 0..1 that the classifier reads, by how much can be seen of each.

        A colour, a spacing or a width that covers nothing is at its neutral value, so that styles
        with equal images have almost equal vectors.
        """
        bare = 1 - min(self.ground, self.subject)
        paper_seen = max(self.duotone, bare, self.frame, 0.5 * self.tiles)
        ink_seen = max(self.duotone, self.line, self.hatching, self.dots)
        rest = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        rest["line_weight"] = self.line_weight * self.line
        spaced = max(self.hatching, self.dots)
        rest["spacing"] = _NEUTRAL + spaced * (self.spacing - _NEUTRAL)
        coloured = 1 - self.duotone
        rest["saturation"] = _NEUTRAL + coloured * (self.saturation - _NEUTRAL)
        paper = [_NEUTRAL + paper_seen * (c - _NEUTRAL) for c in self.paper]
        ink = [_NEUTRAL + ink_seen * (c - _NEUTRAL) for c in self.ink]
        return np.array([*paper, *ink, *rest.values()], np.float32)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> StyleParameters:
        """Draw a style at random: light paper, dark or coloured; some effects, seldom all."""
        paper, ink = _two_colours(rng)
        covered = float(rng.uniform(0.0, 1.0)) if rng.random() < 0.5 else 1.0
        subject = min(1.0, covered + float(rng.uniform(0.0, 0.6)))
        marks: dict[str, float] = dict.fromkeys(_MARKS, 0.0)
        for name in rng.permutation(_MARKS)[: rng.choice(3, p=(0.4, 0.45, 0.15))]:
            marks[str(name)] = float(rng.uniform(0.4, 1.0))
        # what is hardly covered is seen by its outlines alone
        line = _sometimes(rng, 0.7, 0.3) if subject > 0.4 else float(rng.uniform(0.6, 1.0))
        return cls(
            paper,
            ink,
            duotone=_sometimes(rng, 0.35, 0.6),
            saturation=float(rng.uniform(0.0, 1.0)),
            contrast=float(rng.uniform(0.3, 0.8)),
            brightness=float(rng.uniform(0.3, 0.7)),
            levels=_sometimes(rng, 0.35, 0.3),
            light=_sometimes(rng, 0.6, 0.3),
            wash=_sometimes(rng, 0.3, 0.3),
            ground=covered,
            subject=subject,
            line=line,
            line_weight=float(rng.uniform(0, 1)),
            spacing=float(rng.uniform(0, 1)),
            **marks,
        )


_MARKS = ("hatching", "dots", "tiles", "grain", "frame")


def _sometimes(rng: np.random.Generator, share: float, least: float) -> float:
    """An amount from `least` to 1 in a share of the draws, 0 otherwise."""
    there, amount = rng.random(2)
    return float(least + amount * (1 - least)) if there < share else 0.0


NUMBERS_OF_A_STYLE = len(fields(StyleParameters)) + 4  # both colours are three numbers each


def _two_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Paper and ink with a clear difference in brightness; the paper is lighter in two of three.

    Their hues are free, and half of them are vivid.
    """
    hues = rng.uniform(0, 1, (2, 3))
    tinge = np.where(rng.random(2) < 0.5, rng.uniform(0.4, 1.0, 2), rng.uniform(0.0, 0.3, 2))
    pale = rng.uniform(0.85, 1.0) * (1 - 0.8 * tinge[0] * hues[0])
    deep = rng.uniform(0.05, 0.35) * (1 - tinge[1] + 2 * tinge[1] * hues[1])
    first, second = (np.clip(c, 0, 1).tolist() for c in (pale, deep))
    paper, ink = (first, second) if rng.random() < 2 / 3 else (second, first)
    return (paper[0], paper[1], paper[2]), (ink[0], ink[1], ink[2])


def style_distance(one: StyleParameters, other: StyleParameters) -> float:
    """The root mean square difference of the numbers of two styles."""
    return float(np.sqrt(np.mean((one.vector() - other.vector()) ** 2)))
