"""A folder of subjects for a benchmark, in the layout of DreamBench."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pinxit.errors import RecipeError, RunError
from pinxit.evaluation.confidence import bootstrap
from pinxit.files.atomic_write import check_claim, claim_folder, make_folder, write_text
from pinxit.files.text import read_toml
from pinxit.reports.comparison import KIND
from pinxit.reports.figures import REAL
from pinxit.runs.many import RunGroup

# Tables of class nouns: DreamBench's file, which has more than that, and pinxit's.
_DREAMBENCH_LIST, _CLASS_TABLE = "prompts_and_classes.txt", "classes.toml"
_LINE = re.compile(r"([\w.-]+),([\w -]+)")


@cache
def dreambench() -> Mapping[str, Any]:
    """DreamBench's metrics, its classes by subject, and the published means by method."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def write_comparison(evaluation: Mapping[str, Any], out: Path) -> str:
    """Write means over the subjects of an evaluation and published ones into `out`; returns them.

    The table is Markdown, with 95% intervals over the subjects.
    """
    values: dict[str, list[Mapping[str, Any]]] = {}
    for group in evaluation["groups"]:
        values.setdefault(REAL, []).append(group["anchors"].get(REAL, {}))
        for run in group["runs"].values():
            title = f"{run['method']}, {Path(group['base']).name}"
            values.setdefault(title, []).append(run["figures"])
    metrics: Sequence[str] = dreambench()["metrics"]
    lines = [("", "subjects", *metrics), ("---",) * (2 + len(metrics))]
    for title, row in dreambench()["published"].items():
        published = [f"{row[name]:.3f}" if name in row else "-" for name in metrics]
        lines.append((title, str(len(dreambench()["classes"])), *published))
    for title, rows in values.items():
        raw = [[row[f"raw {name}"] for row in rows if f"raw {name}" in row] for name in metrics]
        means = [_mean([value["value"] for value in of_metric]) for of_metric in raw]
        lines.append((f"**{title}, measured here**", str(len(rows)), *means))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(out / "dreambench.md", text)
    return text


def _mean(values: Sequence[float]) -> str:
    """A mean and its interval as text."""
    if not values:
        return "-"
    one = bootstrap(np.array(values))
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def open_or_create(subjects: Path, out: Path, common: Mapping[str, object]) -> RunGroup:
    """The runs of a benchmark, one for each image folder in `subjects`; the runs are in `out`.

    `common` has the options that all runs share. RunError if `out` has a benchmark with other
    subjects or options, or other files; RecipeError if a class noun is missing.
    """
    import tomli_w

    if not subjects.is_dir():
        raise RecipeError(
            f"there is no folder {subjects}", "give a folder with a folder of images per subject"
        )
    check_claim(out, KIND, "pictures", "runs")
    nouns = class_nouns(subjects)
    names = sorted(p.name for p in subjects.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = [name for name in names if name not in nouns and "class_noun" not in common]
    if unknown:
        raise RecipeError(
            f"no class noun for {', '.join(unknown)}",
            f'write {subjects / _CLASS_TABLE} with lines such as {unknown[0]} = "toy", or give '
            "--class-noun toy if all subjects are of one class",
        )
    rows = [
        {"images": str((subjects / name).resolve()), "name": name}
        | ({"class_noun": nouns[name]} if name in nouns else {})
        for name in names
    ]
    claim_folder(out, KIND)
    make_folder(out / "pictures")
    write_text(out / "subjects.toml", tomli_w.dumps({"subject": rows}))
    group = RunGroup.from_table(out / "subjects.toml", common, None)
    if not (out / "runs").is_dir():
        group.create(out / "runs")
    elif RunGroup.open(out / "runs") != group:
        raise RunError(f"{out} has runs with other subjects or options", "choose another --out")
    return group


def class_nouns(subjects: Path) -> dict[str, str]:
    """The class noun of each subject by folder name, as far as a table in `subjects` has it.

    Without a table, those of DreamBench's 30 subjects.
    """
    class_table = subjects / _CLASS_TABLE
    if class_table.is_file():
        return {name: str(noun) for name, noun in read_toml(class_table, "table").items()}
    if not (subjects / _DREAMBENCH_LIST).is_file():
        return dict(dreambench()["classes"])
    lines = (subjects / _DREAMBENCH_LIST).read_text(encoding="utf-8").splitlines()
    matches = (_LINE.fullmatch(line.strip()) for line in lines)
    return {match[1]: match[2] for match in matches if match}
