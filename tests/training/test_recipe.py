"""Recipes: their files, aliases, defaults and error messages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pinxit.errors import ModelError, PinxitError, RecipeError
from pinxit.images.folder import read_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.method import Subject, insert_token
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession

REQUIRED: dict[str, object] = {
    "method": "textual-inversion",
    "images": "toys",
    "token": "<mytoy>",
    "class_noun": "toy",
}


def recipe(**changed: object) -> Recipe:
    return Recipe.model_validate({**REQUIRED, **changed})


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    method = {"name": "dreambooth", "class_images": 7}
    original = recipe(method=method, seed=3, steps=20, token='<a"b"é>')
    (tmp_path / "recipe.toml").write_text(original.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == original


# Recipes as the first version wrote them; they must still open.
FIRST_RECIPES = {
    "textual-inversion": """
pictures = "toys"
token = "<mytoy>"
class_noun = "toy"
kind = "object"
base = "pocket"
seed = 3
steps = 20
batch_size = 2
rate = 0.01
size = 64
masks = "beside"
skip_bad = true
flip = false
clip = 0.5
min_snr = 5.0
clip_skip = 2
precision = "fp32"
stop = 0.05
look_every = 8
preview_every = 50
checkpoint_every = 25
score = false
keep_every = 10

[method]
name = "textual-inversion"
vectors = 2
start = "random"
length = "held"
captions = true
""",
    "dreambooth": """
pictures = "toys"
token = "<mytoy>"
class_noun = "toy"

[method]
name = "dreambooth"
prior_pictures = 7
prior_weight = 0.5
train_text_encoder = true
text_rate = 0.2
rare_token = "sks"
captions = false
""",
    "lora": """
pictures = "toys"
token = "<mytoy>"
class_noun = "toy"

[method]
name = "lora"
prior_pictures = 0
adapter = "loha"
rank = 8
alpha = 4.0
layers = "all"
word = "new"
vectors = 3
word_rate = 0.002
""",
}
OPTIONS_OF_FIRST_RECIPES: dict[str, dict[str, object]] = {
    "textual-inversion": {
        "num_vectors": 2,
        "initializer": "random",
        "embedding_norm": "fixed",
        "captions": True,
    },
    "dreambooth": {
        "class_images": 7,
        "prior_loss_weight": 0.5,
        "train_text_encoder": True,
        "text_encoder_lr_scale": 0.2,
        "rare_token": "sks",
        "captions": False,
    },
    "lora": {
        "class_images": 0,
        "prior_loss_weight": 1.0,
        "train_text_encoder": False,
        "text_encoder_lr_scale": 0.1,
        "adapter": "loha",
        "rank": 8,
        "alpha": 4.0,
        "layers": "all",
        "placeholder": "new-embedding",
        "num_vectors": 3,
        "embedding_learning_rate": 0.002,
    },
}


@pytest.mark.parametrize("method", FIRST_RECIPES)
def test_recipes_of_the_first_version_open(method: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(FIRST_RECIPES[method], encoding="utf-8")
    opened = Recipe.from_toml(tmp_path / "recipe.toml")
    assert opened.method.name == method
    assert opened.method.model_dump(exclude_none=True) == OPTIONS_OF_FIRST_RECIPES[method]
    assert opened.images == Path("toys")
    (tmp_path / "new.toml").write_text(opened.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "new.toml") == opened


def test_every_option_of_the_first_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(FIRST_RECIPES["textual-inversion"], encoding="utf-8")
    opened = Recipe.from_toml(tmp_path / "recipe.toml").model_dump(exclude={"method"})
    new = ("lr_schedule", "warmup_steps", "weight_decay", "gradient_accumulation_steps", "ema")
    new += ("caption_dropout", "preview_prompts", "caption_extension", "optimizer", "text_encoders")
    new += ("assistant", "cache_encodings", "preview_base")
    assert {name: opened.pop(name) for name in new} == {
        name: Recipe.model_fields[name].default for name in new
    }
    assert opened == {
        "images": Path("toys"),
        "token": "<mytoy>",
        "class_noun": "toy",
        "kind": "object",
        "base": "pocket",
        "vae": None,
        "seed": 3,
        "steps": 20,
        "batch_size": 2,
        "learning_rate": 0.01,
        "resolution": 64,
        "masks": "files",
        "skip_bad": True,
        "flip": False,
        "max_grad_norm": 0.5,
        "min_snr_gamma": 5.0,
        "clip_skip": 2,
        "precision": "fp32",
        "device": None,
        "early_stop": 0.05,
        "validate_every": 8,
        "preview_every": 50,
        "checkpoint_every": 25,
        "score_previews": False,
        "save_every": 10,
    }


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("lr", "learning_rate", 0.5),
        ("train-batch-size", "batch_size", 3),
        ("max_train_steps", "steps", 7),
        ("snr_gamma", "min_snr_gamma", 5.0),
        ("learnable_property", "kind", "style"),
        ("mixed_precision", "precision", "bf16"),
        ("save_every_n_steps", "save_every", 5),
        ("checkpointing_steps", "checkpoint_every", 5),
    ],
)
def test_names_of_other_programs(alias: str, name: str, value: object) -> None:
    assert recipe(**{alias: value}) == recipe(**{name: value})
    with pytest.raises(RecipeError, match=f"another name of `{name}`"):
        recipe(**{name: value, alias: value})


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"stepz": 3}, "the recipe has no `stepz`", "did you mean steps?"),
        ({"steps": 0}, "`steps` cannot be 0", "steps is: number of"),
        (
            {"steps": "many"},
            "`steps` cannot be 'many'",
            "steps is: number of",
        ),
        (
            {"kind": "person"},
            "`kind` cannot be 'person'",
            "kind is: what the token",
        ),
        ({"method": "dreambuth"}, "unknown method `dreambuth`", "did you mean dreambooth?"),
        ({"method": {"num_vectors": 2}}, "the method has no name", "textual-inversion"),
        (
            {"method": {"name": "textual-inversion", "num_vector": 2}},
            "the method textual-inversion has no `num_vector`",
            "did you mean num_vectors?",
        ),
        (
            {"method": {"name": "textual-inversion", "vectors": 0}},
            "`num_vectors` cannot be 0",
            "num_vectors is: number of embedding vectors",
        ),
    ],
)
def test_invalid_options_are_named(changed: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(**changed)
    assert message in error.value.message
    assert hint in error.value.hint


def test_a_missing_option_is_named() -> None:
    with pytest.raises(RecipeError, match="`token` is missing"):
        Recipe.model_validate({key: REQUIRED[key] for key in REQUIRED if key != "token"})


@pytest.mark.parametrize("text", ["steps = ", "\ufeffx", "[method]\nname = 3\n[method]"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.toml cannot be read"):
        Recipe.from_toml(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="there is no recipe"):
        Recipe.from_toml(tmp_path / "none.toml")


def test_the_default_resolution_is_that_of_the_base_model(model: Model, pictures: Path) -> None:
    assert TrainingPlan.of(recipe(), model, 3).resolution == model.default_size
    smaller = TrainingPlan.of(recipe(resolution=16, images=pictures), model, 3)
    (batch,) = TrainingSession(
        model, [ConceptTrainer(model, smaller, read_images(pictures))]
    ).batches(0)
    assert batch.latents.shape[2:] == (16 // model.vae_scale_factor, 16 // model.vae_scale_factor)
    with pytest.raises(RecipeError) as error:
        TrainingPlan.of(recipe(resolution=17), model, 3)
    assert "resolution 17" in error.value.message
    assert f"multiple of {model.size_multiple}" in error.value.hint


def test_a_plan_has_every_value(model: Model) -> None:
    plan = TrainingPlan.of(recipe(), model, 5)
    complete = plan.recipe
    assert (complete.steps, complete.batch_size) == (plan.steps, plan.batch_size)
    assert complete.learning_rate == plan.learning_rate
    assert (complete.resolution, complete.validate_every) == (plan.resolution, plan.validate_every)
    assert complete.method == plan.method
    assert complete.precision == "fp32"
    assert complete.images.is_absolute()
    assert TrainingPlan.of(complete, model, 5) == plan
    assert TrainingPlan.of(recipe(steps=7, learning_rate=0.5), model, 5).steps == 7
    dreambooth = TrainingPlan.of(recipe(method="dreambooth"), model, 5).recipe
    assert "rare_token =" in dreambooth.to_toml()
    assert "class_images = 48" in dreambooth.to_toml()
    unplanned = recipe(method="dreambooth")
    steps = [TrainingPlan.of(unplanned, model, count).steps for count in (3, 5, 12)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"token": "dog"}, "the token `dog` is already a word", "<mydog>"),
        ({"token": "sks"}, "the token `sks` is already a word", "<mysks>"),
        ({"token": "my toy"}, "the token `my toy` is not one word", "<mytoy>"),
        ({"token": ""}, "the token `` is not one word", "<mytoy>"),
        ({"token": "<toy"}, "the token `<toy` is not one word, or lacks a bracket", "<mytoy>"),
        ({"class_noun": "dogg"}, "does not know the class noun `dogg`", "did you mean dog?"),
        ({"class_noun": "red zebra"}, "does not know the class noun `red zebra`", ""),
        ({"class_noun": " "}, "the class noun is empty", "such as: toy"),
        (
            {"method": {"name": "dreambooth", "rare_token": "zebra"}},
            "`zebra` is not a single token",
            "choose one that is, such as",
        ),
        ({"precision": "bf16"}, "the recipe needs precision bf16", "--precision bf16"),
    ],
)
def test_token_and_class_noun_are_checked(
    model: Model, changed: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as error:
        TrainingPlan.of(recipe(**changed), model, 5)
    assert message in error.value.message
    assert hint in error.value.hint


def test_tokens_in_brackets_are_new(model: Model) -> None:
    assert TrainingPlan.of(recipe(token="<dog>"), model, 5).recipe.token == "<dog>"


@pytest.mark.parametrize(
    ("caption", "kind", "expected"),
    [
        ("a red toy on the beach", "object", "a red <mytoy> on the beach"),
        ("toys on a toy", "object", "toys on a <mytoy>"),
        ("on the beach", "object", "<mytoy>, on the beach"),
        ("a <mytoy> here", "object", "a <mytoy> here"),
        ("a toy", "style", "a toy, in the style of <mytoy>"),
    ],
)
def test_captions_get_the_token(caption: str, kind: str, expected: str) -> None:
    subject = Subject("<mytoy>", "toy", "style" if kind == "style" else "object", 0)
    assert insert_token(caption, subject) == expected


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"base": "poket"}, "there is no model `poket`", "did you mean pocket?"),
        ({"base": "/"}, "is not a supported base model", "stable-diffusion"),
        ({"device": "gpu"}, "there is no device `gpu`", "known: auto, cpu"),
        ({"device": "cuda"}, "device `cuda` is not available: torch finds cpu", "--device auto"),
        ({"device": "cpu:1"}, "device `cpu:1` is not available", "--device auto"),
    ],
)
def test_base_models_that_cannot_be_opened(
    nano: Path, options: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(ModelError) as error:
        open_base(**{"base": str(nano), **options})  # pyright: ignore[reportArgumentType]
    assert message in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_model_without_weights(
    nano: Path, copied: Callable[[Path], Path], part: str
) -> None:
    base = copied(nano)
    for file in (base / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(PinxitError, match=f"{part} has no weights"):
        open_base(base)
