"""`pinxit evaluate` and `evaluate-many`: generate images with concepts, measure them, report."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pinxit.cli.check import HUB_RESOLUTION
from pinxit.cli.flags import (
    COMPILE,
    DEVICE,
    DOWNLOAD,
    GPUS,
    Values,
    command,
    flag,
    flags,
    option_flags,
    positional,
    positionals,
)
from pinxit.cli.fleet import fleet_flags, open_group, work_with_all
from pinxit.cli.opening import Opening
from pinxit.cli.screen import bars, data, say, stoppable, table
from pinxit.cli.train_run import train_group
from pinxit.errors import RequestError, did_you_mean
from pinxit.evaluation.confidence import Interval
from pinxit.evaluation.networks import CLIP, DINO, fetch_networks, require_networks
from pinxit.files.atomic_write import check_claim, claim_folder
from pinxit.files.text import read_toml
from pinxit.models.hub import looks_like_id
from pinxit.models.model import Model
from pinxit.models.open_base import local_resolution
from pinxit.models.ranks import Ranks
from pinxit.options import Option, Options
from pinxit.reports.comparison import REPORT, TABLE
from pinxit.reports.comparison import evaluate as evaluate_concepts
from pinxit.reports.dreambench import open_or_create, write_comparison
from pinxit.reports.figures import EvaluationSettings
from pinxit.reports.many import KIND, Evaluation, write_table
from pinxit.reports.pages import interval_text, metric_title
from pinxit.training.recipe import Recipe

_OUT = Path("evaluation")
# Recipe options that may be given for all concepts.
_RECIPE_OPTIONS = ("images", "class_noun", "base")
_METHOD = "textual-inversion"
# The metrics that are printed.
_SHARES = ("likeness", "prompt", "best")
# DreamBench's number of images for each prompt.
_PROTOCOL, _PROTOCOL_IMAGES = "dreambench", 4
# A base model of this size may have pocket's vocabulary, and needs no networks then.
_POCKET_RESOLUTION = 64


class BenchmarkOptions(Options):
    """How the subjects of a benchmark are trained before they are evaluated."""

    benchmark: Path | None = None
    """folder of image folders to train first"""
    protocol: str | None = None
    """dreambench: 4 images per prompt, and a table with published values"""
    method: str = _METHOD
    """training method"""
    recipe: Path | None = None
    """recipe file with training options, without images, token and class noun"""
    training_steps: int | None = Option(
        None, aliases=("learning_steps",), default_is="chosen by method"
    )
    """training steps"""


def _evaluate(given: Values) -> None:
    opening = Opening.typed(given)
    with opening.joined() as ranks:
        _evaluate_in(ranks, opening, given)


def _evaluate_in(ranks: Ranks, opening: Opening, given: Values) -> None:
    out = given.get("out", _OUT)
    protocol = _protocol(given)
    images = {"num_images": _PROTOCOL_IMAGES} if protocol else {}
    settings = EvaluationSettings.model_validate({**images, **EvaluationSettings.chosen(given)})
    # A hub id that was typed is consent to its download.
    with bars():
        if ranks.rank == 0:
            fetch_networks(filter(None, (settings.dino_model, settings.clip_model)))
        ranks.exchange(None)
    overrides = {name: given[name] for name in _RECIPE_OPTIONS if name in given}
    runs: tuple[Path, ...] = given.get("runs", ())

    def open_model(recipe: Recipe) -> Model:
        _require_judges(opening, recipe.base, settings)
        return opening.open(recipe)

    if "benchmark" in given:
        common = {"preview_every": 0, **_training_options(given), **overrides}
        _require_judges(opening, str(common.get("base", "pocket")), settings)
        group, folder = open_or_create(given["benchmark"], out, common), out / "runs"
        train_group(group, folder, opening)  # those that are not finished
        runs = (*runs, *(run.folder for run in group.runs(folder).values()))
        overrides = {}
    if not runs:
        raise RequestError(
            "there is nothing to evaluate", "give run folders or concepts, or --benchmark FOLDER"
        )
    with stoppable(), bars() as progress:
        metrics = evaluate_concepts(runs, out, open_model, progress, settings, overrides, ranks)
    say(f"report: {out / REPORT}")
    if protocol and not ranks.rank:
        say(*write_comparison(metrics, out).splitlines())
    if given.get("json"):
        data(json.dumps(metrics))
    else:
        table(("", "class noun", *(metric_title(name) for name in _SHARES)), list(_rows(metrics)))


def _require_judges(opening: Opening, base: str, settings: EvaluationSettings) -> None:
    """Raise RequestError if networks that score images are missing, before the base model opens."""
    resolution = local_resolution(base) or (looks_like_id(base) and HUB_RESOLUTION)
    if resolution > _POCKET_RESOLUTION and not opening.judges:
        require_networks((settings.dino_model or DINO, settings.clip_model or CLIP))


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each concept: its title, the class noun, and shares with their intervals."""
    for group in metrics["groups"]:
        for title, run in group["runs"].items():
            values = (run["figures"].get(name) for name in _SHARES)
            intervals = (Interval(**one) if one else None for one in values)
            yield (title, group["class_noun"], *map(interval_text, intervals))


def _training_options(given: Values) -> dict[str, object]:
    """The training options of all subjects of a benchmark: those of a file, and typed ones."""
    options: dict[str, object] = {"method": _METHOD}
    if "recipe" in given:
        options |= read_toml(given["recipe"], "recipe")
    for name in ("images", "token", "class_noun"):  # those of each subject
        options.pop(name, None)
    typed = {"method": "method", "training_steps": "steps"}
    return options | {typed[name]: given[name] for name in typed if name in given}


def _protocol(given: Values) -> str | None:
    """The protocol that was typed; RequestError if it is unknown or there is no benchmark."""
    protocol = given.get("protocol")
    if protocol not in (None, _PROTOCOL):
        raise RequestError(f"unknown protocol `{protocol}`", did_you_mean(protocol, (_PROTOCOL,)))
    if protocol and "benchmark" not in given:
        raise RequestError(
            f"the protocol {protocol} needs its subjects", "add --benchmark dreambooth/dataset"
        )
    return protocol


evaluate = command(
    [
        positionals("runs", Path, "run folders, or concept files in any format"),
        flag("out", Path, "folder for the report; an earlier evaluation is continued", str(_OUT)),
        *flags(EvaluationSettings),
        *chain.from_iterable(
            option_flags(name, Recipe.model_fields[name], default="that of the run")
            for name in _RECIPE_OPTIONS
        ),
        DEVICE,
        GPUS,
        COMPILE,
        DOWNLOAD,
        flag("json", bool, "also print the metrics as JSON", "False"),
        *flags(BenchmarkOptions, group="Training a benchmark"),
    ],
    _evaluate,
)


def _evaluate_many(given: Values) -> None:
    out = given.get("out", _OUT)
    settings = EvaluationSettings.model_validate(EvaluationSettings.chosen(given))
    group, options = open_group(given)
    recipe = next(iter(group.subjects.values()))
    opening = Opening.typed(given)
    judges = () if recipe.base == "pocket" else opening.judges
    fetch_networks((*judges, *filter(None, (settings.dino_model, settings.clip_model))))
    _require_judges(opening, recipe.base, settings)
    check_claim(out, KIND, TABLE, *group.subjects)
    claim_folder(out, KIND)
    try:
        work_with_all(given, group, options, Evaluation(settings, out.resolve()), "evaluated")
    finally:
        say(f"table: {write_table(out, group.subjects)}")


evaluate_many = command(
    [
        positional("runs", Path, "folder of a train-many"),
        flag("out", Path, "folder for a report of each subject and one table", str(_OUT)),
        *flags(EvaluationSettings),
        DEVICE,
        DOWNLOAD,
        *fleet_flags(),
    ],
    _evaluate_many,
)
