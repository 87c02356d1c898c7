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


def prompt_attributes(prompt: str) -> dict[str, str]:
    """The attribute that the prompt names for each question; open questions are missing.

    Questions are those of the classifier: class, colour, background, style, facing and so on.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower())).replace("mountains", "mountain")
    attributes: dict[str, str] = {}
    if any(_mentions(ground, text) for ground in _GROUNDS):
        attributes["background"] = PLAIN
        text = re.sub("plain background|white background", "", text)
    if match := _RUG.search(text):
        attributes["rug"] = match[1]
        text = text.replace(match[0], "")
    if match := _WEARING.search(text):
        attributes |= _known({"worn colour": match[1], "worn": match[2]})
        text = text.replace(match[0], "")
    relation, second, text = _second(text)
    for question, answers in _CHOICES.items():
        for answer, words in answers.items():
            if any(_mentions(word, text) for word in words):
                attributes[question] = answer
    return _side_by_side(attributes, relation, second) if relation else attributes


def _second(text: str) -> tuple[str, dict[str, str], str]:
    """The relation to a second thing that a text asks for, the thing, and the text without."""
    for relation, phrase in _RELATED:
        if match := phrase.search(text):
            thing = _known({"other colour": match[1], "other": match[2]})
            return relation, thing, text.replace(match[0], "")
    return "", {}, text


def _side_by_side(
    attributes: dict[str, str], relation: str, second: dict[str, str]
) -> dict[str, str]:
    """Of two things side by side the left one is the first, as in the classifier."""
    if relation == "right" and "class" in attributes:
        first = {"other": attributes.pop("class"), "other colour": attributes.pop("colour", None)}
        turned = {"class": second["other"], "colour": second.get("other colour")}
        return attributes | _known(turned | first) | {"relation": "left"}
    return attributes | second | {"relation": relation}


def _known(answers: dict[str, str | None]) -> dict[str, str]:
    return {question: answer for question, answer in answers.items() if answer is not None}


def _mentions(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "
