"""The table of an image set and the editor of one image: captions, crops, masks, selection.

Nothing is lost: whole images stay, and so do replaced masks and the captions before a change.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pinxit.errors import RequestError
from pinxit.files.atomic_write import make_folder, remove, write_text
from pinxit.studio.image_set import CROPS, MASK, UNUSED, ImageSet
from pinxit.studio.jobs import read_json
from pinxit.studio.pages import Handlers
from pinxit.studio.uploads import form_of, store, take_in, texts_of, uploads

_BEFORE = ".captions-before.json"
_MAX_CAPTION = 2000
_MAX_MASK_BYTES = 2**23


class ImageTable(Handlers):
    """The handlers of image sets of a workspace."""

    async def show(self, request: Request) -> Response:
        """The table of an image set."""
        images = self.pages.images_of(request)
        values = {
            "images": images,
            "section": "train",
            "texts": self.workspace.training_texts(images),
            "can_undo": (images.folder / _BEFORE).is_file(),
        }
        return self.pages.render("images.html", values)

    async def save(self, request: Request) -> Response:
        """Change captions and which images are used."""
        images, form = self.pages.images_of(request), await form_of(request)
        values = texts_of(form)
        captions = _captions(images)
        changed = {name: _edited(text, name, values) for name, text in captions.items()}
        _write_captions(images, captions, changed)
        shown = {name for name in captions if f"caption:{name}" in values}  # others came later
        _set_used(images, shown - set(form.getlist("use")), set(form.getlist("back")))
        return await self._checked(images)

    async def undo(self, request: Request) -> Response:
        """Bring the captions back that were there before the last change."""
        images = self.pages.images_of(request)
        before = read_json(images.folder / _BEFORE) or {}
        captions = _captions(images)
        _write_captions(images, captions, {name: before.get(name, "") for name in captions})
        return await self._checked(images)

    async def editor(self, request: Request) -> Response:
        """The page that edits the image at this position of its set."""
        images, path = self.pages.image_of(request)
        values = {"images": images, "name": path.name, "place": request.path_params["place"]}
        values |= {"section": "train", "mask": images.mask_of(path) is not None}
        return self.pages.render("editor.html", values)

    async def edit(self, request: Request) -> Response:
        """Crop an image, and store, replace or remove its mask."""
        (images, path), form = self.pages.image_of(request), await form_of(request)
        edges = [str(form.get(name, "")) for name in ("left", "top", "right", "bottom")]
        crops = {**images.crops, path.name: _box(" ".join(edges) if "crop" in form else "")}
        write_text(images.folder / CROPS, json.dumps(crops))
        if masks := uploads(form, "mask"):
            incoming = images.new_incoming(f"0000-{path.stem}{MASK}")
            remove(incoming)  # of an earlier attempt
            await store(masks[0], incoming, _MAX_MASK_BYTES)
        elif form.get("mask") == "none":
            images.drop_mask(path)
        return await self._checked(images)

    async def _checked(self, images: ImageSet) -> Response:
        await take_in(images, self.workspace.resolution)
        return RedirectResponse(f"/images/{images.id}", 303)


def _captions(images: ImageSet) -> dict[str, str]:
    """The caption of each image by its name; empty if it has none."""
    files = {path.name: path.with_suffix(".txt") for path in images.files}
    return {
        name: file.read_text("utf-8").strip() if file.is_file() else ""
        for name, file in files.items()
    }


def _write_captions(images: ImageSet, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Write the captions that are new, and keep the old ones for an undo."""
    if new == old:
        return
    write_text(images.folder / _BEFORE, json.dumps(dict(old)))
    for name, caption in new.items():
        file = images.folder / Path(name).with_suffix(".txt")
        if not caption:
            remove(file)
        elif caption != old[name]:
            write_text(file, caption + "\n")


def _edited(old: str, name: str, values: Mapping[str, Any]) -> str:
    """A caption as typed, after the changes that apply to all captions."""
    caption = values.get(f"caption:{name}", old)
    if caption.split() == values.get(f"shown:{name}", "").split():
        caption = old  # not edited here; another page may have changed it
    if search := values.get("search", ""):
        caption = caption.replace(search, values.get("replace", ""))
    caption = f"{values.get('before', '')} {caption} {values.get('after', '')}"
    return " ".join(caption.split())[:_MAX_CAPTION]


def _box(text: str) -> list[int]:
    """A crop as left, top, right and bottom in pixels; empty for the whole image."""
    words = text.replace(",", " ").split()
    if not words:
        return []
    if len(words) != 4 or not all(word.isdecimal() and len(word) < 7 for word in words):
        raise RequestError(
            f"a crop is four numbers, not {text[:40]!r}", "give left, top, right and bottom"
        )
    return [int(word) for word in words]


def _set_used(images: ImageSet, out: set[str], back: set[Any]) -> None:
    """Move images out of the set, and those marked back into it."""
    unused = images.folder / UNUSED
    make_folder(unused)
    names = images.unused
    for path in images.files:
        if path.name in out:
            _move_with_mask(path, unused)
    for name in names:
        if name in back:
            _move_with_mask(unused / name, images.folder)


def _move_with_mask(path: Path, folder: Path) -> None:
    for file in (path, path.with_name(f"{path.stem}{MASK}")):
        if file.is_file():
            file.replace(folder / file.name)
