"""What the forms of the pages do: each action ends with a redirect to the page that shows it."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pinxit.errors import PinxitError, RequestError, typed
from pinxit.studio.jobs import Job
from pinxit.studio.pages import Handlers
from pinxit.studio.submit import (
    compare_job,
    convert_job,
    drift_job,
    generate_job,
    texts_job,
    train_job,
)
from pinxit.studio.trash import Trash
from pinxit.studio.uploads import (
    add_copies,
    add_images,
    add_model_file,
    form_of,
    sample_images,
    texts_of,
    uploads,
)
from pinxit.studio.workspace import Workspace

MAX_MODEL_BYTES = 2**30
SAMPLE_NOUN = "dog"


class Actions(Handlers):
    """The handlers of all forms of a workspace."""

    async def train(self, request: Request) -> Response:
        """Take in the images that were sent along, if any, and queue a training."""
        return await self._queue_with_images(request, train_job)

    async def texts(self, request: Request) -> Response:
        """Queue the tokenization of what the same form would train."""
        return await self._queue_with_images(request, texts_job)

    async def _queue_with_images(
        self, request: Request, queue: Callable[[Workspace, Mapping[str, Any]], Job]
    ) -> Response:
        form = await form_of(request)
        values = texts_of(form)
        try:
            if uploads(form, "files") or not values.get("images"):
                values["images"] = (await add_images(self.workspace, form)).id
            return _see(f"/jobs/{queue(self.workspace, values).id}")
        except PinxitError as error:
            return self.pages.train_form(values, error)

    async def add_images(self, request: Request) -> Response:
        """Take in images, and show the form of a training, or of a transfer, with them."""
        form = await form_of(request)
        images = await add_images(self.workspace, form)
        page = "transfer" if form.get("page") == "transfer" else "train"
        return _see(f"/{page}?{'image' if page == 'transfer' else 'images'}={images.id}")

    async def add_samples(self, request: Request) -> Response:
        """Show the form of a training, or of a transfer, with the images of the package."""
        samples = sample_images()
        if (await form_of(request)).get("page") == "transfer":
            return _see(f"/transfer?image={(await add_copies(self.workspace, samples[:1])).id}")
        images = await add_copies(self.workspace, samples)
        return _see(f"/train?images={images.id}&class_noun={SAMPLE_NOUN}")

    async def generate(self, request: Request) -> Response:
        """Queue a generation; a source image may be sent along."""
        form = await form_of(request)
        values = {**texts_of(form), "concepts": form.getlist("concepts")}
        try:
            if uploads(form, "files"):
                values["image"] = (await add_images(self.workspace, form)).id
            return _see(f"/jobs/{generate_job(self.workspace, values).id}")
        except PinxitError as error:
            transfer = bool(values.get("control"))
            return self.pages.generate_form(values, error, transfer=transfer)

    async def job_action(self, request: Request) -> Response:
        """Stop, continue, rename, remove or restore a job."""
        number, action = request.path_params["job"], request.path_params["action"]
        if action == "restore":
            Trash(self.workspace).restore(number)
            return _see(f"/jobs/{number}")
        job = self.workspace.job(number)
        if action == "remove":
            _must_be_own(job)
            _refuse_active(job)
            Trash(self.workspace).add(job)
            return _see(f"/library?removed={job.id}")
        if action == "drift":
            drift_job(self.workspace, job)
        elif action == "rename":
            _must_be_own(job)
            job.rename(texts_of(await form_of(request)).get("title", ""))
        elif action == "restore-images":
            self.workspace.restore_images(job)
        else:
            change_job(job, action)
        return _see(f"/jobs/{job.id}")

    async def image_action(self, request: Request) -> Response:
        """Remove a generated image, or transfer its structure."""
        job, action = self.pages.job_of(request), request.path_params["action"]
        image = self.workspace.generated_image(job, request.path_params["place"])
        if action == "remove":
            _refuse_active(job)  # it would generate the image again
            self.workspace.remove_image(image)
            return _see(f"/jobs/{job.id}")
        if action == "transfer":
            return _see(f"/transfer?image={(await add_copies(self.workspace, [image])).id}")
        raise RequestError(f"unknown action {action[:20]!r}", "use remove or transfer")

    async def open_file(self, request: Request) -> Response:
        """Store a concept file and queue its inspection."""
        form = await form_of(request)
        files = uploads(form, "file")
        if not files:
            raise RequestError("no file was chosen", "choose a concept file")
        job = await add_model_file(self.workspace, files[0], MAX_MODEL_BYTES)
        return _see(f"/jobs/{job.id}")

    async def empty_trash(self, request: Request) -> Response:
        """Delete what is in the trash for good: the only thing that cannot be undone."""
        if not (await form_of(request)).get("sure"):
            raise RequestError("nothing was deleted", "mark that you are sure, and press again")
        Trash(self.workspace).empty()
        return _see("/files")

    async def convert(self, request: Request) -> Response:
        """Queue a conversion."""
        return _see(f"/jobs/{convert_job(self.workspace, texts_of(await form_of(request))).id}")

    async def compare(self, request: Request) -> Response:
        """Queue a comparison."""
        values = {"concepts": (await form_of(request)).getlist("concepts")}
        try:
            return _see(f"/jobs/{compare_job(self.workspace, values).id}")
        except PinxitError as error:
            return await self.pages.compare(request, error)


def change_job(job: Job, action: str) -> None:
    """Stop a job, let it continue, or ask for a preview; RequestError for anything else."""
    _must_be_own(job)
    if action == "stop":
        job.request_stop()
    elif action == "preview" and job.kind == "train" and job.is_active:
        job.request_preview()
    elif action == "continue":
        if job.state not in ("stopped", "failed"):
            raise RequestError(f"job {job.id} is {job.state}", "only an ended job can continue")
        job.requeue()
    else:
        raise RequestError(
            f"unknown action {action[:20]!r}", "use stop, continue, or preview while it trains"
        )


def _must_be_own(job: Job) -> None:
    if not job.is_own:
        raise RequestError(
            f"the {job.label} was started at the terminal: the studio only reads it",
            f"there, Ctrl+C stops it; to continue it: pinxit train --resume {typed(job.folder)}",
        )


def _refuse_active(job: Job) -> None:
    if job.is_active:
        raise RequestError(f"job {job.id} is {job.state}", "stop it first")


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)
