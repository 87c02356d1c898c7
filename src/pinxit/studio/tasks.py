"""What a worker does for each kind of job. A task yields its events; closing it stops it."""

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import convert_concept
from pinxit.concepts.read import ConceptReference, read_concept
from pinxit.concepts.summary import summarize
from pinxit.errors import ConceptError
from pinxit.evaluation.judge import suitable_prompts
from pinxit.evaluation.prompt_sets import evenly_spaced
from pinxit.files.atomic_write import make_folder, sha256, write_text
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import sample_images
from pinxit.images.crop import bucket_for
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.open_base import Bases
from pinxit.models.prompt import file_name
from pinxit.progress import Notice, Progress
from pinxit.reports.comparison import evaluate
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs.events import Preview
from pinxit.runs.file_names import RECIPE
from pinxit.runs.judging import NUM_PROMPTS
from pinxit.runs.run import Run
from pinxit.studio.jobs import Job
from pinxit.studio.views import TrainingView
from pinxit.studio.workspace import TOKENS, Workspace
from pinxit.training.recipe import Recipe
from pinxit.training.texts import text_with_tokens, training_texts

# None only offers to stop.
Task = Generator[Progress | Notice | None]


class _StoppedError(Exception):
    """A comparison is to stop; its images stay, and it continues with them later."""


@dataclass
class Tasks:
    """Runs jobs on one device; base models stay open between them.

    A base model is only ever that of a job: a concept's file could name anything.
    """

    workspace: Workspace
    device: str
    bases: Bases = field(default_factory=Bases)

    def start(self, job: Job) -> Task:
        """The task of a job. Its results are in the workspace; PinxitError if it fails."""
        tasks = {
            "train": self._train,
            "generate": self._generate,
            "inspect": self._inspect,
            "convert": self._convert,
            "compare": self._compare,
            "texts": self._texts,
            "drift": self._drift,
        }
        return tasks[job.kind](job)

    def _train(self, job: Job) -> Task:
        folder, recipe = self.workspace.folder / "runs" / job.id, self._recipe(job)
        if Run.exists(folder):
            run = Run.open(folder, images=recipe.images)
        else:
            run = Run.create(folder, recipe)
        model = yield from self._opened(run.recipe)
        with closing(run.train(model)) as events:
            for event in events:  # the run has its own log
                if isinstance(event, Preview):
                    job.drop_preview_request()
                run.preview_now = job.preview_requested
                yield None
        if self.workspace.concept_file(job):
            self._write_tokens(job, self._concept(job.id))
        if cost := TrainingView(job, self.workspace.run(job)).cost:
            method, base = registry.name_of(type(run.recipe.method)), job.options["recipe"]["base"]
            file = self.workspace.cost_file(base, method, self.device)
            make_folder(file.parent)
            write_text(file, f"last time: {cost}")

    def _generate(self, job: Job) -> Task:
        options = dict(job.options["request"])
        strengths = job.options.get("strengths", {})
        options["concepts"] = [  # each image says what it was generated with
            self._reference(number, strengths.get(number, 1.0))
            for number in job.options["concepts"]
        ]
        source = None
        if image := options.pop("image", None):
            source = self.workspace.images_of(image).files[0]
            options["controls"] = [{**options.pop("control"), "image": source}]
        request = GenerationRequest.model_validate(options)
        concepts = [reference.open() for reference in request.concepts]
        model = yield from self._opened(request)
        if source and not request.width:  # the size of the image, as the base model can generate it
            size = TrainingImage(source, None, "").open().size
            width, height = bucket_for(size, model.default_size, model.size_multiple)
            request = request.model_copy(update={"width": width, "height": height})
        folder = self.workspace.folder / "generated" / job.id
        make_folder(folder)
        for place, seed in enumerate(request.seeds):
            out = folder / f"{place:04}.png"
            if not out.is_file():
                one = request.model_copy(update={"seed": seed, "num_images": 1})
                yield from _sample(model, one, concepts, out, job.folder / "report.json")

    def _inspect(self, job: Job) -> Task:
        yield Progress("reading the file", 0, 1)
        file = self._concept_path(job.id)
        # What to type in a shell, with the path of the studio's copy, is of no use in the page.
        rows = [(label, text.partition(", with --")[0]) for label, text in summarize(file)]
        rows.append(("SHA-256", sha256(file)))
        concept = read_concept(file)
        report = {"rows": rows, "token": concept.token, "has_strength": concept.has_strength}
        write_text(job.folder / "report.json", json.dumps(report))
        self._write_tokens(job, concept)

    def _write_tokens(self, job: Job, concept: Concept) -> None:
        """Write what each token of a concept stands for: a text, or a number of vectors."""
        meanings = {
            token: (part.prompt_text, len(next(iter(part.tensors.values()), ())))
            for part in concept.parts
            for token in part.tokens
        }
        write_text(job.folder / TOKENS, json.dumps(meanings))

    def _convert(self, job: Job) -> Task:
        yield Progress("converting", 0, 1)
        source, name = job.options["concept"], job.options["format"]
        concept = self._concept(source)
        suffix = registry.load("formats", name).suffixes[0] if name else ".safetensors"
        folder = self.workspace.folder / "files" / job.id
        make_folder(folder)
        out = folder / f"{file_name(concept.token) or 'concept'}{suffix}"
        out.unlink(missing_ok=True)  # of an attempt that was killed before it was recorded
        convert_concept(self._concept_path(source), out, name or None)

    def _compare(self, job: Job) -> Task:
        paths = [self._concept_path(number) for number in job.options["concepts"]]
        runs = [path.parent if (path.parent / RECIPE).is_file() else path for path in paths]
        yield Progress("comparing", 0, 1)

        def report(progress: Progress) -> None:
            job.log.append(progress)
            if job.stop_requested:
                raise _StoppedError

        try:
            evaluate(
                runs,
                self.workspace.folder / "generated" / job.id,
                lambda recipe: self.bases.open(recipe.base, self.device),
                report,
                EvaluationSettings(),
            )
        except _StoppedError:
            while job.stop_requested:  # until the worker sees it
                yield None

    def _texts(self, job: Job) -> Task:
        recipe = self._recipe(job)
        model = yield from self._opened(recipe)
        yield Progress("tokenizing", 0, 1)
        texts = training_texts(model, recipe, recipe.read_images())
        write_text(job.folder / "report.json", json.dumps(texts))

    def _drift(self, job: Job) -> Task:
        """Generate the prompts of a training's previews without its token, and with its weights."""
        training = self.workspace.job(job.options["concept"])
        recipe = Recipe.model_validate(training.options["recipe"])
        reference = self._reference(training.id)
        concept = reference.open()
        model = yield from self._opened(recipe)
        prompts = evenly_spaced(suitable_prompts(model, recipe), NUM_PROMPTS)
        folder = self.workspace.folder / "generated" / job.id
        for place, prompt in enumerate(prompts):
            request = GenerationRequest(
                prompt=prompt.plain,
                concepts=(reference,),
                base=recipe.base,
                seed=prompt.seed,
                num_images=1,
                width=recipe.resolution,
                clip_skip=recipe.clip_skip,
            )
            out = folder / f"{place:04}.png"
            make_folder(folder)
            if not out.is_file():
                yield from _sample(model, request, [concept], out)

    def _opened(self, options: Recipe | GenerationRequest) -> Generator[Progress, None, Model]:
        """Open a base model; yields that it is being opened."""
        yield Progress(f"opening the base model {options.base}", 0, 1)
        precision = options.precision or "auto"
        return self.bases.open(
            options.base, self.device, precision, options.vae, options.text_encoders
        )

    def _recipe(self, job: Job) -> Recipe:
        """The recipe of a job, with its images where they are if the studio was moved."""
        recipe = dict(job.options["recipe"])
        if number := job.options.get("snapshot") or job.options.get("images"):
            recipe["images"] = self.workspace.images_of(number).folder.resolve()
        return Recipe.model_validate(recipe)

    def _concept(self, number: str) -> Concept:
        return read_concept(self._concept_path(number))

    def _reference(self, number: str, strength: float = 1.0) -> ConceptReference:
        return ConceptReference(self._concept_path(number).resolve(), strength)

    def _concept_path(self, number: str) -> Path:
        path = self.workspace.concept_file(self.workspace.job(number))
        if path is None:
            raise ConceptError(f"job {number} has no concept", "train it, or open its file again")
        return path


def _sample(
    model: Model,
    request: GenerationRequest,
    concepts: list[Concept],
    out: Path,
    report: Path | None = None,
) -> Task:
    """Generate one image into a file; a new `report` gets the tokens of its prompt."""
    with closing(sample_images(model, request, concepts)) as events:
        for event in events:
            if report and not report.is_file():  # the model knows the concepts' tokens only here
                tokens = text_with_tokens(model, request.prompt, request.prompt_parsing)
                write_text(report, json.dumps({"prompt": tokens}))
            if isinstance(event, GeneratedImage):
                event.save(out)
                yield None
            elif isinstance(event, Notice):
                yield event
            else:
                yield Progress(f"generating image {int(out.stem) + 1}", event.done, event.total)
