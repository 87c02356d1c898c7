"""The demonstration: a subject and a style, each learned from five pictures, and a report."""

import time
from pathlib import Path

from pinxit.files.atomic_write import mark_ours, must_be_ours, replace_text
from pinxit.models.model import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.reports.demo.chapters import Effort, style_chapter, subject_chapter
from pinxit.reports.demo.full import sections
from pinxit.reports.demo.report import page
from pinxit.reports.demo.trial import Easel, Progress

_RUNS, _PICTURES, _REPORT = "runs", "pictures", "report.html"
_KIND = "demo"


def run_demo(out: Path, progress: Progress, effort: Effort | None = None) -> dict[str, object]:
    """Learn, paint, measure, and write `report.html` and the runs into `out`; the scores.

    A demo that was stopped goes on where it was. RunError if the folder holds anything else.
    """
    must_be_ours(out, _KIND, _RUNS, _PICTURES)
    effort = effort or Effort()
    began = time.perf_counter()
    model = open_base(effort.base)
    eyes = effort.eyes or Eyes.load()
    mark_ours(out, _KIND)
    easel = Easel(model, progress, effort.count, effort.painting_steps)
    chapters = (
        subject_chapter(easel, effort, out / _RUNS, eyes),
        style_chapter(easel, effort, out / _RUNS, eyes),
    )
    more = sections(easel, chapters, out / _PICTURES) if effort.full else ""
    seconds = time.perf_counter() - began
    replace_text(out / _REPORT, page(chapters, seconds, more))
    scores: dict[str, object] = {chapter.name: chapter.plain() for chapter in chapters}
    return {**scores, "seconds": seconds, "report": str(out / _REPORT)}
