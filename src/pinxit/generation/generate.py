"""Painting: one denoising loop for every family, solver, concept and start."""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator
from torch import Tensor

from pinxit.adapters.adapter import injected
from pinxit.concepts.concept import Concept, Pick, combined
from pinxit.errors import PinxitError, RequestError
from pinxit.files.atomic_write import replace
from pinxit.generation.control import Controlled, Frame, Hold, Walk, plainly, prepared
from pinxit.generation.schedulers import SOLVERS, Solver, solver_for
from pinxit.images.tensors import to_image
from pinxit.models.model import Conditioning, Model, Precision
from pinxit.models.text_encoder import CLIP_SKIP, Reading
from pinxit.options import Checked

if TYPE_CHECKING:
    from PIL.Image import Image

_KEY = "pinxit"

# Pictures are painted together while their latents have no more positions than this in all.
_POSITIONS = 8192
_MOST_TOGETHER = 16


def _pick(given: object) -> object:
    return Pick.of(given) if isinstance(given, str | Path) else given


class Request(Checked):
    """One act of painting: everything the pictures follow from, besides the base's weights."""

    trouble: ClassVar[type[PinxitError]] = RequestError

    prompt: str = Field(description="what to paint, learned words included")
    negative: str = Field(default="", description="what to keep away from")
    concepts: tuple[Annotated[Pick, BeforeValidator(_pick), PlainSerializer(str)], ...] = Field(
        default=(), description="run folders or concept files to paint with, as FILE or FILE:0.7"
    )
    count: int = Field(default=1, ge=1, description="how many pictures")
    seed: int = Field(default=0, description="seed of the first picture; the next has the next")
    steps: int = Field(default=25, ge=1, le=1000, description="denoising steps")
    guidance: float = Field(default=5.0, ge=1, description="how closely to follow the prompt")
    scheduler: str | None = Field(
        default=None,
        description=f"solver: {', '.join(SOLVERS)}; if unset ddim, or euler for rectified flows",
    )
    clip_skip: int | None = Field(default=None, ge=1, description=CLIP_SKIP)
    width: int | None = Field(default=None, ge=8, description="pixels; else the base's size")
    height: int | None = Field(default=None, ge=8, description="pixels; else the width")
    init: Path | None = Field(default=None, description="a picture to start from")
    strength: float = Field(default=0.6, gt=0, le=1, description="how much of it to paint anew")
    controls: tuple[Controlled, ...] = Field(
        default=(), description="what holds structure of a picture: see `pinxit transfer`"
    )
    base: str = Field(default="pocket", description="a name, a folder, a file, or a hub id")
    vae: str | None = Field(default=None, description="another autoencoder: folder, file, hub id")
    precision: Precision | None = Field(default=None, description="numbers to compute in")

    @field_validator("scheduler")
    @classmethod
    def _known(cls, name: str | None, _info: ValidationInfo) -> str | None:
        return name and solver_for("diffusion", name)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return tuple(range(self.seed, self.seed + self.count))

    def size(self, model: Model) -> tuple[int, int]:
        """Width and height in pixels on this model; RequestError if its latents cannot have it."""
        width = self.width or self.height or model.picture_size
        height = self.height or width
        for side in (width, height):
            if side % model.grain:
                raise RequestError(
                    f"{model.name} cannot paint {width}x{height} pixels",
                    f"take multiples of {model.grain}, such as "
                    f"{_nearest(width, model.grain)}x{_nearest(height, model.grain)}",
                )
        return width, height

    @property
    def reading(self) -> Reading:
        """How its prompts are read: weights in brackets, as long as the base takes them."""
        return Reading(weights=True, long=True, clip_skip=self.clip_skip)

    @classmethod
    def from_png(cls, path: Path) -> Self:
        """The request that a painted picture carries; RequestError if it carries none."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                text: object = image.info.get(_KEY)
        except (OSError, UnidentifiedImageError) as trouble:
            raise RequestError(
                f"picture {path} cannot be read: {trouble}", "give a PNG that pinxit painted"
            ) from trouble
        if not isinstance(text, str):
            raise RequestError(f"{path} carries no request", "give a PNG that pinxit painted")
        return cls.model_validate_json(text)


@dataclass(frozen=True)
class Notice:
    """Something to tell the user that does not stop the painting or the learning."""

    message: str


@dataclass(frozen=True)
class Painted:
    """A finished picture, the request that makes it again alone, and its latents (C, H, W)."""

    image: "Image" = field(repr=False)
    request: Request
    latents: Tensor = field(repr=False)

    def save(self, path: Path) -> None:
        """Write a PNG that carries the request."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(_KEY, self.request.model_dump_json(exclude_none=True))
        replace(path, lambda beside: self.image.save(beside, "PNG", pnginfo=info))


@torch.no_grad()
def generate(
    model: Model, request: Request, concepts: Sequence[Concept] = ()
) -> Generator[Notice | Frame | Painted]:
    """Paint what is asked for, telling of every step; the concepts are in the model meanwhile."""
    width, height = request.size(model)
    area = (width // model.factor) * (height // model.factor)
    plain = plainly(request.prompt, concepts)
    beside = [control.beside(plain) for control in request.controls]
    texts = [text for text in beside if text is not None]
    reweighed = any(concept.weighable or concept.tuned for concept in concepts)
    together = max(1, min(_MOST_TOGETHER, _POSITIONS // area) // (1 + len(texts)))
    groups = [request.seeds[at : at + together] for at in range(0, request.count, together)]
    with injected(model, combined(concepts, model)):
        yield from _notices(model, request, concepts)
        if request.prompt in texts:
            yield Notice("the prompt says only what the picture shows: say that with --shows")
        told = model.condition([request.negative, request.prompt, *texts], request.reading)
        for number, seeds in enumerate(groups):
            for event in _walk(model, request, told, seeds, beside, reweighed):
                if isinstance(event, Frame):
                    before = number * event.total
                    yield Frame(before + event.done, event.total * len(groups), event.latents)
                else:
                    yield event


def paint(
    model: Model, request: Request | str, concepts: Sequence[Concept | Path | str] = ()
) -> list[Painted]:
    """The pictures asked for; a plain prompt will do for a request, FILE:0.7 for a concept."""
    picks = [given if isinstance(given, Concept) else Pick.of(given) for given in concepts]
    if isinstance(request, str):
        files = (pick for pick in picks if isinstance(pick, Pick))
        whole = tuple(Pick(pick.path.resolve(), pick.strength) for pick in files)
        request = Request(prompt=request, concepts=whole)
    loaded = [pick if isinstance(pick, Concept) else pick.open() for pick in picks]
    return [event for event in generate(model, request, loaded) if isinstance(event, Painted)]


def _walk(
    model: Model,
    request: Request,
    told: Conditioning,
    seeds: Sequence[int],
    texts: Sequence[str | None],
    reweighed: bool,
) -> Iterator[Frame | Painted]:
    """The denoising loop for some pictures together, each drawing from its own generator.

    `told` is what the negative prompt, the prompt, and samples beside are told: those in `texts`.
    """
    kind, config = model.schedule.kind, model.solver_config
    name = solver_for(kind, request.scheduler)
    solver = Solver(kind, name, config, request.steps)
    walk = Walk(
        model=model,
        solver=lambda: Solver(kind, name, config, request.steps),
        size=request.size(model),
        seeds=seeds,
        draws=[torch.Generator().manual_seed(seed) for seed in seeds],
        told=told[1:2],
        reweighed=reweighed,
        role=0,
        roles=len(told.states) - 2,
    )
    holds, before = yield from prepared(walk, request.controls, told, texts)
    latents = _start(walk, request, solver, holds)
    beside = [one for hold in holds if (one := hold.beside(latents)) is not None]
    rows, count = torch.cat([latents, *beside]), len(seeds)
    draws = [_copied(draw) for _ in range(walk.roles + 1) for draw in walk.draws]
    each = [told[at : at + 1] for at in range(1, walk.roles + 2) for _ in seeds]
    both = Conditioning.stack([told[:1]] * len(rows) * (request.guidance > 1) + each)
    total, first = before + len(solver.times), len(walk.times) - len(solver.times)
    with injected(model, [adapter for hold in holds for adapter in hold.adapters]):
        for at, time in enumerate(solver.times, first):
            for hold in holds:
                rows = hold.before(at, rows)
            answer = _answer(model, solver.scaled(rows, time), time, both, request.guidance)
            rows = solver.step(answer, time, rows, draws)
            for hold in holds:
                rows = hold.after(at, rows)
            yield Frame(before + at - first + 1, total, rows[:count])
    pixels = model.decode(rows[:count])
    for hold in holds:
        pixels = hold.finished(pixels)
    placed: dict[str, object] = {"base": model.name, "vae": model.source.vae, "count": 1}
    placed |= {"precision": model.placement.precision, "scheduler": name}
    for seed, kept, shown in zip(seeds, rows, pixels, strict=False):
        yield Painted(to_image(shown), request.model_copy(update={**placed, "seed": seed}), kept)


def _start(walk: Walk, request: Request, solver: Solver, holds: Sequence[Hold]) -> Tensor:
    """The latents before the first step: noise, or what the start picture or a control says."""
    starts = [start for hold in holds if (start := hold.start(solver)) is not None]
    if request.init is not None:
        starts.append(walk.begin_with(solver, request.init, request.strength))
    if len(starts) > 1:
        raise RequestError(
            "a picture cannot begin with two others", "take one of --init and the controls"
        )
    return starts[0] if starts else solver.begin_with_noise(walk.noise())


def _answer(
    model: Model, rows: Tensor, time: Tensor, told: Conditioning, guidance: float
) -> Tensor:
    """What the denoiser says of rows; where guidance leads away, `told` has first from what."""
    if guidance <= 1:
        return model.denoise(rows, time, told)
    without, answer = model.denoise(torch.cat([rows, rows]), time, told).chunk(2)
    return without + guidance * (answer - without)


def _copied(draw: torch.Generator) -> torch.Generator:
    """Another generator that draws the same."""
    return torch.Generator().set_state(draw.get_state())


def _notices(model: Model, request: Request, concepts: Sequence[Concept]) -> Iterator[Notice]:
    """What the user should know before looking at the pictures."""
    for what in (request.prompt, request.negative):
        cut = model.cut(what, request.reading)
        if cut:
            yield Notice(f"`{what}` is too long for {model.name}: cut was `{cut}`")
    known = {word.lower() for word in model.words}
    for word in re.findall(r"<[\w-]+>", f"{request.prompt} {request.negative}"):
        if word.lower() not in known:
            yield Notice(f"`{word}` is no word that was learned: give its run with --concept")
    for concept in concepts:
        if concept.provenance.base_hash not in ("", model.hash):
            yield Notice(
                f"{concept.token} was learned on another base than {model.name} "
                f"({concept.provenance.base}): it may look different"
            )
        taught: int | None = concept.provenance.choices.get("clip_skip")
        if taught not in (None, request.clip_skip):
            yield Notice(f"{concept.token} was learned with --clip-skip {taught}: give it here too")


def _nearest(side: int, factor: int) -> int:
    return max(1, round(side / factor)) * factor
