"""All metrics of images of a trained concept, with confidence intervals over prompts."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from statistics import fmean
from typing import TypeVar

import numpy as np

from pinxit import registry
from pinxit.evaluation.confidence import Interval, Rows, bootstrap
from pinxit.evaluation.findings import background_similarities, compare_backgrounds, near_copies
from pinxit.evaluation.judge import Judge
from pinxit.evaluation.metric import Images, Metric, relative_position

MetricIntervals = dict[str, Interval]
_T = TypeVar("_T")


def compute_metrics(judge: Judge, images: Images) -> tuple[MetricIntervals, dict[str, Rows]]:
    """The metrics of images of the judge's prompts, with confidence intervals over prompts.

    Also prompt fidelity, and likeness if it is measured, as the mean of each prompt's images.
    """
    count, prompts, scale = judge.prompt_run.images_per_prompt, judge.prompts, judge.fidelity_scale

    @cache
    def cached_score(metric: Metric) -> list[float]:
        return metric.score(images, scale.references, ())

    metrics = similarity_metrics(judge, cached_score, count)
    scores = judge.prompt_scores(images, prompts)
    positions = [relative_position(score, *judge.prompt_anchors) for score in scores]
    by_prompt = {"prompt": means_by_prompt(positions, count)}
    metrics["prompt"] = bootstrap(by_prompt["prompt"])
    if judge.metrics.eyes is None:
        name = _raw_name(judge.metrics.prompt_following)
        metrics[name] = bootstrap(means_by_prompt(scores, count))
    if scale.separates:
        by_prompt["likeness"] = means_by_prompt(scale.relative(cached_score(scale.metric)), count)
        both = np.stack([by_prompt["likeness"], by_prompt["prompt"]], 1)
        metrics["best"] = bootstrap(both, _combined_score)
    if count > 1:
        groups = _by_prompt(images, count)
        metrics["variety"] = bootstrap(mean_distances(judge.metrics.similarity, groups))
    metrics["copies"] = bootstrap(means_by_prompt(near_copies(judge, images), count))
    leaks = background_similarities(judge, images) or [
        bool(leak) for _, leak in compare_backgrounds(judge, images, prompts)
    ]
    if leaks:
        metrics["background"] = bootstrap(means_by_prompt(leaks, count))
    return metrics, by_prompt


def similarity_metrics(
    judge: Judge, scores: Callable[[Metric], Sequence[float]], count: int
) -> MetricIntervals:
    """The similarity of images to the subject by each metric, and as a share of the scale.

    There is no share if the scale does not separate real images from others.
    """
    scale = judge.fidelity_scale
    raw_values = {
        _raw_name(metric): bootstrap(means_by_prompt(scores(metric), count))
        for metric in (scale.metric, *judge.metrics.other_fidelity)
    }
    if not scale.separates:
        return raw_values
    shares = means_by_prompt(scale.relative(scores(scale.metric)), count)
    return {**raw_values, "likeness": bootstrap(shares)}


def mean_distances(metric: Metric, groups: Sequence[Images]) -> Rows:
    """For each group 1 minus the mean similarity of all pairs of its images."""

    def mean_similarity(group: Images) -> float:
        return fmean(metric.score([a], [b], ())[0] for a, b in combinations(group, 2))

    return np.array([1 - mean_similarity(group) for group in groups], dtype=np.float64)


def means_by_prompt(scores: Sequence[float], count: int) -> Rows:
    """The mean over each prompt's images: they are not independent, so prompts are resampled."""
    return np.array([fmean(group) for group in _by_prompt(scores, count)], dtype=np.float64)


def _by_prompt(items: Sequence[_T], count: int) -> list[Sequence[_T]]:
    """The items of each prompt, which has `count` of them."""
    return [items[start : start + count] for start in range(0, len(items), count)]


def _combined_score(rows: Rows) -> float:
    """The geometric mean of likeness and prompt fidelity, as `JudgeScore` defines it."""
    likeness, prompt = rows.mean(0).clip(0, 1)
    return math.sqrt(likeness * prompt)


def _raw_name(metric: Metric) -> str:
    """The name of a metric's raw value, which is not a share of a scale."""
    return f"raw {registry.name_of(type(metric))}"
