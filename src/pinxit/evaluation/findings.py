"""What is to be said of a learned word in plain sentences: what is wrong with it, what to try."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.evaluation.judge import Judge, Verdict
from pinxit.evaluation.metric import Scale, apart, share, stacked
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.model import Model
from pinxit.pocket.asked import asked
from pinxit.pocket.words import PLACE_PHRASES

if TYPE_CHECKING:
    from PIL.Image import Image

# From which figure on something is said. Tune here.
_LITTLE_LIKE = 0.4  # of the way from floor to ceiling
_FORGETFUL, _HINDERED = 0.75, 0.9  # of what the base meets of prompts
_COPYING = 0.1  # of all pictures
_LEAKING, _LEAKING_IN_ALL = 0.5, 0.3  # of the pictures of one place, and of all
_DRIFTING = 0.3  # of the way from floor to ceiling
_ALIKE = 0.6  # of the base's variety
_LONG = 3.0  # times a word of the vocabulary
# A thumbnail that correlates so much with a learned picture is a copy of it, unless the pictures
# do so among themselves.
_COPY = 0.9


@dataclass(frozen=True)
class Stray:
    """Of so many pictures asked for in a place, how many came out in another that was learned."""

    count: int
    of: int
    seen: str


@dataclass(frozen=True)
class Word:
    """A word's vectors: their length in words of the vocabulary, their cosine to the class noun."""

    length: float
    cosine: float

    @classmethod
    def of(cls, concept: Concept, model: Model, noun: str) -> "Word | None":
        """Of the first word a concept teaches, over towers; None if it teaches none."""
        tables = next((part.tensors for part in concept.parts if part.kind == "new-word"), {})
        lengths: list[float] = []
        cosines: list[float] = []
        for name, tower in model.towers.items():
            if name in tables:
                vectors = tables[name].float()
                known = tower.embedding.weight.detach().float().norm(dim=1).mean()
                lengths.append(float(vectors.norm(dim=1).mean() / known))
                cosines.append(_cosine(vectors, tower.word_vectors(noun).to(vectors.device)))
        return cls(fmean(lengths), fmean(cosines)) if lengths else None


@dataclass(frozen=True)
class Findings:
    """What pictures of a word show; `base_prompt` and `base_variety` are of the base without it.

    `strays` are by the place that was asked for; `ground` is how far pictures go from the base's
    to the learned ones' surroundings, where eyes know no places. What was not looked at is None.
    """

    pictures: int
    verdict: Verdict
    base_prompt: float
    copies: int
    strays: Mapping[str, Stray] = field(default_factory=dict[str, Stray])
    variety: float | None = None
    base_variety: float | None = None
    drift: float | None = None
    word: Word | None = None
    ground: float | None = None

    @property
    def leaked(self) -> float:
        """The share of pictures whose place was not asked for, but learned."""
        return sum(stray.count for stray in self.strays.values()) / self.pictures

    @classmethod
    def of(cls, judge: Judge, images: Sequence["Image"], prompts: Sequence[Prompt]) -> "Findings":
        """What a judge finds in pictures of the word, each painted of one of the prompts."""
        around = grounds(judge, images)
        return cls(
            len(images),
            judge.verdict(images, prompts),
            judge.base_prompt,
            sum(copied(judge, images)),
            strays(astray(judge, images, prompts)),
            ground=fmean(around) if around else None,
        )


def sentences(found: Findings) -> list[str]:
    """What is wrong and what to try, the worst first; one sentence if nothing is."""
    return [*_wrong(found)] or ["nothing is wrong that these figures show"]


def copied(judge: Judge, images: Sequence["Image"]) -> list[bool]:
    """Whether each picture is nearly one that was learned from."""
    nearest, known = registry.load("metrics", "nearest")(), judge.pictures
    limit = max(_COPY, *apart(nearest, known)) if len(known) > 1 else _COPY
    return [mark > limit for mark in nearest.score(images, known, ())]


def astray(
    judge: Judge, images: Sequence["Image"], prompts: Sequence[Prompt]
) -> list[tuple[str, str | None]]:
    """For each picture the place asked for, and the learned one that is seen in its stead if any.

    Nothing where no eyes know places.
    """
    eyes = judge.sight.eyes
    if eyes is None:
        return []
    learned = set(eyes.look(stacked(judge.pictures)).named("background"))
    seen = eyes.look(stacked(images)).named("background")
    places = [asked(prompt.meant).get("background", "") for prompt in prompts]
    return [
        (wanted, there if wanted and there != wanted and there in learned else None)
        for wanted, there in zip(places, seen, strict=True)
    ]


def strays(came: Sequence[tuple[str, str | None]]) -> dict[str, Stray]:
    """How many went astray, by the place they were asked for in."""
    found: dict[str, Stray] = {}
    for place in dict.fromkeys(wanted for wanted, _ in came):
        here = [there for wanted, there in came if wanted == place]
        wrong = Counter(there for there in here if there is not None)
        if wrong:
            found[place] = Stray(wrong.total(), len(here), wrong.most_common(1)[0][0])
    return found


def grounds(judge: Judge, images: Sequence["Image"]) -> list[float]:
    """How far each picture goes from the base's to what is around the subject in the learned ones.

    1 is what those reach themselves; nothing where their masks do not say what is around it.
    """
    if not judge.grounds or judge.sight.eyes:
        return []
    scale = Scale.of(judge.sight.apart, judge.grounds, judge.plain, judge.pictures)
    marks = scale.metric.score(images, judge.grounds, ())
    return [share(mark, scale.floor, scale.ceiling) for mark in marks]


def _leak(found: Findings) -> str:
    """Where pictures came out that were asked for elsewhere, if many did."""
    worst = max(found.strays.items(), key=lambda one: one[1].count / one[1].of, default=None)
    if worst and worst[1].count >= 2 and worst[1].count >= _LEAKING * worst[1].of:
        place, stray = worst
        where = f"{stray.of} {PLACE_PHRASES[place][0]} came out {PLACE_PHRASES[stray.seen][0]}"
        return f"{stray.count} of {where}"
    if found.leaked >= _LEAKING_IN_ALL:
        count = sum(stray.count for stray in found.strays.values())
        return f"{count} of {found.pictures} came out in a learned place that was not asked for"
    if found.ground is not None and found.ground > _LEAKING:
        return f"what is around the subject goes {found.ground:.0%} of the way to theirs"
    return ""


def _wrong(found: Findings) -> Iterator[str]:
    leak = _leak(found)
    if leak:
        yield (
            f"copies the pictures' background: {leak}; try pictures in other places, masks "
            "(toy.mask.png beside toy.jpg), or captions that say what is around it"
        )
    if found.copies > _COPYING * found.pictures:
        yield (
            f"copies its pictures: {found.copies} of {found.pictures} are nearly one that it was "
            "learned from; try fewer steps, or more pictures"
        )
    if found.verdict.prompt < _FORGETFUL * found.base_prompt:
        yield (
            f"prompts count too little: {found.verdict.prompt:.0%} of what they ask for is there, "
            f"and {found.base_prompt:.0%} without the word; try fewer steps, a lower --rate, or "
            "fewer vectors"
        )
    if found.verdict.likeness < _LITTLE_LIKE:
        yield (
            f"is not like its pictures yet: {max(found.verdict.likeness, 0):.0%} of the way to "
            "them; try more steps, more vectors, or a method that changes the network"
        )
    if found.drift is not None and found.drift > _DRIFTING:
        yield (
            f"changes the whole class: without the word too, it is {found.drift:.0%} of the way to "
            "the pictures; try class pictures (--prior-pictures), or fewer steps"
        )
    if found.variety is not None and found.variety < _ALIKE * (found.base_variety or 0):
        yield (
            f"paints the same again: pictures of one prompt differ {found.variety:.2f}, and "
            f"{found.base_variety:.2f} without the word; try fewer steps, or more pictures"
        )
    hindered = found.verdict.prompt < _HINDERED * found.base_prompt
    if found.word and found.word.length > _LONG and hindered:
        yield (
            f"its word is {found.word.length:.1f} times as long as the base's words, and drowns "
            "those beside it; try a lower --rate, or fewer steps"
        )


def _cosine(vectors: Tensor, noun: Tensor) -> float:
    """The cosine of two words' mean vectors."""
    return float(F.cosine_similarity(vectors.mean(0), noun.mean(0), dim=0))
