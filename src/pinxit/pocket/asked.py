"""What a prompt asks for, in the words of pocket's world: captions, read backwards."""

from __future__ import annotations

import re

from pinxit.pocket.words import MANNERS, MEDIA, WHITE_GROUND
from pinxit.pocket.world.attributes import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    FACINGS,
    HELD_OUT_STYLES,
    PATTERNS,
    PLAIN,
)

_STYLES = {s: (*MEDIA[s], *MANNERS[s]) for s in MEDIA} | {s: (s,) for s in HELD_OUT_STYLES}
_GROUNDS = ("plain background", "empty background", WHITE_GROUND)


def asked(prompt: str) -> dict[str, str]:
    """The answer that the prompt wants to each question it settles; others are left out.

    Questions are those of the eyes: class, colour, background, style, facing, pattern.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    wanted: dict[str, str] = {}
    if any(_said(ground, text) for ground in _GROUNDS):
        wanted["background"] = PLAIN
        text = re.sub("plain background|white background", "", text)
    for style, words in _STYLES.items():
        if any(_said(word, text) for word in words):
            wanted["style"] = style
    choices = {"class": CLASSES, "colour": COLOURS, "background": BACKGROUNDS, "pattern": PATTERNS}
    for question, answers in choices.items():
        for answer in answers:
            if _said(answer, text):
                wanted[question] = answer
    for facing in FACINGS:
        if _said(f"facing {facing}", text):
            wanted["facing"] = facing
    return wanted


def _said(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "
