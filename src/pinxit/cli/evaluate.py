"""`pinxit evaluate`: learned words judged on the same prompts, and one page on all of them."""

import json
from collections.abc import Mapping
from pathlib import Path

from pinxit.cli.flags import Values, command, flag, flags, words
from pinxit.cli.many import follow
from pinxit.cli.opening import opened
from pinxit.cli.screen import bars, data, say, stoppable
from pinxit.errors import RequestError
from pinxit.reports.comparison import REPORT
from pinxit.reports.comparison import evaluate as evaluating
from pinxit.reports.dreambench import begun
from pinxit.reports.figures import Effort

_OUT = Path("evaluation")
# Of recipes, whatever the runs say.
_SAME = ("pictures", "class_noun", "base")
_BENCHMARK, _METHOD = "Learning a benchmark", "textual-inversion"


def _evaluate(given: Values) -> None:
    out, device = given.get("out", _OUT), given.get("device", "cpu")
    effort = Effort.model_validate({n: given[n] for n in Effort.model_fields if n in given})
    same = {name: given[name] for name in _SAME if name in given}
    runs: tuple[Path, ...] = given.get("runs", ())
    if "benchmark" in given:
        method = given.get("method", _METHOD)
        common = {"method": method, "preview_every": 0, **same}
        common |= {"steps": given["learning_steps"]} if "learning_steps" in given else {}
        runs, same = (*runs, *_learned(given["benchmark"], out, common, device)), {}
    if not runs:
        raise RequestError(
            "there is nothing to evaluate", "give run folders or concepts, or --benchmark FOLDER"
        )
    with stoppable(), bars() as report:
        figures = evaluating(runs, out, lambda recipe: opened(recipe, device), report, effort, same)
    say(f"the report is {out / REPORT}")
    if given.get("json"):
        data(json.dumps(figures))


def _learned(
    subjects: Path, out: Path, common: Mapping[str, object], device: str
) -> tuple[Path, ...]:
    """The runs of a benchmark's subjects, learned now as far as they were not."""
    many, runs = begun(subjects, out, common), out / "runs"
    follow(many, runs, device)
    return tuple(run.folder for run in many.runs(runs).values())


evaluate = command(
    [
        words("runs", Path, "run folders, or concepts in any format"),
        flag("out", Path, "folder for the report; an earlier one is gone on with", str(_OUT)),
        *flags(Effort),
        flag("pictures", Path, "the real ones, if the runs do not say where"),
        flag("class_noun", str, "what it is a kind of, if no file says"),
        flag("base", str, "another base than the runs'"),
        flag("device", str, "where to compute: cpu, cuda or mps", "cpu"),
        flag("json", bool, "print the figures as JSON, last of all"),
        flag("benchmark", Path, "a folder of subjects, a folder each", group=_BENCHMARK),
        flag("method", str, "how they are learned", _METHOD, group=_BENCHMARK),
        flag("learning_steps", int, "how long; else the method's advice", group=_BENCHMARK),
    ],
    _evaluate,
)
