"""Metrics give known answers, and every one of them keeps the promises of the kind."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pinxit import registry
from pinxit.errors import RequestError
from pinxit.evaluation.confidence import bootstrap, mean_share
from pinxit.evaluation.metric import Metric, Scale, share, stacked
from pinxit.pocket import captions, gallery
from pinxit.pocket.asked import asked
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.eyes_training import answers_of
from pinxit.pocket.world import BACKGROUNDS, CLASSES, COLOURS, STYLES, draw_scene
from tests.seeing import save_seeing

NAMES = registry.names("metrics")
ASKING = {"attributes", "clip-t"}  # they compare with the prompt
PROMPTS = ("a photo of a red dog on the beach", "a pencil drawing of a mug in a room")


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    """Eyes that were never trained: they see, and understand nothing."""
    torch.manual_seed(0)
    return Eyes().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [exhibit.image(64) for exhibit in gallery.other_pictures(3, distractor=False)[:4]]


@cache
def seeing(kind: str) -> str:
    """A folder with a little network of the kind that was never trained."""
    return str(save_seeing(kind, Path(mkdtemp())))


def made(name: str, eyes: Eyes) -> Metric:
    kind = registry.load("metrics", name)
    assert is_dataclass(kind)
    settings = {f.name for f in fields(kind)}
    if "weights" in settings:
        return kind(weights=seeing("clip" if name.startswith("clip") else "dino"))
    return kind(eyes=eyes) if "eyes" in settings else kind()


def scores(
    metric: Metric, images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> list[float]:
    prompts = [PROMPTS[0]] * len(images)
    return metric.score(images, references, prompts)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_pictures_does_not_matter(
    name: str, eyes: Eyes, images: list[Image.Image]
) -> None:
    metric = made(name, eyes)
    forth = scores(metric, images, images[1:])
    back = scores(metric, images[::-1], images[:0:-1])
    assert back[::-1] == pytest.approx(forth, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_alone_scores_as_among_others(
    name: str, eyes: Eyes, images: list[Image.Image]
) -> None:
    metric = made(name, eyes)
    together = scores(metric, images, images[1:])
    alone = [scores(metric, [image], images[1:])[0] for image in images]
    assert alone == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("name", sorted({*NAMES} - ASKING))
def test_the_reference_itself_scores_best_in_the_declared_direction(
    name: str, eyes: Eyes, images: list[Image.Image]
) -> None:
    metric = made(name, eyes)
    itself, *others = scores(metric, images, images[:1])
    assert itself == pytest.approx(1 if metric.better == "more" else 0, abs=1e-5)
    sign = 1 if metric.better == "more" else -1
    assert all(sign * itself > sign * other for other in others)


def test_attributes_are_right_when_the_prompt_says_what_is_seen(
    eyes: Eyes, images: list[Image.Image]
) -> None:
    seen = eyes.look(stacked(images[:1]))
    noun, place = seen.named("class")[0], seen.named("background")[0]
    elsewhere = next(other for other in BACKGROUNDS if other != place)
    metric = registry.load("metrics", "attributes")(eyes=eyes, questions=("class", "background"))
    prompts = [f"a {noun} with {where} background" for where in (place, elsewhere)]
    assert metric.score([images[0], images[0]], (), prompts) == [1.0, 0.5]


def test_a_prompt_that_asks_nothing_is_an_error(eyes: Eyes, images: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="`hello` asks for nothing"):
        made("attributes", eyes).score(images[:1], (), ["hello"])


def test_no_picture_is_an_error(eyes: Eyes, images: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="no picture"):
        made("likeness", eyes).score([], images, ())


def test_the_truth_takes_the_place_of_references(eyes: Eyes, images: list[Image.Image]) -> None:
    hidden = registry.load("metrics", "hidden")
    truth = tuple(eyes.look(stacked(images[:1])).hidden[0].tolist())
    assert hidden(eyes=eyes, truth=truth).score(images[:1], ()) == pytest.approx([0], abs=1e-5)


def test_colours_are_compared_wherever_they_are(eyes: Eyes, images: list[Image.Image]) -> None:
    colour = made("colour", eyes)
    turned = images[0].rotate(180)
    assert colour.score([turned], images[:1], ()) == pytest.approx([0], abs=1e-9)
    black, white, grey = (Image.new("RGB", (8, 8), c) for c in ("black", "white", "grey"))
    far, near = colour.score([white, grey], [black], ())
    assert far == pytest.approx(0.5, abs=0.01)
    assert near < far
    nearest = registry.load("metrics", "colour")(against="nearest")
    assert nearest.score([white], [black, white], ()) == pytest.approx([0], abs=1e-9)
    assert colour.between([white, black], [black, white]) == pytest.approx(0, abs=1e-9)


def test_a_manner_is_told_from_others_by_gram_whatever_is_shown(eyes: Eyes) -> None:
    gram, shown = made("gram", eyes), [e.image() for e in gallery.style_pictures("sepia", 14)]
    same, photo = ([e.image() for e in gallery.style_pictures(s, 15)] for s in ("sepia", "photo"))
    assert max(gram.score(same, shown, ())) < min(gram.score(photo, shown, ()))


def test_a_copy_is_found_mirrored_and_in_other_light(eyes: Eyes, images: list[Image.Image]) -> None:
    nearest = made("nearest", eyes)
    copy = ImageOps.mirror(images[1].resize((48, 48))).point(lambda level: int(level * 0.7))
    found, another = nearest.score([copy, images[0]], images[1:], ())
    assert found > 0.98
    assert another < 0.9


def test_a_scale_has_its_ends(eyes: Eyes, images: list[Image.Image]) -> None:
    colour = made("colour", eyes)
    white, grey, black = (Image.new("RGB", (8, 8), c) for c in ("white", "grey", "black"))
    scale = Scale.of(colour, [white, grey], [black])
    assert scale.score([black]).share == pytest.approx(0)
    assert scale.ceiling == pytest.approx(colour.score([grey], [white], ())[0])
    given = Scale.of(colour, [white], [black], [grey])
    assert given.score([grey]).share == pytest.approx(1)
    assert given.score([white]).share > 1
    alone = Scale.of(made("likeness", eyes), images[:1], images[1:2])
    mirrored = made("likeness", eyes).score([ImageOps.mirror(images[0])], images[:1], ())
    assert alone.ceiling == pytest.approx(mirrored[0])


def test_share_is_the_way_from_floor_to_ceiling_in_either_direction() -> None:
    assert share(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert share(0.2, 0.3, 0.1) == pytest.approx(0.5)
    assert share(0.1, 0.2, 0.8) < 0
    with pytest.raises(RequestError, match="floor and ceiling"):
        share(0.5, 0.2, 0.2)


def test_intervals_hold_what_they_should() -> None:
    sure = bootstrap(np.full((10, 3), (0.5, 0.0, 1.0)), mean_share)
    assert (sure.value, sure.low, sure.high) == (0.5, 0.5, 0.5)
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(20):
        found = bootstrap(draws.normal(1.0, 1.0, 30))
        assert found.low < found.value < found.high
        held += found.low < 1.0 < found.high
    assert held >= 16


def test_what_is_asked_is_what_the_prompt_was_written_from() -> None:
    for noun in CLASSES:
        for colour in COLOURS:
            for place in BACKGROUNDS:
                for style in STYLES:
                    wanted = {"class": noun, "colour": colour, "background": place, "style": style}
                    assert asked(captions.prompt(noun, colour, place, style)) == wanted


def test_captions_ask_for_what_their_scene_shows() -> None:
    draws = np.random.default_rng(5)
    for _ in range(400):
        scene = draw_scene(draws, rich=True)
        if scene.other is None:  # of two things a caption may leave out one, or which is where
            shown = answers_of(scene)
            told = asked(captions.caption(scene, draws))
            assert all(shown[question] == answer for question, answer in told.items())


def test_held_out_styles_can_be_asked_for() -> None:
    text = "a picture of a dog on the beach in the style of blueprint"
    assert asked(text) == {"class": "dog", "background": "beach", "style": "blueprint"}


@pytest.mark.parametrize("name", ["likeness", "hidden"])
@pytest.mark.parametrize("subject", [0, 10, 20])
def test_trained_eyes_tell_a_subject_from_its_look_alike(name: str, subject: int) -> None:
    metric = made(name, Eyes.load())
    places = BACKGROUNDS[:5]
    who = gallery.held_out_subjects()[subject]
    references = [e.image() for e in gallery.portraits(who, places, (31, subject))]
    own, other = (
        [e.image() for e in gallery.other_pictures(subject, distractor=distractor)]
        for distractor in (False, True)
    )
    sign = 1 if metric.better == "more" else -1
    worst = min(sign * score for score in metric.score(own, references, ()))
    best = max(sign * score for score in metric.score(other, references, ()))
    assert worst > best
