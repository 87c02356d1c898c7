"""Captions of pocket's scenes: what a picture shows, in many ways of saying it."""

from __future__ import annotations

import numpy as np

from pinxit.pocket.words import (
    BROAD_NOUNS,
    DETERMINERS,
    MANNERS,
    MEDIA,
    MEDIUM_DETERMINERS,
    MEDIUM_WORDS,
    NEUTRAL_MEDIA,
    PLACE_PHRASES,
    RELATION_PHRASES,
    RUG_PHRASES,
    SEEN,
    STYLED_MEDIA,
    SUBJECT_WORDS,
    WHITE_GROUND,
)
from pinxit.pocket.world.attributes import LIVING, PLAIN, Other, Scene
from pinxit.pocket.world.style_names import STYLE_NAMES

MAX_TOKENS = 31  # of any caption, begin and end included

_SMALL, _LARGE = 0.9, 1.1  # scales below and above which a size may be mentioned
_NAMED = 0.75  # share of a named subject's captions that use its name
_PATTERN = 0.8
_NONCE = 0.1
_FACING = 0.25
_EXTRA = 0.85  # share of poses, things worn and rugs that are mentioned
_DRAWS = 24  # one call for all of a caption's random numbers: three times as fast as one by one


def caption(scene: Scene, rng: np.random.Generator, dense: float = 0.7) -> str:
    """Say what a scene shows, in lower case without punctuation and never empty.

    With probability `dense` the class (or name), the colour if it has a name, the background and
    the style if it has a name are all mentioned (an empty ground may be left out); else half are
    short ("a red dog", "beach") and half leave out some of the four. A style with a proper noun is
    always mentioned, or else captions without a style would ask for any of hundreds.
    """
    u: list[float] = rng.random(_DRAWS).tolist()
    proper = scene.style in STYLE_NAMES
    styled = proper or scene.style in MEDIA
    if u[0] < dense:
        return _full(scene, u, True, True, styled)
    rest = (u[0] - dense) / (1.0 - dense)
    if rest < 0.5:
        return _short(scene, u)
    if rest < 0.6 and styled:
        return _medium(STYLED_MEDIA, u, _modifiers(scene.scale, u)[0]) + _manner(scene.style, u[12])
    return _full(scene, u, u[13] < 0.5, u[14] < 0.5, styled and (proper or u[15] < 0.5))


def prompt(
    class_noun: str,
    colour: str | None,
    background: str,
    style: str,
    pattern: str = "plain",
    facing: str | None = None,
    extra: str = "",
) -> str:
    """Write the canonical full prompt, as in "a pencil drawing of a red dog on the beach".

    `extra` is what `doing` says. Raises ValueError for a style that has no words; `class_noun` may
    be any noun phrase.
    """
    if style not in MEDIA:
        raise ValueError(f"the style {style!r} has no words: choose one of {', '.join(MEDIA)}")
    noun = phrase("a", colour, pattern if pattern != "plain" else None, class_noun)
    where = f" {PLACE_PHRASES[background][0]}"
    return f"a {MEDIA[style][0]} of {noun}{f' facing {facing}' if facing else ''}{extra}{where}"


def doing(
    pose: str | None = None,
    worn: tuple[str | None, str] | None = None,
    other: str | None = None,
    rug: str | None = None,
) -> str:
    """Say a pose, (colour, thing) worn, a second thing in its relation, a rug, in this order.

    `other` and `rug` are whole phrases.
    """
    text = f" {pose}" if pose else ""
    if worn:
        colour, kind = worn
        thing = f"{colour} {kind}" if colour else kind
        text += f" wearing {thing}" if kind == "glasses" else f" wearing {phrase('a', thing)}"
    return text + "".join(f" {phrase}" for phrase in (other, rug) if phrase)


def related(relation: str, thing: str, draw: float = 0.0) -> str:
    """Say how a subject stands to a second thing, as in "to the left of a blue mug"."""
    phrases = RELATION_PHRASES[relation]
    return phrases[int(draw * len(phrases))].format(thing)


def _extras(scene: Scene, u: list[float]) -> str:
    """What the subject does and wears, and what is next to it or under it, most of the time."""
    pose = worn = other = rug = None
    often = 0.04 if scene.pose == "standing" else _EXTRA
    if scene.subject.class_noun in LIVING and u[16] < often:
        pose = scene.pose
    if scene.worn and u[17] < _EXTRA:
        worn = (scene.worn[1] if u[17] < 0.7 else None, scene.worn[0])
    if scene.other:  # always: where it is there unsaid, one thing is painted twice
        other = _second(scene.other, u)
    if scene.rug and u[18] < _EXTRA:
        rug = RUG_PHRASES[int(u[20] * len(RUG_PHRASES))].format(phrase("a", scene.rug, "rug"))
    return doing(pose, worn, other, rug)


def _second(other: Other, u: list[float]) -> str:
    thing = phrase("a", other.colour if u[18] < 0.75 else None, other.subject.class_noun)
    return f"and {thing}" if u[19] < 0.08 else related(other.relation, thing, u[20])


def _full(scene: Scene, u: list[float], colour: bool, place: bool, style: bool) -> str:
    extras = _extras(scene, u)
    medium_word, subject_word = ("", "") if extras else _modifiers(scene.scale, u)
    text = _subject(scene, u, colour, subject_word)
    if u[10] < _FACING and not extras:
        text += f" facing {scene.facing}"
    text += extras
    if place:
        text += _place(scene, u)
    if extras:
        u[11] *= 0.75  # a style comes first, or the caption would be too long
    head, manner = _medium_parts(scene, u, medium_word, style, bool(extras))
    return f"{head} of {text}{manner}" if head else f"{text}{manner}"


def _short(scene: Scene, u: list[float]) -> str:
    kind = u[2]
    if scene.style in STYLE_NAMES:
        text = _medium(STYLED_MEDIA, u, "") if kind < 0.3 else _subject(scene, u, False, "")
        return text + _manner(scene.style, 0.0)
    if kind < 0.1 and scene.background != PLAIN:
        return scene.background if u[3] < 0.5 else PLACE_PHRASES[scene.background][int(u[4] * 4)]
    if kind < 0.18 and scene.style in MEDIA:
        return _medium(MEDIA[scene.style], u, "")
    text = _subject(scene, u, u[13] < 0.5, "", brief=True)
    if kind > 0.75 or scene.other:
        text += _extras(scene, u)
    if kind < 0.45 and scene.style in MEDIA:
        return f"{_medium(MEDIA[scene.style], u, '')} of {text}"
    return text + _place(scene, u) if kind < 0.6 else text


def _modifiers(scale: float, u: list[float]) -> tuple[str, str]:
    """Choose at most one word besides the attributes: for the medium or for the subject."""
    draw = u[1]
    if draw < 0.14:
        return MEDIUM_WORDS[int(draw / 0.14 * len(MEDIUM_WORDS))], ""
    if draw < 0.28:
        return "", SUBJECT_WORDS[int((draw - 0.14) / 0.14 * len(SUBJECT_WORDS))]
    if _SMALL <= scale <= _LARGE or draw > 0.6:
        return "", ""
    if scale < _SMALL:
        return ("small", "") if draw < 0.34 else ("", "small")
    if draw < 0.42:
        return "close-up", ""
    return ("large", "") if draw < 0.46 else ("", "large")


def _subject(scene: Scene, u: list[float], colour: bool, word: str, brief: bool = False) -> str:
    noun = scene.subject.class_noun
    named = scene.name if u[5] < _NAMED else None
    shade = scene.colour if colour else None
    pattern = scene.pattern if scene.pattern != "plain" and u[6] < _PATTERN else None
    determiner = DETERMINERS[int(u[8] * len(DETERMINERS))]
    if named:
        determiner, noun = _name(named, noun, determiner, u[9])
    elif u[7] < _NONCE:
        noun = f"{SEEN[int(u[7] / _NONCE * len(SEEN))]} {noun}"
    elif brief:
        noun = _broad(noun, u[9])
        determiner = "" if u[12] < 0.3 else determiner
    return phrase(determiner, word, shade, pattern, noun)


def _name(name: str, noun: str, determiner: str, draw: float) -> tuple[str, str]:
    """Use a proper noun as "tovi", "a tovi", "tovi the dog", "a tovi dog" or "tovi dog"."""
    if draw < 0.25:
        return "", name
    if draw < 0.45:
        return determiner, name
    if draw < 0.6:
        return "", f"{name} the {noun}"
    return (determiner if draw < 0.92 else ""), f"{name} {noun}"


def _broad(noun: str, draw: float) -> str:
    """Say "animal" or "toy" for the class now and then, so that such nouns can start a word."""
    if draw >= 0.2:
        return noun
    first = 0 if noun in LIVING else 1
    return BROAD_NOUNS[first + int(draw / 0.2 * (len(BROAD_NOUNS) - first))]


def _place(scene: Scene, u: list[float]) -> str:
    phrases = PLACE_PHRASES[scene.background]
    phrase = phrases[int(u[4] * len(phrases))]
    # "white" would be taken for a colour where the subject's own has no name
    if scene.background == PLAIN and scene.colour is not None and u[4] < 0.1:
        phrase = WHITE_GROUND
    return f" {phrase}" if phrase else ""


def _medium_parts(
    scene: Scene, u: list[float], word: str, style: bool, extras: bool
) -> tuple[str, str]:
    """The words before "of" (or none) and those after the scene."""
    draw = u[11]
    if scene.style in STYLE_NAMES:
        head = _medium(STYLED_MEDIA, u, word) if draw < 0.8 and not extras else ""
        return head, _manner(scene.style, u[12])
    if style and draw < 0.75:
        return _medium(MEDIA[scene.style], u, word), ""
    if style:
        manner = _manner(scene.style, u[12])
        return ("", manner) if draw > 0.96 else (_medium(STYLED_MEDIA, u, word), manner)
    return ("", "") if draw < 0.5 else (_medium(NEUTRAL_MEDIA, u, word), "")


def _medium(media: tuple[str, ...], u: list[float], word: str) -> str:
    determiner = MEDIUM_DETERMINERS[int(u[2] * len(MEDIUM_DETERMINERS))]
    return phrase(determiner, word, media[int(u[3] * len(media))])


def _manner(style: str, draw: float) -> str:
    manners = MANNERS.get(style, (style,))
    return f" in the style of {manners[int(draw * len(manners))]}"


def phrase(determiner: str, *words: str | None) -> str:
    """A determiner before words, "an" where "a" would be wrong."""
    text = " ".join([word for word in words if word])
    if determiner == "a" and text.startswith(("orange", "animal", "object")):
        return f"an {text}"
    return f"{determiner} {text}" if determiner else text
