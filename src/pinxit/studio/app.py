"""The application: every route, what an error becomes, and the guard around all of it."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pinxit.errors import PinxitError, RequestError
from pinxit.studio.actions import MAX_MODEL_BYTES, Actions
from pinxit.studio.api import Api
from pinxit.studio.guard import ENTRY, Guard
from pinxit.studio.image_table import ImageTable
from pinxit.studio.media import Media
from pinxit.studio.pages import Pages
from pinxit.studio.side_by_side import SideBySide
from pinxit.studio.workspace import Workspace

MAX_BODY_BYTES = 2**26
# The limit where many images are sent, or a concept file.
_LARGE: Mapping[str, int] = dict.fromkeys(
    ("/files", "/images", "/train", "/texts", "/generate", "/api/images"), MAX_MODEL_BYTES + 2**20
)
_DISK_HINT = "look whether the disk is full, or the folder of the studio was moved or deleted"
Handler = Callable[[Request], Awaitable[Response]]


def routes(pages: Pages) -> list[tuple[str, str, Handler]]:
    """Method, path and handler of every route. GET changes nothing, except for the entry link."""
    do, media = Actions(pages), Media(pages)
    return [
        ("GET", ENTRY, pages.enter),
        ("GET", "/", pages.start),
        ("GET", "/library", pages.library),
        ("GET", "/train", pages.train),
        ("POST", "/train", do.train),
        ("POST", "/images", do.add_images),
        ("POST", "/samples", do.add_samples),
        ("POST", "/texts", do.texts),
        ("GET", "/generate", pages.generate),
        ("POST", "/generate", do.generate),
        ("GET", "/transfer", pages.generate),
        ("GET", "/tokens", pages.tokens),
        ("GET", "/compare", pages.compare),
        ("POST", "/compare", do.compare),
        ("GET", "/files", pages.files),
        ("POST", "/files", do.open_file),
        ("POST", "/convert", do.convert),
        ("POST", "/trash", do.empty_trash),
        ("GET", "/queue", pages.queue),
        ("GET", "/events", pages.studio_stream),
        ("GET", "/jobs/{job}", pages.job),
        ("GET", "/jobs/{job}/events", pages.job_stream),
        ("GET", "/jobs/{job}/images/{place:int}", media.image),
        ("GET", "/jobs/{job}/previews/{step:int}", media.preview),
        ("GET", "/jobs/{job}/untrained/{place:int}", media.untrained),
        ("GET", "/jobs/{job}/concept", media.download),
        ("GET", "/jobs/{job}/zip", media.archive),
        ("GET", "/jobs/{job}/report", media.report),
        ("POST", "/jobs/{job}/{action}", do.job_action),
        ("POST", "/jobs/{job}/images/{place:int}/{action}", do.image_action),
        ("GET", "/static/{name}", media.static),
        *_image_routes(pages, media),
        *_side_routes(SideBySide(pages)),
    ]


def _side_routes(side: SideBySide) -> list[tuple[str, str, Handler]]:
    return [
        ("GET", "/side", side.show),
        ("POST", "/votes", side.start),
        ("GET", "/votes/{vote}", side.vote),
        ("POST", "/votes/{vote}", side.choose),
        ("GET", "/votes/{vote}/{round:int}/{side}", side.image),
    ]


def _image_routes(pages: Pages, media: Media) -> list[tuple[str, str, Handler]]:
    table = ImageTable(pages)
    return [
        ("GET", "/images/{images}", table.show),
        ("POST", "/images/{images}", table.save),
        ("POST", "/images/{images}/undo", table.undo),
        ("GET", "/images/{images}/{place:int}", media.thumbnail),
        ("GET", "/images/{images}/{place:int}/full", media.full),
        ("GET", "/images/{images}/{place:int}/whole", media.whole),
        ("GET", "/images/{images}/{place:int}/mask", media.mask),
        ("GET", "/images/{images}/{place:int}/edit", table.editor),
        ("POST", "/images/{images}/{place:int}/edit", table.edit),
    ]


def api_routes(pages: Pages) -> list[tuple[str, str, Handler]]:
    """Method, path and handler of every route of the API."""
    api = Api(pages)
    media = Media(pages)
    return [
        ("GET", "/api/openapi.json", api.document),
        ("GET", "/api/jobs", api.jobs),
        ("GET", "/api/jobs/{job}", api.job),
        ("GET", "/api/jobs/{job}/events", api.events),
        ("GET", "/api/jobs/{job}/images/{place:int}", media.image),
        ("GET", "/api/jobs/{job}/concept", media.download),
        ("POST", "/api/images", api.add_images),
        ("POST", "/api/train", api.train),
        ("POST", "/api/generate", api.generate),
        ("POST", "/api/convert", api.convert),
        ("POST", "/api/jobs/{job}/{action}", api.change),
    ]


def create_app(workspace: Workspace, port: int) -> ASGIApp:
    """The guarded application of a workspace, served at a port of this machine."""
    pages = Pages(workspace)
    programs = api_routes(pages)

    async def failed(request: Request, error: Exception) -> Response:
        error, status = _readable_error(request, error)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"message": error.message, "hint": error.hint}, status)
        try:
            return pages.error(error, status)
        except OSError:  # no page can be made
            return PlainTextResponse(f"{error.message}\n{error.hint}\n", 500)

    app = Starlette(
        routes=[
            Route(path, handler, methods=[method], max_body_size=_LARGE.get(path))
            for method, path, handler in (*routes(pages), *programs)
        ],
        exception_handlers={PinxitError: failed, HTTPException: failed, OSError: failed},
        max_body_size=MAX_BODY_BYTES,
    )
    app.router.redirect_slashes = False
    app.state.cookie = f"pinxit_{port}"
    app.state.api_routes = programs
    tokens = {purpose: workspace.token_for(purpose) for purpose in ("cookie", "form", "api")}
    return Guard(app, app.state.cookie, tokens)


def _readable_error(request: Request, error: Exception) -> tuple[PinxitError, int]:
    """An error of the server or of the disk as one with a hint, and the status of its response."""
    if isinstance(error, PinxitError):
        return error, 400
    if isinstance(error, OSError):
        text = f"a file cannot be read or written: {error.strerror}"
        return RequestError(text, _DISK_HINT), 500
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    if status not in (404, 405):  # the body is not a form, or has too many files
        return RequestError(error.detail, "send fewer files at once, or a zip file"), status
    hint = "see /api/openapi.json" if path.startswith("/api/") else "use the links at the top"
    return RequestError(f"there is no {request.method} {path[:80]}", hint), status
