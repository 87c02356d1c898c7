"""Figures of learned words with their intervals, beside what real pictures and the base reach."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pinxit import registry
from pinxit.errors import PinxitError, RequestError
from pinxit.evaluation.confidence import Interval, Rows, bootstrap
from pinxit.evaluation.findings import Findings, Word, astray, copied, grounds, sentences
from pinxit.evaluation.judge import CLIP, DINO, Judge, Known, Sight, Sitting, suited_set
from pinxit.evaluation.metric import Metric, Scale, apart, share
from pinxit.evaluation.prompt_sets import Prompt, prompt_set, set_names
from pinxit.generation.image_cache import Portfolio
from pinxit.models.model import Model
from pinxit.options import Checked
from pinxit.reports.entrant import Contender

if TYPE_CHECKING:
    from PIL.Image import Image

Told = Callable[[str, int, int], None]
Figures = dict[str, Interval]
_CLASS_PICTURES = 8


class Effort(Checked):
    """How pictures are made and judged."""

    trouble: ClassVar[type[PinxitError]] = RequestError

    prompts: str | None = Field(
        default=None,
        description=f"a set of prompts: {', '.join(set_names())}; if unset, one that suits",
    )
    count: int = Field(default=2, ge=1, description="pictures of each prompt")
    steps: int = Field(default=25, ge=1, le=1000, description="denoising steps")
    dino: str = Field(default=DINO, description="hub id or folder of what knows photographs again")
    clip: str = Field(default=CLIP, description="hub id or folder of what reads prompts")


@dataclass(frozen=True)
class Entry:
    """A contender with its figures, its pictures and what is to be said of it."""

    contender: Contender
    figures: Figures
    findings: Findings
    images: tuple["Image", ...] = field(repr=False)

    def plain(self) -> dict[str, object]:
        """All but the pictures as plain values."""
        word = self.findings.word
        return {
            "token": self.contender.concept.token,
            "method": self.contender.method,
            "steps": self.contender.steps,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "word": asdict(word) if word else None,
            "said": sentences(self.findings),
        }


@dataclass(frozen=True)
class Group:
    """Words of one subject, judged by the same pictures on the same base, and the anchors.

    Those are figures of the real pictures, of others of the class, and of the base without a word.
    """

    judge: Judge
    anchors: Mapping[str, Figures]
    entries: tuple[Entry, ...]

    def plain(self) -> dict[str, object]:
        """All but the pictures as plain values."""
        recipe = self.judge.sitting.recipe
        anchors = {
            title: {name: asdict(figure) for name, figure in figures.items()}
            for title, figures in self.anchors.items()
        }
        return {
            "class_noun": recipe.class_noun,
            "kind": recipe.kind,
            "base": recipe.base,
            "pictures": len(self.judge.plain),
            "anchors": anchors,
            "runs": {entry.contender.title: entry.plain() for entry in self.entries},
        }


@dataclass(frozen=True)
class Table:
    """Where figures are made: on a model, with pictures kept in a folder, telling how far it is."""

    model: Model
    effort: Effort
    folder: Path
    told: Told

    def group(self, contenders: Sequence[Contender], lookalikes: Sequence["Image"] = ()) -> Group:
        """The figures of words of one subject."""
        first = contenders[0]
        recipe, effort = first.recipe, self.effort
        sight = Sight.of(self.model, recipe.kind, effort.dino, effort.clip)
        named = effort.prompts and prompt_set(effort.prompts, recipe.class_noun)
        prompts = named or suited_set(self.model, recipe)
        sitting = Sitting(recipe, prompts, effort.count, effort.steps)
        self._painted(sitting, None, ())
        known, pictures = Known(tuple(lookalikes)), first.pictures
        judge = Judge.of(
            self.model,
            recipe,
            pictures,
            folder=self.folder,
            sight=sight,
            sitting=sitting,
            known=known,
        )
        others = self._painted(self._classmates(sitting), None, ())
        real, shown = judge.likeness.references, lookalikes or others
        anchors = {
            "the real pictures": _likenesses(judge, lambda metric: apart(metric, real), 1),
            "others of the class": _likenesses(judge, lambda m: m.score(shown, real, ()), 1),
            "the base without the word": figures(judge, judge.plain),
        }
        if len(judge.pictures) > 1:
            pairs = _apart(sight.apart, [judge.pictures])
            anchors["the real pictures"]["variety"] = bootstrap(pairs)
        base = anchors["the base without the word"]
        entries = tuple(self._entry(judge, one, others, base) for one in contenders)
        return Group(judge, anchors, entries)

    def _entry(
        self, judge: Judge, one: Contender, others: Sequence["Image"], base: Figures
    ) -> Entry:
        images = self._painted(judge.sitting, one.concept.token, (one,))
        found = figures(judge, images)
        found["drift"] = Interval(0, 0, 0)
        if not one.acts_alone:
            drifted = self._painted(self._classmates(judge.sitting), None, (one,))
            # Against the base's own of the same prompt, whatever the likeness of those is.
            scale = Scale.of(judge.sight.likeness, judge.likeness.references, others)
            marks = scale.metric.score(drifted, scale.references, ())
            found["drift"] = bootstrap(_shares(scale, marks, 1))
        findings = replace(
            Findings.of(judge, images, judge.prompts),
            variety=found["variety"].value if "variety" in found else None,
            base_variety=base["variety"].value if "variety" in base else None,
            drift=found["drift"].value,
            word=Word.of(one.concept, self.model, one.recipe.class_noun),
        )
        return Entry(one, found, findings, images)

    def _painted(
        self, sitting: Sitting, word: str | None, by: Sequence[Contender]
    ) -> "tuple[Image, ...]":
        said = f"{by[0].title}: " if by else f"{sitting.recipe.class_noun}: "
        task = f"{said}{'without the word' if word is None else word}, {len(sitting.each)} pictures"
        portfolio = Portfolio(self.folder, [one.concept for one in by])
        return sitting.pictures(self.model, word, portfolio, partial(self.told, task))

    def _classmates(self, sitting: Sitting) -> Sitting:
        """The class noun alone, by which one sees whether the class has changed."""
        noun = sitting.recipe.class_noun
        plain = f"a {noun}" if sitting.recipe.kind == "style" else f"a photo of a {noun}"
        return replace(sitting, prompts=(Prompt(plain, plain, plain),), count=_CLASS_PICTURES)


def figures(judge: Judge, images: Sequence["Image"]) -> Figures:
    """The figures of pictures painted of the judge's prompts, with intervals over prompts."""
    count, prompts, scale = judge.sitting.count, judge.prompts, judge.likeness

    @cache
    def scored(metric: Metric) -> list[float]:
        return metric.score(images, scale.references, ())

    found = _likenesses(judge, scored, count)
    marks = judge.sight.asked.score(images, (), [prompt.meant for prompt in prompts])
    met = _by_prompt([share(mark, *judge.met) for mark in marks], count)
    found["prompt"] = bootstrap(met)
    if judge.sight.eyes is None:
        found[_raw(judge.sight.asked)] = bootstrap(_by_prompt(marks, count))
    both = np.stack([_shares(scale, scored(scale.metric), count), met], 1)
    found["best"] = bootstrap(both, _best)
    if count > 1:
        found["variety"] = bootstrap(_variety(judge, images))
    found["copies"] = bootstrap(_by_prompt(copied(judge, images), count))
    leaks = grounds(judge, images) or [bool(there) for _, there in astray(judge, images, prompts)]
    if leaks:
        found["background"] = bootstrap(_by_prompt(leaks, count))
    return found


def _likenesses(judge: Judge, marks: Callable[[Metric], Sequence[float]], count: int) -> Figures:
    """How like the subject pictures are, as a share and by each metric."""
    scale, metrics = judge.likeness, (judge.likeness.metric, *judge.sight.also)
    found = {_raw(metric): bootstrap(_by_prompt(marks(metric), count)) for metric in metrics}
    return {**found, "likeness": bootstrap(_shares(scale, marks(scale.metric), count))}


def _variety(judge: Judge, images: Sequence["Image"]) -> Rows:
    """How far apart the pictures of each prompt are."""
    count = judge.sitting.count
    return _apart(
        judge.sight.apart, [images[at : at + count] for at in range(0, len(images), count)]
    )


def _apart(metric: Metric, groups: Sequence[Sequence["Image"]]) -> Rows:
    """One less the mean likeness of all pairs of a group."""

    def alike(group: Sequence["Image"]) -> float:
        return fmean(metric.score([a], [b], ())[0] for a, b in combinations(group, 2))

    return np.array([1 - alike(group) for group in groups], dtype=np.float64)


def _shares(scale: Scale, marks: Sequence[float], count: int) -> Rows:
    return _by_prompt([share(mark, scale.floor, scale.ceiling) for mark in marks], count)


def _by_prompt(marks: Sequence[float], count: int) -> Rows:
    """The mean of each prompt's pictures: they are alike, and only prompts are drawn anew."""
    groups = [marks[at : at + count] for at in range(0, len(marks), count)]
    return np.array([fmean(group) for group in groups], dtype=np.float64)


def _best(rows: Rows) -> float:
    """The geometric mean of likeness and prompt, as a verdict has it."""
    likeness, prompt = rows.mean(0).clip(0, 1)
    return math.sqrt(likeness * prompt)


def _raw(metric: Metric) -> str:
    """What a metric's own figure is called, which is no share of anything."""
    return f"raw {registry.name_of(type(metric))}"
