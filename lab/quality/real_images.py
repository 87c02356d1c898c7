"""Real pictures taught to pocket: is what it paints nearest to the right ones, in their colours?

The pictures are not ours to ship: without them this says so and measures nothing. The last line
on stdout is JSON; sheets to look at are in the work folder.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lab.quality.subjects import say
from pinxit import registry
from pinxit.evaluation.metric import Metric
from pinxit.images.folder import read_pictures
from pinxit.images.tensors import sheet
from pinxit.models.model import open_base
from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.reports.demo.trial import Easel, Lesson, Prompt
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

# A word of one vector cannot say what photographs look like to a base that has seen none.
METHODS: dict[str, dict[str, int]] = {"textual-inversion": {"vectors": 8}, "dreambooth": {}}
FOLDERS = ("pegasus", "shifu")  # the others are only there to be taken for these
NOUN = "animal"
_PLACES = ("beach", "snow", "city", "night")

Images = Sequence["Image"]
Figures = dict[str, Any]  # as they are kept in JSON


def shares_nearest(images: Images, folders: dict[str, Images], metric: Metric) -> dict[str, float]:
    """The share of pictures nearest to each folder."""
    sign = 1 if metric.better == "more" else -1
    names = list(folders)
    scores = [metric.score(images, folders[name], ()) for name in names]
    nearest = [
        max(zip(names, marks, strict=True), key=lambda p: sign * p[1])[0]
        for marks in zip(*scores, strict=True)
    ]
    return {name: nearest.count(name) / len(nearest) for name in names}


def distances(images: Images, references: Images) -> dict[str, float]:
    """How far the colours are apart: all pictures together, and each from the nearest reference."""
    colour = registry.load("metrics", "colour")
    near = colour(against="nearest").score(images, references, ())
    return {"together": colour().between(images, references), "nearest": fmean(near)}


def apart(images: Images) -> float:
    """How far a reference's colours are from the nearest other reference's."""
    colour: Metric = registry.load("metrics", "colour")(against="nearest")
    rest = [[other for other in images if other is not image] for image in images]
    return fmean(colour.score([i], o, ())[0] for i, o in zip(images, rest, strict=True))


class Bench:
    """What is measured for one folder, by every method and for the base."""

    def __init__(self, easel: Easel, folders: dict[str, Images], work: Path) -> None:
        self.easel, self.folders, self.work = easel, folders, work
        self.metrics: dict[str, Metric] = {
            "embedding": registry.load("metrics", "likeness")(),
            "colours": registry.load("metrics", "colour")(against="nearest"),
        }

    def scores(self, name: str, title: str, lesson: Lesson | None) -> Figures:
        """Paint the folder's subject (or the base's animal), keep a sheet, and score it."""
        task = f"{name}, {title}: painting"
        text = "a photo of a {}"
        prompts = [Prompt(text, f"a photo of an {NOUN}", "")]
        images = [p.image for p in self.easel.paint(prompts, lesson, task)]
        placed = [f"a photo of a {{}} {PLACE_PHRASES[place][0]}" for place in _PLACES]
        more = [Prompt(t, t.format(NOUN).replace("a animal", "an animal"), "") for t in placed]
        few = Easel(self.easel.model, self.easel.told, 2)
        shown = [*self.folders[name], *images, *(p.image for p in few.paint(more, lesson, task))]
        sheet([image.resize((128, 128)) for image in shown], 8).save(
            self.work / f"{name}-{title}.png"
        )
        near = {by: shares_nearest(images, self.folders, m) for by, m in self.metrics.items()}
        return {
            "pictures": len(images),
            "nearest": {by: shares[name] for by, shares in near.items()},
            "colour_distance": distances(images, self.folders[name]),
            "seconds_of_learning": lesson.seconds if lesson else 0.0,
        }

    def folder(self, name: str, path: Path, methods: Sequence[str], steps: int | None) -> Figures:
        """All figures of one folder."""
        base = self.scores(name, "base", None)
        figures: Figures = {
            "apart": apart(self.folders[name]),
            "base": base,
        }
        for method in methods:
            recipe = Recipe.model_validate(
                {
                    "method": {"name": method, **METHODS[method]},
                    "pictures": path,
                    "token": f"<{name}>",
                    "class_noun": NOUN,
                    "base": self.easel.model.name,
                    "steps": steps,
                    "preview_every": 0,
                }
            )
            task = f"{name}, {method}"
            lesson = self.easel.teach(recipe, self.work / f"{name}-{method}", task)
            found = self.scores(name, method, lesson)
            ratios = {
                how: distance / base["colour_distance"][how]
                for how, distance in found["colour_distance"].items()
            }
            figures[method] = {**found, "colour_distance_of_base": ratios}
        return figures


def main() -> int:
    """0 if it was measured; 3 if there are no pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=Path("../shared/seed/pictures"))
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="which are taught")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="which methods")
    parser.add_argument("--count", type=int, default=16, help="pictures of each")
    parser.add_argument("--steps", type=int, help="of learning, instead of the method's advice")
    parser.add_argument("--base", default="pocket", help="a base's name, or a folder")
    parser.add_argument("--work", type=Path, default=Path("build/real"), help="work folder")
    given = parser.parse_args()
    if not given.pictures.is_dir():
        print(
            f"there are no pictures in {given.pictures}: give them by --pictures", file=sys.stderr
        )
        return 3
    given.work.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in given.pictures.iterdir() if path.is_dir())
    folders: dict[str, Images] = {p.name: [i.open() for i in read_pictures(p)] for p in paths}
    easel = Easel(open_base(given.base), say, given.count)
    bench = Bench(easel, folders, given.work)
    figures: Figures = {
        name: bench.folder(name, given.pictures / name, given.methods, given.steps)
        for name in given.folders
    }
    bars = tomllib.loads((Path(__file__).parent / "bars.toml").read_text())["real"]
    print(json.dumps({**figures, "bars": bars}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
