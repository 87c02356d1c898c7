"""The best concept of a run: the one whose previews scored highest so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import read_metadata
from pinxit.concepts.read import write_concept
from pinxit.errors import PinxitError
from pinxit.evaluation.findings import Findings, advice
from pinxit.runs.events import PreviewScores
from pinxit.runs.file_names import BEST

# Keys of the scores in the concept's metadata.
_LIKENESS, _PROMPT, _OVERALL = "likeness", "prompt", "best"
# A likeness this much higher than that of the best step before is still rising.
_RISE = 0.03


def save_if_best(folder: Path, concept: Concept, findings: Findings) -> PreviewScores:
    """Save a concept as the run's best if its previews score higher than all before.

    The scores are in the file itself, so they always belong to it: a run that goes back to an
    earlier checkpoint and repeats its steps finds the same file with the same scores.
    """
    step, score, old_scores = concept.provenance.steps, findings.score, _scores(folder / BEST)
    if score.likeness is None or score.overall is None:
        problems = tuple(advice(findings, concept))
        return PreviewScores(step, None, score.prompt, None, problems=problems)
    # The combined score is 0 where nothing is alike; then the higher likeness decides.
    is_best = (score.overall, score.likeness) > (
        old_scores.get(_OVERALL, -1.0),
        old_scores.get(_LIKENESS, 0.0),
    )
    rising = is_best and score.likeness > old_scores.get(_LIKENESS, math.inf) + _RISE
    if is_best:
        scores = {_LIKENESS: score.likeness, _PROMPT: score.prompt, _OVERALL: score.overall}
        provenance = replace(concept.provenance, scores=scores)
        write_concept(replace(concept, provenance=provenance), folder / BEST)
    problems = tuple(advice(findings, concept, rising=rising))
    return PreviewScores(step, score.likeness, score.prompt, score.overall, is_best, problems)


def still_rising(scores: Sequence[PreviewScores]) -> bool:
    """Whether the last scores of a run are its best, with a likeness clearly above that before."""
    values = [one.likeness for one in scores if one.likeness is not None]
    return len(values) > 1 and scores[-1].is_best and values[-1] > values[-2] + _RISE


def _scores(best: Path) -> Mapping[str, float]:
    """The scores in the best concept's metadata; empty if there is no file or it is damaged."""
    try:
        return read_metadata(best).scores
    except PinxitError:
        return {}
