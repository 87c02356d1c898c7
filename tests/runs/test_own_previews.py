"""Previews of the user's prompts, and class images of the user."""

from pathlib import Path

import pytest
from PIL import Image

from pinxit.cli import main
from pinxit.errors import RecipeError
from pinxit.models.model import Model
from pinxit.runs.class_images import read_class_images
from pinxit.runs.preview import save_preview
from pinxit.runs.run import Run, train_run
from pinxit.training.plan import check_options
from pinxit.training.recipe import Recipe


def recipe(pictures: Path, model: Model, method: object, **options: object) -> Recipe:
    common = {"images": pictures, "token": "<my>", "class_noun": "toy", "base": model.name}
    common |= {"steps": 1, "batch_size": 1, "preview_every": 0}
    return Recipe.model_validate({**common, "method": method, **options})


def test_own_prompts_are_previewed_with_labels(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    plain = recipe(pictures, model, "textual-inversion")
    own = recipe(
        pictures, model, "textual-inversion", preview_prompts=["a red {}", "a {} in the grass"]
    )
    sizes: list[tuple[int, int]] = []
    for number, one in enumerate((plain, own), 1):
        preview, _ = save_preview(model, one, number, tmp_path)
        with Image.open(preview.path) as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] * sizes[1][1] > 6 * 192 * 192 * 0.9
    assert sizes[1] != sizes[0]


def test_the_flag_can_be_given_twice(
    nano: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["train", "textual-inversion", str(pictures), "--token", "<my>", "--class-noun", "toy"]
    typed += ["--base", str(nano), "--steps", "1", "--preview-every", "0", "--out", "run"]
    typed += ["--preview-prompt", "a red {}", "--preview-prompt", "a dog and {}"]
    assert main(typed) == 0
    assert Run.open("run").recipe.preview_prompts == ("a red {}", "a dog and {}")


def test_class_images_of_the_user_are_used(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "toys"
    folder.mkdir()
    for number, color in enumerate(("navy", "teal")):
        Image.new("RGB", (40, 40), color).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a small toy", encoding="utf-8")
    # Generating a class image now raises a TypeError.
    monkeypatch.setattr("pinxit.runs.class_images.sample_images", None)
    method = {"name": "lora", "reg_data_dir": folder}
    run = train_run(model, recipe(pictures, model, method), tmp_path / "run")
    assert run.plan.class_images.count == 2
    stored = Run.open(tmp_path / "run").recipe.method.model_dump()
    assert stored["class_images_folder"] == folder.resolve()
    again = Run.open(tmp_path / "run", steps=2)
    list(again.train(model))
    prompts = [image.caption for image in read_class_images(model, run.plan.class_images)]
    assert prompts == ["a photo of a toy", "a small toy"]


def test_class_images_that_are_not_used_are_an_error(model: Model, pictures: Path) -> None:
    method = {"name": "lora", "class_images_folder": pictures, "preserve": "none"}
    with pytest.raises(RecipeError, match="but none are used"):
        check_options(recipe(pictures, model, method))
