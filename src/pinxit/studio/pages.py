"""The pages: each reads the folders of the workspace and shows what is there."""

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from pinxit.errors import PinxitError, RequestError
from pinxit.studio.guard import NEW_LINK
from pinxit.studio.image_set import ImageSet
from pinxit.studio.jobs import KIND_NAMES, Job, numbered_folders
from pinxit.studio.static_files import static_address
from pinxit.studio.streams import LogTail, StatusWatch, log_end, log_file, stream_events
from pinxit.studio.submit import KINDS, MAX_NUM_IMAGES, MAX_TEXT
from pinxit.studio.token_count import token_count
from pinxit.studio.trash import Trash, space
from pinxit.studio.views import TrainingView, duration, in_words
from pinxit.studio.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Environment

_Item = TypeVar("_Item")
_NEWEST = 100  # jobs on the page Queue
_EARLIER = 4  # image sets on the page Train
_CARDS = 48  # in the library: each has an image
# The page to which that of a job belongs, by its kind.
_SECTIONS = {
    "train": "library",
    "generate": "generate",
    "inspect": "files",
    "convert": "files",
    "compare": "compare",
    "texts": "train",
    "drift": "library",
    "damaged": "queue",
}
_PROMPTS = {
    "object": ("a photo of {} on the beach", "a painting of {}", "{} in the snow", "a photo of {}"),
    "style": (
        "a dog on the beach, in the style of {}",
        "a house in the forest, in the style of {}",
        "a robot in the city, in the style of {}",
    ),
}


class Pages:
    """The handlers of all pages, images and streams of a workspace; none of them changes it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.watch = StatusWatch(workspace)

    @cached_property
    def environment(self) -> "Environment":
        """The templates and their filters."""
        from pinxit.reports.environment import page_environment

        environment = page_environment("pinxit.studio")
        environment.filters.update(duration=duration, clock=_clock, in_words=in_words)
        return environment

    def render(
        self,
        template: str,
        values: Mapping[str, Any],
        error: PinxitError | None = None,
        status: int = 400,
    ) -> HTMLResponse:
        """A page with the common values of all pages; `status` is that of an error."""
        workspace = self.workspace
        common = {
            "workspace": workspace,
            "form_token": workspace.token_for("form"),
            "now": self.watch.now([job for job in workspace.jobs() if job.is_active]),
            "options": workspace.options,
            "workers": workspace.workers(),
            "free_gb": workspace.free_bytes / 1e9,
            "error": error,
            "refresh": False,
            "section": "",
            "events": "/events",
            "kind_names": KIND_NAMES,
            "static": static_address,
        }
        text = self.environment.get_template(template).render({**common, **values})
        return HTMLResponse(text, status if error else 200)

    def error(self, error: PinxitError, status: int = 400) -> Response:
        """A page with an error and its hint."""
        return self.render("error.html", {}, error, status)

    async def library(self, request: Request) -> Response:
        """All trainings and opened files, and the way back of a job that was just removed."""
        query = request.query_params
        removed, words = query.get("removed", ""), query.get("find", "").lower().split()
        jobs = [job for job in self.workspace.jobs() if job.kind in ("train", "inspect", "damaged")]
        found = [job for job in reversed(jobs) if all(word in self._about(job) for word in words)]
        shown = found if "all" in query else found[:_CARDS]
        is_there = removed and removed in [job.id for job in Trash(self.workspace).jobs()]
        page = {"views": [self.view(job) for job in shown], "removed": is_there and removed}
        page |= {"find": query.get("find", ""), "found": len(found), "total": len(jobs)}
        return self.render("library.html", page)

    def _about(self, job: Job) -> str:
        """What a job can be found by."""
        recipe = job.options.get("recipe", {})
        names = [str(recipe.get(key, "")) for key in ("class_noun", "kind", "base", "method")]
        return " ".join([self.workspace.token(job), job.title, job.label, *names]).lower()

    async def train(self, request: Request) -> Response:
        """The form of a training, filled from the query, or like an earlier training."""
        query = request.query_params
        values: dict[str, Any] = dict(query)
        if like := query.get("like"):
            job = self.workspace.job(like)
            recipe = dict(job.options.get("recipe", {}))
            values = {**recipe, **_form_values("method", recipe.get("method", {}))}
            values |= {"images": job.options.get("images", "")}
        return self.train_form(values)

    def train_form(
        self, values: Mapping[str, Any], error: PinxitError | None = None
    ) -> HTMLResponse:
        """The form of a training with values, and an error of what was sent."""
        images = self.workspace.images_of(values["images"]) if values.get("images") else None
        choices = {"kinds": KINDS, "bases": self.workspace.bases, "cost": self.workspace.cost}
        earlier = [] if images else self.workspace.earlier_images(_EARLIER)
        page = {"values": values, "images": images, "earlier": earlier, **choices}
        return self.render("train.html", page, error)

    async def generate(self, request: Request) -> Response:
        """The form of a generation with concepts, or like an earlier one."""
        query = request.query_params
        values: dict[str, Any] = dict(query)
        if like := query.get("like"):
            job = self.workspace.job(like)
            values = dict(job.options.get("request", {}))
            values["concepts"] = job.options.get("concepts", [])
            strengths: dict[str, float] = job.options.get("strengths", {})
            values |= {f"strength.{number}": value for number, value in strengths.items()}
            values |= _form_values("control", values.get("control", {}))
            values["seed"] = values.get("seed", 0) + values.get("num_images", 1)  # the next ones
        if query.getlist("concepts"):
            values["concepts"] = query.getlist("concepts")
        if query.get("image"):
            values["image"] = self.workspace.images_of(query["image"]).id
        return self.generate_form(values, transfer=request.url.path == "/transfer")

    def generate_form(
        self, values: Mapping[str, Any], error: PinxitError | None = None, *, transfer: bool = False
    ) -> HTMLResponse:
        """The form to generate images with these values, and the error if they were refused."""
        concepts = self.workspace.concepts()
        newest = [] if values.get("prompt") else [job.id for job in concepts[:1]]
        chosen = list(values.get("concepts") or newest)
        jobs = [job for job in concepts if job.id in chosen]
        kind = jobs[0].options.get("recipe", {}).get("kind", "object") if jobs else "object"
        token = self.workspace.token(jobs[0]) if jobs else "a dog"
        prompts = [text.format(token) for text in _PROMPTS[kind]]
        history = [job for job in reversed(self.workspace.queue.all()) if job.kind == "generate"]
        page = {
            "values": values,
            "concepts": concepts,
            "chosen": [job.id for job in jobs],
            "prompts": prompts,
            "history": history[:24],
            "transfer": transfer,
            "max_num_images": MAX_NUM_IMAGES,
            "images": self.workspace.images_of(values["image"]) if values.get("image") else None,
        }
        return self.render("generate.html", page, error)

    async def job(self, request: Request) -> Response:
        """The page of a job."""
        job = self.job_of(request)
        progress, notices = job.read_log()
        is_transfer = "image" in job.options.get("request", {})
        section = "transfer" if is_transfer else _SECTIONS[job.kind]
        values = {
            "job": job,
            "progress": progress,
            "notices": notices,
            "view": self.view(job),
            "section": section,
            "refresh": job.is_active,
            "events": f"/jobs/{job.id}/events?after={log_end(self.workspace, job)}",
            "report": self.workspace.report(job),
            "images": self._snapshot(job),
            "drift": self.workspace.drift(job),
            "all_steps": "all" in request.query_params,
        }
        return self.render("run.html" if job.kind == "train" else "job.html", values)

    async def tokens(self, request: Request) -> Response:
        """How many tokens a text has that is being typed: a caption, or a prompt with concepts."""
        query, workspace = request.query_params, self.workspace
        concepts = [workspace.job(number) for number in query.getlist("concepts")]
        trained = [job.options["recipe"]["base"] for job in concepts if job.kind == "train"]
        base, text = query.get("base") or [*trained, *workspace.bases][0], query.get("text", "")
        weights = query.get("kind") == "prompt"
        arguments = (workspace, base, text[:MAX_TEXT], concepts)
        return PlainTextResponse(await run_in_threadpool(token_count, *arguments, weights=weights))

    async def queue(self, _: Request) -> Response:
        """The newest jobs and all active ones, and the last words of workers that died."""
        jobs = list(reversed(self.workspace.queue.all()))
        shown = [job for place, job in enumerate(jobs) if place < _NEWEST or job.is_active]
        page = {"views": [self.view(job) for job in shown], "older": len(jobs) - len(shown)}
        return self.render("queue.html", {**page, "words": self.workspace.last_words()})

    async def files(self, _: Request) -> Response:
        """Concept files to inspect and convert."""
        kinds = ("inspect", "convert")
        jobs = [job for job in reversed(self.workspace.queue.all()) if job.kind in kinds]
        page = {"jobs": jobs, "concepts": self.workspace.concepts()}
        page |= {"trash": Trash(self.workspace).jobs(), "space": space(self.workspace)}
        return self.render("files.html", page)

    async def compare(self, _: Request, error: PinxitError | None = None) -> Response:
        """The form of a comparison, perhaps with an error, and earlier ones."""
        jobs = [job for job in reversed(self.workspace.queue.all()) if job.kind == "compare"]
        concepts = [job for job in self.workspace.concepts() if job.kind == "train"]
        votes = [path.name for path in reversed(numbered_folders(self.workspace.folder / "votes"))]
        page = {"jobs": jobs, "concepts": concepts, "votes": votes}
        return self.render("compare.html", page, error)

    async def job_stream(self, request: Request) -> Response:
        """The events of a job, as server-sent events."""
        return self.stream_of(request, ends=False)

    def stream_of(self, request: Request, *, ends: bool) -> Response:
        """The events of a job since the last one that the client has seen."""
        last_id = request.headers.get("last-event-id", "") or request.query_params.get("after", "")
        job = self.job_of(request)
        tail = LogTail(log_file(self.workspace, job), last_id)
        events = stream_events(self.watch, tail, job if ends else None)
        return StreamingResponse(events, media_type="text/event-stream")

    async def studio_stream(self, _: Request) -> Response:
        """The status of the studio, as server-sent events."""
        return StreamingResponse(stream_events(self.watch), media_type="text/event-stream")

    async def enter(self, request: Request) -> Response:
        """Exchange a key, which works once, for the cookie.

        The page forwards by itself: after a redirect that another site began, a strict cookie
        would not be sent.
        """
        if not self.workspace.use_key(request.query_params.get("key", "")):
            text = f"This link was used already. Get a new one with: {NEW_LINK}\n"
            return PlainTextResponse(text, 403)
        page = self.environment.get_template("enter.html").render(static=static_address)
        response = HTMLResponse(page)
        token = self.workspace.token_for("cookie")
        response.set_cookie(request.app.state.cookie, token, httponly=True, samesite="strict")
        return response

    async def start(self, _: Request) -> Response:
        """The first page: the library, or the form of a training if there is nothing yet."""
        return RedirectResponse("/library" if self.workspace.jobs() else "/train", 303)

    def view(self, job: Job) -> TrainingView:
        """What pages show of a job."""
        return TrainingView(job, self.workspace.run(job) if job.kind == "train" else None)

    def job_of(self, request: Request) -> Job:
        """The job in the address of a request."""
        return self.workspace.job(request.path_params["job"])

    def images_of(self, request: Request) -> ImageSet:
        """The image set in the address of a request."""
        return self.workspace.images_of(request.path_params["images"])

    def image_of(self, request: Request) -> tuple[ImageSet, Path]:
        """The image set and the image of it in the address of a request."""
        images = self.images_of(request)
        return images, at_place(images.files, request)

    def _snapshot(self, job: Job) -> ImageSet | None:
        number = job.options.get("snapshot") or job.options.get("request", {}).get("image")
        with suppress(RequestError):  # it was deleted
            return self.workspace.images_of(number) if number else None
        return None


class Handlers:
    """What the other handlers of requests have in common: the pages and the workspace."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.workspace = pages.workspace


def at_place(items: list[_Item], request: Request) -> _Item:
    """The item whose number is in the address of the request."""
    place: int = request.path_params["place"]
    if place >= len(items):
        raise RequestError("there is no such image", "reload the page")
    return items[place]


def _form_values(field: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """What a form has for a method or a control with its options, as `submit.option_values`."""
    name = table.get("name", "")
    return {**{f"{name}.{key}": value for key, value in table.items()}, field: name}


def _clock(seconds: float) -> str:
    """A time in seconds since 1970 as day and hour."""
    return time.strftime("%d %b %H:%M", time.localtime(seconds))
