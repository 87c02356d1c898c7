"""What a scene of pocket's world can be: its attributes, its subjects, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

ClassNoun = Literal[
    "dog",
    "cat",
    "rabbit",
    "bird",
    "fish",
    "turtle",
    "car",
    "mug",
    "house",
    "boat",
    "robot",
    "teapot",
    "horse",
    "frog",
    "backpack",
    "clock",
]
CLASSES: tuple[str, ...] = get_args(ClassNoun)
LIVING = ("dog", "cat", "rabbit", "bird", "fish", "turtle", "horse", "frog")
FIRST_CLASSES = CLASSES[:12]  # of these are the known and the held-out individuals

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.13, 0.14),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.98, 0.86, 0.18),
    "green": (0.20, 0.62, 0.24),
    "blue": (0.15, 0.36, 0.86),
    "purple": (0.50, 0.22, 0.70),
    "pink": (0.98, 0.60, 0.76),
    "brown": (0.47, 0.28, 0.14),
    "black": (0.13, 0.13, 0.15),
    "white": (0.96, 0.96, 0.94),
}
UNNAMED_COLOURS: tuple[tuple[float, float, float], ...] = (
    (0.06, 0.56, 0.58),
    (0.36, 0.86, 0.80),
    (0.70, 0.88, 0.22),
    (0.94, 0.46, 0.40),
    (0.74, 0.66, 0.93),
    (0.50, 0.50, 0.12),
    (0.52, 0.06, 0.20),
    (0.86, 0.14, 0.58),
    (0.55, 0.57, 0.61),
    (0.84, 0.71, 0.50),
    (0.50, 0.76, 0.97),
    (0.09, 0.13, 0.42),
)
PATTERNS = ("plain", "striped", "spotted", "checked", "wavy", "scaly")
BACKGROUNDS = (
    *("beach", "forest", "snow", "city", "desert", "night", "room", "meadow"),
    *("mountain", "street", "wheat", "autumn", "lake", "jungle"),
)
PLAIN = "plain"  # one place more: an empty ground, where words are learned first
PLACES = (*BACKGROUNDS, PLAIN)
STYLES = ("photo", "cartoon", "watercolour", "pencil", "pop art", "chalk")
HELD_OUT_STYLES = ("sepia", "blueprint", "mosaic", "woodcut")
FACINGS = ("left", "right")
POSES = ("standing", "sitting", "sleeping", "jumping", "upside down")  # of living things
WORN = ("hat", "scarf", "glasses")
RELATIONS = ("left", "right", "on", "before")  # where the subject is, seen from the other thing
EMBLEMS = ("disc", "star", "diamond", "heart")
KEYPOINTS = ("front", "back", "top", "base")

HELD_OUT_SHARE = 0.1
HELD_OUT_SUBJECTS = 30
NAMED_SUBJECTS = 240
CLEARLY_OTHER = 0.35  # distance in RGB between a subject's colours and its distractor's


@dataclass(frozen=True)
class Subject:
    """One individual of a class: what no caption ever says.

    Colours are RGB in 0..1; `slim`, `head`, `tail`, `legs` and `spread` are proportions in 0..1;
    `emblem` is an index into EMBLEMS.
    """

    class_noun: str
    body: tuple[float, float, float]
    mark: tuple[float, float, float]
    slim: float
    head: float
    tail: float
    legs: float
    spread: float
    emblem: int

    def hidden(self) -> np.ndarray:
        """The 15 hidden parameters: two colours, five proportions, the emblem as one of four."""
        emblem = np.eye(len(EMBLEMS))[self.emblem]
        shape = (self.slim, self.head, self.tail, self.legs, self.spread)
        return np.concatenate([self.body, self.mark, shape, emblem]).astype(np.float32)


HIDDEN = 15


@dataclass(frozen=True)
class Other:
    """A second thing in a scene, of a named colour, and how the subject stands to it."""

    subject: Subject
    colour: str
    relation: str


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture: rendering it twice gives the same pixels.

    `colour` is None where the subject wears its own, unnamed colour; `name` is the proper noun of
    a known individual. `x`, `y` shift the subject (fractions of the picture), `scale` sizes it.
    `worn` is what it wears and in which colour; `rug` the colour of what lies under it.
    """

    subject: Subject
    colour: str | None
    pattern: str
    background: str
    style: str
    facing: str
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    seed: int = 0
    name: str | None = None
    pose: str = "standing"
    worn: tuple[str, str] | None = None
    rug: str | None = None
    other: Other | None = None


def held_out(class_noun: str, colour: str | None, background: str, style: str) -> bool:
    """Whether a combination of attributes is left out of training (one in ten, by a fixed rule)."""
    if colour is None or background == PLAIN or style not in STYLES:
        return False
    cell = (
        CLASSES.index(class_noun) * 7
        + list(COLOURS).index(colour) * 3
        + BACKGROUNDS.index(background) * 9
        + STYLES.index(style) * 11
    )
    return cell % round(1 / HELD_OUT_SHARE) == 3


def held_out_pose(class_noun: str, pose: str) -> bool:
    """Whether a living thing is never seen in a pose in training (one in eight, by a rule)."""
    if pose == "standing" or class_noun not in LIVING:
        return False
    return (LIVING.index(class_noun) * 3 + POSES.index(pose) * 5) % 8 == 2


def draw_subject(rng: np.random.Generator, class_noun: str | None = None) -> Subject:
    """Draw an individual whose body colour has no name in captions."""
    noun = class_noun or str(rng.choice(CLASSES))
    body, mark = rng.choice(len(UNNAMED_COLOURS), 2, replace=False)
    colours = [
        tuple(np.clip(np.array(UNNAMED_COLOURS[i]) + rng.uniform(-0.04, 0.04, 3), 0, 1).tolist())
        for i in (body, mark)
    ]
    slim, head, tail, legs, spread = rng.uniform(0, 1, 5).tolist()
    emblem = int(rng.integers(len(EMBLEMS)))
    return Subject(noun, colours[0], colours[1], slim, head, tail, legs, spread, emblem)


def _draw_many(seed: int, count: int) -> tuple[Subject, ...]:
    rng = np.random.default_rng(seed)
    return tuple(draw_subject(rng, FIRST_CLASSES[i % 12]) for i in range(count))


def named_subjects() -> tuple[Subject, ...]:
    """The individuals with a proper noun, what the world's captions know, by class in turn."""
    return _draw_many(7_001, NAMED_SUBJECTS)


def held_out_subjects() -> tuple[Subject, ...]:
    """Individuals that pocket's training never shows, for training new tokens."""
    return _draw_many(7_002, HELD_OUT_SUBJECTS)


def distractors() -> tuple[Subject, ...]:
    """For each held-out subject another of its class in clearly other colours: likeness's floor."""
    rng = np.random.default_rng(7_003)
    return tuple(_unlike(subject, rng) for subject in held_out_subjects())


def _unlike(subject: Subject, rng: np.random.Generator) -> Subject:
    while True:
        other = draw_subject(rng, subject.class_noun)
        body = np.linalg.norm(np.subtract(other.body, subject.body))
        mark = np.linalg.norm(np.subtract(other.mark, subject.mark))
        if min(body, mark) > CLEARLY_OTHER and other.emblem != subject.emblem:
            return other
