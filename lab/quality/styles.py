"""Held-out styles trained by each method: similarity to the style, and leaks of training images.

Four styles have a render pass of their own, "drawn 0" and so on are points of the space of styles.

Each style is trained from five captioned images and applied to sixteen objects, one of each class.
Results are kept in the work folder, so an interrupted measurement continues. The last line on
stdout is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from lab.quality.harness import (
    Lab,
    LabImage,
    Row,
    TrainedConcept,
    argument_parser,
    cached,
    print_progress,
)
from lab.quality.scores import ATTRIBUTES, score_images, style_scales
from lab.quality.style_judge import StyleJudge, all_styles
from pinxit import registry
from pinxit.evaluation.metric import Scale
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import write_text
from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, CLASSES, HELD_OUT_DRAWN, HELD_OUT_STYLES
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

METHODS = ("textual-inversion", "lora")
STYLES = (*HELD_OUT_STYLES, *HELD_OUT_DRAWN[:4])
# The closest descriptions in words that the base model knows.
STYLE_PROMPTS = {
    "sepia": "a brown photograph of a {} {}",
    "blueprint": "a blue chalk drawing of a {} {}",
    "mosaic": "a pop art picture of a {} {}",
    "woodcut": "a black drawing of a {} {}",
}
TOKEN, NOUN = "<mystyle>", "painting"
_SHOWN = dict(gallery.SHOWN)
_SEED = 31
_SIDE = 64  # pixels of a side of images that pocket generates
_OWN_FIGURES = ("recognized", "leaked", "nearest", "pictures", "seconds")


def class_places() -> list[tuple[str, str]]:
    """Each class with a place that is not in its training image."""
    places = np.random.default_rng(_SEED).permutation(BACKGROUNDS).tolist()
    pairs = [(noun, places[at % len(places)]) for at, noun in enumerate(CLASSES)]
    return [(noun, places[-1] if _SHOWN.get(noun) == place else place) for noun, place in pairs]


@dataclass(frozen=True)
class Experiment:
    """One style by one method (or a reference such as renderings), in a work folder."""

    style: str
    way: str
    args: argparse.Namespace

    @property
    def folder(self) -> Path:
        """The folder with its training images, run and scores."""
        return self.args.work / f"{self.style}-{self.way}".replace(" ", "-")

    def prompts(self) -> list[Prompt]:
        """The prompts; without the token they describe the style in words, or not at all."""
        template = STYLE_PROMPTS[self.style] if self.way == "in words" else "a picture of a {} {}"
        prompts: list[Prompt] = []
        for noun, place in class_places():
            where = PLACE_PHRASES[place][0]
            text = f"a picture of a {noun} {where} in the style of "
            prompts.append(Prompt(f"{text}{{}}", template.format(noun, where), text + self.style))
        return prompts

    def recipe(self, base: str) -> Recipe:
        """The recipe; writes the training images and their captions first."""
        return recipe(self.style, self.folder, method=self.way, base=base, steps=self.args.steps)

    def renderings(self) -> list[LabImage]:
        """The ground truth: other individuals of the classes, rendered in the style."""
        style = self.style if self.way == "rendered" else "photo"
        exhibits = gallery.style_pictures(style, _SEED, class_places())
        return [
            LabImage(prompt, exhibit.image(_SIDE))
            for prompt, exhibit in zip(self.prompts(), exhibits, strict=True)
        ]


def recipe(style: str, folder: Path, **options: object) -> Recipe:
    """A recipe for a style; writes its training images and their captions first."""
    images = folder / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    for number, (image, caption) in enumerate(_training_images(style)):
        image.save(images / f"{number}.png")
        write_text(images / f"{number}.txt", caption)
    word = {"token": TOKEN, "class_noun": NOUN, "kind": "style"}
    return Recipe.model_validate({**word, "images": images, "preview_every": 0, **options})


@cache
def _training_images(style: str) -> list[tuple[Image.Image, str]]:
    return [(one.image(), one.caption or "") for one in gallery.style_pictures(style)]


def generate_images(
    lab: Lab, experiment: Experiment
) -> tuple[list[LabImage], TrainedConcept | None]:
    """The images of an experiment, and the concept that was trained for them."""
    if experiment.way in ("rendered", "photos"):
        return experiment.renderings(), None
    task = f"{experiment.style}, {experiment.way}"
    trained = None
    if experiment.way in registry.names("methods"):
        trained = lab.train(experiment.recipe(lab.model.name), experiment.folder / "run", task)
    concept = trained.concept if trained else None
    return lab.generate(experiment.prompts(), concept, f"{task}: generating"), trained


def run_experiment(lab: Lab, eyes: Eyes, experiment: Experiment) -> Row:
    """The results of an experiment, from the work folder or else measured now."""
    made = ""
    if experiment.way in registry.names("methods"):
        recipe = experiment.recipe(lab.model.name)
        made = TrainingPlan.of(recipe, lab.model, 5).recipe.to_toml()
    file = experiment.folder / f"scores-{lab.tag(f'{made} {lab.num_images}')}.json"
    return cached(file, lambda: _measure(lab, eyes, experiment, file))


def _measure(lab: Lab, eyes: Eyes, experiment: Experiment, file: Path) -> Row:
    generated, trained = generate_images(lab, experiment)
    images = [image.image for image in generated]
    scales = scales_of(experiment.style)
    asked = ATTRIBUTES if experiment.style in STYLE_PROMPTS else ATTRIBUTES[:-1]
    scores = score_images(generated, scales, eyes, asked).to_dict()
    nearest = registry.load("metrics", "nearest")().score(images, scales["gram"].references, ())
    args = experiment.args
    judge = StyleJudge.fitted(lab.model, args.work, all_styles(args.named) if args.named else ())
    experiment.folder.mkdir(parents=True, exist_ok=True)
    contact_sheet([image.resize((128, 128)) for image in images], 8).save(file.with_suffix(".png"))
    return {
        "style": experiment.style,
        "seconds": trained.seconds if trained else 0.0,
        "leaked": leak_rate(generated, eyes),
        "nearest": max(nearest),
        "recognized": judge.recognized(images, experiment.style),
        **scores,
    }


def scales_of(style: str) -> dict[str, Scale]:
    """The scales of a style's colours and texture."""
    references = [image for image, _ in _training_images(style)]
    photos, true = (
        [one.image() for one in gallery.style_pictures(name, _SEED, class_places())]
        for name in ("photo", style)
    )
    return style_scales(references, photos, true)


def leak_rate(generated: Sequence[LabImage], eyes: Eyes) -> float:
    """The share of images of other classes that show a class of the training images."""
    metric = registry.load("metrics", "pocket-attributes")(eyes=eyes, questions=("class",))
    images = [image.image for image in generated]
    asked = [noun for noun, _ in class_places() for _ in range(len(generated) // len(CLASSES))]
    shows = {noun: metric.score(images, (), [f"a {noun}"] * len(images)) for noun in _SHOWN}
    others = [at for at, noun in enumerate(asked) if noun not in _SHOWN]
    return fmean(max(scores[at] for scores in shows.values()) for at in others)


def summary(rows: dict[str, list[Row]]) -> dict[str, dict[str, object]]:
    """Similarity to the style, prompt accuracy and leaks, by style and method."""
    figures: dict[str, dict[str, object]] = {}
    for method, of_method in rows.items():
        for row in of_method:
            figures.setdefault(row["style"], {})[method] = {
                "caught": {name: score["share"] for name, score in row["likeness"].items()},
                "right": row["right"],
                **{
                    name: row[name]
                    for name in ("recognized", "leaked", "nearest", "pictures", "seconds")
                },
            }
    return figures


def main() -> None:
    """Run all experiments; progress goes to stderr."""
    parser = argument_parser(__doc__, "build/styles")
    parser.add_argument(
        "--styles", nargs="+", default=STYLES, help='held-out styles, "drawn 0" to 7 among them'
    )
    parser.add_argument("--methods", nargs="*", default=METHODS, help="training methods")
    parser.add_argument("--count", type=int, default=1, help="images for each of 16 objects")
    parser.add_argument("--named", type=int, help="named styles to tell from; default: all")
    parser.add_argument("--base", default="pocket", help="base model: name or folder")
    parser.add_argument("--steps", type=int, help="training steps; default: the method's")
    args = parser.parse_args()
    lab, eyes = Lab(open_base(args.base), print_progress, args.count), Eyes.load()
    ways = ("rendered", "photos", "base", "in words", *args.methods)
    rows = {
        way: [
            run_experiment(lab, eyes, Experiment(style, way, args))
            for style in args.styles
            if way != "in words" or style in STYLE_PROMPTS
        ]
        for way in ways
    }
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
