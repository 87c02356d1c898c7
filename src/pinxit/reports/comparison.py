"""Evaluation: concepts compared by images of one set of prompts, with metrics and a report."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from pinxit import registry
from pinxit.errors import RequestError
from pinxit.evaluation.judge import NO_ANCHORS, Anchors
from pinxit.evaluation.prompt_sets import prompt_set
from pinxit.files.atomic_write import check_claim, claim_folder, make_folder, write_text
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.progress import ProgressCallback
from pinxit.reports.comparison_page import comparison_page
from pinxit.reports.entrant import Entrant, generated_files
from pinxit.reports.figures import EvaluationSettings, Evaluator, SubjectResults
from pinxit.training.plan import check_class_noun, check_noun
from pinxit.training.recipe import Recipe

REPORT, METRICS, TABLE, _IMAGES = "report.html", "metrics.json", "metrics.csv", "pictures"
KIND = "evaluation"


def evaluate(  # noqa: PLR0913
    paths: Sequence[Path],
    out: Path,
    open_model: Callable[[Recipe], Model],
    progress: ProgressCallback,
    settings: EvaluationSettings | None = None,
    overrides: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
    base_images: Path | None = None,
) -> dict[str, object]:
    """Generate images, measure them, and write `report.html` into `out`; returns the metrics.

    Images are kept in `out`, so an interrupted evaluation continues; those of the base model in
    the folder `base_images`, if it is given. `overrides` are recipe options that replace those of
    the runs. RunError if `out` contains other files. Of several processes, rank 0 writes the
    report.
    """
    settings = settings or EvaluationSettings()
    if ranks.rank == 0:
        check_claim(out, KIND, _IMAGES)
    entrants = read_entrants(paths, overrides or {})
    _check_entrants(entrants, settings)
    if ranks.rank == 0:
        claim_folder(out, KIND)
        make_folder(out / _IMAGES)
    ranks.exchange(None)
    groups: list[SubjectResults] = []
    for same_base in _by_base(_with_unique_titles(entrants)):
        model = open_model(same_base[0][0].recipe)
        for rivals in same_base:
            check_class_noun(model, rivals[0].recipe.class_noun)
        evaluator = Evaluator(model, settings, out / _IMAGES, progress, ranks, base_images)
        groups += [
            evaluator.evaluate_subject(rivals, _anchors(rivals[0], entrants))
            for rivals in same_base
        ]
    metrics: dict[str, object] = {
        "groups": [group.to_dict() for group in groups],
        "report": str(out / REPORT),
    }
    if ranks.rank:
        return metrics
    write_text(out / REPORT, comparison_page(groups))
    stored = {**metrics, "settings": settings.model_dump()}
    write_text(out / METRICS, json.dumps(stored, indent=1))
    write_text(out / TABLE, metrics_table(groups))
    return metrics


def _check_entrants(entrants: Sequence[Entrant], settings: EvaluationSettings) -> None:
    """What can be checked before a base model is opened."""
    for entrant in entrants:
        check_noun(entrant.recipe.class_noun)
        if entrant.image_files and settings.prompts:
            count = len(prompt_set(settings.prompts, entrant.recipe.class_noun))
            entrant.check_count(count * settings.num_images)


def read_entrants(paths: Sequence[Path], overrides: Mapping[str, Any]) -> list[Entrant]:
    """The concepts, and folders of images of other programs, which have the first one's subject.

    Without a concept the subject follows from `overrides`; RequestError if it does not.
    """
    folders = [path for path in paths if generated_files(path)]
    concepts = [Entrant.from_path(path, overrides) for path in paths if path not in folders]
    if concepts or not folders:
        first = concepts[0] if concepts else None
        others = [Entrant.of_images(path, first.recipe, first.images) for path in folders if first]
        return concepts + others
    if not {"images", "class_noun"} <= overrides.keys():
        raise RequestError(
            f"{folders[0]} does not say what its images show", "give --images and --class-noun"
        )
    method = registry.names("methods")[0]
    recipe = Recipe.model_validate({"token": "<subject>", "method": method, **overrides})
    return [Entrant.of_images(path, recipe, recipe.read_images()) for path in folders]


def metrics_table(groups: Sequence[SubjectResults]) -> str:
    """All metrics as CSV: a line for each metric of each entrant and anchor, and the pairs."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("subject", "base", "entrant", "method", "metric", "value", "low", "high"))
    for group in groups:
        subject = (group.subject.class_noun, group.base)
        rows = [(title, "", metrics) for title, metrics in group.anchors.items()]
        rows += [(one.entrant.title, one.entrant.method, one.metrics) for one in group.results]
        rows += [(f"mean of {title}", "seeds", metrics) for title, metrics in group.seed_means]
        rows += [(f"{a} minus {b}", "paired", metrics) for a, b, metrics in group.differences]
        for title, method, metrics in rows:
            for name, one in metrics.items():
                writer.writerow((*subject, title, method, name, one.value, one.low, one.high))
    return text.getvalue()


def _anchors(entrant: Entrant, entrants: Sequence[Entrant]) -> Anchors:
    """Training images of other subjects of the same class among the entrants, as look-alikes."""
    recipe, subject = entrant.recipe, entrant.subject_key
    if recipe.kind == "style":
        return NO_ANCHORS
    others = {
        other.subject_key: other.images
        for other in entrants
        if other.recipe.class_noun == recipe.class_noun and other.subject_key[1] != subject[1]
    }
    return Anchors(tuple(image.open() for images in others.values() for image in images))


def _by_base(entrants: Sequence[Entrant]) -> list[list[list[Entrant]]]:
    """The entrants by base model, and of each base model by subject."""
    bases: dict[object, dict[object, list[Entrant]]] = {}
    for entrant in entrants:
        subjects = bases.setdefault(entrant.subject_key[0], {})
        subjects.setdefault(entrant.subject_key, []).append(entrant)
    return [list(subjects.values()) for subjects in bases.values()]


def _with_unique_titles(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The entrants; those with the same title get a number."""
    titles = [entrant.title for entrant in entrants]
    return [
        entrant
        if titles.count(entrant.title) == 1
        else replace(entrant, title=f"{entrant.title} ({number})")
        for number, entrant in enumerate(entrants, 1)
    ]
