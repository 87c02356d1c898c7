"""The two sections of the demo: a subject and a style, each trained by two methods."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.evaluation.metric import Scale
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.images.folder import read_images
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES, prompt
from pinxit.pocket.world import held_out_subjects
from pinxit.reports.demo.scores import Scores, score_images, style_scales, subject_scales
from pinxit.reports.demo.trial import DemoImage, DemoRunner, TrainedConcept
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from pinxit.pocket.eyes import Eyes

NOUN = held_out_subjects()[gallery.SUBJECT].class_noun
SUBJECT_TOKEN, STYLE_TOKEN = f"<my{NOUN}>", "<mystyle>"
STYLE_NOUN = "painting"  # initializer token of the style's token

# Style and place: three places and three styles that are not in the subject's training images.
_SUBJECT = (
    ("photo", "snow"),
    ("photo", "desert"),
    ("photo", "night"),
    ("watercolour", "beach"),
    ("pencil", "forest"),
    ("cartoon", "city"),
)
# Objects and places that are not together in a training image; half of the objects in none.
_STYLE = (
    ("dog", "beach"),
    ("robot", "city"),
    ("turtle", "desert"),
    ("cat", "meadow"),
    ("house", "forest"),
    ("mug", "room"),
)


_NAMES = {"base": "base model", "dreambooth": "DreamBooth", "lora": "LoRA"}


@dataclass(frozen=True)
class Column:
    """A section's prompts by one method or by the base model: images and scores."""

    title: str
    caption: str
    images: tuple[DemoImage, ...]
    scores: Scores
    trained: TrainedConcept | None = None

    @property
    def name(self) -> str:
        """The column's name on a page."""
        return _NAMES.get(self.title) or self.title.replace("-", " ")

    @property
    def seconds(self) -> float:
        """The mean time for one image."""
        return sum(p.seconds for p in self.images) / len(self.images)


@dataclass(frozen=True)
class Section:
    """A part of the demo's report: a subject or style, its prompts, and a column per method."""

    name: str
    token: str
    class_noun: str
    references: tuple["Image", ...] = field(repr=False)
    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]

    def to_dict(self) -> dict[str, object]:
        """Scores and times of all columns, for JSON."""
        return {
            column.title: {
                **column.scores.to_dict(),
                "learning_seconds": column.trained.seconds if column.trained else 0.0,
                "seconds_a_picture": column.seconds,
            }
            for column in self.columns
        }


@dataclass(frozen=True)
class DemoSettings:
    """Base model and size of the demo; None takes the method's default."""

    base: str = "pocket"
    steps: int | None = None
    class_images: int | None = None
    sampling_steps: int = 25
    num_images: int = 2
    eyes: "Eyes | None" = None
    full: bool = False


def subject_section(
    runner: DemoRunner, settings: DemoSettings, runs: Path, eyes: "Eyes"
) -> Section:
    """The subject by textual inversion and DreamBooth, compared with the base model."""
    subject = gallery.SUBJECT
    references = _references("subject")
    lookalikes, others = (
        [exhibit.image() for exhibit in gallery.other_pictures(subject, distractor=distractor)]
        for distractor in (True, False)
    )
    hidden = held_out_subjects()[subject].hidden().tolist()
    scales = subject_scales(references, lookalikes, others, hidden, eyes)
    plain = [prompt(NOUN, None, place, style) for style, place in _SUBJECT]
    prompts = tuple(Prompt(text.replace(NOUN, "{}", 1), text, text) for text in plain)
    inversion = Recipe(
        method="textual-inversion",  # pyright: ignore[reportArgumentType]
        images=gallery.folder() / "subject",
        token=SUBJECT_TOKEN,
        class_noun=NOUN,
        base=settings.base,
        steps=settings.steps,
        preview_every=0,
    )
    options = {} if settings.class_images is None else {"class_images": settings.class_images}
    method = {"name": "dreambooth", **options}
    dreambooth = Recipe.model_validate({**inversion.model_dump(), "method": method})
    builder = _SectionBuilder(runner, prompts, scales, eyes, runs / "subject")
    columns = (builder.base(f"a {NOUN}"), builder.trained(inversion), builder.trained(dreambooth))
    return Section("subject", SUBJECT_TOKEN, NOUN, references, prompts, columns)


def style_section(runner: DemoRunner, settings: DemoSettings, runs: Path, eyes: "Eyes") -> Section:
    """The style by textual inversion and LoRA, compared with the base model."""
    references = _references("style")
    photos, others = (
        [exhibit.image() for exhibit in gallery.style_pictures(style, 15, _STYLE)]
        for style in ("photo", gallery.STYLE)
    )
    scales = style_scales(references, photos, others)
    plain = [f"a picture of a {noun} {PLACE_PHRASES[place][0]}" for noun, place in _STYLE]
    prompts = tuple(
        Prompt(f"{text} in the style of {{}}", text, f"{text} in the style of {gallery.STYLE}")
        for text in plain
    )
    inversion = Recipe(
        method="textual-inversion",  # pyright: ignore[reportArgumentType]
        images=gallery.folder() / "style",
        token=STYLE_TOKEN,
        class_noun=STYLE_NOUN,
        kind="style",
        base=settings.base,
        steps=settings.steps,
        preview_every=0,
    )
    builder = _SectionBuilder(runner, prompts, scales, eyes, runs / "style")
    lora = Recipe.model_validate({**inversion.model_dump(), "method": "lora"})
    base = builder.base("no style in the prompt")
    columns = (base, builder.trained(inversion), builder.trained(lora))
    return Section("style", STYLE_TOKEN, gallery.STYLE, references, prompts, columns)


@dataclass(frozen=True)
class _SectionBuilder:
    """Makes the columns of a section, which share prompts and metrics."""

    runner: DemoRunner
    prompts: Sequence[Prompt]
    scales: dict[str, Scale]
    eyes: "Eyes"
    runs: Path

    def base(self, caption: str) -> Column:
        """Images of the base model, without the token."""
        return self._column("base", caption, None)

    def trained(self, recipe: Recipe) -> Column:
        """Images with the token, after training it from a recipe."""
        title = recipe.method.name
        trained = self.runner.train(
            recipe, self.runs.with_name(f"{self.runs.name}-{title}"), f"{title} of {recipe.token}"
        )
        return self._column(title, recipe.token, trained)

    def _column(self, title: str, caption: str, trained: TrainedConcept | None) -> Column:
        images = self.runner.generate(
            self.prompts, trained, f"generating the {self.runs.name}: {title}"
        )
        scores = score_images(images, self.scales, self.eyes)
        return Column(title, caption, tuple(images), scores, trained)


def _references(name: str) -> tuple["Image", ...]:
    return tuple(image.open() for image in read_images(gallery.folder() / name))
