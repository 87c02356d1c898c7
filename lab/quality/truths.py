"""The signs of the literature on pocket: what class nouns, class pictures and vectors are worth.

Small trials of few subjects; every one that is done is kept in the work folder, so a stopped
measurement goes on. The last line on stdout is all of it as JSON.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lab.quality import subjects
from pinxit import registry
from pinxit.evaluation.metric import Scale, stacked
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import replace_text
from pinxit.models.model import open_base
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import JOINT, Eyes
from pinxit.pocket.world import BACKGROUNDS, CLASSES, COLOURS, STYLES, held_out_subjects
from pinxit.reports.demo.scores import subject_scales
from pinxit.reports.demo.trial import Easel, Lesson, Painting
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

Knobs = Mapping[str, Any]
_TUNED: Knobs = {"name": "dreambooth", "prior_pictures": 0}
_KEPT: Knobs = {**_TUNED, "prior_pictures": 16}
_WORD: Knobs = {"name": "textual-inversion"}
RIGHT, WRONG, NONE = "right noun", "wrong noun", "no noun"
# By group and trial: the method's knobs, and the recipe's. Short where the sign is clear.
GROUPS: dict[str, dict[str, tuple[Knobs, Knobs]]] = {
    # After few steps, while what the word stands for still counts, and after many.
    "nouns": {
        f"{name}, {steps} steps": (_TUNED, {"steps": steps})
        for steps in (12, 25, 100)
        for name in (RIGHT, WRONG, NONE)
    },
    "prior": {
        "without class pictures": (_TUNED, {"steps": 200}),
        "with class pictures": (_KEPT, {"steps": 200}),
    },
    "words": {
        f"{count} {length}": (
            {**_WORD, "vectors": count, "length": length},
            {"steps": 200, "batch_size": 4},
        )
        for count in (1, 8)
        for length in ("free", "held")
    },
}


@dataclass(frozen=True)
class Trial:
    """One subject taught in one way, in a work folder."""

    subject: int
    group: str
    name: str
    work: Path

    @property
    def noun(self) -> str:
        """What the word is said to be a kind of: "thing" says as good as nothing."""
        right = held_out_subjects()[self.subject].class_noun
        wrong = CLASSES[(CLASSES.index(right) + 6) % len(CLASSES)]
        return {WRONG: wrong, NONE: "thing"}.get(self.name.partition(",")[0], right)

    def recipe(self, base: str) -> Recipe:
        """How it is taught; its pictures are written first."""
        pictures = subjects.written(self.subject, self.work / f"{self.subject:02}-pictures")
        method, knobs = GROUPS[self.group][self.name]
        word = {"token": subjects.TOKEN, "class_noun": self.noun, "method": dict(method)}
        return Recipe.model_validate(
            {**word, **knobs, "base": base, "pictures": pictures, "preview_every": 0}
        )


def places(noun: str) -> list[Prompt]:
    """A photo of it in each of the world's places."""
    return [_prompt(noun, None, place, "photo") for place in BACKGROUNDS]


def edits(noun: str) -> list[Prompt]:
    """In other colours, places and styles, as none of its pictures shows it."""
    colours, styles = list(COLOURS), STYLES[1:]
    return [
        _prompt(noun, colours[at % len(colours)], place, styles[at % len(styles)])
        for at, place in enumerate(BACKGROUNDS)
    ]


def _prompt(noun: str, colour: str | None, place: str, style: str) -> Prompt:
    text = prompt(noun, colour, place, style)
    return Prompt(re.sub(rf"\b{noun}\b", "{}", text), text, text)


def measured(easel: Easel, eyes: Eyes, trial: Trial) -> dict[str, float]:
    """One trial: what is in the work folder, or else learned and painted now."""
    task = f"subject {trial.subject}, {trial.name}"
    recipe = trial.recipe(easel.model.name)
    tag = easel.tag(recipe.settled(easel.model, subjects.REFERENCES).to_toml())
    file = (
        trial.work
        / f"{trial.subject:02}-{trial.name.replace(',', '').replace(' ', '-')}-{tag}.json"
    )
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    lesson = easel.teach(recipe, trial.work / f"{trial.subject:02}-run", task)
    references, lookalikes, others = subjects.real(trial.subject)
    hidden = held_out_subjects()[trial.subject].hidden().tolist()
    scales = subject_scales(references, lookalikes, others, hidden, eyes)
    row: dict[str, float] = {"seconds": lesson.seconds}
    row |= _likeness(scales, easel.paint(places(trial.noun), lesson, f"{task}: places"))
    if trial.group == "words":
        row |= _obeyed(easel.paint(edits(trial.noun), lesson, f"{task}: edits"), eyes)
        vectors = lesson.concept.parts[0].tensors["text"]
        row["norm"] = float(vectors.norm(dim=1).mean())
        own = easel.model.towers["text"].word_vectors(trial.noun)
        row["norm of the noun"] = float(own.norm(dim=1).mean())
    if trial.group == "prior":
        row |= _of_class(easel, lesson, scales["likeness"], trial, eyes)
    replace_text(file, json.dumps(row, indent=1))
    return row


def _likeness(scales: Mapping[str, Scale], paintings: Sequence[Painting]) -> dict[str, float]:
    images = [painting.image for painting in paintings]
    return {name: scale.score(images).share for name, scale in scales.items()}


def _obeyed(paintings: Sequence[Painting], eyes: Eyes) -> dict[str, float]:
    """The share of what was asked for that is there, of all and of each question."""
    images = [painting.image for painting in paintings]
    meant = [painting.prompt.meant for painting in paintings]
    asked = {
        question: fmean(
            registry.load("metrics", "attributes")(eyes=eyes, questions=(question,)).score(
                images, (), meant
            )
        )
        for question in JOINT
    }
    return {**asked, "obeyed": fmean(asked.values())}


def _of_class(
    easel: Easel, lesson: Lesson, scale: Scale, trial: Trial, eyes: Eyes
) -> dict[str, float]:
    """What became of the class: how like the subject, and how unlike each other, its members are.

    Painted by the tuned network without the word, and by the base; in one place, so that what was
    learned of places is not taken for diversity.
    """
    text = prompt(trial.noun, None, BACKGROUNDS[0], "photo")
    plain = [Prompt(text, text, text, seed) for seed in range(8)]
    found: dict[str, float] = {}
    for which, taught in (("", lesson), (" of the base", None)):
        painted = easel.paint(plain, taught, f"{trial.name}: class{which}")
        images = [painting.image for painting in painted]
        found[f"drift{which}"] = scale.score(images).share
        found[f"diversity{which}"] = _diversity(images, eyes)
    return found


def _diversity(images: "Sequence[Image]", eyes: Eyes) -> float:
    """The mean distance between individuals, as 1 minus the cosine of their embeddings."""
    seen: Tensor = eyes.look(stacked(images)).instance
    return fmean(1 - float(one @ other) for one, other in combinations(seen, 2))


def main() -> None:
    """Measure, telling of it on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", nargs="+", default=tuple(GROUPS), help="which signs")
    parser.add_argument("--subjects", type=int, default=3, help="how many")
    parser.add_argument("--work", type=Path, default=Path("build/truths"), help="work folder")
    given = parser.parse_args()
    easel, eyes = Easel(open_base("pocket"), subjects.say, count=1), Eyes.load()
    figures: dict[str, object] = {}
    for group in given.groups:
        for name in GROUPS[group]:
            trials = [Trial(at, group, name, given.work) for at in subjects.chosen(given.subjects)]
            rows = [measured(easel, eyes, trial) for trial in trials]
            means = {key: fmean(row[key] for row in rows) for key in rows[0]}
            figures.setdefault(group, {})
            found: Any = figures[group]
            found[name] = {**means, "rows": rows}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
