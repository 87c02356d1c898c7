"""The demo: a subject and a style, each trained by two methods on five images, and compared."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image

from pinxit import registry
from pinxit.evaluation.judge import Anchors
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import check_claim, claim_folder, make_folder, write_text
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES, prompt
from pinxit.pocket.world import held_out_subjects
from pinxit.progress import Progress, ProgressCallback
from pinxit.reports.comparison_page import comparison_page
from pinxit.reports.entrant import Entrant
from pinxit.reports.figures import EvaluationSettings, Evaluator, SubjectResults
from pinxit.reports.pages import GridColumn
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult

NOUN = held_out_subjects()[gallery.SUBJECT].class_noun
SUBJECT_TOKEN, STYLE_TOKEN = f"<my{NOUN}>", "<mystyle>"
STYLE_NOUN = "painting"  # initializer token of the style's token
_RUNS, _IMAGES, _REPORT = "runs", "pictures", "report.html"
_KIND = "demo"
# Methods by what the report calls them: the smallest result, and the recommended one.
_METHODS = {"textual inversion": "textual-inversion", "LoRA": "lora"}
_SEED_STRIDE = 100  # distance between the first seeds of two prompts
# Style and place: three places and three styles that are not in the subject's training images.
_SUBJECT_PROMPTS = (
    ("photo", "snow"),
    ("photo", "desert"),
    ("photo", "night"),
    ("watercolour", "beach"),
    ("pencil", "forest"),
    ("cartoon", "city"),
)
# Objects and places that are not together in a training image; half of the objects in none.
_STYLE_PROMPTS = (
    ("dog", "beach"),
    ("robot", "city"),
    ("turtle", "desert"),
    ("cat", "meadow"),
    ("house", "forest"),
    ("mug", "room"),
)
_TRANSFER_PROMPTS = (
    "a picture of a dog on the beach",
    "a picture of a house in the forest",
    "a picture of a robot in the city",
    "a picture of a mug in a room",
)


@dataclass(frozen=True)
class DemoSettings:
    """Base model and size of the demo; None takes the method's default."""

    base: str = "pocket"
    steps: int | None = None
    sampling_steps: int = 25
    num_images: int = 2
    full: bool = False


@dataclass(frozen=True)
class _Subject:
    """A subject or style of pocket's world: how it is trained, and real images to compare with.

    `options` are those of its recipes.
    """

    name: str
    options: Mapping[str, object]
    prompts: Sequence[Prompt]
    anchors: Anchors

    def recipe(self, method: str, settings: DemoSettings) -> Recipe:
        """How it is trained by a method."""
        size = {"base": settings.base, "steps": settings.steps, "preview_every": 0}
        return Recipe.model_validate({**size, **self.options, "method": {"name": method}})


def run_demo(
    out: Path, progress: ProgressCallback, settings: DemoSettings | None = None
) -> dict[str, object]:
    """Train, generate, measure, and write runs and `report.html` into `out`; returns the metrics.

    An interrupted demo continues. RunError if `out` contains other files.
    """
    settings, start = settings or DemoSettings(), time.perf_counter()
    check_claim(out, _KIND, _RUNS, _IMAGES)
    model = open_base(settings.base)
    results = evaluate_demo(model, out, progress, settings)
    transfers: list[GridColumn] = []
    if settings.full:
        styles = [result.entrant for result in results["style"].results]
        transfers = transfer_styles(
            model, _TRANSFER_PROMPTS, styles, settings.sampling_steps, progress
        )
    seconds = time.perf_counter() - start
    page = comparison_page(
        [*results.values()],
        "demo.html",
        seconds=seconds,
        transfers=transfers,
        transfer_prompts=_TRANSFER_PROMPTS,
    )
    write_text(out / _REPORT, page)
    metrics: dict[str, object] = {name: group.to_dict() for name, group in results.items()}
    return {**metrics, "seconds": seconds, "report": str(out / _REPORT)}


def evaluate_demo(
    model: Model, out: Path, progress: ProgressCallback, settings: DemoSettings
) -> dict[str, SubjectResults]:
    """The results of the subject and of the style; runs and images are kept in `out`."""
    claim_folder(out, _KIND)
    make_folder(out / _IMAGES)
    sampling = EvaluationSettings(num_images=settings.num_images, steps=settings.sampling_steps)
    evaluator = Evaluator(model, sampling, out / _IMAGES, progress)
    results: dict[str, SubjectResults] = {}
    # Seeds are so far apart that no two images of a subject have the same one.
    stride = _SEED_STRIDE // settings.num_images
    for subject in (_subject(), _style()):
        entrants = _train(model, subject, settings, out / _RUNS, progress)
        seeded = (replace(prompt, seed=stride * at) for at, prompt in enumerate(subject.prompts))
        results[subject.name] = evaluator.evaluate_subject(entrants, subject.anchors, tuple(seeded))
    return results


def train_with_progress(run: Run, model: Model, task: str, progress: ProgressCallback) -> None:
    """Train a new or interrupted run to its end, and report the progress of the task."""
    with closing(run.train(model)) as events:
        for event in events:
            if isinstance(event, Progress):
                progress(replace(event, task=f"{task}: {event.task}"))
            elif isinstance(event, StepResult):
                progress(Progress(task, event.number, event.total, f"loss {event.loss:.3f}"))


def transfer_styles(
    model: Model,
    prompts: Sequence[str],
    styles: Sequence[Entrant],
    steps: int,
    progress: ProgressCallback,
) -> list[GridColumn]:
    """A column of images from text, then one in each style, with the same seeds and control."""
    control = registry.from_table("controls", "same-seed")
    rows: list[list[Image]] = []
    for seed, text in enumerate(prompts):
        request = GenerationRequest(prompt=text, base=model.name, seed=seed, steps=steps)
        generated = generate_images(model, request)
        for style in styles:
            styled = f"{text} in the style of {style.concept.token}"
            changed = request.model_copy(update={"prompt": styled, "controls": (control,)})
            generated += generate_images(model, changed, [style.concept])
        rows.append([one.image for one in generated])
        progress(Progress("transferring images to the style", seed + 1, len(prompts)))
    heads = [("from text", ""), *((style.title, style.concept.token) for style in styles)]
    return [
        GridColumn(title, subtitle, images)
        for (title, subtitle), images in zip(heads, zip(*rows, strict=True), strict=True)
    ]


def _train(
    model: Model, subject: _Subject, settings: DemoSettings, runs: Path, progress: ProgressCallback
) -> list[Entrant]:
    """The entrants of a subject, one for each method; existing runs continue."""
    entrants: list[Entrant] = []
    for name, method in _METHODS.items():
        recipe = subject.recipe(method, settings)
        folder = runs / f"{subject.name}-{method}"
        run = Run.open(folder) if Run.exists(folder) else Run.create(folder, recipe)
        train_with_progress(run, model, f"{method} of {recipe.token}", progress)
        title = f"{recipe.token}, {name}"
        entrants.append(replace(Entrant.from_path(folder, {}), title=title))
    return entrants


def _subject() -> _Subject:
    """The held-out subject."""
    lookalikes, others = (
        tuple(e.image() for e in gallery.other_pictures(gallery.SUBJECT, distractor=distractor))
        for distractor in (True, False)
    )
    texts = [prompt(NOUN, None, place, style) for style, place in _SUBJECT_PROMPTS]
    prompts = [Prompt(text.replace(NOUN, "{}", 1), text, text) for text in texts]
    options = {"images": gallery.folder() / "subject", "token": SUBJECT_TOKEN, "class_noun": NOUN}
    return _Subject("subject", options, prompts, Anchors(lookalikes, others))


def _style() -> _Subject:
    """The held-out style."""
    photos, others = (
        tuple(e.image() for e in gallery.style_pictures(style, 15, _STYLE_PROMPTS))
        for style in ("photo", gallery.STYLE)
    )
    texts = [f"a picture of a {noun} {PLACE_PHRASES[place][0]}" for noun, place in _STYLE_PROMPTS]
    prompts = [
        Prompt(f"{text} in the style of {{}}", text, f"{text} in the style of {gallery.STYLE}")
        for text in texts
    ]
    options = {"images": gallery.folder() / "style", "token": STYLE_TOKEN}
    options |= {"class_noun": STYLE_NOUN, "kind": "style"}
    return _Subject("style", options, prompts, Anchors(photos, others))
