"""Pocket's held-out subjects for experiments: recipes, training images and likeness scales."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lab.quality.scores import subject_scales
from pinxit.evaluation.metric import Scale
from pinxit.pocket import gallery
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, held_out_subjects
from pinxit.training.recipe import Recipe

TOKEN = "<mytoy>"
REFERENCES = 5
_SEED = 21


def sample_subjects(count: int) -> list[int]:
    """The first subjects of all held-out ones, in a fixed random order."""
    order = np.random.default_rng(_SEED).permutation(len(held_out_subjects()))
    return order[:count].tolist()


def scales_of(subject: int, eyes: Eyes) -> dict[str, Scale]:
    """The likeness scales of a subject."""
    references, lookalikes, others = subject_images(subject)
    hidden = held_out_subjects()[subject].hidden().tolist()
    return subject_scales(references, lookalikes, others, hidden, eyes)


def recipe(subject: int, folder: Path, **options: object) -> Recipe:
    """A recipe for a subject; writes its training images into the folder first."""
    word = {"token": TOKEN, "class_noun": held_out_subjects()[subject].class_noun}
    images = write_references(subject, folder / "pictures")
    return Recipe.model_validate({**word, "images": images, "preview_every": 0, **options})


@cache
def subject_images(subject: int) -> tuple[list[Image.Image], ...]:
    """The training images, images of a look-alike, and other images of the subject."""
    places = np.random.default_rng((_SEED, subject)).permutation(BACKGROUNDS)[:REFERENCES]
    shown = gallery.portraits(held_out_subjects()[subject], places.tolist(), (_SEED, subject))
    look_alikes = gallery.other_pictures(subject, distractor=True)
    others = gallery.other_pictures(subject, distractor=False)
    return tuple([e.image() for e in exhibits] for exhibits in (shown, look_alikes, others))


def write_references(subject: int, folder: Path) -> Path:
    """Write a subject's training images into a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(subject_images(subject)[0]):
        image.save(folder / f"{number}.png")
    return folder
