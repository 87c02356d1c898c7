"""Evaluation: concepts compared by images of one set of prompts, with metrics and a report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinxit.evaluation.judge import NO_ANCHORS, Anchors
from pinxit.files.atomic_write import check_claim, claim_folder, make_folder, write_text
from pinxit.models.model import Model
from pinxit.progress import ProgressCallback
from pinxit.reports.comparison_page import comparison_page
from pinxit.reports.entrant import Entrant
from pinxit.reports.figures import EvaluationSettings, Evaluator, SubjectResults
from pinxit.training.recipe import Recipe

REPORT, _IMAGES = "report.html", "pictures"
KIND = "evaluation"


def evaluate(
    paths: Sequence[Path],
    out: Path,
    open_model: Callable[[Recipe], Model],
    progress: ProgressCallback,
    settings: EvaluationSettings | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """Generate images, measure them, and write `report.html` into `out`; returns the metrics.

    Images are kept in `out`, so an interrupted evaluation continues. `overrides` are recipe
    options that replace those of the runs. RunError if `out` contains other files.
    """
    check_claim(out, KIND, _IMAGES)
    entrants = [Entrant.from_path(path, overrides or {}) for path in paths]
    bases: dict[object, dict[object, list[Entrant]]] = {}
    for entrant in _with_unique_titles(entrants):
        subjects = bases.setdefault(entrant.subject_key[0], {})
        subjects.setdefault(entrant.subject_key, []).append(entrant)
    claim_folder(out, KIND)
    make_folder(out / _IMAGES)
    groups: list[SubjectResults] = []
    for subjects in bases.values():
        same_base = list(subjects.values())
        model = open_model(same_base[0][0].recipe)
        evaluator = Evaluator(model, settings or EvaluationSettings(), out / _IMAGES, progress)
        groups += [
            evaluator.evaluate_subject(rivals, _anchors(rivals[0], entrants))
            for rivals in same_base
        ]
    write_text(out / REPORT, comparison_page(groups))
    return {"groups": [group.to_dict() for group in groups], "report": str(out / REPORT)}


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


def _with_unique_titles(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The entrants; those with the same title get a number."""
    titles = [entrant.title for entrant in entrants]
    return [
        entrant
        if titles.count(entrant.title) == 1
        else entrant.with_title(f"{entrant.title} ({number})")
        for number, entrant in enumerate(entrants, 1)
    ]
