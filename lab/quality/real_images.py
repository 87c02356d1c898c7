"""Trains pocket on real images: are the generated images nearest to the right folder?

The images cannot be distributed; without them nothing is measured and the exit status is 3. The
last line on stdout is JSON; contact sheets are in the work folder.
"""

import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lab.quality.harness import Lab, TrainedConcept, argument_parser, print_progress
from pinxit import registry
from pinxit.evaluation.metric import Images, Metric
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.images.folder import read_images
from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.training.recipe import Recipe

# One vector cannot describe photographs to a base model that was not trained on any.
METHODS: dict[str, dict[str, int]] = {
    "textual-inversion": {"num_vectors": 8},
    "dreambooth": {},
    "lora": {},
}
FOLDERS = ("pegasus", "shifu")  # the other folders are only distractors
NOUN = "animal"
_PLACES = ("beach", "snow", "city", "night")

Figures = dict[str, Any]  # as in the JSON output


def shares_nearest(images: Images, folders: dict[str, Images], metric: Metric) -> dict[str, float]:
    """The share of images that are nearest to each folder."""
    sign = 1 if metric.better == "more" else -1
    names = list(folders)
    scores = [metric.score(images, folders[name], ()) for name in names]
    nearest = [
        max(zip(names, marks, strict=True), key=lambda p: sign * p[1])[0]
        for marks in zip(*scores, strict=True)
    ]
    return {name: nearest.count(name) / len(nearest) for name in names}


def distances(images: Images, references: Images) -> dict[str, float]:
    """Distances of the colours: of all images together, and of each to the nearest reference."""
    colour = registry.load("metrics", "colour")
    near = colour(against="nearest").score(images, references, ())
    return {"together": colour().between(images, references), "nearest": fmean(near)}


def apart(images: Images) -> float:
    """The mean colour distance of a reference to the nearest other reference."""
    colour: Metric = registry.load("metrics", "colour")(against="nearest")
    others = [[other for other in images if other is not image] for image in images]
    return fmean(colour.score([i], o, ())[0] for i, o in zip(images, others, strict=True))


class RealImagesLab:
    """Measures each method and the base model on one image folder."""

    def __init__(self, runner: Lab, folders: dict[str, Images], work: Path) -> None:
        self.runner, self.folders, self.work = runner, folders, work
        self.metrics: dict[str, Metric] = {
            "embedding": registry.load("metrics", "pocket-likeness")(),
            "colours": registry.load("metrics", "colour")(against="nearest"),
        }

    def scores(self, name: str, title: str, trained: TrainedConcept | None) -> Figures:
        """Generate a folder's subject (or an animal of the base model), save a sheet, score it."""
        task = f"{name}, {title}: generating"
        text = "a photo of a {}"
        prompts = [Prompt(text, f"a photo of an {NOUN}", "")]
        concept = trained.concept if trained else None
        images = [p.image for p in self.runner.generate(prompts, concept, task)]
        placed = [f"a photo of a {{}} {PLACE_PHRASES[place][0]}" for place in _PLACES]
        more = [Prompt(t, t.format(NOUN).replace("a animal", "an animal"), "") for t in placed]
        few = Lab(self.runner.model, self.runner.progress, 2)
        in_places = [p.image for p in few.generate(more, concept, task)]
        shown = [*self.folders[name], *images, *in_places]
        sheet = contact_sheet([image.resize((128, 128)) for image in shown], 8)
        sheet.save(self.work / f"{name}-{title}.png")
        near = {by: shares_nearest(images, self.folders, m) for by, m in self.metrics.items()}
        return {
            "pictures": len(images),
            "nearest": {by: shares[name] for by, shares in near.items()},
            "colour_distance": distances(images, self.folders[name]),
            "seconds_of_learning": trained.seconds if trained else 0.0,
        }

    def folder(self, name: str, path: Path, methods: Sequence[str], steps: int | None) -> Figures:
        """All results of one folder."""
        base = self.scores(name, "base", None)
        figures: Figures = {"apart": apart(self.folders[name]), "base": base}
        subject = {"images": path, "token": f"<{name}>", "class_noun": NOUN}
        size = {"base": self.runner.model.name, "steps": steps, "preview_every": 0}
        for method in methods:
            options = {"name": method, **METHODS[method]}
            recipe = Recipe.model_validate({"method": options, **subject, **size})
            task = f"{name}, {method}"
            trained = self.runner.train(recipe, self.work / f"{name}-{method}", task)
            scores = self.scores(name, method, trained)
            ratios = {
                how: distance / base["colour_distance"][how]
                for how, distance in scores["colour_distance"].items()
            }
            figures[method] = {**scores, "colour_distance_of_base": ratios}
        return figures


def main() -> int:
    """Returns 0, or 3 if there are no images."""
    parser = argument_parser(__doc__, "build/real")
    parser.add_argument("--images", type=Path, default=Path("../shared/seed/pictures"))
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="folders to train on")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="training methods")
    parser.add_argument("--count", type=int, default=16, help="images per folder and method")
    parser.add_argument("--steps", type=int, help="training steps; default: the method's")
    parser.add_argument("--base", default="pocket", help="base model: name or folder")
    args = parser.parse_args()
    if not args.images.is_dir():
        print(f"there is no folder {args.images}. hint: --images FOLDER", file=sys.stderr)
        return 3
    args.work.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in args.images.iterdir() if path.is_dir())
    folders: dict[str, Images] = {p.name: [i.open() for i in read_images(p)] for p in paths}
    runner = Lab(open_base(args.base), print_progress, args.count)
    lab = RealImagesLab(runner, folders, args.work)
    figures: Figures = {
        name: lab.folder(name, args.images / name, args.methods, args.steps)
        for name in args.folders
    }
    bars = tomllib.loads((Path(__file__).parent / "bars.toml").read_text())["real"]
    print(json.dumps({**figures, "bars": bars}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
