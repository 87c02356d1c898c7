"""The two halves of the demo: a subject and a style, each taught by two methods."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.evaluation.metric import Scale
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.images.folder import read_pictures
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES, prompt
from pinxit.pocket.world import held_out_subjects
from pinxit.reports.demo.scores import Scores, judge, style_scales, subject_scales
from pinxit.reports.demo.trial import Easel, Lesson, Painting
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from pinxit.pocket.eyes import Eyes

NOUN = held_out_subjects()[gallery.SUBJECT].class_noun
SUBJECT_TOKEN, STYLE_TOKEN = f"<my{NOUN}>", "<mystyle>"
STYLE_NOUN = "painting"  # what the word for a style starts from

# Three places where the subject was never seen, and three styles it was never seen in.
_SUBJECT = (
    ("photo", "snow"),
    ("photo", "desert"),
    ("photo", "night"),
    ("watercolour", "beach"),
    ("pencil", "forest"),
    ("cartoon", "city"),
)
# Things and places that were not seen together in the style; half of the things not at all.
_STYLE = (
    ("dog", "beach"),
    ("robot", "city"),
    ("turtle", "desert"),
    ("cat", "meadow"),
    ("house", "forest"),
    ("mug", "room"),
)


_NAMES = {"base": "the base", "dreambooth": "DreamBooth", "lora": "LoRA"}


@dataclass(frozen=True)
class Column:
    """What one way of painting made of a chapter's prompts, and what it is worth."""

    title: str
    said: str
    paintings: tuple[Painting, ...]
    scores: Scores
    lesson: Lesson | None = None

    @property
    def name(self) -> str:
        """What to call it on a page."""
        return _NAMES.get(self.title) or self.title.replace("-", " ")

    @property
    def seconds(self) -> float:
        """How long a picture took."""
        return sum(p.seconds for p in self.paintings) / len(self.paintings)


@dataclass(frozen=True)
class Chapter:
    """One word: its pictures, its prompts, and a column for each way of painting them."""

    name: str
    token: str
    meaning: str
    references: tuple["Image", ...] = field(repr=False)
    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]

    def plain(self) -> dict[str, object]:
        """Its scores and times as plain values."""
        return {
            column.title: {
                **column.scores.plain(),
                "learning_seconds": column.lesson.seconds if column.lesson else 0.0,
                "seconds_a_picture": column.seconds,
            }
            for column in self.columns
        }


@dataclass(frozen=True)
class Effort:
    """How much is done: the base, and settings that make the demo shorter where it is tested."""

    base: str = "pocket"
    steps: int | None = None
    prior_pictures: int | None = None
    painting_steps: int = 25
    count: int = 2
    eyes: "Eyes | None" = None
    full: bool = False


def subject_chapter(easel: Easel, effort: Effort, runs: Path, eyes: "Eyes") -> Chapter:
    """The subject, by textual inversion and by DreamBooth, beside what the base paints."""
    who = gallery.SUBJECT
    references = _references("subject")
    lookalikes, others = (
        [exhibit.image() for exhibit in gallery.other_pictures(who, distractor=distractor)]
        for distractor in (True, False)
    )
    hidden = held_out_subjects()[who].hidden().tolist()
    scales = subject_scales(references, lookalikes, others, hidden, eyes)
    plain = [prompt(NOUN, None, place, style) for style, place in _SUBJECT]
    prompts = tuple(Prompt(text.replace(NOUN, "{}", 1), text, text) for text in plain)
    words = Recipe(
        method="textual-inversion",  # pyright: ignore[reportArgumentType]
        pictures=gallery.folder() / "subject",
        token=SUBJECT_TOKEN,
        class_noun=NOUN,
        base=effort.base,
        steps=effort.steps,
        preview_every=0,
    )
    prior = {} if effort.prior_pictures is None else {"prior_pictures": effort.prior_pictures}
    tuned = Recipe.model_validate({**words.model_dump(), "method": {"name": "dreambooth", **prior}})
    chapter = _Writing(easel, prompts, scales, eyes, runs / "subject")
    columns = (chapter.base(f"a {NOUN}"), chapter.learned(words), chapter.learned(tuned))
    return Chapter("subject", SUBJECT_TOKEN, NOUN, references, prompts, columns)


def style_chapter(easel: Easel, effort: Effort, runs: Path, eyes: "Eyes") -> Chapter:
    """The style, by textual inversion and by LoRA, beside what the base paints."""
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
    words = Recipe(
        method="textual-inversion",  # pyright: ignore[reportArgumentType]
        pictures=gallery.folder() / "style",
        token=STYLE_TOKEN,
        class_noun=STYLE_NOUN,
        kind="style",
        base=effort.base,
        steps=effort.steps,
        preview_every=0,
    )
    chapter = _Writing(easel, prompts, scales, eyes, runs / "style")
    lora = Recipe.model_validate({**words.model_dump(), "method": "lora"})
    columns = (chapter.base("no style named"), chapter.learned(words), chapter.learned(lora))
    return Chapter("style", STYLE_TOKEN, gallery.STYLE, references, prompts, columns)


@dataclass(frozen=True)
class _Writing:
    """What all columns of a chapter have in common."""

    easel: Easel
    prompts: Sequence[Prompt]
    scales: dict[str, Scale]
    eyes: "Eyes"
    runs: Path

    def base(self, said: str) -> Column:
        """What the base paints without the word."""
        return self._column("base", said, None)

    def learned(self, recipe: Recipe) -> Column:
        """What a method paints after it has learned the word."""
        title = recipe.method.name
        lesson = self.easel.teach(
            recipe, self.runs.with_name(f"{self.runs.name}-{title}"), f"{title} of {recipe.token}"
        )
        return self._column(title, recipe.token, lesson)

    def _column(self, title: str, said: str, lesson: Lesson | None) -> Column:
        paintings = self.easel.paint(
            self.prompts, lesson, f"painting the {self.runs.name}: {title}"
        )
        scores = judge(paintings, self.scales, self.eyes)
        return Column(title, said, tuple(paintings), scores, lesson)


def _references(name: str) -> tuple["Image", ...]:
    return tuple(picture.open() for picture in read_pictures(gallery.folder() / name))
