"""Captions and tokenizer of pocket: what they say, never say, and how long they are."""

# pyright: standard
from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinxit.pocket.captions import MAX_TOKENS, caption, prompt
from pinxit.pocket.tokenizer import END, START, write_tokenizer
from pinxit.pocket.words import NAMES, PLACE_PHRASES, RARE, SEEN, UNSEEN, vocabulary_words
from pinxit.pocket.world.attributes import (
    BACKGROUNDS,
    COLOURS,
    EMBLEMS,
    FACINGS,
    HELD_OUT_STYLES,
    KEYPOINTS,
    PATTERNS,
    PLACES,
    STYLES,
    Scene,
    named_subjects,
)

# textual inversion's 27 templates for objects and 19 for styles, each without its placeholder
OBJECT_TEMPLATES = """
a photo of a|a rendering of a|a cropped photo of the|the photo of a|a photo of a clean
a photo of a dirty|a dark photo of the|a photo of my|a photo of the cool|a close-up photo of a
a bright photo of the|a cropped photo of a|a photo of the|a good photo of the|a photo of one
a close-up photo of the|a rendition of the|a photo of the clean|a rendition of a|a photo of a nice
a good photo of a|a photo of the nice|a photo of the small|a photo of the weird
a photo of the large|a photo of a cool|a photo of a small
"""
STYLE_HEADS = """
a painting|a rendering|a cropped painting|the painting|a clean painting|a dirty painting
a dark painting|a picture|a cool painting|a close-up painting|a bright painting
a cropped painting|a good painting|a close-up painting|a rendition|a nice painting
a small painting|a weird painting|a large painting
"""


def scenes(count: int, **fixed: Any) -> list[Scene]:
    draw = random.Random(3)
    subjects = named_subjects()

    def one(number: int) -> Scene:
        which = number % len(subjects)
        known: dict[str, Any] = {
            "subject": subjects[which],
            "colour": None if draw.random() < 0.3 else draw.choice(list(COLOURS)),
            "pattern": draw.choice(PATTERNS),
            "background": draw.choice(PLACES),
            "style": draw.choice(STYLES),
            "facing": draw.choice(FACINGS),
            "scale": draw.uniform(0.7, 1.3),
            "name": NAMES[which] if draw.random() < 0.3 else None,
        }
        return Scene(**(known | fixed))

    return [one(number) for number in range(count)]


def captions(many: list[Scene], dense: float = 0.7) -> list[str]:
    rng = np.random.default_rng(4)
    return [caption(scene, rng, dense) for scene in many]


def words_of(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_every_word_is_one_token(tokenizer) -> None:
    for word in vocabulary_words():
        ids = tokenizer(word).input_ids
        assert len(ids) == 3, word
        assert tokenizer.convert_ids_to_tokens(ids[1]) == f"{word}</w>"


def test_special_tokens_length_and_unknown_words(tokenizer) -> None:
    assert tokenizer.model_max_length == 32
    assert len(tokenizer) <= 1_600
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert (tokenizer.bos_token, tokenizer.eos_token) == (START, END)
    ids = tokenizer("zebra & Ünïcode 7", padding="max_length").input_ids
    assert len(ids) == 32
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "zebra&ünïcode7"
    assert tokenizer.encode("A  RED Dog") == tokenizer.encode("a red dog")


def test_tokenizer_files_are_the_same_each_time(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a")
    write_tokenizer(tmp_path / "b")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_templates_of_a_prompt_set_are_known() -> None:
    objects = re.split(r"[|\n]", OBJECT_TEMPLATES.strip())
    heads = re.split(r"[|\n]", STYLE_HEADS.strip())
    assert (len(objects), len(heads)) == (27, 19)
    templates = objects + [f"{head} in the style of" for head in heads]
    assert words_of(" ".join(templates)) <= set(vocabulary_words())
    texts = captions(scenes(40_000, style="photo")) + captions(scenes(40_000))
    starts = {" ".join(text.split()[:count]) for text in texts for count in range(4, 8)}
    assert not [template for template in templates if template not in starts]


@pytest.mark.long
def test_captions_have_known_words_and_fit(tokenizer) -> None:
    texts = captions(scenes(20_000)) + captions(scenes(10_000), dense=1.0)
    known = set(vocabulary_words())
    assert all(re.fullmatch(r"[a-z]+([ -][a-z]+)*", text) for text in texts)
    assert set().union(*map(words_of, texts)) <= known
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= MAX_TOKENS


def test_captions_do_not_name_hidden_things() -> None:
    hidden = {*HELD_OUT_STYLES, *EMBLEMS, *KEYPOINTS, "slim", "head", "tail", "legs", "spread"}
    hidden |= set(UNSEEN)
    hidden -= {"top", "front"}  # "on top of", "in front of"
    for style in (*STYLES, *HELD_OUT_STYLES):
        words = set().union(*map(words_of, captions(scenes(3_000, style=style))))
        assert not words & hidden


def test_a_style_without_words_is_left_out() -> None:
    styles = {"photo", "photograph", "painting", "style", "drawing", "print", "chalk", "cartoon"}
    for text in captions(scenes(3_000, style="sepia")):
        assert not words_of(text) & styles
    with pytest.raises(ValueError, match="sepia"):
        prompt("dog", "red", "beach", "sepia")


def test_captions_do_not_name_an_unnamed_colour() -> None:
    for text in captions(scenes(10_000, colour=None)):
        assert not words_of(text) & set(COLOURS)


def test_nonce_words_are_neutral() -> None:
    texts = captions(scenes(20_000, name=None))
    share = np.mean([bool(words_of(text) & set(SEEN)) for text in texts])
    assert 0.07 < share < 0.12
    assert set(SEEN) <= set().union(*map(words_of, texts))
    assert not any(words_of(text) & set(NAMES) for text in texts)


def test_dense_captions_name_everything() -> None:
    many = [s for s in scenes(5_000, name=None) if s.background in BACKGROUNDS]
    for scene, text in zip(many, captions(many, dense=1.0), strict=True):
        words = words_of(re.sub("photograph", "photo", re.sub("watercolor", "watercolour", text)))
        words |= words_of(text)
        parts = f"{scene.subject.class_noun} {scene.colour or ''} {scene.style}"
        assert any(phrase in text for phrase in PLACE_PHRASES[scene.background])
        assert words_of(parts) <= words, text


def test_a_known_individual_goes_by_its_name() -> None:
    named = [scene for scene in scenes(20_000) if scene.name]
    texts = captions(named)
    share = np.mean([s.name in words_of(text) for s, text in zip(named, texts, strict=True)])
    assert 0.65 < share < 0.78


def test_sizes_follow_the_scale() -> None:
    big, little = scenes(4_000, scale=1.2), scenes(4_000, scale=0.8)
    assert not any("small" in text for text in captions(big))
    assert not any("large" in text or "close" in text for text in captions(little))
    usual = set().union(*map(words_of, captions(scenes(4_000, scale=1.1))))
    assert not usual & {"small", "large", "close"}


def test_the_rng_alone_decides() -> None:
    assert captions(scenes(500)) == captions(scenes(500))
    assert all(captions(scenes(500), dense) for dense in (0.0, 1.0))


def test_canonical_prompts() -> None:
    text = prompt("dog", "red", "beach", "watercolour", "striped", "left")
    assert text == "a watercolour painting of a red striped dog facing left on the beach"
    assert prompt("mug", "orange", "plain", "photo") == (
        "a photo of an orange mug on a plain background"
    )


def test_names_and_nonces_are_words_of_their_own() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(named_subjects())
    assert len(set(RARE)) == len(RARE) == 48
    assert all(4 <= len(name) <= 6 for name in NAMES)
    assert all(len(word) == 3 for word in RARE)
    invented = {*NAMES, *RARE}
    plain = {word for word in vocabulary_words() if len(word) > 2} - invented
    for name in NAMES:
        assert not any(word.startswith(name) or name.startswith(word) for word in plain), name
        assert not any(other.startswith(name) for other in invented - {name}), name
