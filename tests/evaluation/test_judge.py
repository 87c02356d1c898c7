"""A judge gives 0 to look-alikes and 1 to real images, and generates its floor once."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.errors import RequestError
from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import (
    Anchors,
    JudgeScore,
    MetricSet,
    PromptRun,
    crop_to_subject,
    grey_out_subject,
    uses_pocket_vocabulary,
)
from pinxit.evaluation.metrics.clip_i import ClipI
from pinxit.evaluation.metrics.clip_t import ClipT
from pinxit.evaluation.metrics.dino import Dino
from pinxit.evaluation.prompt_sets import evenly_spaced, prompt_set, prompt_set_names, suitable_set
from pinxit.evaluation.scoring import compute_metrics
from pinxit.generation.image_cache import ImageCache
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.runs.best import save_if_best
from pinxit.runs.judging import generate_prompts, subject_judge
from pinxit.training.recipe import Recipe
from tests.seeing import save_seeing

QUICK = {"images_per_prompt": 2, "steps": 1}


def recipe(images: Path) -> Recipe:
    options = {"token": "<mytoy>", "class_noun": "dog", "method": "textual-inversion"}
    return Recipe.model_validate({**options, "images": images})


@pytest.fixture(scope="module")
def untrained() -> MetricSet:
    """Metrics of a classifier with random weights."""
    torch.manual_seed(0)
    return MetricSet.for_pocket(Eyes().requires_grad_(False).eval(), "object")


def test_overall_score_is_the_geometric_mean_of_clipped_scores() -> None:
    assert JudgeScore(0.25, 1.0).overall == pytest.approx(0.5)
    assert JudgeScore(1.7, 1.0).overall == 1
    assert JudgeScore(-0.2, 0.9).overall == 0


@pytest.mark.parametrize("name", prompt_set_names())
def test_prompt_sets_have_one_token_and_plain_prompts_none(name: str) -> None:
    prompts = prompt_set(name, "toy")
    assert len({prompt.template for prompt in prompts}) == len(prompts)
    for number, prompt in enumerate(prompts):
        assert prompt.with_token("<my>").count("<my>") == 1
        assert "{" not in prompt.plain + prompt.target_text
        assert prompt.seed == number


def test_dreambench_has_25_prompts_for_each() -> None:
    assert [len(prompt_set(name, "dog")) for name in ("objects", "living")] == [25, 25]


def test_suitable_prompt_sets() -> None:
    assert suitable_set("stuffed animal", style=False, pocket=False) == "objects"
    assert suitable_set("wild animal", style=False, pocket=False) == "living"
    assert suitable_set("running shoe", style=False, pocket=False) == "objects"
    assert suitable_set("painting", style=True, pocket=False) == "styles"
    assert suitable_set("dog", style=False, pocket=True) == "pocket-objects"
    with pytest.raises(RequestError, match="unknown prompt set `object`"):
        prompt_set("object", "dog")


@pytest.mark.parametrize("name", ["pocket-objects", "pocket-styles"])
def test_pocket_understands_its_own_sets(name: str) -> None:
    (encoder,) = open_base("pocket").text_encoders.values()
    for prompt in prompt_set(name, "dog"):
        assert {"class", "background"} <= prompt_attributes(prompt.target_text).keys()
        assert all(encoder.has_word(word) for word in prompt.plain.split())


def test_evenly_spaced_prompts_have_new_seeds() -> None:
    prompts = evenly_spaced(prompt_set("objects", "toy"), 8)
    assert [prompt.seed for prompt in prompts] == list(range(8))
    assert len({prompt.template for prompt in prompts}) == 8
    assert prompts[-1].plain == "a purple toy"


@pytest.mark.usefixtures("separating")
def test_the_floor_is_generated_once(
    model: Model,
    pictures: Path,
    tmp_path: Path,
    untrained: MetricSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = recipe(pictures)
    prompt_run = PromptRun(options, evenly_spaced(prompt_set("objects", "dog"), 2), **QUICK)
    images = options.read_images()
    folder = tmp_path / "floor"
    first = subject_judge(
        model, options, images, folder=folder, metrics=untrained, prompt_run=prompt_run
    )
    assert len(list(folder.iterdir())) == len(first.base_images) == len(first.prompts) == 4
    assert first.score(first.base_images, first.prompts).likeness == pytest.approx(0)
    # Generating now raises a TypeError.
    monkeypatch.setattr("pinxit.generation.image_cache.sample_images", None)
    again = subject_judge(
        model, options, images, folder=folder, metrics=untrained, prompt_run=prompt_run
    )
    assert again.fidelity_scale.floor == first.fidelity_scale.floor
    with pytest.raises(TypeError):
        subject_judge(model, options, images, metrics=untrained, prompt_run=prompt_run)


@pytest.mark.usefixtures("separating")
def test_an_applied_concept_is_evaluated(
    model: Model, pictures: Path, untrained: MetricSet
) -> None:
    options = recipe(pictures)
    prompt_run = PromptRun(options, evenly_spaced(prompt_set("objects", "dog"), 2), **QUICK)
    judge = subject_judge(
        model, options, options.read_images(), metrics=untrained, prompt_run=prompt_run
    )
    with applied(model, [EmbeddingAdapter.of(model, "<mytoy>", "dog", 1)]):
        images = generate_prompts(prompt_run, model, options.token, ImageCache())
    score = judge.score(images, judge.prompts)
    # The class noun's embedding generates what the noun does.
    assert score.likeness == pytest.approx(0, abs=1e-4)
    assert score.prompt == judge.score(judge.base_images, judge.prompts).prompt


@pytest.mark.usefixtures("separating")
def test_photographs_are_judged_by_dino_and_clip_between_anchors(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "dino").mkdir()
    (tmp_path / "clip").mkdir()
    dino, clip = (str(save_seeing(kind, tmp_path / kind)) for kind in ("dino", "clip"))
    metrics = MetricSet.for_base(model, "object", dino, clip)
    assert (metrics.fidelity, metrics.prompt_following) == (Dino(weights=dino), ClipT(weights=clip))
    options = recipe(pictures)
    prompt_run = PromptRun(options, evenly_spaced(prompt_set("objects", "dog"), 3), **QUICK)
    judge = subject_judge(
        model, options, options.read_images(), metrics=metrics, prompt_run=prompt_run
    )
    score = judge.score(judge.base_images, judge.prompts)
    assert score.prompt == pytest.approx(1)
    assert score.likeness == pytest.approx(0)
    shifted = (*judge.prompts[2:], *judge.prompts[:2])
    assert judge.score(judge.base_images, shifted).prompt == pytest.approx(0)


def test_prompt_fidelity_by_clip_needs_different_prompts(
    model: Model, untrained: MetricSet, tmp_path: Path
) -> None:
    seeing = str(save_seeing("clip", tmp_path))
    metrics = MetricSet.for_base(model, "object", save_seeing("dino", tmp_path / "dino"), seeing)
    one, other = prompt_set("objects", "dog")[:2]
    metrics.check_prompts([one, other])
    untrained.check_prompts(prompt_set("pocket-objects", "dog")[:1])
    with pytest.raises(RequestError, match="at least two different prompts, not only `"):
        metrics.check_prompts([one, one])


def test_no_likeness_if_the_judge_cannot_tell_images_apart(
    model: Model, pictures: Path, untrained: MetricSet, tmp_path: Path
) -> None:
    options = recipe(pictures)
    prompt_run = PromptRun(options, evenly_spaced(prompt_set("objects", "dog"), 2), **QUICK)
    judge = subject_judge(
        model, options, options.read_images(), metrics=untrained, prompt_run=prompt_run
    )
    score = judge.score(judge.base_images, judge.prompts)
    assert (score.likeness, score.overall) == (None, None)
    assert "cannot tell" in judge.no_likeness
    assert "--dino-model MODEL" in judge.no_likeness
    metrics, _ = compute_metrics(judge, judge.base_images)
    assert not {"likeness", "best"} & metrics.keys()
    assert "prompt" in metrics
    concept = Concept((), Provenance.from_metadata("<my>", {}))
    findings = Findings.of(judge, judge.base_images, judge.prompts)
    scores = save_if_best(tmp_path, concept, findings)
    assert not scores.is_best
    assert "likeness" not in scores.text
    assert not list(tmp_path.glob("*.safetensors"))


def test_dino_can_judge_pocket_s_images_too(tmp_path: Path) -> None:
    base, folder = open_base("pocket"), str(tmp_path)
    by_dino = MetricSet.for_base(base, "object", dino=folder)
    assert (by_dino.fidelity, by_dino.eyes is not None) == (Dino(weights=folder), True)
    assert not isinstance(MetricSet.for_base(base, "object").fidelity, Dino)
    assert MetricSet.for_base(base, "style", clip=folder).fidelity == ClipI(weights=folder)
    with pytest.raises(RequestError, match="nobody/dino"):
        MetricSet.for_base(base, "object", dino="nobody/dino")


def test_only_the_subject_is_compared_if_there_is_a_mask() -> None:
    image, mask = Image.new("RGB", (20, 20), "red"), Image.new("L", (20, 20))
    mask.paste(255, (5, 5, 10, 15))
    subject = crop_to_subject(image, mask)
    assert subject.size == (5, 10)
    assert subject.getextrema() == ((255, 255), (0, 0), (0, 0))
    assert crop_to_subject(image, None) is image
    background = grey_out_subject(image, mask)
    assert background.getpixel((0, 0)) == (255, 0, 0)
    assert background.getpixel((7, 7)) == crop_to_subject(image, ImageOps.invert(mask)).getpixel(
        (7, 7)
    )


@pytest.mark.long
def test_on_pocket_a_look_alike_is_0_and_the_subject_is_1() -> None:
    base = open_base("pocket")
    assert uses_pocket_vocabulary(base)
    options = recipe(gallery.folder() / "subject")
    prompt_run = PromptRun(options, evenly_spaced(prompt_set("pocket-objects", "dog"), 2), steps=4)
    lookalikes, held_out = (
        tuple(e.image() for e in gallery.other_pictures(gallery.SUBJECT, distractor=other))
        for other in (True, False)
    )
    judge = subject_judge(base, options, options.read_images(), prompt_run=prompt_run)
    places = prompt_set("pocket-objects", "dog")[:1] * len(held_out)
    assert judge.score(lookalikes, places).likeness < 0.35
    assert judge.score(held_out, places).likeness > 0.8
    anchored = subject_judge(
        base,
        options,
        options.read_images(),
        prompt_run=prompt_run,
        anchors=Anchors(lookalikes, held_out),
    )
    assert anchored.score(lookalikes, places).likeness == pytest.approx(0)
    assert anchored.score(held_out, places).likeness == pytest.approx(1)
    photos_in_snow = 1 / 3 * (1 + 1 + 1 / 8)  # of class, style, place: one of eight is in snow
    assert anchored.score(held_out, places).prompt == pytest.approx(photos_in_snow, abs=0.05)
