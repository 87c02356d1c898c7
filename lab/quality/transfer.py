"""Style transfer of images of pocket's world: preserved structure against style.

The world knows mask, keypoints, class and facing of each image, and its true rendering in the
style. Results are kept in the work folder, so an interrupted measurement continues. The last line
on stdout is JSON.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lab.quality.harness import Lab, Row, TrainedConcept, argument_parser, cached, print_progress
from pinxit.evaluation.metrics.colour import Colour
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.images.tensors import contact_sheet, to_image, to_pixels
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES, prompt
from pinxit.pocket.eyes import ANSWERS, Eyes
from pinxit.pocket.world import (
    BACKGROUNDS,
    Scene,
    draw_scene,
    draw_subject,
    portrait,
    render,
    render_styles,
)
from pinxit.training.recipe import Recipe

# Styles that pocket knows by name; the style that is trained, its token, and the methods.
STYLES = ("watercolour", "pencil", "chalk", "cartoon", "pop art")
LEARNED, TOKEN = gallery.STYLE, "<mystyle>"
METHODS = ("lora", "textual-inversion")
# Values of `preserve` by control and guidance scale. img2img also with a low guidance scale, since
# the default control uses one.
PRESERVE_VALUES: dict[tuple[str, float], tuple[float, ...]] = {
    ("img2img", 5): (0.0, 0.2, 0.4, 0.6, 0.8),
    ("img2img", 2.5): (0.2, 0.5),
    ("inversion", 2): (0.0, 0.2, 0.5, 0.7, 0.8),
}
_T = TypeVar("_T")
_SEED = 77
_FEW = 8  # images for the measurements without curves


@dataclass(frozen=True)
class Item:
    """An image to transfer: its scene, the target style, and the method if that is trained."""

    number: int
    scene: Scene
    style: str
    method: str = ""

    @property
    def label(self) -> str:
        """The prefix of its file names."""
        return f"{self.method or 'words'}-{self.number:02}"

    @property
    def source_prompt(self) -> str:
        """The source prompt; for a trained style in the words of its captions."""
        if self.method:
            place = PLACE_PHRASES[self.scene.background][0]
            return f"a picture of a {self.scene.subject.class_noun} {place}"
        return prompt(self.scene.subject.class_noun, None, self.scene.background, "photo")

    @property
    def target_prompt(self) -> str:
        """The target prompt."""
        if self.method:
            return f"{self.source_prompt} in the style of {TOKEN}"
        return prompt(self.scene.subject.class_noun, None, self.scene.background, self.style)


def items(count: int) -> list[Item]:
    """Photos of objects of all classes and places, each with one of the styles."""
    rng = np.random.default_rng(_SEED)
    return [Item(n, photo(rng), STYLES[n % len(STYLES)]) for n in range(count)]


def trained_style_items(count: int, method: str) -> list[Item]:
    """Other photos, all for the style that is trained by this method."""
    rng = np.random.default_rng(_SEED + 1)
    return [Item(n, photo(rng), LEARNED, method) for n in range(count)]


def photo(rng: np.random.Generator) -> Scene:
    """A scene that a prompt describes fully except for its colour."""
    while True:
        scene = draw_scene(rng, plain=0.0, style="photo")
        if scene.colour is not None and scene.pattern == "plain":
            return scene


class TransferJudge:
    """Scores a transferred image with pocket's eyes and the true rendering."""

    def __init__(self, model: Model, item: Item) -> None:
        self.eyes = Eyes.load()
        self.item = item
        before, true = render_styles(item.scene, ("photo", item.style))
        self.photo, true_image = Image.fromarray(before.image), Image.fromarray(true.image)
        # The ceiling is the true rendering after encoding and decoding by the VAE.
        seen = to_pixels(true_image, 64, 64)
        self.true = to_image(model.decode(model.encode(seen).mean)[0])
        mask = torch.from_numpy(before.mask).float()[None, None] / 255
        self.mask = F.avg_pool2d(mask, 4)[0, 0] > 0.5
        self.points = torch.from_numpy(before.keypoints)
        self.style = ANSWERS["style"].index(item.style)

    @cached_property
    def floors(self) -> tuple[float, ...]:
        """The distances of the photo from the style."""
        return self._distances(self.photo)

    def _distances(self, image: Image.Image) -> tuple[float, ...]:
        """Distances from the style by classifier, colours, and Gram matrices of features."""
        pixels, true = (to_pixels(one, 64, 64) for one in (image, self.true))
        style = self.eyes.look(pixels).answers["style"].softmax(1)[0, self.style]
        colours = Colour().score([image], [self.true], ())[0]
        grams = [_gram(self.eyes.fine(one)) for one in (pixels, true)]
        return 1 - float(style), colours, float((grams[0] - grams[1]).norm())

    def score(self, image: Image.Image) -> Row:
        """Structure (mask, keypoints, class, facing), and style from 0 (photo) to 1 (truth)."""
        seen = self.eyes.look(to_pixels(image, 64, 64))
        mask = seen.mask[0] > 0.5
        both, either = (mask & self.mask).sum(), (mask | self.mask).sum()
        ceilings = self._distances(self.true)
        distances = zip(self._distances(image), self.floors, ceilings, strict=True)
        shares = [(floor - value) / (floor - ceiling) for value, floor, ceiling in distances]
        return {
            "iou": float(both / either),
            "points": float((seen.keypoints[0] - self.points).norm(dim=-1).mean()),
            "class": float(seen.named("class")[0] == self.item.scene.subject.class_noun),
            "facing": float(seen.named("facing")[0] == self.item.scene.facing),
            **dict(zip(("probe", "colours", "gram"), shares, strict=True)),
            "style": fmean(shares),
        }


def _gram(features: Tensor) -> Tensor:
    flat = features[0].flatten(1)
    return flat @ flat.T / flat.shape[1]


@dataclass(frozen=True)
class TransferLab:
    """The model, the work folder, and the trained style if there is one."""

    model: Model
    folder: Path
    trained: TrainedConcept | None = None

    def cached(self, name: str, measure: Callable[[], Row]) -> Row:
        """A measurement from the work folder, or else made now."""
        return cached(self.folder / f"{name}.json", measure)

    def generate(self, target_prompt: str, *controls: Row, **changed: object) -> Image.Image:
        """One image of a prompt; `changed` are other options of the request."""
        options = {"prompt": target_prompt, "controls": controls, **changed}
        concepts = [self.trained.concept] if self.trained else []
        request = GenerationRequest.model_validate(options)
        return generate_images(self.model, request, concepts)[0].image

    def mean(self, kind: str, measure: Callable[[_T], Row], cases: Iterable[tuple[int, _T]]) -> Row:
        """The mean of a measurement over numbered cases, each from the work folder or made now."""
        rows = [self.cached(f"{kind}-{n:02}", partial(measure, case)) for n, case in cases]
        return _mean(rows)

    def save_image(self, image: Image.Image, name: str) -> Path:
        """Save an image; returns its path."""
        path = self.folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    def curve(self, item: Item, control: str, guidance: float) -> Row:
        """The scores of an item at all values of a control's `preserve`."""
        label = item.label

        def measure(preserve: float) -> Row:
            args: Row = {"name": control, "image": self.save_image(judge.photo, label)}
            if control != "img2img":
                args["source_prompt"] = item.source_prompt
            image = self.generate(
                item.target_prompt, {**args, "preserve": preserve}, guidance_scale=guidance
            )
            self.save_image(image, f"{label}-{control}-{guidance:g}-{preserve:g}")
            return judge.score(image)

        judge = TransferJudge(self.model, item)
        self.save_image(judge.true, f"{label}-true")
        return {
            f"{preserve:g}": self.cached(
                f"{label}-{control}-{guidance:g}-{preserve:g}", lambda k=preserve: measure(k)
            )
            for preserve in PRESERVE_VALUES[control, guidance]
        } | {"photo": judge.score(judge.photo), "true": judge.score(judge.true)}


def curves(lab: TransferLab, chosen: Sequence[Item]) -> Row:
    """Means over items by control, guidance scale and `preserve`, and of photo and truth."""
    means = Row()
    for (control, guidance), values in PRESERVE_VALUES.items():
        rows = [lab.curve(item, control, guidance) for item in chosen]
        means[f"{control} {guidance:g}"] = {
            f"{preserve:g}": _mean([row[f"{preserve:g}"] for row in rows]) for preserve in values
        }
        if control == "inversion":
            means |= {end: _mean([row[end] for row in rows]) for end in ("photo", "true")}
    return {"pictures": len(chosen), "curves": means, **compare_curves(means)}


def _mean(rows: Sequence[Row]) -> Row:
    return {name: round(fmean(row[name] for row in rows), 4) for name in rows[0]}


def compare_curves(means: Row) -> Row:
    """How much higher the default control's mask IoU is than img2img's at the same style score.

    For each control the best IoU with at least that style score counts: `lead` at each point of
    the default's curve, `ahead` at each point of img2img's.
    """
    ours = list(means["inversion 2"].values())
    theirs = [p for name, curve in means.items() if "img2img" in name for p in curve.values()]
    leads = {
        preserve: round(point["iou"] - best_iou(theirs, point["style"]), 4)
        for preserve, point in means["inversion 2"].items()
    }
    ahead = [
        {
            "style": point["style"],
            "iou": point["iou"],
            "default": best_iou(ours, point["style"]),
            "ahead": round(best_iou(ours, point["style"]) - point["iou"], 4),
        }
        for point in means["img2img 5"].values()
    ]
    return {"lead": leads, "ahead": ahead}


def best_iou(points: Sequence[Row], style: float) -> float:
    """The highest mask IoU with at least this style score, with linear interpolation.

    If no point reaches the style score, the IoU of the point with the highest one.
    """
    ordered = sorted(points, key=lambda point: point["style"])
    best = [p["iou"] for p in ordered if p["style"] >= style]
    for low, high in pairwise(ordered):
        if low["style"] < style <= high["style"]:
            share = (style - low["style"]) / (high["style"] - low["style"])
            best.append(low["iou"] + share * (high["iou"] - low["iou"]))
    return max(best, default=ordered[-1]["iou"])


def reconstruction(lab: TransferLab, chosen: Sequence[Item]) -> Row:
    """The PSNR of an image after inversion without a change, and after the VAE alone."""

    def one(item: Item) -> Row:
        image = Image.fromarray(render(item.scene).image)
        pixels = to_pixels(image, 64, 64)
        own = to_image(lab.model.decode(lab.model.encode(pixels).mean)[0])
        control = {"name": "inversion", "image": lab.save_image(image, "whole"), "preserve": 1}
        back = lab.generate(item.source_prompt, control, guidance_scale=2.0)
        return {"autoencoder": _psnr(own, image), "keep 1": _psnr(back, image)}

    return lab.mean("whole", one, ((item.number, item) for item in chosen))


def _psnr(one: Image.Image, other: Image.Image) -> float:
    off = (to_pixels(one, 64, 64) - to_pixels(other, 64, 64)).square().mean()
    return float(10 * torch.log10(4 / off))


def same_seeds(lab: TransferLab, chosen: Sequence[Item]) -> Row:
    """The mask IoU of an image and the same seed with a style in the prompt."""
    eyes = Eyes.load()

    def one(item: Item) -> Row:
        first = lab.generate(item.source_prompt, seed=item.number)
        scores: Row = {}
        for preserve in (0.0, 0.2, 0.5, 0.8):
            source = {"source_prompt": item.source_prompt}
            control = {"name": "same-seed", "preserve": preserve, **source}
            image = lab.generate(item.target_prompt, control, seed=item.number)
            lab.save_image(image, f"seed-{item.number:02}-{preserve:g}")
            masks = [eyes.look(to_pixels(i, 64, 64)).mask[0] > 0.5 for i in (first, image)]
            iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
            named = eyes.look(to_pixels(image, 64, 64)).named("style")[0]
            scores[f"iou {preserve:g}"] = float(iou)
            scores[f"style {preserve:g}"] = float(named == item.style)
        lab.save_image(first, f"seed-{item.number:02}-first")
        return scores

    return lab.mean("seed", one, ((item.number, item) for item in chosen))


def poses(lab: TransferLab, count: int) -> Row:
    """Likeness of a subject in a new place and pose, by masactrl and by the prompt alone."""
    eyes = Eyes.load()

    def one(number: int) -> Row:
        rng = np.random.default_rng((_SEED, number))
        who = draw_subject(rng)
        scene = portrait(who, rng)
        image = Image.fromarray(render(scene).image)
        other = Image.fromarray(render(replace(portrait(who, rng), facing=opposite(scene))).image)
        place = BACKGROUNDS[(BACKGROUNDS.index(scene.background) + 1) % len(BACKGROUNDS)]
        target = prompt(who.class_noun, None, place, "photo", facing=opposite(scene))
        source = prompt(who.class_noun, None, scene.background, "photo", facing=scene.facing)
        path = lab.save_image(image, f"pose-{number:02}")
        looks = eyes.look(torch.cat([to_pixels(i, 64, 64) for i in (image, other)]))
        scores: Row = {"likeness true": float(looks.instance[0] @ looks.instance[1])}
        for preserve in (0.0, 0.7, 0.9):
            original = {"image": path, "source_prompt": source}
            control = {"name": "masactrl", "preserve": preserve, **original}
            moved = lab.generate(target, control, seed=number)
            lab.save_image(moved, f"pose-{number:02}-{preserve:g}")
            seen = eyes.look(to_pixels(moved, 64, 64))
            scores[f"likeness {preserve:g}"] = float(looks.instance[0] @ seen.instance[0])
            scores[f"facing {preserve:g}"] = float(seen.named("facing")[0] == opposite(scene))
            scores[f"place {preserve:g}"] = float(seen.named("background")[0] == place)
            scores[f"class {preserve:g}"] = float(seen.named("class")[0] == who.class_noun)
        return scores

    return lab.mean("pose", one, ((number, number) for number in range(count)))


def opposite(scene: Scene) -> str:
    """The opposite facing."""
    return "left" if scene.facing == "right" else "right"


def train_style(model: Model, method: str, folder: Path) -> TrainedConcept:
    """The held-out style, trained on the images of the demo."""
    style = {"images": gallery.folder() / "style", "token": TOKEN, "class_noun": "painting"}
    options = {"method": method, "kind": "style", "base": model.name, "preview_every": 0}
    recipe = Recipe.model_validate({**style, **options})
    return Lab(model, print_progress).train(recipe, folder / "runs" / method, f"{method}: training")


def save_sheet(lab: TransferLab, chosen: Sequence[Item], path: Path) -> None:
    """Save a sheet with photo, img2img at two strengths, default control at three, and truth."""

    def row(item: Item) -> Iterator[Path]:
        shared = [f"-inversion-2-{preserve}" for preserve in (0.8, 0.5, 0.2)]
        for ending in ("", "-img2img-5-0.6", "-img2img-5-0.4", *shared, "-true"):
            yield lab.folder / "pictures" / f"{item.label}{ending}.png"

    images = [Image.open(file).resize((96, 96)) for item in chosen for file in row(item)]
    contact_sheet(images, 7).save(path)


def main() -> int:
    """Run all measurements and print them."""
    parser = argument_parser(__doc__, "build/transfer")
    parser.add_argument("--count", type=int, default=12, help="images for styles with words")
    parser.add_argument("--trained", type=int, default=8, help="images for the trained style")
    args = parser.parse_args()
    lab = TransferLab(open_base("pocket"), args.work)
    chosen = items(args.count)
    figures: Row = {
        "returned": reconstruction(lab, chosen),
        "words": curves(lab, chosen),
        "same seed": same_seeds(lab, chosen[:_FEW]),
        "poses": poses(lab, _FEW),
    }
    save_sheet(lab, chosen, args.work / "words.png")
    for method in METHODS if args.trained else ():
        trained = replace(lab, trained=train_style(lab.model, method, args.work))
        others = trained_style_items(args.trained, method)
        figures[method] = curves(trained, others)
        save_sheet(trained, others, args.work / f"{method}.png")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
