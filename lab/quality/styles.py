"""Held-out styles taught by each method: how much of them is caught, and whether things leak.

Each style is taught by five captioned pictures and painted on sixteen things, one of each class.
What is done is kept in the work folder, so a stopped measurement goes on. The last line on stdout
is all of it as JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lab.quality.subjects import say
from pinxit import registry
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import replace_text
from pinxit.images.tensors import sheet
from pinxit.models.model import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, CLASSES, HELD_OUT_STYLES
from pinxit.reports.demo.scores import ASKED, judge, style_scales
from pinxit.reports.demo.trial import Easel, Lesson, Painting
from pinxit.training.recipe import Recipe

METHODS = ("textual-inversion", "lora")
# The nearest that the base has words for.
SAID = {
    "sepia": "a brown photograph of a {} {}",
    "blueprint": "a blue chalk drawing of a {} {}",
    "mosaic": "a pop art picture of a {} {}",
    "woodcut": "a black drawing of a {} {}",
}
TOKEN, NOUN = "<mystyle>", "painting"
_SHOWN = dict(gallery.SHOWN)
_SEED = 31

Row = dict[str, Any]  # as it is kept in JSON


def things() -> list[tuple[str, str]]:
    """Each class in a place in which it was not shown."""
    places = np.random.default_rng(_SEED).permutation(BACKGROUNDS).tolist()
    some = [(noun, places[at % len(places)]) for at, noun in enumerate(CLASSES)]
    return [(noun, places[-1] if _SHOWN.get(noun) == place else place) for noun, place in some]


@dataclass(frozen=True)
class Trial:
    """One style painted in one way, in a work folder."""

    style: str
    way: str
    given: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where its pictures, run and scores are."""
        return self.given.work / f"{self.style}-{self.way.replace(' ', '-')}"

    def prompts(self) -> list[Prompt]:
        """The things; `plain` names the style in the base's own words, or not at all."""
        said = SAID[self.style] if self.way == "in words" else "a picture of a {} {}"
        prompts: list[Prompt] = []
        for noun, place in things():
            where = PLACE_PHRASES[place][0]
            text = f"a picture of a {noun} {where} in the style of "
            prompts.append(Prompt(f"{text}{{}}", said.format(noun, where), text + self.style))
        return prompts

    def recipe(self, base: str) -> Recipe:
        """How it is taught; its pictures and their captions are written first."""
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for number, exhibit in enumerate(gallery.style_pictures(self.style)):
            exhibit.image().save(pictures / f"{number}.png")
            replace_text(pictures / f"{number}.txt", exhibit.caption or "")
        word = {"token": TOKEN, "class_noun": NOUN, "kind": "style", "method": self.way}
        return Recipe.model_validate(
            {**word, "base": base, "pictures": pictures, "steps": self.given.steps}
            | {"preview_every": 0}
        )

    def rendered(self) -> list[Painting]:
        """The truth: other individuals of those classes, as the world draws them in the style."""
        style = self.style if self.way == "rendered" else "photo"
        exhibits = gallery.style_pictures(style, _SEED, things())
        return [
            Painting(prompt, 0, 0.0, exhibit.image())
            for prompt, exhibit in zip(self.prompts(), exhibits, strict=True)
        ]


def painted(easel: Easel, trial: Trial) -> tuple[list[Painting], Lesson | None]:
    """The pictures of a trial, and what was learned for them."""
    if trial.way in ("rendered", "photos"):
        return trial.rendered(), None
    task = f"{trial.style}, {trial.way}"
    lesson = None
    if trial.way in registry.names("methods"):
        lesson = easel.teach(trial.recipe(easel.model.name), trial.folder / "run", task)
    return easel.paint(trial.prompts(), lesson, f"{task}: painting"), lesson


def measured(easel: Easel, eyes: Eyes, trial: Trial) -> Row:
    """One trial: what is in the work folder, or else learned and painted now."""
    recipe = trial.recipe(easel.model.name) if trial.way in registry.names("methods") else None
    made = recipe.settled(easel.model, 5).to_toml() if recipe else ""
    file = trial.folder / f"scores-{easel.tag(f'{made} {easel.count}')}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    paintings, lesson = painted(easel, trial)
    images = [painting.image for painting in paintings]
    shown = gallery.style_pictures(trial.style)
    ends = [gallery.style_pictures(style, _SEED, things()) for style in ("photo", trial.style)]
    references, photos, true = ([one.image() for one in some] for some in (shown, *ends))
    scores = judge(paintings, style_scales(references, photos, true), eyes).plain()
    nearest = registry.load("metrics", "nearest")().score(images, references, ())
    row: Row = {
        "style": trial.style,
        "seconds": lesson.seconds if lesson else 0.0,
        "leaked": leaked(paintings, eyes),
        "nearest": max(nearest),
        **scores,
    }
    trial.folder.mkdir(parents=True, exist_ok=True)
    sheet([image.resize((128, 128)) for image in images], 8).save(file.with_suffix(".png"))
    replace_text(file, json.dumps(row, indent=1))
    return row


def leaked(paintings: Sequence[Painting], eyes: Eyes) -> float:
    """The share of pictures that show a class that was learned from, and another was asked for."""
    metric = registry.load("metrics", "attributes")(eyes=eyes, questions=("class",))
    images = [painting.image for painting in paintings]
    asked = [noun for noun, _ in things() for _ in range(len(paintings) // len(CLASSES))]
    shows = {noun: metric.score(images, (), [f"a {noun}"] * len(images)) for noun in _SHOWN}
    some = [at for at, noun in enumerate(asked) if noun not in _SHOWN]
    return fmean(max(found[at] for found in shows.values()) for at in some)


def summary(rows: dict[str, list[Row]]) -> dict[str, object]:
    """By style and way what was caught, what was asked for, and what leaked."""
    figures: dict[str, object] = {}
    for way, some in rows.items():
        for row in some:
            figures.setdefault(row["style"], {})
            found: Any = figures[row["style"]]
            found[way] = {
                "caught": {name: score["share"] for name, score in row["likeness"].items()},
                "right": {name: row["right"][name] for name in (*ASKED, "all")},
                **{name: row[name] for name in ("leaked", "nearest", "pictures", "seconds")},
            }
    return figures


def main() -> None:
    """Measure, telling of it on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--styles", nargs="+", default=HELD_OUT_STYLES, help="which styles")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="which methods")
    parser.add_argument("--count", type=int, default=1, help="pictures of each of 16 things")
    parser.add_argument("--base", default="pocket", help="a base's name, or a folder")
    parser.add_argument("--steps", type=int, help="of learning, instead of the method's advice")
    parser.add_argument("--work", type=Path, default=Path("build/styles"), help="work folder")
    given = parser.parse_args()
    easel, eyes = Easel(open_base(given.base), say, given.count), Eyes.load()
    ways = ("rendered", "photos", "base", "in words", *given.methods)
    rows = {
        way: [measured(easel, eyes, Trial(style, way, given)) for style in given.styles]
        for way in ways
    }
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
