"""What a prompt asks for, in the words of pocket's world: captions, read backwards."""

from __future__ import annotations

import re

from pinxit.pocket.words import MANNERS, MEDIA, RELATION_PHRASES, WHITE_GROUND
from pinxit.pocket.world.attributes import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    FACINGS,
    HELD_OUT_STYLES,
    PATTERNS,
    PLAIN,
    POSES,
    WORN,
)

_STYLES = {s: (*MEDIA[s], *MANNERS[s]) for s in MEDIA} | {s: (s,) for s in HELD_OUT_STYLES}
_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "style": _STYLES,
    "class": {noun: (noun,) for noun in CLASSES},
    "colour": {colour: (colour,) for colour in COLOURS},
    "background": {place: (place,) for place in BACKGROUNDS} | {"lake": ("lake", "water")},
    "pattern": {pattern: (pattern,) for pattern in PATTERNS},
    "pose": {pose: (pose,) for pose in POSES},
    "facing": {facing: (f"facing {facing}",) for facing in FACINGS},
}
_GROUNDS = ("plain background", "empty background", WHITE_GROUND)
_COLOUR, _CLASS, _WORN = (f"({'|'.join(names)})" for names in (COLOURS, CLASSES, WORN))
_THING = rf"(?:an?|the) (?:{_COLOUR} )?{_CLASS}\b"
_RUG = re.compile(rf"\bon (?:top of )?(?:an?|the) {_COLOUR} rug\b")
_WEARING = re.compile(rf"wearing (?:an? |the )?(?:{_COLOUR} )?{_WORN}\b")
_RELATED = [
    (relation, re.compile(phrase.format(_THING)))
    for relation, phrases in RELATION_PHRASES.items()
    for phrase in dict.fromkeys(phrases)
]


def asked(prompt: str) -> dict[str, str]:
    """The answer that the prompt wants to each question it settles; others are left out.

    Questions are those of the eyes: class, colour, background, style, facing, pattern and the rest.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower())).replace("mountains", "mountain")
    wanted: dict[str, str] = {}
    if any(_said(ground, text) for ground in _GROUNDS):
        wanted["background"] = PLAIN
        text = re.sub("plain background|white background", "", text)
    if found := _RUG.search(text):
        wanted["rug"] = found[1]
        text = text.replace(found[0], "")
    if found := _WEARING.search(text):
        wanted |= _known({"worn colour": found[1], "worn": found[2]})
        text = text.replace(found[0], "")
    relation, second, text = _second(text)
    for question, answers in _CHOICES.items():
        if said := [a for a, words in answers.items() if any(_said(word, text) for word in words)]:
            wanted[question] = said[-1]
    return _side_by_side(wanted, relation, second) if relation else wanted


def _second(text: str) -> tuple[str, dict[str, str], str]:
    """The relation to a second thing that a text asks for, the thing, and the text without."""
    for relation, phrase in _RELATED:
        if found := phrase.search(text):
            thing = _known({"other colour": found[1], "other": found[2]})
            return relation, thing, text.replace(found[0], "")
    return "", {}, text


def _side_by_side(wanted: dict[str, str], relation: str, second: dict[str, str]) -> dict[str, str]:
    """Of two things side by side the left one is the first, as the eyes have it."""
    if relation == "right" and "class" in wanted:
        first = {"other": wanted.pop("class"), "other colour": wanted.pop("colour", None)}
        turned = {"class": second["other"], "colour": second.get("other colour")}
        return wanted | _known(turned | first) | {"relation": "left"}
    return wanted | second | {"relation": relation}


def _known(answers: dict[str, str | None]) -> dict[str, str]:
    return {question: answer for question, answer in answers.items() if answer is not None}


def _said(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "
