"""Evaluation of many concepts, each alone, and one table of all of them."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pinxit.files.atomic_write import write_text
from pinxit.files.text import read_table
from pinxit.models.model import Model
from pinxit.reports.comparison import METRICS, REPORT, TABLE, evaluate
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs.file_names import result_file
from pinxit.training.recipe import Recipe

KIND = "evaluate-many"
# All subjects of a class share the images of the base model. No run has a dot in its name.
_BASE_IMAGES = ".base"
_COLUMNS = ("name", "subject", "base", "method")


@dataclass(frozen=True)
class Evaluation:
    """How each concept is evaluated: as `evaluate` with it alone does, in a folder in `out`."""

    settings: EvaluationSettings
    out: Path

    def result(self, name: str) -> Path:
        """The report of a run."""
        return self.out / name / REPORT

    def work(self, model: Model, run: Path, recipe: Recipe) -> None:  # noqa: ARG002
        """Evaluate a run, unless it has been with these settings since it was trained."""
        folder = self.out / run.name
        if not self._is_done(folder, result_file(run)):
            evaluate(
                [run],
                folder,
                lambda _: model,
                lambda _: None,
                self.settings,
                base_images=self.out / _BASE_IMAGES,
            )

    def _is_done(self, folder: Path, concept: Path) -> bool:
        table = folder / TABLE  # the last file that is written
        if not table.is_file() or table.stat().st_mtime < concept.stat().st_mtime:
            return False
        settings = json.loads((folder / METRICS).read_text("utf-8")).get("settings")
        return settings == self.settings.model_dump()


def write_table(out: Path, names: Iterable[str]) -> Path:
    """Write the metrics of the runs that are evaluated, a line for each; returns the CSV file."""
    lines: list[dict[str, str]] = []
    for name in names:
        if (out / name / TABLE).is_file():
            rows = [row for row in read_table(out / name / TABLE) if row["entrant"] == name]
            values = {row["metric"]: row["value"] for row in rows}
            lines.append({**rows[0], "name": name, **values})
    metrics = dict.fromkeys(row for line in lines for row in line)
    for column in ("entrant", "metric", "value", "low", "high", *_COLUMNS):
        metrics.pop(column, None)
    text = StringIO()
    writer = csv.DictWriter(text, (*_COLUMNS, *metrics), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(out / TABLE, text.getvalue())
    return out / TABLE
