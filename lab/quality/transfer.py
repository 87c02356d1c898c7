"""Pictures of pocket's world transferred into styles: structure kept against style gained.

The world knows the mask, the key points, the class and the facing of every picture, and what it
truly looks like in the style. Every item that is done is kept in the work folder, so a stopped
measurement goes on. The last line on stdout is all of it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pinxit.evaluation.metrics.colour import Colour
from pinxit.files.atomic_write import replace_text
from pinxit.generation.generate import Request, paint
from pinxit.images.tensors import sheet, to_image, to_pixels
from pinxit.models.model import Model, open_base
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
from pinxit.reports.demo.chapters import Effort
from pinxit.reports.demo.trial import Easel, Lesson
from pinxit.training.recipe import Recipe

# Styles that pocket has words for, and the one that has to be learned.
STYLES = ("watercolour", "pencil", "chalk", "cartoon", "pop art")
LEARNED, TOKEN = gallery.STYLE, "<mystyle>"
# Of each control at a guidance, how much is kept: first what `pinxit transfer` takes if nothing is
# typed; then img2img with little guidance, as the default has.
KEEPS: dict[tuple[str, float], tuple[float, ...]] = {
    ("img2img", 5): (0.0, 0.2, 0.4, 0.6, 0.8),
    ("img2img", 2.5): (0.2, 0.5),
    ("inversion", 2): (0.0, 0.2, 0.5, 0.7, 0.8),
}
_SEED = 77
_FEW = 8  # pictures for what is looked at beside the curves
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A picture to transfer: its scene, the style it is to have, and a word if that is learned."""

    number: int
    scene: Scene
    style: str
    word: str = ""

    @property
    def shows(self) -> str:
        """What a person would say the picture shows; where a style is learned, as its captions."""
        if self.word:
            place = PLACE_PHRASES[self.scene.background][0]
            return f"a picture of a {self.scene.subject.class_noun} {place}"
        return prompt(self.scene.subject.class_noun, None, self.scene.background, "photo")

    @property
    def asked(self) -> str:
        """What it is to become."""
        if self.word:
            return f"{self.shows} in the style of {self.word}"
        return prompt(self.scene.subject.class_noun, None, self.scene.background, self.style)


def items(count: int) -> list[Item]:
    """Photos of things of every kind and place, and a style for each in turn."""
    rng = np.random.default_rng(_SEED)
    return [Item(n, photo(rng), STYLES[n % len(STYLES)]) for n in range(count)]


def learned_items(count: int) -> list[Item]:
    """Other photos, all for the style that is learned."""
    rng = np.random.default_rng(_SEED + 1)
    return [Item(n, photo(rng), LEARNED, TOKEN) for n in range(count)]


def photo(rng: np.random.Generator) -> Scene:
    """A scene of which words say all but the colour."""
    while True:
        scene = draw_scene(rng, plain=0.0, style="photo")
        if scene.colour is not None and scene.pattern == "plain":
            return scene


class Judge:
    """What pocket's eyes and the world say of a picture that came of an item."""

    def __init__(self, model: Model, item: Item) -> None:
        self.eyes = Eyes.load()
        self.item = item
        before, true = render_styles(item.scene, ("photo", item.style))
        self.photo, true_image = Image.fromarray(before.image), Image.fromarray(true.image)
        # The ceiling is the true rendering as the autoencoder can say it.
        seen = to_pixels(true_image, 64, 64)
        self.true = to_image(model.decode(model.encode(seen).mean)[0])
        mask = torch.from_numpy(before.mask).float()[None, None] / 255
        self.mask = F.avg_pool2d(mask, 4)[0, 0] > 0.5
        self.points = torch.from_numpy(before.keypoints)
        self.style = ANSWERS["style"].index(item.style)

    @cached_property
    def floors(self) -> tuple[float, ...]:
        """How far the photo is from the style."""
        return self._distances(self.photo)

    def _distances(self, image: Image.Image) -> tuple[float, ...]:
        """By the style probe, by colours, and by Gram matrices of the eyes' first features."""
        pixels, true = (to_pixels(one, 64, 64) for one in (image, self.true))
        style = self.eyes.look(pixels).answers["style"].softmax(1)[0, self.style]
        colours = Colour().score([image], [self.true], ())[0]
        grams = [_gram(self.eyes.fine(one)) for one in (pixels, true)]
        return 1 - float(style), colours, float((grams[0] - grams[1]).norm())

    def score(self, image: Image.Image) -> Row:
        """Structure: mask, points, class, facing. Style: shares of the way, 0 photo, 1 truth."""
        seen = self.eyes.look(to_pixels(image, 64, 64))
        found = seen.mask[0] > 0.5
        both, either = (found & self.mask).sum(), (found | self.mask).sum()
        ceilings = self._distances(self.true)
        shares = [
            (floor - value) / (floor - ceiling)
            for value, floor, ceiling in zip(
                self._distances(image), self.floors, ceilings, strict=True
            )
        ]
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
class Bench:
    """Where it is measured: the model, the work folder, and the lesson if there is one."""

    model: Model
    folder: Path
    lesson: Lesson | None = None

    def kept(self, name: str, measure: Callable[[], Row]) -> Row:
        """A measurement, made now or before."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(measure()))
            print(f"{name}: {path.read_text()}"[:160], file=sys.stderr, flush=True)
        row: Row = json.loads(path.read_text())
        return row

    def paint(self, asked: str, *controls: Row, **changed: object) -> Image.Image:
        """One picture."""
        whole = {"prompt": asked, "controls": controls, **changed}
        concepts = [self.lesson.concept] if self.lesson else []
        return paint(self.model, Request.model_validate(whole), concepts)[0].image

    def picture(self, image: Image.Image, name: str) -> Path:
        """A picture's file."""
        path = self.folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    def curve(self, item: Item, control: str, guidance: float) -> Row:
        """An item at every `keep` of a control."""
        label = f"{'learned' if item.word else 'words'}-{item.number:02}"

        def measure(keep: float) -> Row:
            given: Row = {"name": control, "picture": self.picture(judge.photo, label)}
            if control != "img2img":
                given["shows"] = item.shows
            image = self.paint(item.asked, {**given, "keep": keep}, guidance=guidance)
            self.picture(image, f"{label}-{control}-{guidance:g}-{keep:g}")
            return judge.score(image)

        judge = Judge(self.model, item)
        self.picture(judge.true, f"{label}-true")
        return {
            f"{keep:g}": self.kept(
                f"{label}-{control}-{guidance:g}-{keep:g}", lambda k=keep: measure(k)
            )
            for keep in KEEPS[control, guidance]
        } | {"photo": judge.score(judge.photo), "true": judge.score(judge.true)}


def curves(bench: Bench, chosen: Sequence[Item]) -> Row:
    """Means over items, by control and guidance, at every `keep`; and both ends."""
    found = Row()
    for (control, guidance), keeps in KEEPS.items():
        rows = [bench.curve(item, control, guidance) for item in chosen]
        found[f"{control} {guidance:g}"] = {
            f"{keep:g}": _mean([row[f"{keep:g}"] for row in rows]) for keep in keeps
        }
        if control == "inversion":
            found |= {end: _mean([row[end] for row in rows]) for end in ("photo", "true")}
    return {"pictures": len(chosen), "curves": found, **lead(found)}


def _mean(rows: Sequence[Row]) -> Row:
    return {name: round(fmean(row[name] for row in rows), 4) for name in rows[0]}


def lead(found: Row) -> Row:
    """How much more mask the default keeps than img2img at as much style, over img2img's curve.

    Of each control the best that reaches so much style counts: `lead` at the style of each point
    of the default's curve, and `ahead` of img2img's points by the default's best with no less.
    """
    ours = list(found["inversion 2"].values())
    theirs = [p for name, curve in found.items() if "img2img" in name for p in curve.values()]
    leads = {
        keep: round(point["iou"] - reached(theirs, point["style"]), 4)
        for keep, point in found["inversion 2"].items()
    }
    ahead = [
        {
            "style": point["style"],
            "iou": point["iou"],
            "default": reached(ours, point["style"]),
            "ahead": round(reached(ours, point["style"]) - point["iou"], 4),
        }
        for point in found["img2img 5"].values()
    ]
    return {"lead": leads, "ahead": ahead}


def reached(points: Sequence[Row], style: float) -> float:
    """The most mask IoU with at least so much style, between measured points a straight line.

    Where no point has as much style it is the mask of the one with most.
    """
    ordered = sorted(points, key=lambda point: point["style"])
    best = [p["iou"] for p in ordered if p["style"] >= style]
    for low, high in pairwise(ordered):
        if low["style"] < style <= high["style"]:
            share = (style - low["style"]) / (high["style"] - low["style"])
            best.append(low["iou"] + share * (high["iou"] - low["iou"]))
    return max(best, default=ordered[-1]["iou"])


def returned(bench: Bench, chosen: Sequence[Item]) -> Row:
    """Where nothing is new: the picture that comes back, against the autoencoder's own."""

    def one(item: Item) -> Row:
        image = Image.fromarray(render(item.scene).image)
        pixels = to_pixels(image, 64, 64)
        own = to_image(bench.model.decode(bench.model.encode(pixels).mean)[0])
        control = {"name": "inversion", "picture": bench.picture(image, "whole"), "keep": 1}
        back = bench.paint(item.shows, control, guidance=2.0)
        return {
            "autoencoder": _psnr(own, image),
            "keep 1": _psnr(back, image),
        }

    return _mean([bench.kept(f"whole-{item.number:02}", lambda i=item: one(i)) for item in chosen])


def _psnr(one: Image.Image, other: Image.Image) -> float:
    off = (to_pixels(one, 64, 64) - to_pixels(other, 64, 64)).square().mean()
    return float(10 * torch.log10(4 / off))


def same_seeds(bench: Bench, chosen: Sequence[Item]) -> Row:
    """A text painted, then its style from the same seed: how much of the mask stays."""
    eyes = Eyes.load()

    def one(item: Item) -> Row:
        first = bench.paint(item.shows, seed=item.number)
        found: Row = {}
        for keep in (0.0, 0.2, 0.5, 0.8):
            control = {"name": "same-seed", "keep": keep, "shows": item.shows}
            image = bench.paint(item.asked, control, seed=item.number)
            bench.picture(image, f"seed-{item.number:02}-{keep:g}")
            masks = [eyes.look(to_pixels(i, 64, 64)).mask[0] > 0.5 for i in (first, image)]
            iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
            named = eyes.look(to_pixels(image, 64, 64)).named("style")[0]
            found |= {f"iou {keep:g}": float(iou), f"style {keep:g}": float(named == item.style)}
        bench.picture(first, f"seed-{item.number:02}-first")
        return found

    return _mean([bench.kept(f"seed-{item.number:02}", lambda i=item: one(i)) for item in chosen])


def poses(bench: Bench, count: int) -> Row:
    """A subject in a new place, by masactrl and by the prompt alone: how like its photo."""
    eyes = Eyes.load()

    def one(number: int) -> Row:
        rng = np.random.default_rng((_SEED, number))
        who = draw_subject(rng)
        scene = portrait(who, rng)
        image = Image.fromarray(render(scene).image)
        other = Image.fromarray(render(replace(portrait(who, rng), facing=turned(scene))).image)
        place = BACKGROUNDS[(BACKGROUNDS.index(scene.background) + 1) % len(BACKGROUNDS)]
        asked = prompt(who.class_noun, None, place, "photo", facing=turned(scene))
        shows = prompt(who.class_noun, None, scene.background, "photo", facing=scene.facing)
        path = bench.picture(image, f"pose-{number:02}")
        looks = eyes.look(torch.cat([to_pixels(i, 64, 64) for i in (image, other)]))
        found: Row = {"likeness true": float(looks.instance[0] @ looks.instance[1])}
        for keep in (0.0, 0.7, 0.9):
            control = {"name": "masactrl", "picture": path, "shows": shows, "keep": keep}
            made = bench.paint(asked, control, seed=number)
            bench.picture(made, f"pose-{number:02}-{keep:g}")
            seen = eyes.look(to_pixels(made, 64, 64))
            found[f"likeness {keep:g}"] = float(looks.instance[0] @ seen.instance[0])
            found[f"facing {keep:g}"] = float(seen.named("facing")[0] == turned(scene))
            found[f"place {keep:g}"] = float(seen.named("background")[0] == place)
            found[f"class {keep:g}"] = float(seen.named("class")[0] == who.class_noun)
        return found

    return _mean([bench.kept(f"pose-{n:02}", lambda k=n: one(k)) for n in range(count)])


def turned(scene: Scene) -> str:
    """The other way that it could face."""
    return "left" if scene.facing == "right" else "right"


def taught(model: Model, folder: Path) -> Lesson:
    """The held-out style as the demo learns it."""
    recipe = Recipe.model_validate(
        {
            "method": "lora",
            "pictures": gallery.folder() / "style",
            "token": TOKEN,
            "class_noun": "painting",
            "kind": "style",
            "base": Effort().base,
            "preview_every": 0,
        }
    )

    def told(task: str, done: int, total: int, note: str = "") -> None:
        if done % 50 == 0:
            print(f"{task} {done}/{total} {note}", file=sys.stderr, flush=True)

    return Easel(model, told).teach(recipe, folder / "runs" / "style", "learning the style")


def shown(bench: Bench, chosen: Sequence[Item], path: Path) -> None:
    """A sheet: the photo, img2img at two strengths, the default at three, and the truth."""

    def row(item: Item) -> Iterator[Path]:
        label = f"{'learned' if item.word else 'words'}-{item.number:02}"
        yield bench.folder / "pictures" / f"{label}.png"
        for what in (
            "img2img-5-0.6",
            "img2img-5-0.4",
            *(f"inversion-2-{k}" for k in (0.8, 0.5, 0.2)),
        ):
            yield bench.folder / "pictures" / f"{label}-{what}.png"
        yield bench.folder / "pictures" / f"{label}-true.png"

    images = [Image.open(file).resize((96, 96)) for item in chosen for file in row(item)]
    sheet(images, 7).save(path)


def main() -> int:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/transfer"))
    parser.add_argument("--count", type=int, default=12, help="pictures for styles with words")
    parser.add_argument("--learned", type=int, default=4, help="pictures for the learned style")
    given = parser.parse_args()
    bench = Bench(open_base("pocket"), given.work)
    chosen = items(given.count)
    figures: Row = {
        "returned": returned(bench, chosen),
        "words": curves(bench, chosen),
        "same seed": same_seeds(bench, chosen[:_FEW]),
        "poses": poses(bench, _FEW),
    }
    shown(bench, chosen, given.work / "words.png")
    if given.learned:
        schooled = replace(bench, lesson=taught(bench.model, given.work))
        others = learned_items(given.learned)
        figures["learned"] = curves(schooled, others)
        shown(schooled, others, given.work / "learned.png")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
