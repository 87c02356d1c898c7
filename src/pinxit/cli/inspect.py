"""`pinxit inspect`: what a concept file contains, which base models it fits, and its problems."""

from pathlib import Path

from pinxit.cli.screen import labelled


def inspect(file: Path, *, base: str | None = None) -> None:
    """Show what a concept file contains, what it fits, how it was trained, and its problems.

    Args:
        file: a concept file in any format, or a run folder
        base: base model to compare the embedding norms with (default: none)
    """
    from pinxit.concepts.summary import summarize

    for label, text in summarize(file, base):
        labelled(label, text, 12)
