"""Every flag of the first version and every alias is accepted, and means the same as before."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pinxit import registry
from pinxit.cli import app, main
from pinxit.generation.request import GenerationRequest
from pinxit.options import Options
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs.many import RunGroup
from pinxit.training.recipe import Recipe

METHODS = ("textual-inversion", "dreambooth", "lora")
TRAINING = """--base --batch-size --captions --checkpoint-every --class-noun --clip --clip-skip
    --device --flip --keep-every --kind --look-every --masks --min-snr --no-captions --no-flip
    --no-score --no-skip-bad --out --precision --preview-every --rate --score --seed --size
    --skip-bad --steps --stop --vae"""
EMBEDDING = "--length --start --vectors"
FINETUNING = """--no-train-text-encoder --prior-pictures --prior-weight --rare-token --text-rate
    --train-text-encoder"""
LORA = f"{FINETUNING} --adapter --alpha --layers --rank --vectors --word --word-rate"
REQUEST = """--base --clip-skip --concept --count --device --guidance --negative --out --precision
    --prompt --scheduler --seed --size --steps --vae"""

# The flags of version 0.1, by command.
FIRST_VERSION = {
    "train": "--base --device --out --pictures --recipe --resume --steps",
    "train textual-inversion": f"{TRAINING} {EMBEDDING} --pictures --token",
    "train dreambooth": f"{TRAINING} {FINETUNING} --pictures --token",
    "train lora": f"{TRAINING} {LORA} --pictures --token",
    "train-many": "--device --resume",
    "train-many textual-inversion": f"{TRAINING} {EMBEDDING} --resume --subjects --together",
    "train-many dreambooth": f"{TRAINING} {FINETUNING} --resume --subjects --together",
    "train-many lora": f"{TRAINING} {LORA} --resume --subjects --together",
    "check": "--masks --out --pictures --size",
    "generate": f"{REQUEST} --init --like --strength",
    "transfer": f"""{REQUEST} --control --edges --keep --mask --no-edges --no-outside --outside
        --path --picture --scale --shows --weights""",
    "evaluate": """--base --benchmark --class-noun --clip --count --device --dino --json
        --learning-steps --method --no-json --out --pictures --prompts --steps""",
    "inspect": "--base --file",
    "convert": "--base --file --format --out --precision",
    "demo": "--full --json --out",
    "list": "--kind",
}
# Values of flags that do not take a number, as they were typed in version 0.1.
VALUES = {
    "train --preserve": "none",
    "train-many --preserve": "none",
    "--lr-schedule": "linear",
    "--lr-scheduler": "linear",
    "--kind": "object",
    "--learnable-property": "object",
    "--masks": "beside",
    "--precision": "fp32",
    "--mixed-precision": "fp32",
    "--adapter": "lora",
    "--layers": "all",
    "--start": "random",
    "--initializer": "random",
}
SWITCHES = (
    "--ema --use-ema --average-weights --cache-encodings --cache-latents-to-disk "
    "--cache-text-encoder-outputs-to-disk "
    "--captions --flip --random-flip --score --score-previews --skip-bad --train-text-encoder "
    "--edges --outside --invert-mask --json --full"
)
REQUIRED = {"inspect": ["--file"], "convert": ["--file", "--out"]}


def parsed(command: str, flags: Iterable[str]) -> Mapping[str, Any]:
    """The values that the parser finds on a command line with these flags."""
    required = ["--subjects"] if command.startswith("train-many ") else REQUIRED.get(command, [])
    words = command.split()
    for flag in dict.fromkeys([*flags, *required]):
        switch = flag in SWITCHES.split() or flag.startswith("--no-")
        words += (
            [flag] if switch else [flag, VALUES.get(f"{words[0]} {flag}") or VALUES.get(flag, "1")]
        )
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return {name.rstrip("_"): value for name, value in bound.arguments.items()}


@pytest.mark.parametrize("command", FIRST_VERSION)
def test_the_flags_of_the_first_version_are_accepted(command: str) -> None:
    flags = FIRST_VERSION[command].split()
    negative = [flag for flag in flags if flag.startswith("--no-")]
    values = parsed(command, [flag for flag in flags if flag not in negative])
    for flag in flags:
        if flag not in negative:
            assert values[key(flag)] is not None, flag
    values = parsed(command, negative)
    for flag in negative:
        assert values[key(flag.replace("--no-", "--"))] is False, flag


def key(flag: str) -> str:
    """A flag as the parser names its value."""
    return flag.removeprefix("--").replace("-", "_")


def commands_with_options() -> list[tuple[str, type[Options], set[str]]]:
    """Each command, a table of options that it takes, and the options that it does not take."""
    table: list[tuple[str, type[Options], set[str]]] = []
    for method in METHODS:
        plugin = registry.load("methods", method)
        table += [(f"train {method}", Recipe, {"method"}), (f"train {method}", plugin, set())]
        own = {"method", "images", "token"}
        table += [(f"train-many {method}", Recipe, own), (f"train-many {method}", plugin, set())]
        table.append((f"train-many {method}", RunGroup, {"subjects"}))
    table.append(("generate", GenerationRequest, {"width", "height", "controls"}))
    left_out = {"width", "height", "controls", "init_image", "denoising_strength"}
    table.append(("transfer", GenerationRequest, left_out))
    for control in ("img2img", "inversion", "masactrl", "same-seed", "controlnet"):
        table.append(("transfer", registry.load("controls", control), {"image"}))
    table.append(("evaluate", EvaluationSettings, set()))
    return table


@pytest.mark.parametrize(("command", "options", "left_out"), commands_with_options())
def test_every_option_and_every_alias_has_a_flag(
    command: str, options: type[Options], left_out: set[str]
) -> None:
    names = {
        alias: option for alias, option in options.option_names().items() if option not in left_out
    }
    values = parsed(command, [f"--{alias.replace('_', '-')}" for alias in names])
    for alias, option in names.items():
        assert values[alias] is not None, alias
        assert option in options.chosen({alias: values[alias]})


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        ("generate", ["a toy", "--count", "2", "--num-images", "3"], "given twice"),
        ("generate", ["a toy", "--like", "a.png", "--from-png", "b.png"], "--from-png"),
        ("train lora", ["x", "--rate", "1", "--lr", "1", "--token", "<a>"], "given twice"),
    ],
)
def test_an_option_under_two_names_is_an_error(
    command: str, flag: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), *flag]) == 2
    assert message in capsys.readouterr().err


def test_a_prompt_without_quotes_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "photo", "of", "a", "toy"]) == 2
    shown = capsys.readouterr().err
    assert "does not take the words `photo of a toy`" in shown
    assert "put the prompt in quotes" in shown


def test_images_and_prompt_in_the_wrong_order_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "toy.png"
    image.write_bytes(b"no image")
    assert main(["transfer", "a toy", str(image)]) == 2
    assert "the image comes first" in capsys.readouterr().err
    assert main(["transfer", str(image), "a toy"]) == 2
    assert "not in a supported image format" in capsys.readouterr().err


def test_only_similar_names_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a toy", "--frobnicate", "1"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["generate", "a toy", "--cuont", "1"]) == 2
    assert "did you mean --num-images?" in capsys.readouterr().err
    assert main(["generate", "a toy", "--steps"]) == 2
    assert "--steps has no value" in capsys.readouterr().err
    assert main(["paint", "a toy"]) == 2
    assert "did you mean" not in capsys.readouterr().err
