"""The bundled pictures are what their script makes, and say what they should."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from pinxit.images.folder import read_images
from pinxit.pocket import gallery
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.pocket.world import HELD_OUT_STYLES


def test_they_are_what_the_script_makes(tmp_path: Path) -> None:
    written = gallery.write(tmp_path)
    assert len(written) == 10
    stored = sorted(path.relative_to(gallery.folder()) for path in gallery.folder().glob("*/*"))
    assert stored == sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*"))
    for path in written:
        shipped = gallery.folder() / path.relative_to(tmp_path)
        ours, theirs = (np.asarray(Image.open(p), dtype=int) for p in (path, shipped))
        assert np.abs(ours - theirs).max() <= 1  # rounding of another processor
        words = path.with_suffix(".txt")
        if words.exists():
            assert words.read_text() == shipped.with_suffix(".txt").read_text()


def test_the_subject_has_no_captions_and_is_in_five_places() -> None:
    images = read_images(gallery.folder() / "subject")
    assert [image.caption for image in images] == [None] * 5
    places = [exhibit.scene.background for exhibit in gallery.subject_pictures()]
    assert len(set(places)) == 5


def test_the_styles_captions_name_everything_but_the_style() -> None:
    images = read_images(gallery.folder() / "style")
    assert len(images) == 5
    for image, exhibit in zip(images, gallery.style_pictures(), strict=True):
        scene = exhibit.scene
        shown = {"class": scene.subject.class_noun, "background": scene.background}
        assert prompt_attributes(image.caption or "") == shown
        assert scene.style in HELD_OUT_STYLES
        assert not re.search("style|blue|white|line", image.caption or "")


def test_ceiling_and_floor_are_other_images_than_the_references() -> None:
    shown = {exhibit.scene for exhibit in gallery.subject_pictures()}
    for distractor in (False, True):
        others = {e.scene for e in gallery.other_pictures(gallery.SUBJECT, distractor=distractor)}
        assert not shown & others
        assert {scene.subject for scene in others} <= {
            (gallery.distractors() if distractor else gallery.held_out_subjects())[0]
        }
