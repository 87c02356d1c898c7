"""Metrics of concepts with confidence intervals, compared with real images and the base model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL.Image import Image
from pydantic import field_validator

from pinxit.errors import PinxitError, RequestError
from pinxit.evaluation.confidence import Interval, Rows, bootstrap
from pinxit.evaluation.findings import EmbeddingNorm, Findings, advice
from pinxit.evaluation.judge import (
    CLIP,
    DINO,
    NO_ANCHORS,
    Anchors,
    Judge,
    JudgedSubject,
    MetricSet,
    PromptRun,
    suitable_prompts,
)
from pinxit.evaluation.metric import Scale, real_scores
from pinxit.evaluation.prompt_sets import Prompt, prompt_set, prompt_set_names
from pinxit.evaluation.scoring import (
    MetricIntervals,
    compute_metrics,
    mean_distances,
    similarity_metrics,
)
from pinxit.generation.image_cache import ImageCache
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.options import Option, Options
from pinxit.progress import ProgressCallback
from pinxit.reports.entrant import Entrant
from pinxit.runs.judging import generate_prompts, subject_judge

_NUM_CLASS_IMAGES = 8
# Titles of the anchors: what the metrics are compared with.
REAL, OTHERS, BASE = "real images", "others of the class", "base model without the token"


class EvaluationSettings(Options):
    """How images are generated and measured in an evaluation."""

    error_type: ClassVar[type[PinxitError]] = RequestError
    table_title: ClassVar[str] = "the evaluation"

    prompts: str | None = Option(
        None,
        help=f"prompt set: {', '.join(prompt_set_names())}; or a text file with a prompt on each "
        "line, with {} for the subject",
        default_is="chosen by base model, class noun and kind",
    )
    seed: int = Option(0, ge=0)
    """added to the seed of every image"""
    num_images: int = Option(2, ge=1, aliases=("count", "n"))
    """images per prompt"""
    steps: int = Option(25, ge=1, le=1000, aliases=("num_inference_steps",))
    """denoising steps"""
    dino_model: str | None = Option(
        None, aliases=("dino",), default_is=f"{DINO}; for pocket its own classifier"
    )
    """hub id or folder of the DINO model for subject fidelity"""
    clip_model: str | None = Option(
        None, aliases=("clip",), default_is=f"{CLIP}; for pocket its own classifier"
    )
    """hub id or folder of the CLIP model for prompt fidelity and styles"""

    @field_validator("prompts")
    @classmethod
    def _is_known(cls, prompts: str | None) -> str | None:
        if prompts:
            prompt_set(prompts, "")  # raises RequestError for an unknown set or a wrong file
        return prompts


@dataclass(frozen=True)
class EntrantResult:
    """An entrant's metrics, findings and generated images."""

    entrant: Entrant
    metrics: MetricIntervals
    findings: Findings
    images: tuple[Image, ...] = field(repr=False)
    by_prompt: Mapping[str, Rows]

    @property
    def advice(self) -> list[str]:
        """What is wrong and what to try, as sentences."""
        return advice(self.findings, self.entrant.concept, rising=self.entrant.rising)

    def to_dict(self) -> dict[str, object]:
        """All values but the images, for JSON."""
        norm = self.findings.embedding_norm
        return {
            "token": self.entrant.concept.token,
            "method": self.entrant.method,
            "steps": self.entrant.steps,
            "figures": _as_dicts(self.metrics),
            "by_prompt": {name: rows.tolist() for name, rows in self.by_prompt.items()},
            "word": asdict(norm) if norm else None,
            "said": self.advice,
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

    @property
    def subject(self) -> JudgedSubject:
        """The subject that all entrants have in common."""
        return self.judge.prompt_run.subject

    @property
    def seed_means(self) -> list[tuple[str, MetricIntervals]]:
        """Means over runs that differ in the seed only, with intervals over the runs."""
        groups: dict[object, list[EntrantResult]] = {}
        for result in self.results:
            groups.setdefault(result.entrant.without_seed, []).append(result)
        return [
            (", ".join(one.entrant.title for one in runs), _mean_metrics(runs))
            for runs in groups.values()
            if len(runs) > 1 and not runs[0].entrant.image_files
        ]

    @property
    def differences(self) -> list[tuple[str, str, MetricIntervals]]:
        """For each pair of entrants the mean difference, first minus second, over the prompts.

        The prompts are paired: they are the same, with the same seeds.
        """
        return [
            (
                a.entrant.title,
                b.entrant.title,
                {
                    name: bootstrap(np.subtract(a.by_prompt[name], b.by_prompt[name]))
                    for name in a.by_prompt
                },
            )
            for a, b in combinations(self.results, 2)
        ]

    @property
    def base(self) -> str:
        """The base model that all entrants have in common."""
        return self.results[0].entrant.recipe.base

    def to_dict(self) -> dict[str, object]:
        """All values but the images, for JSON."""
        return {
            "class_noun": self.subject.class_noun,
            "kind": self.subject.kind,
            "base": self.base,
            "pictures": len(self.judge.base_images),
            "no_likeness": self.judge.no_likeness,
            "prompts": [prompt.template for prompt in self.judge.prompt_run.prompts],
            "anchors": {title: _as_dicts(metrics) for title, metrics in self.anchors.items()},
            "seed_means": {title: _as_dicts(means) for title, means in self.seed_means},
            "differences": [
                {"first": a, "second": b, **_as_dicts(values)} for a, b, values in self.differences
            ],
            "runs": {result.entrant.title: result.to_dict() for result in self.results},
        }


def _as_dicts(metrics: MetricIntervals) -> dict[str, dict[str, float]]:
    return {name: asdict(interval) for name, interval in metrics.items()}


def _mean_metrics(results: Sequence[EntrantResult]) -> MetricIntervals:
    """The means of metrics that all results have, with intervals over the results."""
    names = [name for name in results[0].metrics if all(name in one.metrics for one in results)]
    return {
        name: bootstrap(np.array([one.metrics[name].value for one in results])) for name in names
    }


@dataclass(frozen=True)
class Evaluator:
    """Evaluates entrants on a base model; generated images are kept in a folder.

    `base_folder` is the folder for those of the base model, if it is another one. Several processes
    share the prompts, and then read all images from the folder.
    """

    model: Model
    settings: EvaluationSettings
    folder: Path
    progress: ProgressCallback
    ranks: Ranks = ALONE
    base_folder: Path | None = None

    def evaluate_subject(
        self,
        entrants: Sequence[Entrant],
        anchors: Anchors = NO_ANCHORS,
        prompts: tuple[Prompt, ...] = (),
    ) -> SubjectResults:
        """The metrics of entrants of one subject; the prompts are those of the settings, if any."""
        first = entrants[0]
        recipe, settings = first.recipe, self.settings
        metric_set = MetricSet.for_base(
            self.model, recipe.kind, settings.dino_model, settings.clip_model
        )
        if settings.prompts:
            prompts = prompt_set(settings.prompts, recipe.class_noun)
        prompts = prompts or suitable_prompts(self.model, recipe)
        prompts = tuple(replace(prompt, seed=prompt.seed + settings.seed) for prompt in prompts)
        metric_set.check_prompts(prompts)
        prompt_run = PromptRun(recipe, prompts, settings.num_images, settings.steps)
        self._generate(prompt_run, None, ())
        judge = subject_judge(
            self.model,
            recipe,
            first.images,
            folder=self.base_folder or self.folder,
            metrics=metric_set,
            prompt_run=prompt_run,
            anchors=anchors,
        )
        others = self._generate(self._class_prompts(prompt_run), None, ())
        anchor_metrics = _anchor_metrics(judge, anchors, others)
        base = anchor_metrics[BASE]
        results = tuple(
            self._evaluate_entrant(judge, entrant, others, base) for entrant in entrants
        )
        return SubjectResults(judge, anchor_metrics, results)

    def _evaluate_entrant(
        self, judge: Judge, entrant: Entrant, others: Sequence[Image], base: MetricIntervals
    ) -> EntrantResult:
        if entrant.image_files:
            entrant.check_count(len(judge.prompts))
            images = tuple(TrainingImage(file, None, "").open() for file in entrant.image_files)
        else:
            images = self._generate(judge.prompt_run, entrant.concept.token, (entrant,))
        metrics, by_prompt = compute_metrics(judge, images)
        if not all(part.tokens for part in entrant.concept.parts):  # other prompts change too
            class_images = self._generate(self._class_prompts(judge.prompt_run), None, (entrant,))
            # The floor is the base model with the same prompt, however similar its images are.
            scale = Scale.of(judge.metrics.fidelity, judge.fidelity_scale.references, others)
            scores = scale.metric.score(class_images, scale.references, ())
            if scale.separates:
                metrics["drift"] = bootstrap(np.array(scale.relative(scores)))
        elif not entrant.image_files:
            metrics["drift"] = Interval(0, 0, 0)
        findings = replace(
            Findings.of(judge, images, judge.prompts),
            variety=metrics["variety"].value if "variety" in metrics else None,
            base_variety=base["variety"].value if "variety" in base else None,
            drift=metrics["drift"].value if "drift" in metrics else None,
            embedding_norm=EmbeddingNorm.of(entrant.concept, self.model, entrant.recipe.class_noun),
        )
        return EntrantResult(entrant, metrics, findings, images, by_prompt)

    def _generate(
        self, prompt_run: PromptRun, token: str | None, entrants: Sequence[Entrant]
    ) -> tuple[Image, ...]:
        """Images of a prompt run with the entrants' concepts, from the folder where possible."""
        title = entrants[0].title if entrants else prompt_run.subject.class_noun
        num_images = len(prompt_run.prompt_of_each_image)
        task = f"{title}: {token or 'without the token'}, {num_images} images"
        folder = self.folder if entrants else self.base_folder or self.folder
        image_cache = ImageCache(folder, [entrant.concept for entrant in entrants])
        if self.ranks.size > 1:  # each process generates its prompts into the folder
            own = replace(prompt_run, prompts=tuple(self.ranks.share(prompt_run.prompts)))
            generate_prompts(own, self.model, token, image_cache, task, self.progress)
            self.ranks.exchange(None)
        return generate_prompts(prompt_run, self.model, token, image_cache, task, self.progress)

    def _class_prompts(self, prompt_run: PromptRun) -> PromptRun:
        """A prompt with the class noun alone, to measure how much the class has changed."""
        noun = prompt_run.subject.class_noun
        plain = f"a {noun}" if prompt_run.subject.kind == "style" else f"a photo of a {noun}"
        return replace(
            prompt_run,
            prompts=(Prompt(plain, plain, plain, self.settings.seed),),
            images_per_prompt=_NUM_CLASS_IMAGES,
        )


def _anchor_metrics(
    judge: Judge, anchors: Anchors, class_images: Sequence[Image]
) -> dict[str, MetricIntervals]:
    """The metrics of real images, of others of the class, and of the base model."""
    real, similar = judge.fidelity_scale.references, anchors.lookalikes or class_images
    held_out = anchors.held_out_images
    metrics = {
        REAL: similarity_metrics(judge, lambda metric: real_scores(metric, real, held_out), 1),
        OTHERS: similarity_metrics(judge, lambda metric: metric.score(similar, real, ()), 1),
        BASE: compute_metrics(judge, judge.base_images)[0],
    }
    if len(judge.training_images) > 1:
        distances = mean_distances(judge.metrics.similarity, [judge.training_images])
        metrics[REAL]["variety"] = bootstrap(distances)
    return metrics
