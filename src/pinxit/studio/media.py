"""Images, concepts and other files of a workspace, sent as they are or in a zip file."""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from pinxit.errors import RequestError
from pinxit.files.untrusted import open_untrusted
from pinxit.runs.file_names import RECIPE
from pinxit.studio.card import concept_card
from pinxit.studio.image_set import THUMBNAILS
from pinxit.studio.jobs import Job
from pinxit.studio.pages import Handlers, at_place
from pinxit.studio.static_files import TYPES, static_content

_CHUNK = 2**20
# A report of an evaluation has its style and images inside; it may do nothing else.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


class Media(Handlers):
    """The handlers of all files of a workspace; none of them changes it."""

    async def thumbnail(self, request: Request) -> Response:
        """A small version of the image with this place in its set."""
        images, image = self.pages.image_of(request)
        return send_file(images.folder / THUMBNAILS / image.name)

    async def full(self, request: Request) -> Response:
        """The image with this place in its set in full size, cropped as the set says."""
        return send_file(self.pages.image_of(request)[1])

    async def whole(self, request: Request) -> Response:
        """The image with this place in its set as it was uploaded, without its crop."""
        images, image = self.pages.image_of(request)
        return send_file(images.whole(image))

    async def mask(self, request: Request) -> Response:
        """The mask of the whole image with this place in its set."""
        images, image = self.pages.image_of(request)
        mask = images.mask_of(image)
        if mask is None:
            raise RequestError("the image has no mask", "draw one")
        return send_file(mask)

    async def image(self, request: Request) -> Response:
        """The image with this place among those that a job has generated."""
        place: int = request.path_params["place"]
        return _lasting_png(self.workspace.generated_image(self.pages.job_of(request), place))

    async def preview(self, request: Request) -> Response:
        """The sheet of previews of a step."""
        run = self.workspace.run(self.pages.job_of(request))
        file = run.previews.get(request.path_params["step"]) if run else None
        if file is None or file.is_symlink() or not file.is_file():
            raise RequestError("there is no such preview", "reload the page")
        return _lasting_png(file)

    async def untrained(self, request: Request) -> Response:
        """The image of the base model for the prompt with this place."""
        view = self.pages.view(self.pages.job_of(request))
        return _lasting_png(at_place(view.untrained, request))

    async def report(self, request: Request) -> Response:
        """The report of a comparison."""
        job = self.pages.job_of(request)
        file = self.workspace.folder / "generated" / job.id / "report.html"
        if job.kind != "compare" or not file.is_file():
            raise RequestError("there is no report yet", "wait until the comparison is done")
        return send_file(file, headers={"content-security-policy": _REPORT_POLICY})

    async def download(self, request: Request) -> Response:
        """The concept file of a job, as bytes."""
        file = self._concept(request)
        name = f"{request.path_params['job']}-{file.name}"
        return send_file(file, media_type="application/octet-stream", filename=name)

    async def archive(self, request: Request) -> Response:
        """A zip file with the concept of a job, a card that describes it, recipe and preview."""
        job, file = self.pages.job_of(request), self._concept(request)
        content = await run_in_threadpool(self._zipped, job, file)
        chunks = iter(lambda: content.read(_CHUNK), b"")
        name = quote(f"{job.id}-{file.stem}.zip")
        headers = {"content-disposition": f"attachment; filename*=utf-8''{name}"}
        return StreamingResponse(chunks, media_type="application/zip", headers=headers)

    async def static(self, request: Request) -> Response:
        """The style sheet or a script."""
        name = request.path_params["name"]
        if name not in TYPES:
            raise RequestError("there is no such file", "go back")
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        return Response(static_content(name), headers=headers, media_type=TYPES[name])

    def _zipped(self, job: Job, file: Path) -> IO[bytes]:
        content = TemporaryFile()  # noqa: SIM115 (it ends with the response)
        with zipfile.ZipFile(content, "w") as archive:  # stored: tensors do not get smaller
            archive.write(file, file.name)
            archive.writestr("README.md", concept_card(self.workspace, job, file.name))
            for path in self._extras(job):
                archive.write(path, path.name)
        content.seek(0)
        return content

    def _extras(self, job: Job) -> Iterator[Path]:
        run = self.workspace.run(job) if job.kind == "train" else None
        if run:
            yield run.folder / RECIPE
            best = run.previews.get(run.best_step or 0) or next(iter(run.previews.values()), None)
            yield from [best] if best and best.is_file() else []

    def _concept(self, request: Request) -> Path:
        file = self.workspace.concept_file(self.pages.job_of(request))
        if file is None:
            raise RequestError("there is no concept yet", "wait until the job is done")
        return file


def send_file(file: Path, **options: Any) -> FileResponse:
    """A response with a file; FileError, before the response begins, if it cannot be read."""
    open_untrusted(file, sys.maxsize).close()
    return FileResponse(file, **options)


def _lasting_png(file: Path) -> FileResponse:
    """An image that never changes under its address."""
    headers = {"cache-control": "private, max-age=3600"}
    return send_file(file, headers=headers)
