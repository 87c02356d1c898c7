"""`pinxit list` and `pinxit demo`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import bars, data, say


def plugins(
    kind: Annotated[
        str | None, Parameter(help=f"{', '.join(registry.KINDS)}; all of them if not given")
    ] = None,
) -> None:
    """List what there is, with a line on each."""
    for group in registry.KINDS if kind is None else [kind]:
        names = registry.names(group)
        if kind is None and names:
            data(f"{group}:")
        for name in names:
            data(f"{'  ' if kind is None else ''}{name:24}{registry.summary(group, name)}")


def demo(
    *,
    out: Annotated[Path, Parameter(help="folder for the report and the pictures")] = Path(
        "pinxit-demo"
    ),
    full: Annotated[
        bool, Parameter(negative="", help="carry pictures into the style, and plot every word, too")
    ] = False,
    json_: Annotated[
        bool, Parameter(name="--json", negative="", help="print the scores as JSON, last of all")
    ] = False,
) -> None:
    """Teach a subject and a style from five pictures each, paint with them, and measure."""
    from pinxit.reports.demo import run_demo
    from pinxit.reports.demo.chapters import Effort

    with bars() as report:
        scores = run_demo(out, report, Effort(full=full))
    say(f"the report is {out / 'report.html'}")
    if json_:
        data(json.dumps(scores))
