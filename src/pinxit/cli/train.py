"""`pinxit train` and `pinxit train-many`: a command for each method, and --recipe and --resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pinxit import registry
from pinxit.cli import help_texts
from pinxit.errors import RecipeError, closest, did_you_mean

_METHODS = registry.names("methods")

# The method if none is named, and why: docs/guides/which-method.md has the figures.
RECOMMENDED = "lora"
_REASON = "of the methods that follow prompts it comes closest to objects and styles"

train = App(name="train", help="Train a concept from images of a subject or a style.")
many = App(name="train-many", help="Train concepts of many subjects, several at once.")
for _name in _METHODS:
    _about = registry.summary("methods", _name)
    train.command(f"pinxit.cli.train_run:{_name}", name=_name, help=_about)
    many.command(f"pinxit.cli.train_run:many {_name}", name=_name, help=_about)

DEVICE = Parameter(help=help_texts.DEVICE, show_default=lambda _: help_texts.DEVICE_DEFAULT)
_WORKERS = Parameter(help="as with a method: see pinxit train-many METHOD --help", negative="")
_MANY_FLAGS = (
    *("--resume", "--device", "--download"),
    *("--engine", "--workers", "--address", "--shard", "--store", "--json"),
)
_RESUME_FLAGS = (
    *("--device", "--download", "--gpus", "--shard-weights", "--compile"),
    *("--steps", "--images", "--base"),
)
_FLAGS = ("--recipe", "--resume", "--out", *_RESUME_FLAGS)


@train.default
def train_from_file(  # noqa: PLR0913 (one for each flag)
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    recipe: Path | None = None,
    resume: Path | None = None,
    out: Path | None = None,
    device: Annotated[str | None, DEVICE] = None,
    download: Annotated[bool, Parameter(negative="", help=help_texts.DOWNLOAD)] = False,
    gpus: Annotated[int | None, Parameter(help=help_texts.GPUS)] = None,
    shard_weights: Annotated[bool, Parameter(negative="", help=help_texts.SHARD)] = False,
    compile_: Annotated[bool, Parameter("--compile", negative="", help=help_texts.COMPILE)] = False,
    steps: int | None = None,
    images: Path | None = None,
    base: str | None = None,
    pictures: Annotated[Path | None, Parameter(show=False, help="same as --images")] = None,
) -> None:
    """Train from a recipe file, or continue a run that was stopped.

    With a folder of images and no method, train by the recommended method.

    Args:
        recipe: TOML file with options; typed options of its method replace those in it
        resume: folder of a run to continue
        out: with --recipe: folder for the run; must be new (default: runs/TOKEN)
        steps: with --resume: total number of steps (default: that of the run)
        images: with --resume: folder of the training images, if it was moved
        base: with --resume: the base model, if it was moved
    """
    images = images or pictures
    if resume is None and (recipe is not None or images or _is_image_folder(words)):
        typed = {"recipe": recipe, "out": out, "device": device, "steps": steps, "base": base}
        typed |= {"images": images, "gpus": gpus}
        switches = {"--download": download, "--shard-weights": shard_weights}
        switches |= {"--compile": compile_}
        _train(recipe, (*words, *(name for name, is_on in switches.items() if is_on)), typed)
        return
    _refuse_words("train", words, _FLAGS, resume)
    if resume is None:
        raise RecipeError("`pinxit train` needs a folder of images, a recipe or a run", _usage())
    if recipe is not None:
        raise RecipeError(f"a recipe ({recipe}) and a run ({resume}) are both given", _usage())
    from pinxit.cli import train_run

    typed = {"device": device, "download": download, "gpus": gpus, "compile": compile_}
    typed |= {"shard_weights": shard_weights}
    run = train_run.Run.open(resume, steps, images, base)
    train_run.train_run(run, train_run.Opening.typed(typed))


def _is_image_folder(words: tuple[str, ...]) -> bool:
    """Whether the first word is a folder, and not the name of a method."""
    return bool(words) and words[0] not in _METHODS and Path(words[0]).expanduser().is_dir()


def _train(recipe: Path | None, words: tuple[str, ...], typed: Mapping[str, object]) -> None:
    """Train by the method of a recipe, or by the recommended one, with the typed options."""
    from pinxit.cli import app
    from pinxit.cli.screen import say
    from pinxit.training.recipe import Recipe

    method = RECOMMENDED
    if words[1:] and words[1] in _METHODS:
        raise RecipeError(
            f"the method `{words[1]}` must come directly after train",
            f"type: pinxit train {words[1]} {words[0]} ...",
        )
    if recipe:
        method = Recipe.from_toml(recipe).method.name
    else:
        say(f"method: {method}, because none is named: {_REASON}")
    options = [f"--{name}={value}" for name, value in typed.items() if value is not None]
    app(["train", method, *options, *words], exit_on_error=False, print_error=False)


@many.default
def resume_many(  # noqa: PLR0913 (one for each flag)
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    resume: Path | None = None,
    device: Annotated[str | None, DEVICE] = None,
    download: Annotated[bool, Parameter(negative="", help=help_texts.DOWNLOAD)] = False,
    engine: Annotated[str | None, _WORKERS] = None,
    workers: Annotated[int | None, _WORKERS] = None,
    address: Annotated[str | None, _WORKERS] = None,
    shard: Annotated[str | None, _WORKERS] = None,
    store: Annotated[str | None, _WORKERS] = None,
    json_: Annotated[bool, _WORKERS] = False,
) -> None:
    """Continue the training of many subjects.

    Args:
        resume: folder of a train-many to continue
    """
    _refuse_words("train-many", words, _MANY_FLAGS)
    if resume is None:
        raise RecipeError(
            "`pinxit train-many` needs a method and subjects, or a folder to continue",
            "use `pinxit train-many METHOD SUBJECTS ...` or --resume FOLDER; "
            f"methods: {', '.join(_METHODS)}",
        )
    from pinxit.cli.train_run import Opening, resume_group

    typed = {"engine": engine, "workers": workers, "address": address, "shard": shard}
    typed |= {"store": store}
    fleet = {name: value for name, value in typed.items() if value is not None}
    opening = Opening.typed({"device": device, "download": download})
    resume_group(resume, opening, fleet, as_json=json_)


def _usage() -> str:
    return (
        "use `pinxit train METHOD IMAGES ...`, `pinxit train IMAGES ...` for the recommended "
        f"method ({RECOMMENDED}), --recipe FILE or --resume RUN; "
        f"methods: {', '.join(_METHODS)}"
    )


def _refuse_words(
    command: str, words: tuple[str, ...], flags: tuple[str, ...], resume: Path | None = None
) -> None:
    """RecipeError for an unknown method, a misspelt flag, or one that a run to resume has fixed."""
    if not words:
        return
    if words[0].startswith("-"):
        if resume and not closest(words[0], flags):
            raise RecipeError(
                f"{words[0]} cannot be changed when {resume} is continued",
                f"for a new run: pinxit train --recipe {resume / 'recipe.toml'} {words[0]} ...; "
                f"with --resume: {', '.join(_RESUME_FLAGS)}",
            )
        raise RecipeError(
            f"unknown option {words[0]} of `pinxit {command}` without a method",
            did_you_mean(words[0], flags),
        )
    registry.load("methods", words[0])
    raise RecipeError(
        f"the method `{words[0]}` must come directly after {command}",
        f"see pinxit {command} --help",
    )
