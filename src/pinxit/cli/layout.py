"""Help whose flags are whole in terminals of every width."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import ColumnSpec, HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

# A column beside that of the longest flag has no room for text in a narrower terminal.
_NARROW = 65
_FRAME = 2  # what a panel has before and after its columns


def show_panel(console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
    """Print a panel of help: columns in a frame, or plain lines in a narrow terminal."""
    from cyclopts.help import DefaultFormatter, PlainFormatter

    if console.width < _NARROW:
        PlainFormatter()(console, options, panel)
    else:
        specs = _columns if panel.format == "parameter" else None
        DefaultFormatter(column_specs=specs)(console, options, panel)


def _columns(
    console: "Console", options: "ConsoleOptions", entries: "list[HelpEntry]"
) -> "tuple[ColumnSpec, ...]":
    """The usual columns, with that of the names as wide as the longest word in it."""
    from cyclopts.help import NameRenderer
    from cyclopts.help.specs import get_default_parameter_columns

    *first, names, texts = get_default_parameter_columns(console, options, entries)
    words = (word for entry in entries for word in entry.display_labels_with_metavar)
    width = max(
        names.max_width or 0, *(len(part) + _FRAME for word in words for part in word.split())
    )
    return (*first, names.copy(max_width=width, renderer=NameRenderer(width)), texts)
