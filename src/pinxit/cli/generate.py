"""`pinxit generate`: generate the images of a request, with progress bars."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from inspect import Parameter
from itertools import count
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image
from PIL.Image import open as open_png

from pinxit.cli.flags import (
    COMPILE,
    CUDA_GRAPHS,
    DEVICE,
    GPUS,
    Values,
    aliased,
    command,
    flag,
    flags,
    positional,
)
from pinxit.cli.opening import Opening
from pinxit.cli.screen import bars, data, say
from pinxit.concepts.concept import Concept, check_combination
from pinxit.errors import RequestError
from pinxit.files.atomic_write import atomic_write, make_folder
from pinxit.generation.control import SamplingProgress
from pinxit.generation.request import GeneratedImage, GenerationRequest, is_own_png
from pinxit.generation.sample import sample_images
from pinxit.images.tensors import contact_sheet
from pinxit.models.hub import check_consent
from pinxit.models.model import Model
from pinxit.models.prompt import cut_bytes
from pinxit.models.ranks import Ranks
from pinxit.options import Option, Options
from pinxit.progress import Notice

_OUT = Path("generated")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_NUM_IMAGES = 4
_MAX_SHEET = 100  # images on the contact sheet
_MAX_PROMPT_BYTES = 150  # of the prompt in a file name, which may have 255
# Options that have flags of their own here, or none.
_OTHER_FLAGS = frozenset({"prompt", "concepts", "width", "height", "num_images", "controls"})


class OutputOptions(Options):
    """What a command that generates images may load, and where it writes them."""

    allow_download: bool = False
    """download models from the hub that a PNG or a concept names"""
    out: Path = _OUT
    """folder for the images, or a PNG file for one image"""


class SourceOptions(Options):
    """Where a request comes from that is not typed."""

    from_png: Path | None = Option(None, aliases=("like",))
    """a PNG that pinxit generated: use its request, except for options that are given"""


def generate_request(
    given: Values, adjust: Callable[[GenerationRequest, Model], GenerationRequest]
) -> None:
    """Generate what was typed; `adjust` fits the request to the open base model."""
    out = given.get("out", _OUT)
    request, concepts = _request(given)
    opening = Opening.typed(given)
    with opening.joined() as ranks:
        own = None
        if ranks.rank == 0:
            own = _ImageFile(out, request) if _is_image_file(out) else _ImageFolder(out)
        folder = cast("_ImageFolder", ranks.exchange(own)[0])
        try:
            model = opening.open(request)
            _generate(model, adjust(request, model), concepts, folder, ranks)
        except KeyboardInterrupt:
            saved = len(folder.saved)
            say(f"stopped; {saved} images are in {out}" if saved else "stopped; no image was saved")
            raise
        finally:
            if ranks.rank == 0:
                folder.remove_if_unused()


def _request(given: Values) -> tuple[GenerationRequest, list[Concept]]:
    """The request of what was typed, on top of that of a PNG if one is given, and its concepts."""
    options = GenerationRequest.chosen(given)
    typed, allowed = frozenset(options), given.get("allow_download", False)
    if "size" in given:
        options["width"], options["height"] = parse_size(given["size"])
    if "from_png" in given:
        png: Path = given["from_png"]
        stored = GenerationRequest.from_png(png).model_dump(exclude_none=True)
        if not is_own_png(png):
            say(f"{png.name} is of another program: its settings are used, the noise differs")
        check_downloads(stored, typed, png.name, allowed=allowed)
        options = {**stored, **options}
    elif "prompt" not in options:
        raise RequestError("there is no prompt", "type a prompt in quotes, or give --from-png FILE")
    else:
        options.setdefault("num_images", 1 if _is_image_file(given.get("out")) else _NUM_IMAGES)
    request = GenerationRequest.model_validate(options)
    request.check()
    concepts = [reference.open() for reference in request.concepts]
    check_combination(concepts)
    origins = [concept.provenance for concept in concepts if concept.provenance.base]
    if origins and "base" not in options:
        values = origins[0].recipe_values
        models = {
            "base": origins[0].base,
            "vae": options.get("vae", values.get("vae")),
            "text_encoders": options.get("text_encoders", tuple(values.get("text_encoders", ()))),
        }
        check_downloads(models, typed, str(request.concepts[0].path), allowed=allowed)
        request = request.model_copy(update=models)
    return request, concepts


def check_downloads(
    values: Mapping[str, Any], typed: Collection[str], origin: str, *, allowed: bool
) -> None:
    """Raise ModelError if a file's request names models that the user has not agreed to download.

    `typed` are the options that replace the request's.
    """
    names = [values.get(key) for key in ("base", "vae") if key not in typed]
    if "text_encoders" not in typed:
        names += values.get("text_encoders", ())
    names += [table.get("weights") for table in values.get("controls", ())]
    if not allowed:
        check_consent(names, origin, "to download it, add --base {name} or --allow-download")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from `64` or `64x48`."""
    match = re.fullmatch(r"([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", text)
    if not match:
        raise RequestError(
            f"--size {text:.40} is not an image size",
            "write WIDTHxHEIGHT in pixels, such as 96x64, or 64 for a square",
        )
    return int(match[1]), int(match[2] or match[1])


def _is_image_file(out: Path | None) -> bool:
    """Whether the path for the images is that of one file, by its ending."""
    return out is not None and not out.is_dir() and out.suffix.lower() in _IMAGE_SUFFIXES


class _ImageFolder:
    """The folder for the images; files are numbered, so that none is overwritten.

    It is made at once, so that a path that cannot be written is an error before anything is done.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"{folder} is a file, not a folder", "choose another --out")
        self._is_new = not folder.exists()
        make_folder(folder, writable=True)
        self.folder = folder
        self.saved: dict[int, Path] = {}  # by seed
        numbers = {path.name.partition("-")[0] for path in folder.glob("*.png")}
        self.number = next(f"{number:04}" for number in count() if f"{number:04}" not in numbers)

    def remove_if_unused(self) -> None:
        """Remove the folder if it was made for images, and none was saved."""
        if self._is_new and not self.saved:
            with suppress(OSError):
                self.folder.rmdir()

    def save(self, result: GeneratedImage) -> None:
        """Save an image."""
        path = self.path(result.request)
        result.save(path)
        self.saved[result.request.seed] = path
        data(str(path))

    def path(self, request: GenerationRequest) -> Path:
        """The file for an image of a request; the prompt and the seed are in its name."""
        prompt = re.sub(r"\W+", "-", request.prompt).strip("-")
        prompt = cut_bytes(prompt[:60], _MAX_PROMPT_BYTES)
        return self.folder / f"{self.number}-{prompt}-{request.seed}.png"

    def save_sheet(self, images: Sequence[Image]) -> None:
        """Save a contact sheet."""
        path = self.folder / f"{self.number}-sheet.png"
        atomic_write(path, lambda draft: contact_sheet(images).save(draft, "PNG"))
        data(str(path))


class _ImageFile(_ImageFolder):
    """One file for the only image of a request."""

    def __init__(self, file: Path, request: GenerationRequest) -> None:
        if file.suffix.lower() != ".png":
            raise RequestError(
                f"{file} is not a PNG; only a PNG also stores the request",
                f"try {file.with_suffix('.png')}",
            )
        if request.num_images > 1:
            raise RequestError(
                f"{file} is one file, for {request.num_images} images",
                f"give a folder, such as --out {file.with_suffix('')}, or --num-images 1",
            )
        if file.exists():
            raise RequestError(f"{file} exists already", "choose another --out, or remove it first")
        super().__init__(file.parent)
        self.file = file

    def path(self, request: GenerationRequest) -> Path:  # noqa: ARG002
        """The file."""
        return self.file


def _generate(
    model: Model,
    request: GenerationRequest,
    concepts: Sequence[Concept],
    folder: _ImageFolder,
    ranks: Ranks,
) -> None:
    """Generate and save the share of this process; rank 0 also makes a sheet of the first."""
    with bars() as progress, closing(sample_images(model, request, concepts, ranks)) as events:
        for event in events:
            if isinstance(event, SamplingProgress):
                progress(event)
            elif isinstance(event, Notice):
                say(f"note: {event.message}")
            else:
                folder.save(event)
    _, *others = ranks.exchange(folder.saved)
    if ranks.rank:
        return
    for saved in others:
        folder.saved |= saved
        for path in saved.values():
            data(str(path))
    if len(folder.saved) > 1:
        first = request.seeds[:_MAX_SHEET]
        folder.save_sheet([open_png(folder.saved[seed]) for seed in first])


def request_flags(
    num_images: int, size: str, leave_out: frozenset[str] = frozenset()
) -> list[Parameter]:
    """The flags of a request, apart from some of its options, and --device and --out."""
    help = GenerationRequest.model_fields["concepts"].description or ""
    return [
        *aliased(flag("concept", list[str], help, "none"), "concepts"),
        *aliased(flag("num_images", int, "number of images", str(num_images)), "count", "n"),
        *aliased(flag("size", str, "image size in pixels: 64 or 96x64", size), "resolution"),
        *flags(GenerationRequest, leave_out=_OTHER_FLAGS | leave_out),
        DEVICE,
        *flags(OutputOptions),
    ]


generate = command(
    [
        positional(
            "prompt",
            str,
            "text prompt in quotes; may contain tokens of loaded concepts, like <mytoy>",
            "that of --from-png",
        ),
        *request_flags(_NUM_IMAGES, "image size of the base model"),
        GPUS,
        COMPILE,
        CUDA_GRAPHS,
        *flags(SourceOptions),
    ],
    lambda given: generate_request(given, lambda request, _: request),
)
