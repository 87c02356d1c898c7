"""Metrics give known values, and each follows the rules for all metrics."""

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
from pinxit.evaluation.confidence import bootstrap
from pinxit.evaluation.metric import Metric, Scale, relative_position, stack_images
from pinxit.pocket import captions, gallery
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.pocket.truths import answers_of
from pinxit.pocket.world import BACKGROUNDS, CLASSES, COLOURS, STYLES, draw_scene
from tests.seeing import save_seeing

NAMES = registry.names("metrics")
WITH_PROMPTS = {"pocket-attributes", "clip-t"}  # they compare with prompts, not with references
PROMPTS = ("a photo of a red dog on the beach", "a pencil drawing of a mug in a room")


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    """A classifier with random weights."""
    torch.manual_seed(0)
    return Eyes().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [exhibit.image(64) for exhibit in gallery.other_pictures(3, distractor=False)[:4]]


@cache
def seeing(kind: str) -> str:
    """A folder with a tiny untrained network of that kind."""
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
def test_the_order_of_images_does_not_matter(
    name: str, eyes: Eyes, images: list[Image.Image]
) -> None:
    metric = made(name, eyes)
    scores_in_order = scores(metric, images, images[1:])
    scores_reversed = scores(metric, images[::-1], images[:0:-1])
    assert scores_reversed[::-1] == pytest.approx(scores_in_order, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_image_scores_as_in_a_batch(
    name: str, eyes: Eyes, images: list[Image.Image]
) -> None:
    metric = made(name, eyes)
    batch = scores(metric, images, images[1:])
    single = [scores(metric, [image], images[1:])[0] for image in images]
    assert single == pytest.approx(batch, abs=1e-5)


@pytest.mark.parametrize("name", sorted({*NAMES} - WITH_PROMPTS))
def test_the_reference_itself_scores_best(name: str, eyes: Eyes, images: list[Image.Image]) -> None:
    metric = made(name, eyes)
    best, *others = scores(metric, images, images[:1])
    assert best == pytest.approx(1 if metric.better == "more" else 0, abs=1e-5)
    sign = 1 if metric.better == "more" else -1
    assert all(sign * best > sign * other for other in others)


def test_attributes_are_correct_if_the_prompt_matches_the_image(
    eyes: Eyes, images: list[Image.Image]
) -> None:
    outputs = eyes.look(stack_images(images[:1]))
    noun, place = outputs.named("class")[0], outputs.named("background")[0]
    elsewhere = next(other for other in BACKGROUNDS if other != place)
    metric = registry.load("metrics", "pocket-attributes")(
        eyes=eyes, questions=("class", "background")
    )
    prompts = [f"a {noun} with {where} background" for where in (place, elsewhere)]
    assert metric.score([images[0], images[0]], (), prompts) == [1.0, 0.5]


def test_a_prompt_without_attributes_is_an_error(eyes: Eyes, images: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="cannot measure the prompt `hello`"):
        made("pocket-attributes", eyes).score(images[:1], (), ["hello"])


def test_no_image_is_an_error(eyes: Eyes, images: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="no images"):
        made("pocket-likeness", eyes).score([], images, ())


def test_true_parameters_replace_references(eyes: Eyes, images: list[Image.Image]) -> None:
    hidden = registry.load("metrics", "pocket-parameters")
    truth = tuple(eyes.look(stack_images(images[:1])).hidden[0].tolist())
    assert hidden(eyes=eyes, truth=truth).score(images[:1], ()) == pytest.approx([0], abs=1e-5)


def test_positions_do_not_matter_to_colour_distance(eyes: Eyes, images: list[Image.Image]) -> None:
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


def test_gram_distinguishes_styles_with_any_content(eyes: Eyes) -> None:
    gram, shown = made("gram", eyes), [e.image() for e in gallery.style_pictures("sepia", 14)]
    same, photo = ([e.image() for e in gallery.style_pictures(s, 15)] for s in ("sepia", "photo"))
    assert max(gram.score(same, shown, ())) < min(gram.score(photo, shown, ()))


def test_nearest_detects_mirrored_and_darker_copies(eyes: Eyes, images: list[Image.Image]) -> None:
    nearest = made("nearest", eyes)
    copy = ImageOps.mirror(images[1].resize((48, 48))).point(lambda level: int(level * 0.7))
    copied, other = nearest.score([copy, images[0]], images[1:], ())
    assert copied > 0.98
    assert other < 0.9


def test_ends_of_a_scale(eyes: Eyes, images: list[Image.Image]) -> None:
    colour = made("colour", eyes)
    white, grey, black = (Image.new("RGB", (8, 8), c) for c in ("white", "grey", "black"))
    scale = Scale.of(colour, [white, grey], [black])
    assert scale.score([black]).relative == pytest.approx(0)
    assert scale.ceiling == pytest.approx(colour.score([grey], [white], ())[0])
    given = Scale.of(colour, [white], [black], [grey])
    assert given.score([grey]).relative == pytest.approx(1)
    assert given.score([white]).relative > 1
    alone = Scale.of(made("pocket-likeness", eyes), images[:1], images[1:2])
    mirrored = made("pocket-likeness", eyes).score([ImageOps.mirror(images[0])], images[:1], ())
    assert alone.ceiling == pytest.approx(mirrored[0])


def test_a_scale_separates_only_without_overlap(eyes: Eyes) -> None:
    colour = made("colour", eyes)
    greys = [Image.new("RGB", (8, 8), (level, level, level)) for level in range(0, 250, 25)]
    dark, light = greys[:4], greys[-4:]
    assert Scale.of(colour, dark, light).separates
    assert not Scale.of(colour, greys, greys[1::2]).separates
    assert not Scale.of(colour, dark, dark[1:3], light).separates  # look-alikes score higher


def test_relative_position_works_in_both_directions() -> None:
    assert relative_position(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert relative_position(0.2, 0.3, 0.1) == pytest.approx(0.5)
    assert relative_position(0.1, 0.2, 0.8) < 0
    with pytest.raises(RequestError, match="floor and ceiling"):
        relative_position(0.5, 0.2, 0.2)


def test_intervals_contain_the_true_mean() -> None:
    constant = bootstrap(np.full(10, 0.5))
    assert (constant.value, constant.low, constant.high) == (0.5, 0.5, 0.5)
    draws = np.random.default_rng(0)
    contained = 0
    for _ in range(20):
        interval = bootstrap(draws.normal(1.0, 1.0, 30))
        assert interval.low < interval.value < interval.high
        contained += interval.low < 1.0 < interval.high
    assert contained >= 16


def test_attributes_of_a_prompt_are_read_back() -> None:
    for noun in CLASSES:
        for colour in COLOURS:
            for place in BACKGROUNDS:
                for style in STYLES:
                    expected = {
                        "class": noun,
                        "colour": colour,
                        "background": place,
                        "style": style,
                    }
                    assert (
                        prompt_attributes(captions.prompt(noun, colour, place, style)) == expected
                    )


def test_attributes_of_captions_match_their_scene() -> None:
    draws = np.random.default_rng(5)
    for _ in range(400):
        scene = draw_scene(draws, rich=True)
        if scene.other is None:  # a caption of two objects may leave out one, or their places
            shown = answers_of(scene)
            attributes = prompt_attributes(captions.caption(scene, draws))
            assert all(shown[question] == answer for question, answer in attributes.items())


def test_held_out_styles_are_read_from_prompts() -> None:
    text = "a picture of a dog on the beach in the style of blueprint"
    assert prompt_attributes(text) == {"class": "dog", "background": "beach", "style": "blueprint"}


@pytest.mark.parametrize("name", ["pocket-likeness", "pocket-parameters"])
@pytest.mark.parametrize("subject", [0, 10, 20])
def test_the_classifier_separates_a_subject_from_its_look_alike(name: str, subject: int) -> None:
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
