"""Progress bars and images in a notebook."""

import base64
import html
import sys
import time
from pathlib import Path
from typing import Any

from pinxit.progress import Progress

# Seconds between updates of a bar.
_UPDATE_EVERY = 0.25


def in_notebook() -> bool:
    """Whether the program runs in a notebook; IPython in a terminal has no kernel."""
    get_shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(get_shell(), "kernel")


class NotebookBars:
    """A bar for each task.

    Every notebook program can replace an output by its id, with or without ipywidgets, and the
    last state stays in the file; widgets would be missing in a notebook that is only read.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[NotebookOutput, float]] = {}
        self.last_update = 0.0

    def __call__(self, event: Progress) -> None:
        """Show the progress of a task."""
        now = time.monotonic()
        output, start = self.tasks.setdefault(event.task, (NotebookOutput(), now))
        if event.done < event.total and now - self.last_update < _UPDATE_EVERY:
            return
        self.last_update = now
        times = f"{now - start:.0f} s"
        if 0 < event.done < event.total:
            times += f", {(now - start) / event.done * (event.total - event.done):.0f} s left"
        text = f"{event.task}: {event.done} of {event.total}, {times} {event.note}"
        bar = f'<progress value="{event.done}" max="{event.total}"></progress>'
        output.show({"text/html": f"{bar} {html.escape(text)}", "text/plain": text})


class NotebookOutput:
    """One output of a cell, which can be replaced."""

    def __init__(self) -> None:
        self.handle: Any = None

    def show(self, bundle: dict[str, object]) -> None:
        """Show contents by MIME type, in place of the previous ones."""
        from IPython.display import display

        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)

    def show_image(self, file: Path, title: str) -> None:
        """Show an image file, in place of what was shown before."""
        png = base64.b64encode(file.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{png}" alt="{html.escape(title)}">'
        self.show({"text/html": f"{html.escape(title)}<br>{image}", "text/plain": title})
