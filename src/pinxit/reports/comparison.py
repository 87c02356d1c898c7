"""Evaluation: learned words painted with a fixed set of prompts, measured, and a report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinxit.files.atomic_write import make_folder, mark_ours, must_be_ours, replace_text
from pinxit.models.model import Model
from pinxit.reports.comparison_page import page
from pinxit.reports.entrant import Contender
from pinxit.reports.figures import Effort, Group, Table, Told
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

REPORT, _PICTURES = "report.html", "pictures"
KIND = "evaluation"


def evaluate(
    paths: Sequence[Path],
    out: Path,
    opened: Callable[[Recipe], Model],
    told: Told,
    effort: Effort | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """Paint, measure, and write `report.html` into `out`; the figures.

    Pictures are kept in `out`, so that what was stopped goes on. `given` are fields of recipes
    that are so whatever the runs say. RunError if the folder holds anything else.
    """
    must_be_ours(out, KIND, _PICTURES)
    contenders = [Contender.of(path, given or {}) for path in paths]
    bases: dict[object, dict[object, list[Contender]]] = {}
    for one in _distinct(contenders):
        bases.setdefault(one.subject[0], {}).setdefault(one.subject, []).append(one)
    mark_ours(out, KIND)
    make_folder(out / _PICTURES)
    groups: list[Group] = []
    for subjects in bases.values():
        at_hand = list(subjects.values())
        model = opened(at_hand[0][0].recipe)
        table = Table(model, effort or Effort(), out / _PICTURES, told)
        groups += [table.group(some, _lookalikes(some[0], contenders)) for some in at_hand]
    replace_text(out / REPORT, page(groups))
    return {"groups": [group.plain() for group in groups], "report": str(out / REPORT)}


def _lookalikes(one: Contender, contenders: Sequence[Contender]) -> "list[Image]":
    """The pictures of others of its class among those that are evaluated."""
    if one.recipe.kind == "style":
        return []
    others = {
        other.subject: other.pictures
        for other in contenders
        if other.recipe.class_noun == one.recipe.class_noun and other.subject[1] != one.subject[1]
    }
    return [picture.open() for pictures in others.values() for picture in pictures]


def _distinct(contenders: Sequence[Contender]) -> list[Contender]:
    """With titles that tell them apart."""
    titles = [contender.title for contender in contenders]
    return [
        one if titles.count(one.title) == 1 else one.called(f"{one.title} ({at + 1})")
        for at, one in enumerate(contenders)
    ]
