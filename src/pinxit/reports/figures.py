"""Metrics of concepts with confidence intervals, compared with real images and the base model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pinxit import registry
from pinxit.errors import PinxitError, RequestError
from pinxit.evaluation.confidence import Interval, Rows, bootstrap
from pinxit.evaluation.findings import (
    EmbeddingNorm,
    Findings,
    advice,
    background_similarities,
    compare_backgrounds,
    near_copies,
)
from pinxit.evaluation.judge import (
    CLIP,
    DINO,
    Anchors,
    Judge,
    MetricSet,
    PromptRun,
    suitable_prompts,
)
from pinxit.evaluation.metric import Metric, Scale, leave_one_out_scores, relative_position
from pinxit.evaluation.prompt_sets import Prompt, prompt_set, prompt_set_names
from pinxit.generation.image_cache import ImageCache
from pinxit.models.model import Model
from pinxit.options import Option, Options
from pinxit.progress import ProgressCallback
from pinxit.reports.entrant import Entrant

if TYPE_CHECKING:
    from PIL.Image import Image

MetricIntervals = dict[str, Interval]
_NUM_CLASS_IMAGES = 8
# Titles of the anchors: what the metrics are compared with.
REAL, OTHERS, BASE = "real images", "others of the class", "base model without the token"


class EvaluationSettings(Options):
    """How images are generated and cached_score in an evaluation."""

    error_type: ClassVar[type[PinxitError]] = RequestError

    prompts: str | None = Option(
        None,
        help=f"prompt set: {', '.join(prompt_set_names())}",
        default_is="chosen by base model, class noun and kind",
    )
    num_images: int = Option(2, ge=1, help="images per prompt", aliases=("count",))
    steps: int = Option(25, ge=1, le=1000, help="denoising steps", aliases=("num_inference_steps",))
    dino_model: str = Option(
        DINO, help="hub id or folder of the DINO model for subject fidelity", aliases=("dino",)
    )
    clip_model: str = Option(
        CLIP, help="hub id or folder of the CLIP model for prompt fidelity", aliases=("clip",)
    )


@dataclass(frozen=True)
class EntrantResult:
    """An entrant's metrics, findings and generated images."""

    entrant: Entrant
    metrics: MetricIntervals
    findings: Findings
    images: tuple["Image", ...] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """All values but the images, for JSON."""
        norm = self.findings.embedding_norm
        return {
            "token": self.entrant.concept.token,
            "method": self.entrant.method,
            "steps": self.entrant.steps,
            "figures": {name: asdict(metric) for name, metric in self.metrics.items()},
            "word": asdict(norm) if norm else None,
            "said": advice(self.findings),
        }


@dataclass(frozen=True)
class SubjectResults:
    """Results of the entrants of one subject, measured with the same images and base model.

    `anchors` are metrics to compare with: of real images, of others of the class, and of the base
    model without the token.
    """

    judge: Judge
    anchors: Mapping[str, MetricIntervals]
    results: tuple[EntrantResult, ...]

    def to_dict(self) -> dict[str, object]:
        """All values but the images, for JSON."""
        subject = self.judge.prompt_run.subject
        anchors = {
            title: {name: asdict(metric) for name, metric in metrics.items()}
            for title, metrics in self.anchors.items()
        }
        return {
            "class_noun": subject.class_noun,
            "kind": subject.kind,
            "base": self.results[0].entrant.recipe.base,
            "pictures": len(self.judge.base_images),
            "anchors": anchors,
            "runs": {result.entrant.title: result.to_dict() for result in self.results},
        }


@dataclass(frozen=True)
class Evaluator:
    """Evaluates entrants on a base model; generated images are kept in a folder."""

    model: Model
    settings: EvaluationSettings
    folder: Path
    progress: ProgressCallback

    def evaluate_subject(
        self, entrants: Sequence[Entrant], lookalikes: Sequence["Image"] = ()
    ) -> SubjectResults:
        """The metrics of entrants of one subject; `lookalikes` are images of similar subjects."""
        first = entrants[0]
        recipe, settings = first.recipe, self.settings
        metric_set = MetricSet.for_base(
            self.model, recipe.kind, settings.dino_model, settings.clip_model
        )
        chosen = settings.prompts and prompt_set(settings.prompts, recipe.class_noun)
        prompts = chosen or suitable_prompts(self.model, recipe)
        prompt_run = PromptRun(recipe, prompts, settings.num_images, settings.steps)
        self._generate(prompt_run, None, ())
        judge = Judge.for_subject(
            self.model,
            recipe,
            first.images,
            folder=self.folder,
            metrics=metric_set,
            prompt_run=prompt_run,
            anchors=Anchors(tuple(lookalikes)),
        )
        others = self._generate(self._class_prompts(prompt_run), None, ())
        real, similar = judge.fidelity_scale.references, lookalikes or others
        anchors = {
            REAL: _similarities(judge, lambda metric: leave_one_out_scores(metric, real), 1),
            OTHERS: _similarities(judge, lambda m: m.score(similar, real, ()), 1),
            BASE: compute_metrics(judge, judge.base_images),
        }
        if len(judge.training_images) > 1:
            pairs = _mean_distances(metric_set.similarity, [judge.training_images])
            anchors[REAL]["variety"] = bootstrap(pairs)
        base = anchors[BASE]
        results = tuple(
            self._evaluate_entrant(judge, entrant, others, base) for entrant in entrants
        )
        return SubjectResults(judge, anchors, results)

    def _evaluate_entrant(
        self, judge: Judge, entrant: Entrant, others: Sequence["Image"], base: MetricIntervals
    ) -> EntrantResult:
        images = self._generate(judge.prompt_run, entrant.concept.token, (entrant,))
        metrics = compute_metrics(judge, images)
        metrics["drift"] = Interval(0, 0, 0)
        if not entrant.changes_only_token:
            class_images = self._generate(self._class_prompts(judge.prompt_run), None, (entrant,))
            # The floor is the base model with the same prompt, however similar its images are.
            scale = Scale.of(judge.metrics.fidelity, judge.fidelity_scale.references, others)
            scores = scale.metric.score(class_images, scale.references, ())
            metrics["drift"] = bootstrap(_shares(scale, scores, 1))
        findings = replace(
            Findings.of(judge, images, judge.prompts),
            variety=metrics["variety"].value if "variety" in metrics else None,
            base_variety=base["variety"].value if "variety" in base else None,
            drift=metrics["drift"].value,
            embedding_norm=EmbeddingNorm.of(entrant.concept, self.model, entrant.recipe.class_noun),
        )
        return EntrantResult(entrant, metrics, findings, images)

    def _generate(
        self, prompt_run: PromptRun, token: str | None, entrants: Sequence[Entrant]
    ) -> "tuple[Image, ...]":
        """Images of a prompt run with the entrants' concepts, from the folder where possible."""
        title = entrants[0].title if entrants else prompt_run.subject.class_noun
        num_images = len(prompt_run.prompt_of_each_image)
        task = f"{title}: {token or 'without the token'}, {num_images} images"
        image_cache = ImageCache(self.folder, [entrant.concept for entrant in entrants])
        return prompt_run.generate(self.model, token, image_cache, task, self.progress)

    def _class_prompts(self, prompt_run: PromptRun) -> PromptRun:
        """A prompt with the class noun alone, to measure how much the class has changed."""
        noun = prompt_run.subject.class_noun
        plain = f"a {noun}" if prompt_run.subject.kind == "style" else f"a photo of a {noun}"
        return replace(
            prompt_run, prompts=(Prompt(plain, plain, plain),), images_per_prompt=_NUM_CLASS_IMAGES
        )


def compute_metrics(judge: Judge, images: Sequence["Image"]) -> MetricIntervals:
    """The metrics of images of the judge's prompts, with confidence intervals over prompts."""
    count, prompts, scale = judge.prompt_run.images_per_prompt, judge.prompts, judge.fidelity_scale

    @cache
    def cached_score(metric: Metric) -> list[float]:
        return metric.score(images, scale.references, ())

    metrics = _similarities(judge, cached_score, count)
    scores = judge.metrics.prompt_following.score(
        images, (), [prompt.target_text for prompt in prompts]
    )
    prompt_scores = _by_prompt(
        [relative_position(score, *judge.prompt_anchors) for score in scores], count
    )
    metrics["prompt"] = bootstrap(prompt_scores)
    if judge.metrics.eyes is None:
        metrics[_raw_name(judge.metrics.prompt_following)] = bootstrap(_by_prompt(scores, count))
    shares = np.stack([_shares(scale, cached_score(scale.metric), count), prompt_scores], 1)
    metrics["best"] = bootstrap(shares, _combined_score)
    if count > 1:
        metrics["variety"] = bootstrap(_variety(judge, images))
    metrics["copies"] = bootstrap(_by_prompt(near_copies(judge, images), count))
    leaks = background_similarities(judge, images) or [
        bool(leak) for _, leak in compare_backgrounds(judge, images, prompts)
    ]
    if leaks:
        metrics["background"] = bootstrap(_by_prompt(leaks, count))
    return metrics


def _similarities(
    judge: Judge, scores: Callable[[Metric], Sequence[float]], count: int
) -> MetricIntervals:
    """The similarity of images to the subject: as a share of the scale, and by each metric."""
    scale = judge.fidelity_scale
    raw_values = {
        _raw_name(metric): bootstrap(_by_prompt(scores(metric), count))
        for metric in (scale.metric, *judge.metrics.other_fidelity)
    }
    return {**raw_values, "likeness": bootstrap(_shares(scale, scores(scale.metric), count))}


def _variety(judge: Judge, images: Sequence["Image"]) -> Rows:
    """The mean distance between the images of each prompt."""
    count = judge.prompt_run.images_per_prompt
    return _mean_distances(
        judge.metrics.similarity,
        [images[start : start + count] for start in range(0, len(images), count)],
    )


def _mean_distances(metric: Metric, groups: Sequence[Sequence["Image"]]) -> Rows:
    """For each group 1 minus the mean similarity of all pairs of its images."""

    def mean_similarity(group: Sequence["Image"]) -> float:
        return fmean(metric.score([a], [b], ())[0] for a, b in combinations(group, 2))

    return np.array([1 - mean_similarity(group) for group in groups], dtype=np.float64)


def _shares(scale: Scale, scores: Sequence[float], count: int) -> Rows:
    return _by_prompt(
        [relative_position(score, scale.floor, scale.ceiling) for score in scores], count
    )


def _by_prompt(scores: Sequence[float], count: int) -> Rows:
    """The mean over each prompt's images: they are not independent, so prompts are resampled."""
    groups = [scores[start : start + count] for start in range(0, len(scores), count)]
    return np.array([fmean(group) for group in groups], dtype=np.float64)


def _combined_score(rows: Rows) -> float:
    """The geometric mean of likeness and prompt fidelity, as `JudgeScore` defines it."""
    likeness, prompt = rows.mean(0).clip(0, 1)
    return math.sqrt(likeness * prompt)


def _raw_name(metric: Metric) -> str:
    """The name of a metric's raw value, which is not a share of a scale."""
    return f"raw {registry.name_of(type(metric))}"
