"""Store what was sent: images in sets, which another process decodes, and concept files."""

import asyncio
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from pinxit.errors import RequestError
from pinxit.studio.image_set import DISK_ERROR, MASK, THUMBNAILS, ImageSet
from pinxit.studio.jobs import Job, numbered_folders, safe_stem
from pinxit.studio.workspace import Workspace

MAX_FILE_BYTES, MAX_FILES = 32 * 2**20, 200
MAX_ZIP_BYTES = 2**26
_CHUNK = 2**20
_MODEL_SUFFIXES = frozenset({".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".png", ".webp"})


async def add_images(workspace: Workspace, form: FormData) -> ImageSet:
    """Store uploaded images in a new set, or in that of the field `images`, and check them.

    The server only stores bytes under names of its own; a separate process decodes them.
    """
    number = texts_of(form).get("images")
    images = workspace.images_of(number) if number else None
    files = uploads(form, "files")
    if not files and not (images and images.files):
        raise RequestError("no image was chosen", "choose 3 to 12 images of the subject")
    images = images or ImageSet(workspace.new_folder("images"))
    for index, file in enumerate(files):
        name = Path((file.filename or "").replace("\\", "/")).name
        suffix = MASK if name.lower().endswith(MASK) else Path(name).suffix.lower()
        stem = safe_stem(f"{name[: len(name) - len(suffix)]}.")[:40]
        suffix = re.sub(r"[^.\w]", "", suffix)[-12:]
        limit = MAX_ZIP_BYTES if suffix.endswith(".zip") else MAX_FILE_BYTES
        own = f"{index:04}{secrets.token_hex(4)}"  # another upload to the set may come right now
        target = images.new_incoming(f"{own}-{stem}{suffix}")
        try:
            await store(file, target, limit)
        except RequestError as error:  # the other images are taken
            images.reject(target, error.message)
    await take_in(images, workspace.resolution)
    return images


async def add_copies(workspace: Workspace, sources: Iterable[Path]) -> ImageSet:
    """A new set with copies of images of the workspace, or of the package."""
    images = ImageSet(workspace.new_folder("images"))
    for index, source in enumerate(sources):
        shutil.copyfile(source, images.new_incoming(f"{index:04}-{source.name}"))
    await take_in(images, workspace.resolution)
    return images


def sample_images() -> list[Path]:
    """The images of a subject that come with the package."""
    return sorted((Path(__file__).parent.parent / "gallery" / "subject").glob("*.png"))


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
    await store(file, folder / f"{safe_stem(name)}{suffix}", max_bytes)
    return workspace.queue.add("inspect", {"file": folder.name})


async def take_in(images: ImageSet, resolution: int) -> None:
    """Decode and check the uploaded images of a set in a process with limits.

    A file that ends the process is rejected. RequestError if the disk is full, or for an error
    that is not that of a file; what is left of the upload is done by the next call.
    """
    command = [sys.executable, "-m", "pinxit.studio.intake", str(images.folder), str(resolution)]
    while True:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, errors = await process.communicate()
        if not process.returncode:
            return
        last = errors.decode(errors="replace").strip().rpartition("\n")[2][:200]
        incoming = images.incoming
        if process.returncode == DISK_ERROR or not incoming:
            raise RequestError(f"the images could not be stored: {last}", "try again")
        images.reject(incoming[0], f"it cannot be decoded: {last}")


def unfinished_sets(workspace: Workspace) -> list[ImageSet]:
    """The image sets whose uploads were interrupted by the end of the server."""
    folders = numbered_folders(workspace.folder / "images")
    return [images for images in map(ImageSet, folders) if images.incoming]


async def form_of(request: Request) -> FormData:
    """The form in a request."""
    return await request.form(max_files=MAX_FILES, max_fields=2000, max_part_size=2**16)


def texts_of(form: FormData) -> dict[str, Any]:
    """The texts of a form, without its files."""
    return {name: value for name, value in form.items() if isinstance(value, str)}


def uploads(form: FormData, name: str) -> list[UploadFile]:
    """The files of a form field; a browser sends one without a name if none was chosen."""
    files = [file for file in form.getlist(name) if isinstance(file, UploadFile)]
    return [file for file in files if file.filename]


async def store(file: UploadFile, path: Path, max_bytes: int) -> None:
    """Store an uploaded file: all of it or nothing; RequestError if it is too large."""
    size, draft = 0, path.with_name(f".{path.name[-200:]}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as target:
            while chunk := await file.read(_CHUNK):
                size += len(chunk)
                target.write(chunk)
                if size > max_bytes:
                    limit = f"it has more than {max_bytes // 2**20} MiB"
                    raise RequestError(limit, "make the file smaller")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def snapshot(workspace: Workspace, images: ImageSet) -> ImageSet:
    """A copy of a set as it is now: a run needs the same images if it continues later."""
    snapshot = ImageSet(workspace.new_folder("images"))
    for path in [*images.files, *images.folder.glob("*.mask.png"), *images.folder.glob("*.txt")]:
        shutil.copyfile(path, snapshot.folder / path.name)
    shutil.copytree(images.folder / THUMBNAILS, snapshot.folder / THUMBNAILS)
    return snapshot
