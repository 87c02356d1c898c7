"""Recipes: what they hold, what they refuse and how they say it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pinxit.errors import ModelError, PinxitError, RecipeError
from pinxit.images.folder import read_pictures
from pinxit.models.model import Model, open_base
from pinxit.training.method import Subject, captioned
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson

GIVEN: dict[str, object] = {
    "method": "textual-inversion",
    "pictures": "toys",
    "token": "<mytoy>",
    "class_noun": "toy",
}


def recipe(**changed: object) -> Recipe:
    return Recipe.model_validate({**GIVEN, **changed})


def test_toml_and_back(tmp_path: Path) -> None:
    method = {"name": "dreambooth", "prior_pictures": 7}
    made = recipe(method=method, seed=3, steps=20, token='<a "b" é>')
    (tmp_path / "recipe.toml").write_text(made.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == made


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"stepz": 3}, "the recipe has no `stepz`", "did you mean steps?"),
        ({"steps": 0}, "`steps` of the recipe cannot be 0", "steps is: how many"),
        ({"steps": "many"}, "`steps` of the recipe cannot be 'many'", "steps is: how many"),
        ({"kind": "person"}, "`kind` of the recipe cannot be 'person'", "kind is: whether"),
        ({"method": "dreambuth"}, "there is no method `dreambuth`", "did you mean dreambooth?"),
        ({"method": {"vectors": 2}}, "the recipe's method has no name", "textual-inversion"),
        (
            {"method": {"name": "textual-inversion", "vector": 2}},
            "the method textual-inversion has no `vector`",
            "did you mean vectors?",
        ),
        (
            {"method": {"name": "textual-inversion", "vectors": 0}},
            "`vectors` of the method textual-inversion cannot be 0",
            "vectors is: vectors of the word",
        ),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**changed)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RecipeError, match="the recipe needs `token`"):
        Recipe.model_validate({key: GIVEN[key] for key in GIVEN if key != "token"})


@pytest.mark.parametrize("text", ["steps = ", "\ufeffx", "[method]\nname = 3\n[method]"])
def test_a_file_that_is_no_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.toml cannot be read"):
        Recipe.from_toml(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="there is no recipe"):
        Recipe.from_toml(tmp_path / "none.toml")


def test_the_size_is_the_bases_or_a_multiple_of_its_grain(model: Model, pictures: Path) -> None:
    assert recipe().settled(model, 3).size == model.picture_size
    smaller = recipe(size=16, pictures=pictures).settled(model, 3)
    (drawn,) = Lesson.of(model, smaller, read_pictures(pictures)).batches(0)
    assert drawn.latents.shape[2:] == (16 // model.factor, 16 // model.factor)
    with pytest.raises(RecipeError) as caught:
        recipe(size=17).settled(model, 3)
    assert "17 pixels" in caught.value.message
    assert f"multiple of {model.grain}" in caught.value.hint


def test_settled_holds_every_number(model: Model) -> None:
    made = recipe().settled(model, 5)
    assert made.steps
    assert made.batch_size
    assert made.rate
    assert made.precision == "fp32"
    assert made.pictures.is_absolute()
    assert made.settled(model, 5) == made
    assert recipe(steps=7, rate=0.5).settled(model, 5).steps == 7
    settled = recipe(method="dreambooth").settled(model, 5)
    assert "rare_token =" in settled.to_toml()
    assert "prior_pictures = 48" in settled.to_toml()
    tuned = [recipe(method="dreambooth").settled(model, count).steps or 0 for count in (3, 5, 12)]
    assert tuned == sorted(set(tuned))


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"token": "dog"}, "the token `dog` already means something", "<mydog>"),
        ({"token": "sks"}, "the token `sks` already means something", "<mysks>"),
        ({"token": "my toy"}, "the token `my toy` is not one word", "<mytoy>"),
        ({"token": ""}, "the token `` is not one word", "<mytoy>"),
        ({"class_noun": "toi"}, "does not know the class noun `toi`", "did you mean toy"),
        ({"class_noun": "red zebra"}, "does not know the class noun `red zebra`", ""),
        ({"class_noun": " "}, "does not know the class noun ` `", ""),
        (
            {"method": {"name": "dreambooth", "rare_token": "zebra"}},
            "`zebra` is no single token",
            "take one that is, such as",
        ),
        ({"precision": "bf16"}, "the recipe computes in bf16", "--precision bf16"),
    ],
)
def test_words_are_checked(
    model: Model, changed: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**changed).settled(model, 5)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_bracketed_words_are_new(model: Model) -> None:
    assert recipe(token="<dog>").settled(model, 5).token == "<dog>"


@pytest.mark.parametrize(
    ("caption", "kind", "wanted"),
    [
        ("a red toy on the beach", "object", "a red <mytoy> on the beach"),
        ("toys on a toy", "object", "toys on a <mytoy>"),
        ("on the beach", "object", "<mytoy>, on the beach"),
        ("a <mytoy> here", "object", "a <mytoy> here"),
        ("a toy", "style", "a toy, in the style of <mytoy>"),
    ],
)
def test_captions_get_the_word(caption: str, kind: str, wanted: str) -> None:
    subject = Subject("<mytoy>", "toy", "style" if kind == "style" else "object", 0)
    assert captioned(caption, subject) == wanted


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"base": "poket"}, "there is no base `poket`", "did you mean pocket?"),
        ({"base": "/"}, "is no base of a family that pinxit knows", "stable-diffusion"),
        ({"device": "gpu"}, "there is no device `gpu`", "known: cpu, cuda, mps"),
        ({"device": "cuda"}, "device `cuda` was asked for", "--device cpu"),
    ],
)
def test_bases_that_cannot_be_opened(
    nano: Path, given: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(ModelError) as caught:
        open_base(**{"base": str(nano), **given})  # pyright: ignore[reportArgumentType]
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_without_weights(nano: Path, copied: Callable[[Path], Path], part: str) -> None:
    base = copied(nano)
    for file in (base / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(PinxitError, match=f"{part} cannot be opened"):
        open_base(base)
