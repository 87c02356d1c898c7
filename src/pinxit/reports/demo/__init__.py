"""The demo: a subject and a style, each trained from five images, and a report."""

import time
from pathlib import Path

from pinxit.files.atomic_write import check_claim, claim_folder, write_text
from pinxit.models.open_base import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.progress import ProgressCallback
from pinxit.reports.demo.chapters import DemoSettings, style_section, subject_section
from pinxit.reports.demo.full import extra_sections
from pinxit.reports.demo.report import demo_page
from pinxit.reports.demo.trial import DemoRunner

_RUNS, _PICTURES, _REPORT = "runs", "pictures", "report.html"
_KIND = "demo"


def run_demo(
    out: Path, progress: ProgressCallback, settings: DemoSettings | None = None
) -> dict[str, object]:
    """Train, generate, measure, and write runs and `report.html` into `out`; returns the scores.

    An interrupted demo continues. RunError if `out` contains other files.
    """
    check_claim(out, _KIND, _RUNS, _PICTURES)
    settings = settings or DemoSettings()
    start = time.perf_counter()
    model = open_base(settings.base)
    eyes = settings.eyes or Eyes.load()
    claim_folder(out, _KIND)
    runner = DemoRunner(model, progress, settings.num_images, settings.sampling_steps)
    sections = (
        subject_section(runner, settings, out / _RUNS, eyes),
        style_section(runner, settings, out / _RUNS, eyes),
    )
    more = extra_sections(runner, sections, out / _PICTURES) if settings.full else ""
    seconds = time.perf_counter() - start
    write_text(out / _REPORT, demo_page(sections, seconds, more))
    scores: dict[str, object] = {section.name: section.to_dict() for section in sections}
    return {**scores, "seconds": seconds, "report": str(out / _REPORT)}
