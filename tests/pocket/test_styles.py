"""The space of styles: its renderer, its names, what captions and eyes make of it."""

# pyright: standard
from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pinxit.pocket import data, painter
from pinxit.pocket.captions import MAX_TOKENS, caption
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.painter import Encoded
from pinxit.pocket.text_training import text_scenes
from pinxit.pocket.tokenizer import write_tokenizer
from pinxit.pocket.truths import answers_of, truth
from pinxit.pocket.words import NAMES, vocabulary_words
from pinxit.pocket.world import (
    HELD_OUT_DRAWN,
    HELD_OUT_STYLES,
    STYLE_NAMES,
    STYLES,
    Scene,
    StyleParameters,
    draw_scene,
    named_styles,
    render_styles,
    style_distance,
    style_parameters,
    style_space,
)
from pinxit.pocket.world.canvas import Canvas
from pinxit.pocket.world.style_parameters import NUMBERS_OF_A_STYLE
from pinxit.pocket.world.style_pass import style_pass
from pinxit.pocket.world.style_space import NEAREST

TEN = (*STYLES, *HELD_OUT_STYLES)


def looks(number: int, styles: tuple[str, ...]) -> list[np.ndarray]:
    scene = draw_scene(np.random.default_rng((5, number)), rich=True)
    return [rendered.image for rendered in render_styles(scene, styles)]


def test_the_ten_styles_have_the_pixels_they_always_had() -> None:
    total = hashlib.sha256()
    for number in range(8):
        for image in looks(number, TEN):
            total.update(image.tobytes())
    assert total.hexdigest() == ("b56216f3effe6816bd4427f5e2ec038f9017c3ae3ebf4664924362e99501fe0d")


def test_the_numbers_of_a_style_decide_its_pixels() -> None:
    styles = (*STYLE_NAMES[:12], *HELD_OUT_DRAWN)
    first, second = looks(1, styles), looks(1, styles)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    for a, b in itertools.combinations(first, 2):
        assert np.abs(a.astype(int) - b).mean() > 3


def test_a_style_of_the_space_leaves_the_structure() -> None:
    scene = draw_scene(np.random.default_rng(4))
    plain, styled = render_styles(scene, ("photo", STYLE_NAMES[0]))
    assert (plain.mask == styled.mask).all() and (plain.keypoints == styled.keypoints).all()


def test_drawn_numbers_and_vectors_are_in_range() -> None:
    drawn = [StyleParameters.draw(np.random.default_rng(seed)) for seed in range(300)]
    assert drawn[7] == StyleParameters.draw(np.random.default_rng(7))
    numbers = np.array([[*s.paper, *s.ink, *dataclasses.astuple(s)[2:]] for s in drawn])
    vectors = np.stack([style.vector() for style in drawn])
    assert vectors.shape == numbers.shape == (300, NUMBERS_OF_A_STYLE)
    for values in (numbers, vectors):
        assert values.min() >= 0 and values.max() <= 1
    assert (numbers.std(0) > 0.08).all()


def test_what_cannot_be_seen_does_not_count_in_the_vector() -> None:
    red, blue = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
    assert style_distance(StyleParameters(red, red), StyleParameters(blue, blue)) == 0
    lined = [StyleParameters(red, ink, line=1.0) for ink in (red, blue)]
    assert style_distance(*lined) > 0.15


@pytest.mark.parametrize("style", TEN)
def test_the_style_space_comes_near_to_each_of_the_ten(style: str) -> None:
    away = np.zeros(len(TEN))
    for number in range(4):
        scene = draw_scene(np.random.default_rng((9, number)), plain=0)
        images = [rendered.image.astype(int) for rendered in render_styles(scene, TEN)]
        away += [np.abs(near(scene, style) - image).mean() for image in images]
    assert TEN[int(np.argmin(away))] == style


def near(scene: Scene, style: str) -> np.ndarray:
    """A scene rendered by the numbers that are nearest to one of the ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style_space, "style_parameters", lambda _: NEAREST[style])
        return render_styles(scene, (HELD_OUT_DRAWN[0],))[0].image.astype(int)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(StyleParameters)[2:]])
def test_every_number_can_be_seen(field: str) -> None:
    canvas = Canvas(64)
    canvas.paint(np.hypot(canvas.u, canvas.v) - 0.8, (0.2, 0.5, 0.3))
    canvas.subject = True
    canvas.paint(np.hypot(canvas.u - 0.2, canvas.v) - 0.5, (0.7, 0.3, 0.2))
    middle = StyleParameters(
        (0.9, 0.8, 0.6), (0.2, 0.1, 0.3), line=0.5, hatching=0.4, dots=0.4, ground=0.6, subject=0.8
    )
    low, high = (
        style_pass(dataclasses.replace(middle, **{field: v}), canvas, np.random.default_rng(0))
        for v in (0.1, 0.9)
    )
    assert np.abs(high - low).mean() > 0.002


def test_named_styles_differ_from_those_held_out() -> None:
    named = named_styles()
    assert tuple(named) == STYLE_NAMES and len(set(named.values())) == 240
    for style in (*HELD_OUT_STYLES, *HELD_OUT_DRAWN):
        assert (
            min(style_distance(style_parameters(style), other) for other in named.values()) > 0.13
        )


def test_a_style_that_does_not_exist_is_an_error() -> None:
    for style in ("cubism", "drawn", "drawn x"):
        with pytest.raises(KeyError):
            style_parameters(style)


def test_names_of_styles_are_words_of_their_own() -> None:
    assert len(set(STYLE_NAMES)) == len(STYLE_NAMES) == 240
    assert not set(STYLE_NAMES) & set(NAMES)
    others = {word for word in vocabulary_words() if len(word) > 2} - set(STYLE_NAMES)
    for name in STYLE_NAMES:
        assert not any(word.startswith(name) or name.startswith(word) for word in others), name


def test_captions_name_the_style_of_the_scene_and_no_other(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    scenes = [scene for index in range(1_500) for scene in data.styled_scenes(index)]
    texts = [caption(scene, rng) for scene in scenes]
    for scene, text in zip(scenes, texts, strict=True):
        assert text.endswith(f"in the style of {scene.style}")
        assert set(re.findall("[a-z]+", text)) & set(STYLE_NAMES) == {scene.style}
    assert {scene.style for scene in scenes} == set(STYLE_NAMES)
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= MAX_TOKENS
    unnamed = [scene for index in range(200) for scene in data.styled_scenes(index, 7)]
    assert len({scene.style for scene in unnamed}) == 400
    assert not {scene.style for scene in unnamed} & set(HELD_OUT_DRAWN)
    for scene in unnamed:
        assert "style" not in caption(scene, rng)


def test_the_truth_about_a_styled_scene_is_its_numbers() -> None:
    scenes = data.styled_scenes(3)
    answers, _, style = truth(list(scenes))
    assert answers["style"].tolist() == [-1, -1] and answers_of(scenes[0])["class"] is not None
    expected = np.stack([named_styles()[scene.style].vector() for scene in scenes])
    assert np.array_equal(style.numpy(), expected)


def test_half_of_the_text_encoders_captions_name_a_style() -> None:
    scenes = text_scenes(0)
    assert [scene.style in STYLE_NAMES for scene in scenes] == [False] * 32 + [True] * 32


def test_half_of_the_training_images_are_in_named_styles() -> None:
    scenes = [
        s for index in range(100) for s in (*data.scenes_at(index), *data.styled_scenes(index))
    ]
    scenes.sort(key=lambda scene: scene.style in STYLE_NAMES)

    def shares(styled: list[int]) -> float:
        every = torch.arange(200)
        nothing = torch.zeros(0)
        encoded = Encoded(
            nothing, nothing, nothing, scenes, every, every, torch.tensor(styled), 1.0
        )
        rows = np.concatenate([painter.chosen(encoded, 900 + n, 1_000) for n in range(60)])
        return float(np.mean([scenes[int(row)].style in STYLE_NAMES for row in rows]))

    assert 0.45 < shares(list(range(200, 400))) < 0.55


def test_eyes_read_style_parameters_if_they_are_trained_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eyes, pixels = Eyes(), torch.rand(3, 3, 64, 64) * 2 - 1
    (tmp_path / "eyes").mkdir()
    save_file(eyes.state_dict(), tmp_path / "eyes" / "eyes.safetensors")
    style = Eyes.load(tmp_path).look(pixels, batch=2).style
    assert style is not None and style.shape == (3, NUMBERS_OF_A_STYLE)
    assert torch.allclose(style, eyes(pixels).style, atol=1e-5)
    tensors = {n: t for n, t in eyes.state_dict().items() if not n.startswith("style.")}
    save_file(tensors, tmp_path / "eyes" / "eyes.safetensors")
    assert Eyes.load(tmp_path).look(pixels).style is None
