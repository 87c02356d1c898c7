"""Bad input: a message with the value, a hint, exit status 2, and nothing is written."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pinxit.cli import main, opening
from pinxit.concepts import lora_tools
from pinxit.concepts.concept import Concept
from pinxit.errors import ModelError, RequestError
from pinxit.evaluation.prompt_sets import prompt_set
from pinxit.generation.request import GenerationRequest
from pinxit.training.recipe import Recipe


@dataclass(frozen=True)
class Place:
    """A working folder with valid images, a recipe, a folder in use, and a base model."""

    here: Path
    base: Path

    def train(self, *extra: str, images: str = "pictures", method: str = "textual-inversion"):
        usual = {"--token": "<mytoy>", "--class-noun": "toy", "--base": str(self.base)}
        usual |= {"--steps": "1", "--out": "run"}
        typed = [word for flag in usual.items() if flag[0] not in extra for word in flag]
        return ["train", method, images, *typed, *extra]

    def recipe(self, line: str = "", option: str = "", method: str = "textual-inversion"):
        lines = [f'images = "pictures"\nbase = "{self.base}"\ntoken = "<mytoy>"']
        lines += ['class_noun = "toy"', line, f'[method]\nname = "{method}"', option]
        (self.here / "recipe.toml").write_text("\n".join(lines))
        return ["train", "--recipe", "recipe.toml", "--out", "run"]

    def generate(self, *extra: str):
        return ["generate", "a toy", "--base", str(self.base), *extra]


@pytest.fixture
def place(tmp_path: Path, nano: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "_PATIENCE", 600)  # a slow machine prints no other lines
    (tmp_path / "empty").mkdir()
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "a.png").write_bytes(b"no image")
    (tmp_path / "rubbish" / "b.mov").write_bytes(b"no image")
    shutil.copytree(tmp_path / "rubbish", tmp_path / "mixed")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "mixed" / "c.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("dear diary")
    (tmp_path / "broken.toml").write_text("token = \n")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "toys.zip").write_bytes(b"PK")
    (tmp_path / "kohya.toml").write_text('network_module = "networks.lora"\ntrain_data_dir = "a"')
    (tmp_path / "settings.json").write_text('{"training_method": "LORA"}')
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "recipe.toml").write_text("")
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    assert pictures.parent == tmp_path
    return Place(tmp_path, nano)


Case = tuple[str, Callable[[Place], list[str]], str, str]

# Name, command line, the value that the message must contain, what the hint must contain.
CASES: list[Case] = [
    ("no folder", lambda p: p.train(images="nowhere"), "nowhere", "folder"),
    ("empty folder", lambda p: p.train(images="empty"), "empty", "3 to 12"),
    ("no picture readable", lambda p: p.train(images="rubbish"), "a.png", "remove them"),
    ("some unreadable", lambda p: p.train(images="mixed"), "1 of 2 files in mixed", "repair"),
    ("file for a folder", lambda p: p.train(images="file"), "file is not a folder", "folder"),
    ("packed folder", lambda p: p.train(images="toys.zip"), "toys.zip is not a", "unpack it"),
    ("empty folder name", lambda p: p.train(images=""), "is empty", "variable of the shell"),
    ("empty value", lambda p: p.generate("--concept", ""), "--concept is empty", "variable"),
    (
        "address of a base",
        lambda p: p.train("--base", "https://huggingface.co/a/b"),
        "https://huggingface.co/a/b is an address",
        "owner/name",
    ),
    ("address of a concept", lambda p: p.generate("--concept=https://a.b/c"), "https://a", "path"),
    ("percent for a fraction", lambda p: p.train("--early-stop", "5"), "5.0", "fraction"),
    ("comma in a number", lambda p: p.train("--lr", "1,5e-3"), "`1,5e-3` is not a number", ""),
    ("noun with an article", lambda p: p.train("--class-noun", "a toy"), "`a toy`", "write: toy"),
    (
        "no subject in the prompt",
        lambda _: ["generate-many", "runs", "a boat"],
        "`a boat` names no subject",
        "write {}",
    ),
    ("unknown base", lambda p: p.train("--base", "pokcet"), "pokcet", "did you mean pocket?"),
    ("folder is no base", lambda p: p.train("--base", "pictures"), "pictures", "families"),
    ("unknown method", lambda p: p.train(method="dreamboth"), "dreamboth", "mean dreambooth?"),
    (
        "unknown option of a method",
        lambda p: p.train("--vectrs", "2"),
        "--vectrs",
        "did you mean --num-vectors?",
    ),
    ("option out of range", lambda p: p.train("--vectors", "0"), "0", "vectors"),
    ("option not a number", lambda p: p.train("--vectors", "two"), "two", "--help"),
    ("option not a choice", lambda p: p.train("--kind", "stile"), "stile", "choose from"),
    ("batch of the world", lambda p: p.train("--batch-size", "1e9"), "1000000000", "batch_size"),
    ("steps below one", lambda p: p.train("--steps", "0"), "0", "steps"),
    (
        "missing token",
        lambda _: ["train", "dreambooth", "pictures"],
        "`token`",
        "placeholder token",
    ),
    ("token known", lambda p: p.train("--token", "dog"), "`dog`", "<mydog>"),
    ("token empty", lambda p: p.train("--token", ""), "token", ""),
    ("token of two words", lambda p: p.train("--token", "my toy"), "my toy", ""),
    ("noun unknown", lambda p: p.train("--class-noun", "tyo"), "`tyo`", "toy"),
    ("noun empty", lambda p: p.train("--class-noun", ""), "noun", ""),
    ("existing run", lambda p: p.train("--out", "taken"), "taken", "--out"),
    ("out is a file", lambda p: p.train("--out", "file"), "file", "--out"),
    ("out nowhere", lambda p: p.train("--out", "/proc/no/run"), "/proc/no/run", "another path"),
    ("no device", lambda p: p.train("--device", "cuda:0"), "cuda", "--device auto"),
    ("unknown device", lambda p: p.train("--device", "gpu"), "gpu", "cpu"),
    ("unknown key", lambda p: p.recipe("stepz = 3"), "stepz", "did you mean steps?"),
    ("option of a method as a key", lambda p: p.recipe("rank = 8"), "rank", "a line [method]"),
    ("misspelt key", lambda p: p.recipe('class_noum = "toy"'), "class_noum", "mean class_noun?"),
    ("kohya's", lambda _: ["train", "--recipe", "kohya.toml"], "network_module", "or-kohya.md"),
    ("JSON", lambda _: ["train", "--recipe", "settings.json"], "settings.json", "TOML"),
    ("option of another method", lambda p: p.train("--rank", "2"), "--rank", "option of lora"),
    (
        "method after the folder",
        lambda _: ["train", "pictures", "lora"],
        "`lora` must come",
        "pinxit train lora pictures",
    ),
    (
        "resume with another option",
        lambda _: ["train", "--resume", "runs/one", "--lr", "3"],
        "--lr cannot be changed when runs/one",
        "--recipe runs/one/recipe.toml --lr",
    ),
    ("folder of runs", lambda _: ["train", "--resume", "runs"], "runs is not", "runs/one"),
    ("out is a run", lambda p: p.train("--out", "runs/one"), "runs/one", "--resume runs/one"),
    ("out of another program", lambda p: p.train("--out", "pictures"), "pictures", "choose"),
    ("negative seed to train", lambda p: p.train("--seed", "-1"), "-1", "seed"),
    (
        "no preview prompt",
        lambda p: p.train("--preview-prompt", ""),
        "`preview_prompts`",
        "--preview-prompt",
    ),
    (
        "other placeholder in a preview prompt",
        lambda p: p.train("--preview-prompt", "a {token} and {}"),
        "`a {token} and {}` has other braces than {}: `{token}`",
        "write {}",
    ),
    (
        "other placeholder for many subjects",
        lambda _: ["generate-many", "runs", "a {} in {place"],
        "has other braces than {}: `{place`",
        "write {}",
    ),
    (
        "no image for many subjects",
        lambda _: ["generate-many", "runs", "a {}", "--init-image", "none.png"],
        "no image none.png",
        "image file",
    ),
    (
        "strength to convert",
        lambda _: ["convert", "settings.json:0.5", "x.safetensors"],
        "settings.json:0.5 does not exist",
        "give settings.json: a strength is for generating",
    ),
    ("misspelt base", lambda _: ["check", "pictures", "--base", "poket"], "poket", "mean pocket?"),
    (
        "recipe for a concept",
        lambda p: p.generate("--concept", "runs/one/recipe.toml"),
        "it is an empty file",
        "give the folder of the run: runs/one",
    ),
    ("image for a concept", lambda p: p.generate("--concept", "wide.png"), "is an image", "show"),
    ("size of zero", lambda p: p.generate("--size", "0"), "--size 0", "WIDTHxHEIGHT"),
    ("steps in words", lambda p: p.recipe('steps = "many"'), "'many'", "number of training steps"),
    (
        "folder of prompts",
        lambda _: ["evaluate", "runs/one", "--prompts", "empty"],
        "",
        ".txt file",
    ),
    ("text for a base", lambda p: p.train("--base", "file"), "file cannot be read", "download"),
    (
        "no class images",
        lambda p: p.train("--class-images-folder", "empty", method="lora"),
        "no image in empty",
        "put images into it",
    ),
    ("token of signs", lambda p: p.train("--token", ")"), "`)` would not", "angle brackets"),
    (
        "class images not used",
        lambda p: p.train("--class-images-folder", "pictures", "--preserve", "none", method="lora"),
        "in pictures, but none are used",
        "leave out",
    ),
    (
        "class images contradicted",
        lambda p: p.train("--class-images", "3", "--preserve", "weights", method="dreambooth"),
        "weights contradicts 3",
        "only one of",
    ),
    (
        "option of other methods",
        lambda p: p.train("--rare-token", "sks", method="custom-diffusion"),
        "--rare-token does not fit",
        "pinxit train lora",
    ),
    (
        "full weights on a preview base",
        lambda p: p.train("--preview-base", "pocket", method="dreambooth"),
        "previewed on pocket",
        "leave out --preview-base",
    ),
    (
        "no assistant",
        lambda p: p.train("--assistant", "no.safetensors", method="lora"),
        "no.safetensors",
        "",
    ),
    (
        "endless weight in a prompt",
        lambda p: ["generate", f"a (toy:{'9' * 400})", "--base", str(p.base)],
        "not a finite number",
        "1.2",
    ),
    (
        "LoRA format for a checkpoint",
        lambda _: ["lora", "fuse", "a.safetensors", "--out", "b.safetensors", "--format", "kohya"],
        "kohya stores adapters, not full weights",
        "single-file",
    ),
    (
        "format of another suffix",
        lambda _: ["lora", "merge", "a.safetensors", "--out", "b.pt", "--format", "kohya"],
        "wrong suffix for the format kohya",
        ".safetensors",
    ),
    (
        "suffix of no checkpoint",
        lambda _: ["lora", "fuse", "a.safetensors", "--out", "b.pt"],
        "b.pt: no format for full weights",
        ".safetensors",
    ),
    (
        "article in an evaluation",
        lambda _: ["evaluate", "pictures", "--images", "pictures", "--class-noun", "the toy"],
        "begins with an article",
        "write: toy",
    ),
    (
        "images of too few prompts",
        lambda _: [
            *("evaluate", "pictures", "--images", "pictures", "--class-noun", "toy"),
            *("--prompts", "living"),
        ],
        "pictures has 3 images",
        "all prompts",
    ),
    ("unknown option in a recipe", lambda p: p.recipe(option="vectrs = 3"), "vectrs", "vectors"),
    ("unknown method in a recipe", lambda p: p.recipe(method="lorra"), "lorra", "known"),
    ("wrong type in a recipe", lambda p: p.recipe('steps = "many"'), "many", "steps"),
    ("wrong option with a recipe", lambda p: [*p.recipe(), "--rnak", "2"], "--rnak", ""),
    (
        "a recipe of another method",
        lambda p: p.train("--recipe", p.recipe()[2], method="lora"),
        "recipe.toml is textual-inversion, not lora",
        "--recipe",
    ),
    ("no recipe", lambda _: ["train", "--recipe", "no.toml"], "no.toml", "TOML"),
    ("recipe no TOML", lambda _: ["train", "--recipe", "broken.toml"], "broken.toml", "TOML"),
    ("folder for a recipe", lambda _: ["train", "--recipe", "taken"], "taken", "TOML"),
    ("no run to resume", lambda _: ["train", "--resume", "taken"], "taken", "recipe.toml"),
    ("no run at all", lambda _: ["train", "--resume", "nowhere"], "nowhere", "recipe.toml"),
    ("no method", lambda _: ["train"], "train", "dreambooth, lora, textual-inversion"),
    ("unknown command", lambda _: ["tarin"], "tarin", "did you mean train?"),
    ("unknown kind", lambda _: ["list", "metods"], "metods", "did you mean methods?"),
    ("no prompt", lambda _: ["generate"], "prompt", "--from-png"),
    ("unknown flag", lambda p: p.generate("--seeed", "1"), "--seeed", "did you mean --seed?"),
    ("no concept", lambda p: p.generate("--concept", "nowhere"), "nowhere", "run folder"),
    ("empty run", lambda p: p.generate("--concept", "empty"), "empty", "run folder"),
    ("concept a picture", lambda p: p.generate("--concept", "pictures/0.png"), "0.png", ""),
    ("no size", lambda p: p.generate("--size", "big"), "big", "96x64"),
    ("size of many digits", lambda p: p.generate("--size", "9" * 4400), "999", "96x64"),
    ("seed no whole number", lambda p: p.generate("--seed", "1.5"), "`1.5`", "--help"),
    ("size zero", lambda p: p.generate("--size", "0"), "0", ""),
    ("size that cannot be", lambda p: p.generate("--size", "33"), "33x33", "32x32"),
    ("no scheduler", lambda p: p.generate("--scheduler", "eular"), "eular", "mean euler?"),
    ("no steps", lambda p: p.generate("--steps", "0"), "0", "steps"),
    ("no images", lambda p: p.generate("--num-images", "0"), "0", "num_images"),
    ("negative seed", lambda p: p.generate("--seed", "-1"), "-1", "seed of the first image"),
    ("folder of concepts", lambda p: p.generate("--concept", "runs"), "runs", "runs/one"),
    ("no result", lambda p: p.generate("--concept", "runs/one"), "runs/one", "--resume runs/one"),
    ("strength a word", lambda p: p.generate("--concept", "runs/one:x"), "one:x", "runs/one:0.7"),
    ("folder to start from", lambda p: p.generate("--init-image", "pictures"), "a folder", "file"),
    ("folder to repeat", lambda _: ["generate", "--from-png", "pictures"], "a folder", "PNG"),
    ("no image to show", lambda _: ["show", "no.png"], "no.png", "image file"),
    ("no image to transfer", lambda _: ["transfer", "no.png", "a toy"], "no.png", "image file"),
    (
        "no ControlNet",
        lambda _: ["transfer", "wide.png", "a toy", "--control", "controlnet"],
        "controlnet needs weights",
        "--weights",
    ),
    (
        "no mask",
        lambda _: ["transfer", "wide.png", "a toy", "--mask", "no.png"],
        "no.png",
        "image file",
    ),
    (
        "mask of another shape",
        lambda _: ["transfer", "wide.png", "a toy", "--mask", "mixed/c.png"],
        "32x32 and 64x32",
        "the same shape",
    ),
    (
        "unknown DINO",
        lambda _: ["evaluate", "runs/one", "--dino-model", "nosuch"],
        "`nosuch`",
        "owner/name",
    ),
    (
        "unknown prompts",
        lambda _: ["evaluate", "runs/one", "--prompts", "nosuch"],
        "`nosuch`",
        "known: living",
    ),
    ("no benchmark", lambda _: ["evaluate", "--benchmark", "nowhere"], "nowhere", "folder"),
    ("no port", lambda _: ["studio", "--port", "70000"], "70000", "65535"),
    ("misspelt version", lambda _: ["--verison"], "--verison", "mean --version?"),
    ("help", lambda _: ["help"], "help", "mean --help?"),
    ("strength too high", lambda p: p.generate("--denoising-strength", "1.5"), "1.5", "strength"),
    ("no start picture", lambda p: p.generate("--init-image", "no.png"), "no.png", "image file"),
    ("bad start picture", lambda p: p.generate("--init-image", "rubbish/a.png"), "a.png", ""),
    ("no request in it", lambda _: ["generate", "--from-png", "pictures/0.png"], "0.png", "PNG"),
    ("no picture to repeat", lambda _: ["generate", "--from-png", "no.png"], "no.png", "PNG"),
    ("folder is a file", lambda p: p.generate("--out", "file"), "file", "--out"),
    ("folder in a file", lambda p: p.generate("--out", "file/x"), "file/x", "another path"),
    ("folder nowhere", lambda p: p.generate("--out", "/proc/nope"), "/proc/nope", ""),
    ("folder without permission", lambda p: p.generate("--out", "/proc"), "/proc", "another path"),
    ("no PNG", lambda p: p.generate("--out", "a.jpg"), "a.jpg", "a.png"),
    (
        "one file for two images",
        lambda p: p.generate("--out", "a.png", "--num-images", "2"),
        "2 images",
        "--out a",
    ),
    ("a file that exists", lambda p: p.generate("--out", "pictures/0.png"), "0.png", "--out"),
    ("a guess far away", lambda p: p.train("--class-noun", "woman"), "woman", "known: cat, dog, t"),
    ("no quotes", lambda _: ["generate", "a", "dog", "here"], "dog here", "in quotes"),
    (
        "concepts without flags",
        lambda p: p.generate("--concept", "empty", "taken"),
        "taken",
        "--concept taken",
    ),
]


@pytest.mark.parametrize(
    ("typed", "value", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    typed: Callable[[Place], list[str]],
    value: str,
    hint: str,
) -> None:
    words = typed(place)
    before = tree(place.here)
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    *lines, error, advice = output.err.splitlines()
    expected = (
        "warning: 0.png: ",
        "warning: 1.png: ",
        "warning: 2.png: ",
        "3 images",
        "warning: all images look alike",
    )
    for line in lines:
        opened = "nano: stable-diffusion-1" in line or "nano runs on CPU" in line
        assert opened or line.startswith(expected), output.err
    assert error.startswith("error: ")
    assert value in error
    assert advice.startswith("hint: ")
    assert hint in advice
    assert tree(place.here) == before


_WITHOUT_A_BASE = {
    *("folder to start from", "no image to transfer", "no ControlNet", "no mask"),
    *("mask of another shape", "unknown prompts", "no preview prompt", "out is a run"),
    *("folder without permission", "noun with an article", "no class images"),
    *("token of signs", "class images not used", "class images contradicted"),
    *("option of other methods", "full weights on a preview base", "no assistant"),
    *("endless weight in a prompt", "LoRA format for a checkpoint", "format of another suffix"),
    *("suffix of no checkpoint", "article in an evaluation", "images of too few prompts"),
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[0] in _WITHOUT_A_BASE], ids=itemgetter(0)
)
def test_what_needs_no_base_is_checked_before_one_is_opened(
    place: Place, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_source", None)
    monkeypatch.setattr(lora_tools, "ConceptReference", None)
    assert main(case[1](place)) == 2


def test_a_file_to_write_is_checked_before_a_concept_is_read_in_full(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"<x>": torch.zeros(1, 4)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(Concept, "check_finite", None)
    concept = str(tmp_path / "a.safetensors")
    assert main(["convert", concept, str(pictures / "0.png")]) == 2
    assert main(["convert", concept, str(tmp_path / "b.pt"), "--format", "kohya"]) == 2


def test_a_strength_of_image_to_image_without_an_image_is_noted(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(place.generate("--denoising-strength", "0.3", "--steps", "1")) == 0
    assert "has no effect without an image: --init-image FILE" in capsys.readouterr().err


def test_typed_options_replace_those_of_a_recipe(place: Place) -> None:
    typed = place.recipe("steps = 9\nseed = 4\npreview_every = 0", "num_vectors = 2")
    assert main([*typed, "--steps", "1", "--initializer", "random"]) == 0
    recipe = Recipe.from_toml(place.here / "run" / "recipe.toml")
    assert (recipe.steps, recipe.seed, recipe.preview_every) == (1, 4, 0)
    method = recipe.method.model_dump()
    assert (method["num_vectors"], method["initializer"]) == (2, "random")


@pytest.mark.long
@pytest.mark.parametrize("first", ["folder", "option"])
def test_without_a_method_the_recommended_one_trains(
    first: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, *typed = place.train("--class-images", "0", "--preview-every", "0")
    images, *options = typed
    where = [images, *options] if first == "folder" else [*options, "--images", images]
    assert main([command, *where]) == 0
    method = Recipe.from_toml(place.here / "run" / "recipe.toml").method
    assert (method.name, method.model_dump()["class_images"]) == ("lora", 0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "because" in line]
    assert line.startswith("method: lora, because none is named: ")


def test_photographs_for_pocket_are_noted(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_base(*_: object) -> None:
        raise ModelError("no base", "")

    monkeypatch.setattr("pinxit.cli.opening.find_source", no_base)
    Image.new("RGB", (300, 400)).save(place.here / "pictures" / "3.png")
    assert main(place.train("--base", "pocket")) == 2
    assert "docs/guides/photographs.md" in capsys.readouterr().err
    (place.here / "pictures" / "3.png").unlink()
    assert main(place.train("--base", "pocket")) == 2
    assert "docs/guides/photographs.md" not in capsys.readouterr().err


def test_one_image_can_be_written_to_a_file(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(place.generate("--steps", "1", "--out", "new/one.png", "-n", "1")) == 0
    assert capsys.readouterr().out.split() == ["new/one.png"]
    assert [path.name for path in (place.here / "new").iterdir()] == ["one.png"]


def test_fewer_steps_than_trained_are_refused_early(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*place.train("--steps", "2"), "--preview-every", "0"]) == 0
    monkeypatch.setattr("pinxit.cli.opening.find_source", None)
    assert main(["train", "--resume", "run", "--steps", "1"]) == 2
    assert "already trained 2 steps, more than 1" in capsys.readouterr().err


def test_a_finished_run_reports_that_no_step_is_left(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*place.train(), "--preview-every", "0"]) == 0
    assert "nothing left" not in capsys.readouterr().err
    assert main(["train", "--resume", "run"]) == 0
    assert "nothing left to do, step 1 is done" in capsys.readouterr().err


# A regular file on Linux, of which no byte can be read: as on a disk or a drive that fails.
FAILING = Path("/proc/self/mem")


@pytest.mark.skipif(not FAILING.exists(), reason="a file of Linux")
def test_files_that_the_system_cannot_read(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("m.txt", "m.toml", "faulty/journal.jsonl", "photos/a.txt", "other/metadata.csv"):
        file = place.here / name
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(FAILING)
    (place.here / "faulty" / "recipe.toml").touch()
    for folder in ("photos", "other"):
        Image.new("RGB", (32, 32), "red").save(place.here / folder / "a.png")
    failing = str(FAILING)
    for typed in (
        ["inspect", failing],
        ["convert", failing, "x.safetensors"],
        ["lora", "merge", failing, "--out", "x.safetensors"],
        place.generate("--concept", failing),
        ["generate", "a toy", "--base", failing],
        place.generate("--vae", failing),
        ["train", "--recipe", "m.toml"],
        ["train-many", "lora", "m.toml"],
        ["runs", "faulty"],
        ["check", "photos"],
    ):
        assert main(typed) == 2, typed
        message = capsys.readouterr().err
        assert "cannot be read: Input/output error" in message, typed
        assert "hint: " in message, typed
    assert main(["check", "other"]) == 0
    captured = capsys.readouterr()
    assert "cannot be read: Input/output error" in captured.out + captured.err
    with pytest.raises(RequestError, match="Input/output error"):
        prompt_set("m.txt", "dog")
    assert main(place.generate("--concept", "/dev/null")) == 2
    assert "/dev/null is not a regular file" in capsys.readouterr().err


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_a_base_model_that_opens_slowly_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nano: Path
) -> None:
    monkeypatch.setattr(opening, "_PATIENCE", 0.01)
    monkeypatch.setattr(opening, "open_source", lambda *_: time.sleep(0.5))
    with pytest.raises(AttributeError):  # there is no model
        opening.Opening().open(GenerationRequest(prompt="a toy", base=str(nano)))
    assert f"opening {nano}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EIO, "may be failing"), (errno.EACCES, "its permissions")]
)
def test_an_error_of_the_system_is_told_by_what_it_is(
    number: int,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "toy.png")

    monkeypatch.setattr("pinxit.cli.app", failing)
    assert main(["doctor"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: toy.png cannot be read or written: {os.strerror(number)}")
    assert hint in printed
