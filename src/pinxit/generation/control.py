"""What a control is: structure taken from a picture while another is painted."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

import torch
from pydantic import BeforeValidator, Field, PlainSerializer
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import Change
from pinxit.concepts.concept import Concept
from pinxit.errors import PinxitError, RequestError
from pinxit.generation.schedulers import Solver
from pinxit.images.folder import Picture
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Conditioning, Model
from pinxit.models.prompt import pattern
from pinxit.options import Checked

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Frame:
    """One step of painting is done: `done` of `total`, and the latents as they are."""

    done: int
    total: int
    latents: Tensor = field(repr=False)


@dataclass(frozen=True)
class Walk:
    """Some pictures about to be painted together, as a control may know them.

    The rows of a batch are the pictures, then as many beside them for each of `roles`: the
    control's own are those of the number `role`, from 1 on, and `told` (1, L, D) is what they are
    told. `reweighed` is whether concepts have changed the base's own weights.
    """

    model: Model
    solver: Callable[[], Solver]
    size: tuple[int, int]
    seeds: Sequence[int]
    draws: Sequence[torch.Generator]
    told: Conditioning
    role: int
    roles: int
    reweighed: bool = False

    @property
    def times(self) -> Tensor:
        """Every time of the walk, the last of which leads to a picture."""
        return self.solver().times

    def noise(self, draws: Sequence[torch.Generator] | None = None) -> Tensor:
        """Unit noise for each picture, from its own draws."""
        width, height = (side // self.model.factor for side in self.size)
        shape = (1, self.model.latent_channels, height, width)
        drawn = [torch.randn(shape, generator=draw) for draw in draws or self.draws]
        return torch.cat(drawn).to(self.model.device)

    def pixels(self, picture: Path) -> Tensor:
        """A picture (1, 3, H, W) at the size that is painted."""
        return to_pixels(opened(picture), *self.size)

    def begin_with(self, solver: Solver, picture: Path, strength: float) -> Tensor:
        """The latents of a picture noised, of which the last `strength` of the walk is left."""
        encoded = self.model.encode(self.pixels(picture))
        latents = encoded.mean + encoded.spread * self.noise()
        return solver.begin_with_picture(latents, self.noise(), strength)

    def path(self, latents: Tensor, noises: Sequence[Tensor]) -> list[Tensor]:
        """Latents (1, C, H, W) at every time, each with its noise, and at the end without."""
        solvers = ((self.solver(), time) for time in self.times)
        noised = [
            solver.noised(latents, noise, time)
            for noise, (solver, time) in zip(noises, solvers, strict=True)
        ]
        return [one.expand(len(self.seeds), -1, -1, -1) for one in [*noised, latents]]


class Hold:
    """What a control does while pictures are painted; as it stands, nothing.

    `at` counts the walk's times. Rows are (N, C, H, W), as the walk has them.
    """

    adapters: Sequence[Change] = ()

    def start(self, solver: Solver) -> Tensor | None:  # noqa: ARG002
        """What the pictures begin with, if it is not noise."""
        return None

    def beside(self, start: Tensor) -> Tensor | None:  # noqa: ARG002
        """What its samples beside begin with, if it has some."""
        return None

    def before(self, at: int, rows: Tensor) -> Tensor:  # noqa: ARG002
        """The rows that the denoiser is shown."""
        return rows

    def after(self, at: int, rows: Tensor) -> Tensor:  # noqa: ARG002
        """The rows after the step."""
        return rows

    def finished(self, pixels: Tensor) -> Tensor:
        """The pictures (N, 3, H, W) as they are given away."""
        return pixels


class Control(Checked, ABC):
    """A way to hold something of a picture; its fields are its knobs, and a request carries them.

    `guidance` is how closely the prompt is best followed under it, by little bases and by real
    ones, where the user does not say; `passes` how often it goes through all times beforehand.
    """

    trouble: ClassVar[type[PinxitError]] = RequestError
    guidance: ClassVar[tuple[float, float] | None] = None
    passes: ClassVar[int] = 0

    @classmethod
    def title(cls) -> str:
        """What to call its knobs in a message."""
        return f"the control {registry.name_of(cls)}"

    @property
    def name(self) -> str:
        """Its name, which is its file's."""
        return registry.name_of(type(self))

    def beside(self, plain: str) -> str | None:  # noqa: ARG002
        """What samples beside the pictures are told, if it has some.

        `plain` is the prompt without learned words.
        """
        return None

    @abstractmethod
    def begin(self, walk: Walk) -> Generator[Tensor, None, Hold]:
        """Get ready for a walk, yielding latents at each time that is passed beforehand."""


class Pictured(Control):
    """A control that holds something of one picture."""

    picture: Path = Field(description="the picture")


def prepared(
    walk: Walk, controls: Sequence[Control], told: Conditioning, texts: Sequence[str | None]
) -> Generator[Frame, None, tuple[list[Hold], int]]:
    """What each control does on the walk, and how many times were passed to find that out.

    `texts` is what its samples beside are told, None if it has none: `told` from row 2 on.
    """
    holds: list[Hold] = []
    done, each = 0, len(walk.times.unique())
    total = len(walk.times) + each * sum(control.passes for control in controls)
    for control, text in zip(controls, texts, strict=True):
        if text is not None:
            role = walk.role + 1
            walk = replace(walk, role=role, told=told[role + 1 : role + 2])
        passing = control.begin(walk)
        while True:
            try:
                latents = next(passing)
            except StopIteration as end:
                holds.append(end.value)
                break
            done += 1
            yield Frame(done, total, latents)
    return holds, done


def plainly(prompt: str, concepts: Sequence[Concept]) -> str:
    """The prompt without learned words: styles left out, subjects called by their class noun."""
    for concept in concepts:
        noun = concept.provenance.class_noun
        for word in filter(None, (*concept.words, concept.nickname)):
            named = pattern((word,)).pattern
            prompt = re.sub(rf",?\s*in the style of {named}", "", prompt, flags=re.IGNORECASE)
            prompt = re.sub(named, noun.replace("\\", ""), prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def opened(picture: Path) -> "Image":
    """A picture to start from or to hold on to; RequestError if there is none."""
    if not picture.is_file():
        raise RequestError(f"there is no picture {picture}", "give a picture file")
    return Picture(picture, None, "").open()


def control_of(given: object) -> object:
    """A control from its table `{name = ..., knobs ...}`."""
    if not isinstance(given, Mapping):
        return given
    table = dict(cast("Mapping[str, object]", given))
    kind: type[Control] = registry.load("controls", str(table.pop("name", "")))
    return kind.model_validate(table)


def _table(control: Control) -> dict[str, object]:
    return {"name": control.name, **control.model_dump(mode="json", exclude_none=True)}


# A control as a field of a request.
Controlled = Annotated[Control, BeforeValidator(control_of), PlainSerializer(_table)]
