"""`pinxit train`: a command for each method, and going on with a recipe or a run."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pinxit import registry
from pinxit.errors import RecipeError, did_you_mean

train = App(name="train", help="Learn a new word from pictures of a subject or a style.")

for _name in registry.names("methods"):
    train.command(f"pinxit.cli.learn:{_name}", name=_name, help=registry.summary("methods", _name))

many = App(name="train-many", help="Learn many words at once from pictures of many subjects.")

for _name in registry.names("methods"):
    many.command(f"pinxit.cli.many:{_name}", name=_name, help=registry.summary("methods", _name))

_FLAGS = ("--recipe", "--resume", "--out", "--device", "--steps", "--pictures", "--base")


@train.default
def by_file(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    recipe: Annotated[Path | None, Parameter(help="a TOML file that holds every choice")] = None,
    resume: Annotated[Path | None, Parameter(help="the folder of a run to go on with")] = None,
    out: Annotated[Path | None, Parameter(help="folder for the run of a recipe")] = None,
    device: Annotated[str, Parameter(help="where to compute: cpu, cuda or mps")] = "cpu",
    steps: Annotated[int | None, Parameter(help="with --resume: how many steps in all")] = None,
    pictures: Annotated[Path | None, Parameter(help="with --resume: where they are now")] = None,
    base: Annotated[str | None, Parameter(help="with --resume: where it is now")] = None,
) -> None:
    """Learn as a recipe says, or go on with a run that was stopped."""
    _no_stray(words)
    if (recipe is None) == (resume is None):
        raise RecipeError(
            "`pinxit train` needs a method, a recipe or a run"
            if recipe is None
            else f"a recipe ({recipe}) and a run ({resume}) were given at once",
            "type `pinxit train METHOD PICTURES ...`, or one of --recipe FILE and --resume RUN; "
            f"methods: {', '.join(registry.names('methods'))}",
        )
    given = {"--steps": steps, "--pictures": pictures, "--base": base}
    stray = [flag for flag, value in given.items() if value is not None]
    if recipe is not None and stray:
        raise RecipeError(
            f"{stray[0]} goes with --resume", f"write it into {recipe}, or type a method's command"
        )
    from pinxit.cli import learn

    if resume is not None:
        learn.go_on(resume, device, steps, pictures, base)
    elif recipe is not None:
        learn.by_recipe(recipe, out, device)


@many.default
def many_by_folder(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    resume: Annotated[Path | None, Parameter(help="the folder of subjects to go on with")] = None,
    device: Annotated[str, Parameter(help="where to compute: cpu, cuda or mps")] = "cpu",
) -> None:
    """Go on with subjects that were begun."""
    _no_stray(words)
    if resume is None:
        raise RecipeError(
            "`pinxit train-many` needs a method and subjects, or a folder to go on with",
            "type `pinxit train-many METHOD SUBJECTS ...`, or --resume FOLDER; "
            f"methods: {', '.join(registry.names('methods'))}",
        )
    from pinxit.cli import many as learn

    learn.go_on(resume, device)


def _no_stray(words: tuple[str, ...]) -> None:
    """What is neither a method nor a flag: an unknown method, or a misspelt flag."""
    if not words:
        return
    if words[0].startswith("-"):
        raise RecipeError(
            f"unknown option {words[0]} before a method", did_you_mean(words[0], _FLAGS)
        )
    registry.load("methods", words[0])
    raise RecipeError(f"`{words[0]}` must be the first word after train", "see pinxit train --help")
