"""`pinxit list` and `pinxit demo`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import Switch, bars, data, labelled, say


def plugins(
    kind: Annotated[
        str | None,
        Parameter(help=f"kind of plug-in: {', '.join(registry.PLUGIN_KINDS)} (default: all kinds)"),
    ] = None,
) -> None:
    """List the plug-ins of a kind, or of all kinds, with a line about each."""
    for group in registry.PLUGIN_KINDS if kind is None else [kind]:
        names = registry.names(group)
        if kind is None and names:
            data(f"{group}:")
        indent = "  " if kind is None else ""
        for name in names:
            labelled(f"{indent}{name}", registry.summary(group, name), len(indent) + 24)


def demo(*, out: Path = Path("pinxit-demo"), full: Switch = False, json_: Switch = False) -> None:
    """Train a subject and a style from five images each, generate images, and measure them.

    Args:
        out: folder for the report, the runs and the images
        full: also transfer images into the style
        json_: also print the metrics as JSON
    """
    from pinxit.reports.demo import DemoSettings, run_demo

    with bars() as progress:
        scores = run_demo(out, progress, DemoSettings(full=full))
    say(f"report: {out / 'report.html'}")
    if json_:
        data(json.dumps(scores))
