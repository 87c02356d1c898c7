"""What the forms of the pages do: each action ends with a redirect to the page that shows it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pinxit.errors import PinxitError, RequestError
from pinxit.files.atomic_write import make_folder, remove, write_text
from pinxit.studio.jobs import Job
from pinxit.studio.pages import Pages
from pinxit.studio.submit import (
    MAX_FILES,
    add_images,
    add_model_file,
    compare_job,
    convert_job,
    generate_job,
    take_in,
    train_job,
    uploads,
)
from pinxit.studio.workspace import CROPS, UNUSED, ImageSet

MAX_MODEL_BYTES = 2**30
_MAX_CAPTION = 2000


class Actions:
    """The handlers of all forms of a workspace."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.workspace = pages.workspace

    async def train(self, request: Request) -> Response:
        """Take in the images that were sent along, if any, and queue a training."""
        form = await _form(request)
        values = _values(form)
        try:
            if uploads(form, "files") or not values.get("images"):
                values["images"] = (await add_images(self.workspace, form)).id
            return _see(f"/jobs/{train_job(self.workspace, values).id}")
        except PinxitError as error:
            return self.pages.train_form(values, error)

    async def add_images(self, request: Request) -> Response:
        """Take in images, and show the form of a training, or of a transfer, with them."""
        form = await _form(request)
        images = await add_images(self.workspace, form)
        page = "transfer" if form.get("page") == "transfer" else "train"
        return _see(f"/{page}?{'image' if page == 'transfer' else 'images'}={images.id}")

    async def generate(self, request: Request) -> Response:
        """Queue a generation; a source image may be sent along."""
        form = await _form(request)
        values = {**_values(form), "concepts": form.getlist("concepts")}
        try:
            if uploads(form, "files"):
                values["image"] = (await add_images(self.workspace, form)).id
            return _see(f"/jobs/{generate_job(self.workspace, values).id}")
        except PinxitError as error:
            transfer = bool(values.get("control"))
            return self.pages.generate_form(values, error, transfer=transfer)

    async def edit_images(self, request: Request) -> Response:
        """Change captions, crops and which images are used; nothing is deleted."""
        images = self.workspace.images_of(request.path_params["images"])
        form = await _form(request)
        values = _values(form)
        crops = dict(images.crops)
        for path in images.files:
            _write_caption(path, values)
            if box := _box(values.get(f"crop:{path.name}", "")):
                crops[path.name] = box
            elif path.name in crops:
                crops[path.name] = []
        write_text(images.folder / CROPS, json.dumps(crops))
        _set_used(images, form)
        await take_in(images, self.workspace.resolution)
        return _see(f"/images/{images.id}")

    async def job_action(self, request: Request) -> Response:
        """Stop, continue, remove or restore a job."""
        number, action = request.path_params["job"], request.path_params["action"]
        if action == "restore":
            self.workspace.restore(number)
            return _see(f"/jobs/{number}")
        job = self.workspace.queue.get(number)
        if action == "remove":
            _refuse_active(job)
            self.workspace.trash(job)
            return _see(f"/library?removed={job.id}")
        change_job(job, action)
        return _see(f"/jobs/{job.id}")

    async def open_file(self, request: Request) -> Response:
        """Store a concept file and queue its inspection."""
        form = await _form(request)
        files = uploads(form, "file")
        if not files:
            raise RequestError("no file was chosen", "choose a concept file")
        job = await add_model_file(self.workspace, files[0], MAX_MODEL_BYTES)
        return _see(f"/jobs/{job.id}")

    async def convert(self, request: Request) -> Response:
        """Queue a conversion."""
        return _see(f"/jobs/{convert_job(self.workspace, _values(await _form(request))).id}")

    async def compare(self, request: Request) -> Response:
        """Queue a comparison."""
        return _see(f"/jobs/{compare_job(self.workspace, await _form(request)).id}")


def change_job(job: Job, action: str) -> None:
    """Stop a job, or let it continue; RequestError for anything else."""
    if action == "stop":
        job.request_stop()
    elif action == "continue":
        if job.state not in ("stopped", "failed"):
            raise RequestError(f"job {job.id} is {job.state}", "only an ended job can continue")
        job.requeue()
    else:
        raise RequestError(f"unknown action {action[:20]!r}", "use stop or continue")


def _refuse_active(job: Job) -> None:
    if job.is_active:
        raise RequestError(f"job {job.id} is {job.state}", "stop it first")


async def _form(request: Request) -> FormData:
    return await request.form(max_files=MAX_FILES, max_fields=2000, max_part_size=2**16)


def _values(form: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a form."""
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


def _write_caption(image: Path, values: Mapping[str, Any]) -> None:
    caption = values.get(f"caption:{image.name}")
    if caption is None:
        return
    if text := values.get("prefix", ""):
        caption = f"{text} {caption}".strip()
    file = image.with_suffix(".txt")
    if caption.strip():
        write_text(file, " ".join(caption.split())[:_MAX_CAPTION] + "\n")
    else:
        remove(file)


def _box(text: str) -> list[int]:
    """A crop as left, top, right and bottom in pixels; empty if the text is not four numbers."""
    words = text.replace(",", " ").split()
    return (
        [int(word) for word in words] if len(words) == 4 and all(map(str.isdecimal, words)) else []
    )


def _set_used(images: ImageSet, form: FormData) -> None:
    """Move images that are not marked as used out of the set, and those marked back into it."""
    used, unused = form.getlist("use"), images.folder / UNUSED
    make_folder(unused)
    for path in images.files:
        if path.name not in used:
            path.replace(unused / path.name)
    back = [path for path in sorted(unused.glob("*.png")) if path.name in form.getlist("back")]
    for path in back:
        path.replace(images.folder / path.name)
