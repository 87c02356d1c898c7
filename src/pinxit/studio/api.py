"""The HTTP API for programs: the same jobs as the pages, as JSON, with the bearer token."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pinxit.errors import RequestError, did_you_mean
from pinxit.studio.actions import change_job
from pinxit.studio.jobs import Job
from pinxit.studio.pages import Handlers
from pinxit.studio.submit import convert_job, generate_job, train_job
from pinxit.studio.uploads import MAX_FILES, add_images


class Api(Handlers):
    """The handlers of the API of a workspace."""

    async def jobs(self, _: Request) -> Response:
        """All jobs, oldest first."""
        return JSONResponse([self._described(job) for job in self.workspace.jobs()])

    async def job(self, request: Request) -> Response:
        """A job: its state, progress, error, and how many images it has generated."""
        return JSONResponse(self._described(self.pages.job_of(request)))

    async def add_images(self, request: Request) -> Response:
        """Upload images (multipart, field `files`) as a set to train on; returns its checks."""
        form = await request.form(max_files=MAX_FILES)
        images = await add_images(self.workspace, form)
        return JSONResponse({"id": images.id, **images.checks}, 201)

    async def train(self, request: Request) -> Response:
        """Train a concept on an uploaded set of images."""
        return self._created(train_job(self.workspace, await self._values(request, "train")))

    async def generate(self, request: Request) -> Response:
        """Generate images from a prompt."""
        return self._created(generate_job(self.workspace, await self._values(request, "generate")))

    async def convert(self, request: Request) -> Response:
        """Convert a concept to another file format."""
        return self._created(convert_job(self.workspace, await self._values(request, "convert")))

    async def events(self, request: Request) -> Response:
        """The log of a job as server-sent events, and `event: end` with its state at the end."""
        return self.pages.stream_of(request, ends=True)

    async def change(self, request: Request) -> Response:
        """Stop a job, let it continue, or make previews after the next step of a training."""
        job = self.pages.job_of(request)
        change_job(job, request.path_params["action"])
        return JSONResponse(self._described(job))

    async def document(self, request: Request) -> Response:
        """This description."""
        return JSONResponse(openapi(request.app.state.api_routes, self.workspace.options))

    async def _values(self, request: Request, name: str) -> dict[str, Any]:
        """The object in the body; RequestError if it is something else, or has unknown values."""
        try:
            values = await request.json()
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise RequestError(
                "the body is not a JSON object", 'send one, such as {"prompt": "..."}'
            )
        known = _schema(name, self.workspace.options)["properties"]
        for key in cast("dict[str, Any]", values):
            if key.rpartition(".")[2] not in known:  # also lora.rank
                raise RequestError(f"unknown value {key[:40]!r}", did_you_mean(key[:40], known))
        return cast("dict[str, Any]", values)

    def _created(self, job: Job) -> Response:
        return JSONResponse(self._described(job), 201)

    def _described(self, job: Job) -> dict[str, Any]:
        view = self.pages.view(job)
        return {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "step": view.step,
            "total": view.total,
            "token": self.workspace.token(job),
            "images": len(self.workspace.generated(job)),
            "concept": self.workspace.concept_file(job) is not None,
            "notices": job.read_log()[1],
            "message": (job.result or {}).get("message", ""),
            "hint": (job.result or {}).get("hint", ""),
        }


_TEXT, _COUNT, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_JOB = {
    "type": "object",
    "properties": {
        **{name: _TEXT for name in ("id", "kind", "token", "message", "hint")},
        "state": {"enum": ["waiting", "running", "stopping", "stopped", "failed", "done"]},
        **{name: _COUNT for name in ("step", "total", "images")},
        "concept": {**_FLAG, "description": "whether there is a concept file to download"},
        "notices": {"type": "array", "items": _TEXT},
    },
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_UPLOAD = {"type": "object", "required": ["files"], "properties": {"files": _FILES}}
_ACTION = {"enum": ["stop", "continue", "preview"]}
_BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "train": (
        {
            "images": {**_TEXT, "description": "number of an uploaded image set"},
            "token": {**_TEXT, "description": "placeholder token, such as <mytoy>"},
            "class_noun": {**_TEXT, "description": "noun for this kind of subject, such as toy"},
            "kind": {**_TEXT, "enum": ["object", "style"]},
            "method": _TEXT,
            "base": _TEXT,
        },
        ["images", "class_noun"],
    ),
    "generate": (
        {
            "prompt": _TEXT,
            "concepts": {
                "type": "array",
                "items": _TEXT,
                "description": "NUMBER of a job, or NUMBER:0.8 for a strength",
            },
            "image": {**_TEXT, "description": "number of an image set, for a transfer"},
            "control": _TEXT,
            "base": _TEXT,
        },
        ["prompt"],
    ),
    "convert": ({"concept": _TEXT, "format": _TEXT}, ["concept", "format"]),
}
_OTHERS = ("document", "jobs", "events", "image", "download", "add_images")
# Which options each body has: some of its own, and those of plug-ins.
_OPTIONS = {"train": ("recipe", "methods"), "generate": ("request", "controls")}
_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}


def openapi(routes: list[tuple[str, str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of routes, which are (method, path, handler)."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes:
        name = handler.__name__
        operation: dict[str, Any] = {
            "summary": (handler.__doc__ or "").strip(),
            "operationId": name,
            "responses": {
                "201" if name in (*_BODIES, "add_images") else "200": {
                    "description": "done, or queued",
                    **({} if name in _OTHERS else {"content": _content(_JOB)}),
                },
                "400": {"description": "a value is wrong: `message` and `hint` say what to do"},
                "401": {"description": "the bearer token is missing or wrong"},
            },
        }
        names = [part[1:-1].partition(":")[0] for part in path.split("/") if part[:1] == "{"]
        if names:
            schemas = {name: _ACTION if name == "action" else _TEXT for name in names}
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": schema}
                for name, schema in schemas.items()
            ]
        if name in (*_BODIES, "add_images"):
            upload = {"multipart/form-data": {"schema": _UPLOAD}}
            content = _content(_schema(name, options)) if name in _BODIES else upload
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path.replace(":int", ""), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "pinxit studio", "version": version("pinxit")},
        "paths": paths,
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{"bearer": []}],
    }


def _content(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _schema(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a body; the options of the command line are properties too."""
    properties, required = _BODIES[name]
    listed: list[dict[str, Any]] = []
    if name in _OPTIONS:
        own, plugins = _OPTIONS[name]
        listed = [*options[own], *(f for one in options[plugins].values() for f in one["fields"])]
    fields = {
        field["name"]: {
            "type": _TYPES.get(field["input"], "string"),
            "description": f"{field['help']} (default: {field['default']})",
            **({"enum": field["choices"]} if field["choices"] else {}),
        }
        for field in listed
    }
    return {"type": "object", "required": required, "properties": {**fields, **properties}}
