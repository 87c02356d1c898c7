"""A judge says 0 of look-alikes and 1 of the real thing, and paints its floor once."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from pinxit.adapters.adapter import NewWord, injected
from pinxit.errors import RequestError
from pinxit.evaluation.judge import (
    Judge,
    Known,
    Sight,
    Sitting,
    Verdict,
    off_mask,
    on_mask,
    speaks_pocket,
)
from pinxit.evaluation.metrics.clip_t import ClipT
from pinxit.evaluation.metrics.dino import Dino
from pinxit.evaluation.prompt_sets import brief, prompt_set, set_names, suited
from pinxit.models.model import Model, open_base
from pinxit.pocket import gallery
from pinxit.pocket.asked import asked
from pinxit.pocket.eyes import Eyes
from pinxit.training.recipe import Recipe
from tests.seeing import save_seeing

QUICK = {"count": 2, "steps": 1}


def recipe(pictures: Path, **more: object) -> Recipe:
    known = {"token": "<mytoy>", "class_noun": "dog", "method": "textual-inversion"}
    return Recipe.model_validate({**known, "pictures": pictures, **more})


@pytest.fixture(scope="module")
def blind() -> Sight:
    """Eyes that were never trained: they see, and understand nothing."""
    torch.manual_seed(0)
    return Sight.of_pocket(Eyes().requires_grad_(False).eval(), "object")


def test_a_verdict_is_best_where_both_are() -> None:
    assert Verdict(0.25, 1.0).best == pytest.approx(0.5)
    assert Verdict(1.7, 1.0).best == 1
    assert Verdict(-0.2, 0.9).best == 0


@pytest.mark.parametrize("name", set_names())
def test_sets_have_a_place_for_the_word_and_none_without(name: str) -> None:
    prompts = prompt_set(name, "toy")
    assert len({prompt.template for prompt in prompts}) == len(prompts)
    for number, prompt in enumerate(prompts):
        assert prompt.saying("<my>").count("<my>") == 1
        assert "{" not in prompt.plain + prompt.meant
        assert prompt.seed == number


def test_dreambench_has_25_prompts_for_each() -> None:
    assert [len(prompt_set(name, "dog")) for name in ("objects", "living")] == [25, 25]


def test_a_set_suits_what_is_learned() -> None:
    assert suited("stuffed animal", style=False, pocket=False) == "living"
    assert suited("running shoe", style=False, pocket=False) == "objects"
    assert suited("painting", style=True, pocket=False) == "styles"
    assert suited("dog", style=False, pocket=True) == "pocket-objects"
    with pytest.raises(RequestError, match="no set of prompts `object`"):
        prompt_set("object", "dog")


@pytest.mark.parametrize("name", ["pocket-objects", "pocket-styles"])
def test_pocket_understands_its_own_sets(name: str) -> None:
    (tower,) = open_base("pocket").towers.values()
    for prompt in prompt_set(name, "dog"):
        assert {"class", "background"} <= asked(prompt.meant).keys()
        assert all(tower.knows(word) for word in prompt.plain.split())


def test_a_brief_set_is_taken_evenly_with_seeds_of_its_own() -> None:
    few = brief(prompt_set("objects", "toy"), 8)
    assert [prompt.seed for prompt in few] == list(range(8))
    assert len({prompt.template for prompt in few}) == 8
    assert few[-1].plain == "a purple toy"


def test_the_floor_is_painted_once(
    model: Model, pictures: Path, tmp_path: Path, blind: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = recipe(pictures)
    sitting = Sitting(asking, brief(prompt_set("objects", "dog"), 2), **QUICK)
    own = asking.read_pictures()
    kept = tmp_path / "floor"
    first = Judge.of(model, asking, own, folder=kept, sight=blind, sitting=sitting)
    assert len(list(kept.iterdir())) == len(first.plain) == len(first.prompts) == 4
    assert first.verdict(first.plain, first.prompts).likeness == pytest.approx(0)
    monkeypatch.setattr("pinxit.generation.image_cache.generate", None)  # whoever paints now, fails
    again = Judge.of(model, asking, own, folder=kept, sight=blind, sitting=sitting)
    assert again.likeness.floor == first.likeness.floor
    with pytest.raises(TypeError):
        Judge.of(model, asking, own, sight=blind, sitting=sitting)


def test_what_is_in_the_model_is_what_is_judged(model: Model, pictures: Path, blind: Sight) -> None:
    asking = recipe(pictures)
    sitting = Sitting(asking, brief(prompt_set("objects", "dog"), 2), **QUICK)
    judge = Judge.of(model, asking, asking.read_pictures(), sight=blind, sitting=sitting)
    with injected(model, [NewWord.of(model, "<mytoy>", "dog", 1)]):
        found = judge.look(model)  # a word that means the noun paints what the noun does
    assert found.likeness == pytest.approx(0, abs=1e-4)
    assert found.prompt == judge.verdict(judge.plain, judge.prompts).prompt


def test_photographs_are_judged_by_dino_and_clip_between_anchors(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "dino").mkdir()
    (tmp_path / "clip").mkdir()
    dino, clip = (str(save_seeing(kind, tmp_path / kind)) for kind in ("dino", "clip"))
    sight = Sight.of(model, "object", dino, clip)
    assert (sight.likeness, sight.asked) == (Dino(weights=dino), ClipT(weights=clip))
    asking = recipe(pictures)
    sitting = Sitting(asking, brief(prompt_set("objects", "dog"), 3), **QUICK)
    judge = Judge.of(model, asking, asking.read_pictures(), sight=sight, sitting=sitting)
    found = judge.verdict(judge.plain, judge.prompts)
    assert found.prompt == pytest.approx(1)
    assert found.likeness == pytest.approx(0)
    turned = (*judge.prompts[2:], *judge.prompts[:2])
    assert judge.verdict(judge.plain, turned).prompt == pytest.approx(0)


def test_only_the_subject_is_compared_where_there_is_a_mask() -> None:
    image, mask = Image.new("RGB", (20, 20), "red"), Image.new("L", (20, 20))
    mask.paste(255, (5, 5, 10, 15))
    cut = on_mask(image, mask)
    assert cut.size == (5, 10)
    assert cut.getextrema() == ((255, 255), (0, 0), (0, 0))
    assert on_mask(image, None) is image
    around = off_mask(image, mask)
    assert around.getpixel((0, 0)) == (255, 0, 0)
    assert around.getpixel((7, 7)) == on_mask(image, ImageOps.invert(mask)).getpixel((7, 7))


@pytest.mark.long
def test_on_pocket_a_look_alike_is_0_and_the_subject_is_1() -> None:
    base = open_base("pocket")
    assert speaks_pocket(base)
    asking = recipe(gallery.folder() / "subject")
    sitting = Sitting(asking, brief(prompt_set("pocket-objects", "dog"), 2), steps=4)
    look_alikes, more = (
        tuple(e.image() for e in gallery.other_pictures(gallery.SUBJECT, distractor=other))
        for other in (True, False)
    )
    judge = Judge.of(base, asking, asking.read_pictures(), sitting=sitting)
    places = prompt_set("pocket-objects", "dog")[:1] * len(more)
    assert judge.verdict(look_alikes, places).likeness < 0.35
    assert judge.verdict(more, places).likeness > 0.8
    known = Judge.of(
        base, asking, asking.read_pictures(), sitting=sitting, known=Known(look_alikes, more)
    )
    assert known.verdict(look_alikes, places).likeness == pytest.approx(0)
    assert known.verdict(more, places).likeness == pytest.approx(1)
    photos_in_snow = 1 / 3 * (1 + 1 + 1 / 8)  # of class, style, place: one of eight is in snow
    assert known.verdict(more, places).prompt == pytest.approx(photos_in_snow, abs=0.05)
