"""Two steps of trainings side by side, and a blind vote between them.

A vote is a folder: what is compared in which order is decided when it is made, and each choice is
one line of a file. Neither names nor steps are in the page before the vote ends.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from pinxit.errors import RequestError
from pinxit.files.atomic_write import append, write_text
from pinxit.studio.jobs import Job, read_json
from pinxit.studio.pages import Pages
from pinxit.studio.uploads import form_of, texts_of
from pinxit.studio.views import PreviewRow

VOTES = "votes"
_VOTE, _CHOICES = "vote.json", "choices.txt"
_TIMES = 2  # how often each pair of images is shown, once in each order if it is even
_Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Side:
    """The previews of a step of a training."""

    job: Job
    row: PreviewRow
    title: str

    @property
    def key(self) -> str:
        """How forms name it."""
        return f"{self.job.id}:{self.row.step}"


@dataclass(frozen=True)
class Vote:
    """A blind vote: `rounds` are the number of an image and whether the sides are exchanged."""

    folder: Path
    keys: tuple[str, str]
    rounds: Sequence[tuple[int, bool]]

    @property
    def choices(self) -> list[str]:
        """The choices so far: "a", "b" or "equal"."""
        file = self.folder / _CHOICES
        return file.read_text("utf-8").split()[: len(self.rounds)] if file.is_file() else []

    @property
    def is_over(self) -> bool:
        """Whether all rounds are decided, or the vote was ended."""
        return len(self.choices) == len(self.rounds) or (self.folder / "ended").exists()

    def result(self) -> dict[str, Any]:
        """The votes for the left and the right side, and the sentence that follows from them."""
        counts = Counter(
            choice if choice == "equal" else "left" if (choice == "a") != swapped else "right"
            for choice, (_, swapped) in zip(self.choices, self.rounds, strict=False)
        )
        left, right = counts["left"], counts["right"]
        low, high = _wilson(left, left + right)
        clear = "the left one" if low > 0.5 else "the right one" if high < 0.5 else ""
        return {
            **{name: counts[name] for name in ("left", "right", "equal")},
            "interval": (low, high),
            "sentence": f"You prefer {clear}." if clear else "These votes cannot tell them apart.",
        }


class SideBySide:
    """The handlers of comparisons of two steps."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.workspace = pages.workspace

    async def show(self, request: Request) -> Response:
        """Two steps side by side, the two newest if the query names none."""
        sides = self._sides()
        query = request.query_params
        left = _chosen(sides, query.get("left", ""))
        right = _chosen(sides, query.get("right", ""), other_than=left)
        pairs = list(zip(left.row.cells, right.row.cells, strict=False)) if left and right else []
        page = {"sides": sides, "left": left, "right": right, "pairs": pairs}
        return self.pages.render("side.html", page)

    async def start(self, request: Request) -> Response:
        """Start a blind vote."""
        values = texts_of(await form_of(request))
        keys = [values.get("left", ""), values.get("right", "")]
        left, right = (self._side(key) for key in keys)
        images = min(len(left.row.cells), len(right.row.cells))
        rounds = [(image, bool(time % 2)) for image in range(images) for time in range(_TIMES)]
        random.SystemRandom().shuffle(rounds)
        folder = self.workspace.new_folder(VOTES)
        write_text(folder / _VOTE, json.dumps({"keys": keys, "rounds": rounds}))
        return RedirectResponse(f"/votes/{folder.name}", 303)

    async def vote(self, request: Request) -> Response:
        """The next pair of a vote, or its result."""
        vote = self._vote(request)
        page: dict[str, Any] = {"vote": vote, "number": len(vote.choices)}
        if vote.is_over:
            sides = [self._side(key) for key in vote.keys]
            return self.pages.render("vote.html", {**page, "result": vote.result(), "sides": sides})
        cells = [self._cell(vote, side) for side in "ab"]
        return self.pages.render("vote.html", {**page, "result": None, "cells": cells})

    async def choose(self, request: Request) -> Response:
        """Record a choice; one for a round that is decided already changes nothing."""
        vote, values = self._vote(request), texts_of(await form_of(request))
        choice, number = values.get("choice", ""), values.get("number", "")
        if choice == "end":
            write_text(vote.folder / "ended", "")
        elif choice not in ("a", "b", "equal"):
            raise RequestError(f"unknown choice {choice[:20]!r}", "choose a, b or equal")
        elif number == str(len(vote.choices)) and not vote.is_over:
            append(vote.folder / _CHOICES, f"{choice}\n")
        return RedirectResponse(f"/votes/{vote.folder.name}", 303)

    async def image(self, request: Request) -> Response:
        """The sheet of previews with image "a" or "b" of the current round."""
        vote = self._vote(request)
        name = request.path_params["side"]
        if vote.is_over or name not in ("a", "b"):
            raise RequestError("the vote is over", "see its result")
        side = self._side(_key(vote, name))
        run = self.workspace.run(side.job)
        assert run  # it has previews
        return FileResponse(run.previews[side.row.step], media_type="image/png")

    def _sides(self) -> dict[str, Side]:
        """The steps of all trainings that have previews, newest first, by key."""
        jobs = [job for job in reversed(self.workspace.jobs()) if job.kind == "train"]
        sides = [
            Side(job, row, f"{self.workspace.token(job)}, step {row.step}, {job.label}")
            for job in jobs
            for row in self.pages.view(job).previews
        ]
        return {side.key: side for side in sides}

    def _side(self, key: str) -> Side:
        sides = self._sides()
        if key not in sides:
            raise RequestError("there are no such previews", "choose two steps again")
        return sides[key]

    def _vote(self, request: Request) -> Vote:
        folder = self.workspace.numbered(VOTES, request.path_params["vote"])
        values = read_json(folder / _VOTE)
        if not values:
            raise RequestError("there is no such vote", "start one on the page Compare")
        return Vote(folder, tuple(values["keys"]), [tuple(pair) for pair in values["rounds"]])

    def _cell(self, vote: Vote, name: str) -> Any:
        image, _ = vote.rounds[len(vote.choices)]
        return self._side(_key(vote, name)).row.cells[image]


def _key(vote: Vote, name: str) -> str:
    """What is shown as "a" or "b" in the current round."""
    _, swapped = vote.rounds[len(vote.choices)]
    return vote.keys[(name == "b") != swapped]


def _chosen(sides: dict[str, Side], key: str, other_than: Side | None = None) -> Side | None:
    """The side with this key, or else of this job; the first other one if there is none."""
    fitting = [side for side in sides.values() if key in (side.key, side.job.id)]
    return next((side for side in [*fitting, *sides.values()] if side != other_than), None)


def _wilson(wins: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson."""
    if not total:
        return 0.0, 1.0
    share, square = wins / total, _Z**2 / total
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return middle - half, middle + half
