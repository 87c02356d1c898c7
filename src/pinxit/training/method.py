"""What a method is: knobs, the adapters they make for a model, and the pictures they learn from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pinxit import registry
from pinxit.adapters.adapter import Adapter
from pinxit.images.folder import Picture
from pinxit.models.model import Model
from pinxit.models.prompt import pattern
from pinxit.options import Checked

Kind = Literal["object", "style"]


@dataclass(frozen=True)
class Subject:
    """What is to be learned: the user's word for it, what it is a kind of, and the run's seed."""

    token: str
    class_noun: str
    kind: Kind
    seed: int


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn: a method's advice where the user gave none."""

    steps: int
    batch_size: int
    rate: float


@dataclass(frozen=True)
class Learnable:
    """An adapter with the speed it learns at and how strongly its weights are pulled to zero.

    One that swings as it learns is painted and kept as the mean of its later steps.
    """

    adapter: Adapter
    rate: float
    decay: float = 0.0
    swings: bool = False


@dataclass(frozen=True)
class Pool:
    """Pictures drawn together into a share of every batch, each with the prompts it may have.

    The share has as many places as the batch size says; its mean loss counts `weight` times.
    """

    name: str
    pictures: tuple[Picture, ...]
    prompts: tuple[tuple[str, ...], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Preparing:
    """Something that must be done before the first step, and how far it is."""

    what: str
    done: int
    total: int


class Method(Checked, ABC):
    """A way to learn; its fields are its knobs, each written here once and nowhere else."""

    @classmethod
    def title(cls) -> str:
        """What to call its knobs in a message."""
        return f"the method {registry.name_of(cls)}"

    @property
    def name(self) -> str:
        """Its name, which is its file's."""
        return registry.name_of(type(self))

    @property
    def apart(self) -> bool:
        """Whether what it trains for a concept acts on that concept's samples alone.

        Several concepts may then share a batch; otherwise each needs the base to itself.
        """
        return False

    @abstractmethod
    def plan(self, model: Model, count: int) -> Plan:
        """Sensible steps, batch size and rate for this base and so many pictures."""

    def settled(self, model: Model, subject: Subject) -> Self:  # noqa: ARG002
        """Itself with every knob decided for this base; RecipeError if one does not fit it."""
        return self

    @abstractmethod
    def adapters(self, model: Model, subject: Subject, rate: float) -> tuple[Learnable, ...]:
        """What is trained, fresh, and what else must be in the model meanwhile."""

    def prepare(self, model: Model, subject: Subject) -> Iterator[Preparing]:  # noqa: ARG002
        """Make what the pools need and is not there yet; most methods need nothing."""
        yield from ()

    @abstractmethod
    def pools(
        self, model: Model, subject: Subject, pictures: tuple[Picture, ...]
    ) -> tuple[Pool, ...]:
        """The pictures of each batch with their prompts, in which the subject has its word."""


def prompts_for(
    pictures: Sequence[Picture],
    subject: Subject,
    templates: Sequence[str],
    *,
    captions: bool | None,
) -> tuple[tuple[str, ...], ...]:
    """For each picture its own caption with the subject's word in it, or else all the templates.

    Captions count where they are wanted and, if nothing is said, for a style: what they say of the
    things in the pictures the word need not take (docs/styles.md).
    """
    captions = subject.kind == "style" if captions is None else captions
    filled = tuple(template.format(subject.token) for template in templates)
    return tuple(
        (captioned(picture.caption, subject),) if captions and picture.caption else filled
        for picture in pictures
    )


def captioned(caption: str, subject: Subject) -> str:
    """A caption with the subject's word: where the class noun was, or else beside the rest."""
    if pattern((subject.token,)).search(caption):
        return caption
    if subject.kind == "style":
        return f"{caption}, in the style of {subject.token}"
    noun = pattern((subject.class_noun,))
    if noun.search(caption):
        return noun.sub(lambda _: subject.token, caption, count=1)
    return f"{subject.token}, {caption}"
