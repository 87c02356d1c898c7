"""The functions for Python programs and notebooks: they show progress and take a callback."""

import gc
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from pinxit.arguments import checked
from pinxit.cli.notebook import NotebookOutput, in_notebook
from pinxit.cli.screen import bars, say
from pinxit.cli.train_run import RunDisplay, best_step_lines, read_and_check_images, stop_message
from pinxit.concepts import lora_fuse, lora_tools
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import convert_concept, prepare_output
from pinxit.concepts.layer_errors import group_errors
from pinxit.concepts.low_rank import RankLimit
from pinxit.concepts.read import ConceptReference
from pinxit.concepts.summary import summarize
from pinxit.errors import ConceptError
from pinxit.generation.control import SamplingProgress
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import opened_request, sample_images
from pinxit.images.folder import release_pixels
from pinxit.models.device import release_unused_memory
from pinxit.models.kernels.cpu import release_freed_memory
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.progress import Notice, ProgressCallback
from pinxit.reports.comparison import evaluate as evaluate_concepts
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs.events import Event, Preview
from pinxit.runs.file_names import PREVIEWS
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe

Precision = Literal["fp32", "fp16", "bf16"]  # of the weights in a converted file
Files = Sequence[Run | Path | str] | Run | Path | str
GenerationEvent = Notice | SamplingProgress | GeneratedImage
# Recipe options that may be given for all concepts of an evaluation.
_RECIPE_OPTIONS = ("images", "class_noun", "base")


@checked
def train(
    model: Model,
    recipe: Recipe,
    folder: Path | str,
    callback: Callable[["Event"], object] | None = None,  # quoted: `help` shows this name
    *,
    quiet: bool = False,
) -> Run:
    """Train a concept from a recipe in a new folder, which then has everything about the run.

    A terminal shows a progress bar, a notebook also the preview images. `callback` receives each
    event of the run (`pinxit.runs.events`) after it is on the disk. If it raises an exception,
    or with Ctrl-C, training stops, all steps are saved, and `resume` continues. Raises RunError if
    the folder is not empty, ImageError for images that cannot be read, and RecipeError for options
    that do not fit the base model.
    """
    return _train(Run.create(folder, recipe), model, callback, quiet=quiet)


@checked
def resume(
    folder: Path | str,
    model: Model | None = None,
    callback: Callable[["Event"], object] | None = None,
    *,
    steps: int | None = None,
    images: Path | str | None = None,
    quiet: bool = False,
) -> Run:
    """Continue a run from its last checkpoint, also to another number of steps.

    Without a `model`, the base model of the run is opened. `images` says where the training images
    are if they were moved. Raises RunError if the folder is not a run's.
    """
    run = Run.open(folder, steps, Path(images) if images else None)
    recipe, precision = run.recipe, run.recipe.precision or "auto"
    model = model or open_base(
        recipe.base, precision=precision, vae=recipe.vae, text_encoders=recipe.text_encoders
    )
    return _train(run, model, callback, quiet=quiet)


@checked
def generate(
    model: Model,
    request: GenerationRequest | str,
    concepts: Sequence[Concept | Run | Path | str] | Concept | Run | Path | str = (),
    callback: Callable[["GenerationEvent"], object] | None = None,
    *,
    quiet: bool = False,
    **options: object,
) -> list[GeneratedImage]:
    """Generate images from a prompt or a request.

    `concepts` are runs, run folders or files (`FILE:0.7` scales a LoRA by 0.7), one or several.
    `options` are those of `GenerationRequest`, such as `steps`, `seed` and `num_images`.
    `callback` receives notices, progress and images. Raises RequestError for wrong options and
    ConceptError for concepts that do not fit the model.
    """
    several = [concepts] if isinstance(concepts, Concept | Run | Path | str) else concepts
    events = sample_images(model, *opened_request(request, several, **options))
    images: list[GeneratedImage] = []
    with closing(events), bars(visible=not quiet) as progress:
        for event in events:
            if isinstance(event, SamplingProgress):
                progress(event)
            elif isinstance(event, GeneratedImage):
                images.append(event)
            elif not quiet:
                say(f"note: {event.message}")
            if callback:
                callback(event)
    return images


@checked
def evaluate(
    concepts: Iterable[Run | Path | str] | Run | Path | str,
    out: Path | str = "evaluation",
    model: Model | None = None,
    *,
    quiet: bool = False,
    **options: object,
) -> dict[str, object]:
    """Generate images with one or several concepts, measure them, and write one report.

    `options` are those of `EvaluationSettings`, and `images`, `class_noun` and `base` in place of
    those of the runs. Without a `model`, the base models of the concepts are opened. Returns the
    metrics, and under "report" the path of the page. Raises RunError if `out` has other files.
    """
    overrides = {name: value for name, value in options.items() if name in _RECIPE_OPTIONS}
    settings = {name: value for name, value in options.items() if name not in _RECIPE_OPTIONS}
    files = _paths(concepts)
    with bars(visible=not quiet) as progress:
        return evaluate_concepts(
            files,
            Path(out),
            lambda recipe: (
                model or open_base(recipe.base, vae=recipe.vae, text_encoders=recipe.text_encoders)
            ),
            progress,
            EvaluationSettings.model_validate(settings),
            overrides,
        )


@checked
def convert(
    concept: Run | Path | str,
    out: Path | str,
    format: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    *,
    separate_embeddings: bool = False,
) -> Path:
    """Write a concept in the file format of another program; without `format`, by the suffix.

    `base` completes a full model, and `precision` is the number format of its weights. With
    `separate_embeddings`, the embeddings of a LoRA are written to files of their own beside it.
    Raises ConceptError if the format cannot store the concept, or if `out` exists.
    """
    separate = separate_embeddings
    convert_concept(Path(concept), Path(out), format, base, precision, separate_embeddings=separate)
    return Path(out)


@checked
def merge_loras(
    loras: Files,
    out: Path | str,
    rank: int | None = None,
    energy: float | None = None,
    base: str | None = None,
    format: str | None = None,
    precision: Precision | None = None,
) -> dict[str, float]:
    """Merge LoRAs into one file; `FILE:0.7` scales one by 0.7. One LoRA with a `rank` is resized.

    Without `rank` (the largest rank of a layer) and `energy` (the share of the squared singular
    values to keep) the result is exact. `base` is needed for DoRA, LoHa, LoKr and OFT. `format`
    and `precision` are as in `convert`. Returns the relative error for each group of layers, and
    for "all". Raises ConceptError as `convert` does.
    """
    references = [ConceptReference.parse(lora) for lora in _paths(loras)]
    limit = RankLimit(rank, energy)
    prepare_output(Path(out), format, "adapters")
    concept, errors = lora_tools.merge_loras(references, limit, base)
    lora_tools.write_lora(concept, Path(out), format, precision)
    return group_errors(errors)


@checked
def fuse_loras(
    loras: Files,
    out: Path | str,
    base: str | None = None,
    format: str | None = None,
    precision: Precision | None = None,
) -> Path:
    """Merge LoRAs into the weights of a base model: a checkpoint file, or a diffusers folder.

    Without `base`, it is the one that the first LoRA was trained on. Raises ConceptError if a LoRA
    does not fit it, or if `out` exists.
    """
    references = [ConceptReference.parse(lora) for lora in _paths(loras)]
    prepare_output(Path(out), format, "full weights")
    lora_fuse.fuse_loras(references, Path(out), base, format, precision)
    return Path(out)


@checked
def extract_lora(  # noqa: PLR0913 (those of merge_loras, and one)
    tuned: Run | Path | str,
    out: Path | str,
    rank: int | None = None,
    energy: float | None = None,
    base: str | None = None,
    format: str | None = None,
    precision: Precision | None = None,
    *,
    all_weights: bool = False,
) -> dict[str, float]:
    """Write the difference between a fine-tuned model and its base model as a LoRA.

    The other arguments and the result are as in `merge_loras`; `all_weights` stores the changes
    of biases, norms and embeddings too. Raises ConceptError if the models do not match.
    """
    limit = RankLimit(rank, energy)
    prepare_output(Path(out), format, "adapters")
    concept, errors, _ = lora_tools.extract_lora(Path(tuned), limit, base, all_weights=all_weights)
    lora_tools.write_lora(concept, Path(out), format, precision)
    return group_errors(errors)


@checked
def inspect_file(file: Run | Path | str, base: str | None = None) -> dict[str, str]:
    """What a concept file contains, what it fits, how it was trained, and its problems, by label.

    With `base` also the embedding norms of that base model. Raises ConceptError or FileError if
    the file contains no concept.
    """
    rows: dict[str, str] = {}
    for label, text in summarize(Path(file), base):
        rows[label] = f"{rows[label]}; {text}" if label in rows else text
    return rows


def _paths(concepts: Iterable[Run | Path | str] | Run | Path | str) -> list[Path]:
    several = [concepts] if isinstance(concepts, Run | Path | str) else list(concepts)
    if not several:
        raise ConceptError("there is no concept", "give one or several runs or files")
    return [Path(one) for one in several]


def _train(
    run: Run, model: Model, callback: Callable[[Event], object] | None, *, quiet: bool
) -> Run:
    images = () if quiet else read_and_check_images(run)
    with closing(run.train(model, images)) as events, bars(visible=not quiet) as progress:
        try:
            for event in events if quiet else _shown(run, events, progress):
                if callback:
                    callback(event)
        except KeyboardInterrupt:
            events.close()
            say(*stop_message(run))
            raise
        finally:
            _free_memory(run)
    if not quiet:
        say(*best_step_lines(run.state))
    return run


def _free_memory(run: Run) -> None:
    """Give back what training needed: a notebook keeps its runs, and trains several."""
    release_pixels(run.images)
    run.judge = None
    gc.collect()
    release_unused_memory()
    release_freed_memory()


def _shown(run: Run, events: Iterable[Event], progress: ProgressCallback) -> Generator[Event]:
    """Show the events of a run while they pass."""
    display, preview = RunDisplay({run: ""}), NotebookOutput()
    for event in events:
        display.show(run, event, progress)
        if isinstance(event, Preview) and in_notebook():
            file = run.folder / PREVIEWS / event.path.name
            preview.show_image(file, f"preview images of step {event.step}")
        yield event
