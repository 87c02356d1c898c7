"""Steps of trainings side by side, and a blind vote between two of them.

A vote is a folder: what is compared in which order is decided when it is made, and each choice is
one line of a file. Neither names nor steps are in the page before the vote ends.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pinxit.errors import RequestError
from pinxit.files.atomic_write import append, write_text
from pinxit.studio.jobs import Job, read_json
from pinxit.studio.media import send_file
from pinxit.studio.pages import Handlers
from pinxit.studio.uploads import form_of, texts_of
from pinxit.studio.views import PreviewRow

VOTES = "votes"
_VOTE, _CHOICES = "vote.json", "choices.txt"
_MAX_SIDES = 6
_TRAININGS = 24  # from which steps can be chosen
_TIMES = 2  # how often each pair of images is shown, once in each order if it is even
_Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Side:
    """The previews of a step of a training."""

    job: Job
    row: PreviewRow
    training: str

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.training}, step {self.row.step}"

    @property
    def address(self) -> str:
        """The address of its sheet of previews."""
        return f"/jobs/{self.job.id}/previews/{self.row.step}"

    @property
    def key(self) -> str:
        """The name of this step in forms: the number of its job, and the step."""
        return f"{self.job.id}:{self.row.step}"

    def is_meant(self, key: str) -> bool:
        """Whether a key is that of this step or of its training."""
        return key in (self.key, self.job.id)


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


class SideBySide(Handlers):
    """The handlers of comparisons of steps."""

    async def show(self, request: Request) -> Response:
        """Two to six steps side by side; of a training, the best one, and at first the newest."""
        sides, query = self._sides(), request.query_params
        keys = query.getlist("steps") + query.getlist("concepts")
        chosen = _chosen(list(sides.values()), keys)
        trainings = [list(group) for _, group in groupby(sides.values(), lambda side: side.job.id)]
        page = {"trainings": trainings[:_TRAININGS], "older": len(trainings) - _TRAININGS}
        dropped = [key for key in keys if not any(side.is_meant(key) for side in chosen)]
        page |= {"chosen": chosen, "dropped": len(dropped)}
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
        image, _ = vote.rounds[len(vote.choices)]
        cells = [self._side(_key(vote, side)).row.cells[image] for side in "ab"]
        return self.pages.render("vote.html", {**page, "result": None, "cells": cells})

    async def choose(self, request: Request) -> Response:
        """Record a choice; nothing changes if the round has one already."""
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
        return send_file(self._side(_key(vote, name)).row.sheet)

    def _sides(self) -> dict[str, Side]:
        """The steps of all trainings that have previews, newest first, by key."""
        jobs = [job for job in reversed(self.workspace.jobs()) if job.kind == "train"]
        sides = [
            Side(
                job, row, ", ".join(filter(None, [self.workspace.token(job), job.title, job.label]))
            )
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


def _key(vote: Vote, name: str) -> str:
    """What is shown as "a" or "b" in the current round."""
    _, swapped = vote.rounds[len(vote.choices)]
    return vote.keys[(name == "b") != swapped]


def _chosen(sides: Sequence[Side], keys: Sequence[str]) -> list[Side]:
    """The sides with these keys, or the best of these jobs; the newest if they are too few."""
    best_first = sorted(sides, key=lambda side: not side.row.is_best)
    chosen: list[Side] = []
    for key in keys:
        found = [side for side in best_first if side.is_meant(key)][:1]
        chosen += [side for side in found if side not in chosen]
    newest = [side for side in sides if side not in chosen][: max(0, 2 - len(chosen))]
    return [*chosen[:_MAX_SIDES], *newest]


def _wilson(wins: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson."""
    if not total:
        return 0.0, 1.0
    share, square = wins / total, _Z**2 / total
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return middle - half, middle + half
