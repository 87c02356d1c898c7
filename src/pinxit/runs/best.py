"""The best concept of a run: the one whose previews scored highest so far."""

from dataclasses import dataclass, replace
from pathlib import Path

from pinxit.concepts.concept import Concept
from pinxit.concepts.read import read_concept, write_concept
from pinxit.errors import PinxitError
from pinxit.evaluation.findings import Findings, advice

FILE = "best.safetensors"
_SCORE = "best"


@dataclass(frozen=True)
class PreviewScores:
    """Event: the previews of a step were scored. `problems` are sentences about what they show."""

    step: int
    likeness: float
    prompt: float
    score: float
    is_best: bool
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The event as a message."""
        scores = f"likeness {self.likeness:.0%}, prompts met {self.prompt:.0%}"
        return f"step {self.step}: {scores}{', the best so far' if self.is_best else ''}"

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name."""
        return {"likeness": self.likeness, "prompt": self.prompt, _SCORE: self.score}


def save_if_best(folder: Path, concept: Concept, findings: Findings) -> PreviewScores:
    """Save a concept as the run's best if its previews score higher than all before.

    The scores are in the file itself, so they always belong to it: a run that goes back to an
    earlier checkpoint and repeats its steps finds the same file with the same scores.
    """
    step, previous, verdict = concept.provenance.steps, best_concept(folder), findings.score
    old_scores = previous.provenance.scores if previous else {}
    # The combined score is 0 where nothing is alike; then the higher likeness decides.
    is_best = (verdict.overall, verdict.likeness) > (
        old_scores.get(_SCORE, -1.0),
        old_scores.get("likeness", 0.0),
    )
    problems = tuple(advice(findings))
    event = PreviewScores(
        step, verdict.likeness, verdict.prompt, verdict.overall, is_best, problems
    )
    if is_best:
        provenance = replace(concept.provenance, scores=event.scores)
        write_concept(replace(concept, provenance=provenance), folder / FILE)
    return event


def best_concept(folder: Path) -> Concept | None:
    """The best concept of a run; None if there is no file or it is damaged."""
    try:
        return read_concept(folder / FILE)
    except PinxitError:
        return None
