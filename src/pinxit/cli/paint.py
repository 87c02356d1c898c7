"""`pinxit generate`: a request from flags or from a picture, painted with bars."""

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from inspect import Parameter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.cli.flags import Values, command, flag, flags, word
from pinxit.cli.opening import opened
from pinxit.cli.screen import bars, data, say
from pinxit.concepts.concept import Concept
from pinxit.errors import RequestError
from pinxit.files.atomic_write import replace
from pinxit.generation.generate import Frame, Notice, Painted, Request
from pinxit.generation.generate import generate as painting
from pinxit.images.tensors import sheet
from pinxit.models.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

_OUT = Path("painted")
_COUNT = 4
_OWN = frozenset({"prompt", "concepts", "width", "height", "count", "controls"})


def paint_as(given: Values, suited: Callable[[Request, Model], Request]) -> None:
    """Paint what was typed into the folder that was typed; `suited` fits it to the open base."""
    out = given.get("out", _OUT)
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is no folder", "give a folder for the pictures with --out")
    request, concepts = _asked(given)
    model = opened(request, given.get("device", "cpu"))
    request = suited(request, model)
    kept: list[Path] = []
    try:
        _paint(model, request, concepts, _Album(out, kept))
    except KeyboardInterrupt:
        say(f"stopped; {len(kept)} pictures are in {out}" if kept else "stopped; nothing is kept")
        raise


def _asked(given: Values) -> tuple[Request, list[Concept]]:
    """The request, from a picture that carries one and what was typed, and its concepts."""
    typed = {name: given[name] for name in Request.model_fields if name in given}
    if "size" in given:
        typed["width"], typed["height"] = _size(given["size"])
    if "concept" in given:
        typed["concepts"] = given["concept"]
    if "like" in given:
        typed = {**Request.from_png(given["like"]).model_dump(exclude_none=True), **typed}
    elif "prompt" not in typed:
        raise RequestError("there is no prompt", "type what to paint, or give --like PNG")
    else:
        typed.setdefault("count", _COUNT)
    request = Request.model_validate(typed)
    concepts = [pick.open() for pick in request.concepts]
    learned = [concept.provenance for concept in concepts if concept.provenance.base]
    if learned and "base" not in typed:
        vae = typed.get("vae", learned[0].choices.get("vae"))
        request = request.model_copy(update={"base": learned[0].base, "vae": vae})
    return request, concepts


def _size(text: str) -> tuple[int, int]:
    """Width and height from `64` or `64x48`."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise RequestError(f"`{text}` is no size", "write pixels as 64 or, if not square, as 96x64")
    return int(found[1]), int(found[2] or found[1])


class _Album:
    """The folder that pictures go to: numbered on, so that nothing there is written over."""

    def __init__(self, folder: Path, kept: list[Path]) -> None:
        self.folder = folder
        self.kept = kept
        taken = {path.name.partition("-")[0] for path in folder.glob("*.png")}
        self.number = next(f"{number:04}" for number in count() if f"{number:04}" not in taken)

    def keep(self, painted: Painted) -> None:
        """Save a finished picture under its prompt and seed."""
        words = re.sub(r"\W+", "-", painted.request.prompt).strip("-")[:60]
        path = self.folder / f"{self.number}-{words}-{painted.request.seed}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        painted.save(path)
        self.kept.append(path)
        data(str(path))

    def keep_sheet(self, images: Sequence["Image"]) -> None:
        """Save all of them on one sheet."""
        path = self.folder / f"{self.number}-sheet.png"
        replace(path, lambda beside: sheet(images).save(beside, "PNG"))
        data(str(path))


def _paint(model: Model, request: Request, concepts: Sequence[Concept], album: _Album) -> None:
    images: list[Image] = []
    with bars() as report, closing(painting(model, request, concepts)) as events:
        for event in events:
            if isinstance(event, Frame):
                report("painting", event.done, event.total)
            elif isinstance(event, Notice):
                say(f"note: {event.message}")
            else:
                album.keep(event)
                images.append(event.image)
    if len(images) > 1:
        album.keep_sheet(images)


def painting_flags(count: int, size: str, but: frozenset[str] = frozenset()) -> list[Parameter]:
    """The flags of a request, but for some of its fields, and of where pictures go."""
    return [
        flag("concept", list[str], "a run folder or a file in any format; of a LoRA also FILE:0.7"),
        flag("count", int, "how many pictures", str(count)),
        flag("size", str, "pixels, as 64 or 96x64", size),
        *flags(Request, leave_out=_OWN | but),
        flag("device", str, "where to compute: cpu, cuda or mps", "cpu"),
        flag("out", Path, "folder for the pictures", str(_OUT)),
    ]


generate = command(
    [
        word("prompt", str, "what to paint, learned words included", required=False),
        *painting_flags(_COUNT, "the base's"),
        flag("like", Path, "a PNG that pinxit painted: its request again, unless typed otherwise"),
    ],
    lambda given: paint_as(given, lambda request, _: request),
)
