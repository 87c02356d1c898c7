"""All metrics of images of a trained concept, with confidence intervals over prompts."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from pinxit import registry
from pinxit.evaluation.confidence import Interval, Rows, bootstrap
from pinxit.evaluation.findings import background_similarities, compare_backgrounds, near_copies
from pinxit.evaluation.judge import Judge
from pinxit.evaluation.metric import Metric, Scale, relative_position

if TYPE_CHECKING:
    from PIL.Image import Image

MetricIntervals = dict[str, Interval]


def compute_metrics(judge: Judge, images: Sequence["Image"]) -> MetricIntervals:
    """The metrics of images of the judge's prompts, with confidence intervals over prompts."""
    count, prompts, scale = judge.prompt_run.images_per_prompt, judge.prompts, judge.fidelity_scale

    @cache
    def cached_score(metric: Metric) -> list[float]:
        return metric.score(images, scale.references, ())

    metrics = similarity_metrics(judge, cached_score, count)
    scores = judge.metrics.prompt_following.score(
        images, (), [prompt.target_text for prompt in prompts]
    )
    prompt_scores = means_by_prompt(
        [relative_position(score, *judge.prompt_anchors) for score in scores], count
    )
    metrics["prompt"] = bootstrap(prompt_scores)
    if judge.metrics.eyes is None:
        metrics[_raw_name(judge.metrics.prompt_following)] = bootstrap(
            means_by_prompt(scores, count)
        )
    both = np.stack([shares(scale, cached_score(scale.metric), count), prompt_scores], 1)
    metrics["best"] = bootstrap(both, _combined_score)
    if count > 1:
        metrics["variety"] = bootstrap(_variety(judge, images))
    metrics["copies"] = bootstrap(means_by_prompt(near_copies(judge, images), count))
    leaks = background_similarities(judge, images) or [
        bool(leak) for _, leak in compare_backgrounds(judge, images, prompts)
    ]
    if leaks:
        metrics["background"] = bootstrap(means_by_prompt(leaks, count))
    return metrics


def similarity_metrics(
    judge: Judge, scores: Callable[[Metric], Sequence[float]], count: int
) -> MetricIntervals:
    """The similarity of images to the subject: as a share of the scale, and by each metric."""
    scale = judge.fidelity_scale
    raw_values = {
        _raw_name(metric): bootstrap(means_by_prompt(scores(metric), count))
        for metric in (scale.metric, *judge.metrics.other_fidelity)
    }
    return {**raw_values, "likeness": bootstrap(shares(scale, scores(scale.metric), count))}


def _variety(judge: Judge, images: Sequence["Image"]) -> Rows:
    """The mean distance between the images of each prompt."""
    count = judge.prompt_run.images_per_prompt
    return mean_distances(
        judge.metrics.similarity,
        [images[start : start + count] for start in range(0, len(images), count)],
    )


def mean_distances(metric: Metric, groups: Sequence[Sequence["Image"]]) -> Rows:
    """For each group 1 minus the mean similarity of all pairs of its images."""

    def mean_similarity(group: Sequence["Image"]) -> float:
        return fmean(metric.score([a], [b], ())[0] for a, b in combinations(group, 2))

    return np.array([1 - mean_similarity(group) for group in groups], dtype=np.float64)


def shares(scale: Scale, scores: Sequence[float], count: int) -> Rows:
    """Scores as positions on a scale, the mean for each prompt."""
    return means_by_prompt(
        [relative_position(score, scale.floor, scale.ceiling) for score in scores], count
    )


def means_by_prompt(scores: Sequence[float], count: int) -> Rows:
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
