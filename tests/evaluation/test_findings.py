"""Each piece of advice appears for bad metrics and not for good ones."""

from dataclasses import replace

import pytest
from PIL import Image

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.evaluation.findings import (
    BackgroundLeak,
    EmbeddingNorm,
    Findings,
    advice,
    background_leaks,
    background_similarities,
    compare_backgrounds,
    near_copies,
)
from pinxit.evaluation.judge import Judge, JudgeScore, MetricSet, PromptRun
from pinxit.evaluation.metric import Scale
from pinxit.evaluation.metrics.colour import Colour
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.model import Model
from pinxit.pocket import gallery
from pinxit.pocket.eyes import Eyes
from pinxit.training.recipe import Recipe

GOOD = Findings(
    num_images=16,
    score=JudgeScore(0.8, 0.9),
    base_prompt=0.95,
    copies=1,
    leaks={"beach": BackgroundLeak(1, 2, "meadow")},
    variety=0.6,
    base_variety=0.7,
    drift=0.1,
    embedding_norm=EmbeddingNorm(1.4, 0.3),
)
EMPTY = Concept((), Provenance.from_metadata("<my>", {}))


def test_no_problem_with_good_metrics() -> None:
    assert advice(GOOD, EMPTY) == ["these metrics show no problem"]


ONE = BackgroundLeak(1, 2, "meadow")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {
                "leaks": {
                    "beach": BackgroundLeak(7, 8, "meadow"),
                    "night": BackgroundLeak(1, 8, "room"),
                }
            },
            "background leak: 7 of 8 images on the beach are in a meadow instead; try",
        ),
        (
            {"leaks": dict.fromkeys(("beach", "night", "snow", "city", "room"), ONE)},
            "background leak: 5 of 16 images show a training background instead; try",
        ),
        (
            {"background_similarity": 0.7},
            "background leak: backgrounds are 70% as similar to the training images",
        ),
        ({"copies": 6}, "copies of training images: 6 of 16 images are nearly identical"),
        (
            {"score": JudgeScore(0.8, 0.5)},
            "low prompt fidelity: 50%, and 95% without the token",
        ),
        ({"score": JudgeScore(0.2, 0.9)}, "low subject fidelity: 20% of that of real"),
        ({"score": JudgeScore(-0.3, 0.9)}, "low subject fidelity: 0% of that of real"),
        ({"drift": 0.6}, "class drift: without the token too, images are 60% as similar"),
        ({"variety": 0.2}, "low variety: images of one prompt differ by 0.20, and by 0.70"),
        (
            {"embedding_norm": EmbeddingNorm(7.3, 0.1), "score": JudgeScore(0.8, 0.8)},
            "large embedding norm: 7.3 times the vocabulary's mean",
        ),
    ],
)
def test_each_problem_is_reported_with_its_metric_and_advice(
    change: dict[str, object], sentence: str
) -> None:
    sentences = advice(replace(GOOD, **change), EMPTY)  # pyright: ignore[reportArgumentType]
    assert len(sentences) == 1
    assert sentences[0].startswith(sentence)
    assert "; try " in sentences[0]


def test_a_large_norm_is_no_problem_if_prompts_are_followed() -> None:
    assert advice(replace(GOOD, embedding_norm=EmbeddingNorm(7.3, 0.1)), EMPTY) == advice(
        GOOD, EMPTY
    )


def test_missing_metrics_are_no_problem() -> None:
    blank = Findings(16, JudgeScore(0.8, 0.9), 0.95, 0)
    assert advice(blank, EMPTY) == advice(GOOD, EMPTY)
    assert blank.leak_rate == 0


def test_advice_fits_the_method_and_the_trend(model: Model) -> None:
    provenance = Provenance.from_metadata("<my>", {})
    lora = Concept(
        (LoraAdapter.of(model, "denoiser", LoraConfig("lora", 2, 2, "attention"), 0).part(),),
        provenance,
    )
    vectors = Concept((EmbeddingAdapter.of(model, "<my>", "dog", 2).part(),), provenance)
    weak = replace(GOOD, score=JudgeScore(0.2, 0.5))
    assert not any("vectors" in sentence for sentence in advice(weak, lora))
    assert "a higher --rank" in advice(weak, lora)[-1]
    assert "fewer vectors" in advice(weak, vectors)[0]
    assert "fewer vectors" not in advice(weak, EMPTY)[0]
    assert "more vectors" in advice(weak, vectors)[-1]
    middle = replace(GOOD, score=JudgeScore(0.6, 0.9))
    assert advice(middle, lora, rising=True) == ["likeness is still rising (60%); try more steps"]
    assert advice(middle, lora) == advice(GOOD, EMPTY)


def test_no_advice_about_a_likeness_that_is_not_measured() -> None:
    unknown = replace(GOOD, score=JudgeScore(None, 0.9))
    assert advice(unknown, EMPTY, rising=True) == advice(GOOD, EMPTY)


def test_the_worst_problem_comes_first() -> None:
    bad = replace(GOOD, leaks={"beach": BackgroundLeak(8, 8, "meadow")}, copies=9, drift=0.9)
    problems = [sentence.split(":")[0] for sentence in advice(bad, EMPTY)]
    assert problems == ["background leak", "copies of training images", *problems[2:]]
    assert len(problems) == 3


@pytest.fixture(scope="module")
def judge() -> Judge:
    """A judge for the gallery's subject on the beach and in a meadow; it generates nothing."""
    exhibits = gallery.portraits(gallery.held_out_subjects()[0], ("beach", "meadow"), (41, 0))
    images = tuple(exhibit.image(64) for exhibit in exhibits)
    recipe = Recipe.model_validate(
        {"method": "lora", "images": ".", "token": "<my>", "class_noun": "dog"}
    )
    prompt = Prompt("a {} in the snow", "a dog in the snow", "a photo of a dog in the snow")
    metrics = MetricSet.for_pocket(Eyes.load(), "object")
    lookalikes = gallery.other_pictures(0, distractor=True)[:1]
    base_images = tuple(exhibit.image(64) for exhibit in lookalikes)
    scale = Scale.of(metrics.fidelity, images, base_images)
    run = PromptRun(recipe, (prompt,))
    return Judge(metrics, run, scale, (0.0, 1.0), base_images, images)


def views(*places: str) -> list[Image.Image]:
    who = gallery.held_out_subjects()[0]
    return [exhibit.image(64) for exhibit in gallery.portraits(who, places, (42, 0))]


def test_background_leaks_are_detected(judge: Judge) -> None:
    prompts = judge.prompts * 4
    pairs = compare_backgrounds(judge, views("snow", "meadow", "meadow", "night"), prompts)
    assert pairs == [("snow", None), ("snow", "meadow"), ("snow", "meadow"), ("snow", None)]
    assert background_leaks(pairs) == {"snow": BackgroundLeak(2, 4, "meadow")}
    assert not background_leaks(compare_backgrounds(judge, views("snow"), judge.prompts))


def test_backgrounds_are_compared_if_there_are_masks(judge: Judge) -> None:
    by_colour = replace(judge.metrics, eyes=None, similarity=Colour())
    green, sand = (Image.new("RGB", (64, 64), c) for c in ("green", "khaki"))
    masked = replace(
        judge,
        metrics=by_colour,
        base_images=(sand,),
        training_images=(green,),
        backgrounds=(green,),
    )
    assert background_similarities(masked, [green, sand]) == pytest.approx([1, 0])
    assert Findings.of(
        masked, [green, sand], judge.prompts * 2
    ).background_similarity == pytest.approx(0.5)
    assert background_similarities(replace(masked, backgrounds=()), [green]) == []
    assert (
        background_similarities(replace(judge, backgrounds=(green,)), [green]) == []
    )  # pocket's eyes know places


def test_a_copy_is_detected_but_not_other_images_of_the_subject(judge: Judge) -> None:
    noisy = Image.blend(
        judge.training_images[0], Image.effect_noise((64, 64), 90).convert("RGB"), 0.15
    )
    assert near_copies(judge, [noisy, *views("snow", "night", "beach")]) == [
        True,
        False,
        False,
        False,
    ]


def test_real_images_have_no_problem_and_copies_have(judge: Judge) -> None:
    real = Findings.of(judge, views("snow", "snow"), judge.prompts * 2)
    assert real.score.overall > 0.8
    assert advice(real, EMPTY) == advice(GOOD, EMPTY)
    copies = Findings.of(judge, judge.training_images, judge.prompts * 2)
    assert (copies.copies, copies.leak_rate) == (2, 1)
    assert [one.split(":")[0] for one in advice(copies, EMPTY)][:2] == [
        "background leak",
        "copies of training images",
    ]


def test_embedding_norm_is_relative_to_the_vocabulary(model: Model) -> None:
    part = EmbeddingAdapter.of(model, "<my>", "dog", 2).part()
    provenance = Provenance.from_metadata("<my>", {})
    same = EmbeddingNorm.of(Concept((part,), provenance), model, "dog")
    assert same
    assert same.cosine == pytest.approx(1, abs=1e-5)
    tripled = replace(part, tables={name: 3 * t for name, t in part.tables.items()})
    longer = EmbeddingNorm.of(Concept((tripled,), provenance), model, "dog")
    assert longer
    assert longer.relative_norm == pytest.approx(3 * same.relative_norm)
    negated = replace(part, tables={name: -t for name, t in part.tables.items()})
    other = EmbeddingNorm.of(Concept((negated,), provenance), model, "dog")
    assert other
    assert other.cosine == pytest.approx(-1, abs=1e-5)
    assert EmbeddingNorm.of(Concept((), provenance), model, "dog") is None
