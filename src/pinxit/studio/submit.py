"""Turn what a form or a program has sent into a job; everything is checked, nothing is a path."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from starlette.datastructures import FormData, UploadFile

from pinxit.errors import RequestError, did_you_mean
from pinxit.files.atomic_write import make_folder, remove
from pinxit.studio.jobs import Job, numbered_folders
from pinxit.studio.workspace import INCOMING, THUMBNAILS, ImageSet, Workspace, safe_stem

KINDS = ("object", "style")
MAX_FILE_BYTES, MAX_FILES, MAX_NUM_IMAGES, MAX_SIDE = 32 * 2**20, 200, 64, 2048
_MAX_TEXT = 2000
_CHUNK = 2**20
_MODEL_SUFFIXES = frozenset({".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".png", ".webp"})


def train_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a training; RequestError names the first answer that is missing or wrong."""
    images = workspace.images_of(_text(values, "images"))
    if not images.files:
        raise RequestError("there is no usable image", "choose 3 to 12 images of the subject")
    noun = _text(values, "class_noun")
    if not noun:
        raise RequestError("what it is, is missing", "write a common noun, such as dog or toy")
    token = _text(values, "token") or f"<my{re.sub(r'[^a-z0-9]', '', noun.split()[-1].lower())}>"
    options = workspace.options
    name = _choice(values, "method", [options["defaults"]["method"], *options["methods"]])
    method = option_values(options["methods"][name]["fields"], values, name)
    snapshot = _snapshot(workspace, images)
    recipe = {
        **option_values(options["recipe"], values),
        "method": {"name": name, **method},
        "images": str(snapshot.folder.resolve()),
        "token": token if token.startswith("<") else f"<{token}>",
        "class_noun": noun,
        "kind": _choice(values, "kind", KINDS),
        "base": _choice(values, "base", workspace.bases),
    }
    sets = {"images": images.id, "snapshot": snapshot.id}
    return workspace.queue.add("train", {"recipe": recipe, **sets})


def generate_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a generation, also one from a source image; RequestError for a wrong value."""
    options = workspace.options
    request = option_values(options["request"], values)
    request["prompt"] = _text(values, "prompt")
    if not request["prompt"]:
        raise RequestError("the prompt is missing", "write what the image should show")
    if request.get("num_images", 1) > MAX_NUM_IMAGES:
        raise RequestError(f"more than {MAX_NUM_IMAGES} images", "generate them in several jobs")
    if max(request.get("width", 0), request.get("height", 0)) > MAX_SIDE:
        raise RequestError(f"more than {MAX_SIDE} pixels", "choose a smaller size")
    concepts = [_concept(workspace, number) for number in _list(values, "concepts")]
    trained = [job.options["recipe"]["base"] for job in concepts if job.kind == "train"]
    request["base"] = _choice(values, "base", [*trained[:1], *workspace.bases])
    if number := _text(values, "image"):
        control = _choice(values, "control", [options["defaults"]["control"], *options["controls"]])
        fields = options["controls"][control]["fields"]
        request["image"] = workspace.images_of(number).id
        request["control"] = {"name": control, **option_values(fields, values, control)}
    chosen = {"request": request, "concepts": [job.id for job in concepts]}
    return workspace.queue.add("generate", chosen)


def convert_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a conversion of a concept to another file format."""
    concept = _concept(workspace, _text(values, "concept"))
    formats = workspace.options["formats"]
    name = _text(values, "format")
    if name not in formats:
        raise RequestError(f"unknown format {name!r}", did_you_mean(name, formats))
    return workspace.queue.add("convert", {"concept": concept.id, "format": name})


def compare_job(workspace: Workspace, values: Mapping[str, Any]) -> Job:
    """Queue a comparison of trained concepts."""
    concepts = [_concept(workspace, number) for number in _list(values, "concepts")]
    if not concepts:
        raise RequestError("nothing to compare", "choose at least one concept")
    return workspace.queue.add("compare", {"concepts": [job.id for job in concepts]})


def option_values(
    fields: Iterable[Mapping[str, Any]], values: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """The options that were set, in their types; `prefix.name` and `name` both set an option."""
    chosen: dict[str, Any] = {}
    for field in fields:
        name: str = field["name"]
        given = values.get(f"{prefix}.{name}", values.get(name))
        text = "" if given is None else str(given).strip()
        if text:
            chosen[name] = _converted(field, text)
    return chosen


def _converted(field: Mapping[str, Any], text: str) -> object:
    kind, label = field["input"], field["label"]
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        raise RequestError(f"{label} must be a number, not {text[:40]!r}", field["help"]) from None
    if kind == "bool" and text.lower() not in ("true", "false"):
        raise RequestError(f"{label} must be true or false, not {text[:40]!r}", field["help"])
    if kind == "choice" and text not in field["choices"]:
        raise RequestError(
            f"{label} cannot be {text[:40]!r}", f"choose one of: {', '.join(field['choices'])}"
        )
    return text.lower() == "true" if kind == "bool" else text[:_MAX_TEXT]


async def add_images(workspace: Workspace, form: FormData) -> ImageSet:
    """Store uploaded images in a new set, or in that of the field `images`, and check them.

    The server only stores bytes under names of its own; a separate process decodes them.
    """
    number = form.get("images")
    images = (
        workspace.images_of(number)
        if isinstance(number, str) and number
        else ImageSet(workspace.new_folder("images"))
    )
    files = uploads(form, "files")
    if not files and not images.files:
        raise RequestError("no image was chosen", "choose 3 to 12 images of the subject")
    incoming = images.folder / INCOMING
    make_folder(incoming)
    for index, file in enumerate(files):
        name = Path((file.filename or "").replace("\\", "/")).name
        suffix = re.sub(r"[^.\w]", "", "".join(Path(name).suffixes[-2:])).lower()[-12:]
        await _store(file, incoming / f"{index:04}-{safe_stem(name)[:40]}{suffix}", MAX_FILE_BYTES)
    await take_in(images, workspace.resolution)
    return images


async def add_model_file(workspace: Workspace, file: UploadFile, max_bytes: int) -> Job:
    """Store an uploaded concept file and queue its inspection; the server never reads it."""
    name = Path((file.filename or "").replace("\\", "/")).name
    suffix = Path(name).suffix.lower()
    if suffix not in _MODEL_SUFFIXES:
        raise RequestError(
            f"{name[:60]!r} is not the name of a concept file",
            f"its name must end in one of: {', '.join(sorted(_MODEL_SUFFIXES))}",
        )
    folder = workspace.new_folder("files")
    await _store(file, folder / f"{safe_stem(name)}{suffix}", max_bytes)
    return workspace.queue.add("inspect", {"file": folder.name})


async def take_in(images: ImageSet, resolution: int) -> None:
    """Decode and check the uploaded images of a set in a process with limits."""
    command = [sys.executable, "-m", "pinxit.studio.intake", str(images.folder), str(resolution)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        incoming = sorted((images.folder / INCOMING).iterdir())
        name = incoming[0].name.partition("-")[2] if incoming else "an image"
        remove(*incoming[:1])  # the one that it died of
        raise RequestError(f"{name} could not be decoded: {last[:200]}", "leave this file out")


def unfinished_sets(workspace: Workspace) -> list[ImageSet]:
    """The image sets whose uploads were interrupted by the end of the server."""
    folders = numbered_folders(workspace.folder / "images")
    sets = [folder for folder in folders if (folder / INCOMING).is_dir()]
    return [ImageSet(folder) for folder in sets if any((folder / INCOMING).iterdir())]


def uploads(form: FormData, name: str) -> list[UploadFile]:
    """The files of a form field; a browser sends one without a name if none was chosen."""
    files = [file for file in form.getlist(name) if isinstance(file, UploadFile)]
    return [file for file in files if file.filename]


async def _store(file: UploadFile, path: Path, max_bytes: int) -> None:
    size = 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as target:
        while chunk := await file.read(_CHUNK):
            size += len(chunk)
            target.write(chunk)
            if size > max_bytes:
                break
    if size > max_bytes:
        remove(path)
        raise RequestError(
            f"{path.name} has more than {max_bytes // 2**20} MiB", "make the file smaller"
        )


def _snapshot(workspace: Workspace, images: ImageSet) -> ImageSet:
    """A copy of a set as it is now: a run needs the same images if it continues later."""
    snapshot = ImageSet(workspace.new_folder("images"))
    for path in [*images.files, *images.folder.glob("*.mask.png"), *images.folder.glob("*.txt")]:
        shutil.copyfile(path, snapshot.folder / path.name)
    shutil.copytree(images.folder / THUMBNAILS, snapshot.folder / THUMBNAILS)
    return snapshot


def _concept(workspace: Workspace, number: str) -> Job:
    job = workspace.queue.get(number)
    if workspace.concept_file(job) is None:
        raise RequestError(f"job {number} has no concept yet", "wait until it has saved one")
    return job


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return str(value).strip()[:_MAX_TEXT] if isinstance(value, str | int | float) else ""


def _list(values: Mapping[str, Any], name: str) -> list[str]:
    if isinstance(values, FormData):
        return [value for value in values.getlist(name) if isinstance(value, str) and value]
    value = values.get(name, [])
    return [str(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _choice(values: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """The value of a field if it is a known one; the first of them if the field is empty."""
    value = _text(values, name) or known[0]
    if value not in known:
        raise RequestError(f"unknown {name} {value[:60]!r}", did_you_mean(value[:60], known))
    return value
