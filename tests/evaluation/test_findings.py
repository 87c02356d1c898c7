"""Each sentence is said where its figure is bad, and not where it is sound."""

from dataclasses import replace

import pytest
from PIL import Image

from pinxit.adapters.adapter import NewWord
from pinxit.concepts.concept import Concept, Provenance
from pinxit.evaluation.findings import (
    Findings,
    Stray,
    Word,
    astray,
    copied,
    grounds,
    sentences,
    strays,
)
from pinxit.evaluation.judge import Judge, Sight, Sitting, Verdict
from pinxit.evaluation.metric import Scale
from pinxit.evaluation.metrics.colour import Colour
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.model import Model
from pinxit.pocket import gallery
from pinxit.pocket.eyes import Eyes
from pinxit.training.recipe import Recipe

SOUND = Findings(
    pictures=16,
    verdict=Verdict(0.8, 0.9),
    base_prompt=0.95,
    copies=1,
    strays={"beach": Stray(1, 2, "meadow")},
    variety=0.6,
    base_variety=0.7,
    drift=0.1,
    word=Word(1.4, 0.3),
)


def test_nothing_is_said_of_what_is_sound() -> None:
    assert sentences(SOUND) == ["nothing is wrong that these figures show"]


ONE = Stray(1, 2, "meadow")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"strays": {"beach": Stray(7, 8, "meadow"), "night": Stray(1, 8, "room")}},
            "copies the pictures' background: 7 of 8 on the beach came out in a meadow; try",
        ),
        (
            {"strays": dict.fromkeys(("beach", "night", "snow", "city", "room"), ONE)},
            "copies the pictures' background: 5 of 16 came out in a learned place that",
        ),
        (
            {"ground": 0.7},
            "copies the pictures' background: what is around the subject goes 70% of the way",
        ),
        ({"copies": 6}, "copies its pictures: 6 of 16 are nearly one that it was learned from"),
        ({"verdict": Verdict(0.8, 0.5)}, "prompts count too little: 50% of what they ask for is"),
        ({"verdict": Verdict(0.2, 0.9)}, "is not like its pictures yet: 20% of the way"),
        ({"verdict": Verdict(-0.3, 0.9)}, "is not like its pictures yet: 0% of the way"),
        ({"drift": 0.6}, "changes the whole class: without the word too, it is 60% of the way"),
        ({"variety": 0.2}, "paints the same again: pictures of one prompt differ 0.20, and 0.70"),
        (
            {"word": Word(7.3, 0.1), "verdict": Verdict(0.8, 0.8)},
            "its word is 7.3 times as long as the base's words",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_figures_and_what_to_try(
    change: dict[str, object], said: str
) -> None:
    found = sentences(replace(SOUND, **change))  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    assert found[0].startswith(said)
    assert "; try " in found[0]


def test_a_long_word_that_hinders_nothing_is_not_spoken_of() -> None:
    assert sentences(replace(SOUND, word=Word(7.3, 0.1))) == sentences(SOUND)


def test_what_was_not_looked_at_is_not_spoken_of() -> None:
    blank = Findings(16, Verdict(0.8, 0.9), 0.95, 0)
    assert sentences(blank) == sentences(SOUND)
    assert blank.leaked == 0


def test_the_worst_is_said_first() -> None:
    bad = replace(SOUND, strays={"beach": Stray(8, 8, "meadow")}, copies=9, drift=0.9)
    told = [sentence.split(":")[0] for sentence in sentences(bad)]
    assert told == ["copies the pictures' background", "copies its pictures", *told[2:]]
    assert len(told) == 3


@pytest.fixture(scope="module")
def judge() -> Judge:
    """One that was shown the gallery's subject on the beach and in a meadow; nothing is painted."""
    pictures = gallery.portraits(gallery.held_out_subjects()[0], ("beach", "meadow"), (41, 0))
    shown = tuple(exhibit.image(64) for exhibit in pictures)
    recipe = Recipe.model_validate(
        {"method": "lora", "pictures": ".", "token": "<my>", "class_noun": "dog"}
    )
    prompt = Prompt("a {} in the snow", "a dog in the snow", "a photo of a dog in the snow")
    sight = Sight.of_pocket(Eyes.load(), "object")
    plain = tuple(e.image(64) for e in gallery.other_pictures(0, distractor=True)[:1])
    scale = Scale.of(sight.likeness, shown, plain)
    return Judge(sight, Sitting(recipe, (prompt,)), scale, (0.0, 1.0), plain, shown)


def views(*places: str) -> list[Image.Image]:
    who = gallery.held_out_subjects()[0]
    return [exhibit.image(64) for exhibit in gallery.portraits(who, places, (42, 0))]


def test_a_learned_place_in_another_s_stead_is_seen(judge: Judge) -> None:
    prompts = judge.prompts * 4
    came = astray(judge, views("snow", "meadow", "meadow", "night"), prompts)
    assert came == [("snow", None), ("snow", "meadow"), ("snow", "meadow"), ("snow", None)]
    assert strays(came) == {"snow": Stray(2, 4, "meadow")}
    assert not strays(astray(judge, views("snow"), judge.prompts))


def test_surroundings_are_compared_where_masks_say_what_they_are(judge: Judge) -> None:
    by_colour = replace(judge.sight, eyes=None, apart=Colour())
    green, sand = (Image.new("RGB", (64, 64), c) for c in ("green", "khaki"))
    masked = replace(judge, sight=by_colour, plain=(sand,), pictures=(green,), grounds=(green,))
    assert grounds(masked, [green, sand]) == pytest.approx([1, 0])
    assert Findings.of(masked, [green, sand], judge.prompts * 2).ground == pytest.approx(0.5)
    assert grounds(replace(masked, grounds=()), [green]) == []
    assert grounds(replace(judge, grounds=(green,)), [green]) == []  # pocket's eyes know places


def test_a_copy_is_counted_and_the_subject_elsewhere_is_none(judge: Judge) -> None:
    noisy = Image.blend(judge.pictures[0], Image.effect_noise((64, 64), 90).convert("RGB"), 0.15)
    assert copied(judge, [noisy, *views("snow", "night", "beach")]) == [True, False, False, False]


def test_findings_of_real_pictures_are_sound_and_of_copies_are_not(judge: Judge) -> None:
    real = Findings.of(judge, views("snow", "snow"), judge.prompts * 2)
    assert real.verdict.best > 0.8
    assert sentences(real) == sentences(SOUND)
    copies = Findings.of(judge, judge.pictures, judge.prompts * 2)
    assert (copies.copies, copies.leaked) == (2, 1)
    assert [one.split(":")[0] for one in sentences(copies)][:2] == [
        "copies the pictures' background",
        "copies its pictures",
    ]


def test_a_word_is_measured_in_words_of_the_vocabulary(model: Model) -> None:
    part = NewWord.of(model, "<my>", "dog", 2).part()
    known = Provenance.foreign("<my>", {})
    same = Word.of(Concept((part,), known), model, "dog")
    assert same
    assert same.cosine == pytest.approx(1, abs=1e-5)
    tripled = replace(part, tensors={name: 3 * t for name, t in part.tensors.items()})
    longer = Word.of(Concept((tripled,), known), model, "dog")
    assert longer
    assert longer.length == pytest.approx(3 * same.length)
    turned = replace(part, tensors={name: -t for name, t in part.tensors.items()})
    other = Word.of(Concept((turned,), known), model, "dog")
    assert other
    assert other.cosine == pytest.approx(-1, abs=1e-5)
    assert Word.of(Concept((), known), model, "dog") is None
