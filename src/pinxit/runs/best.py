"""The best of a run: what scored most so far stays beside what was learned last."""

from dataclasses import dataclass, replace
from pathlib import Path

from pinxit.concepts.concept import Concept
from pinxit.errors import PinxitError
from pinxit.evaluation.findings import Findings, sentences

FILE = "best.safetensors"
_SCORE = "best"


@dataclass(frozen=True)
class Scored:
    """What a run's previews were worth after a step, and what is wrong with them in sentences.

    `best` says whether they were worth more than any before.
    """

    number: int
    likeness: float
    prompt: float
    score: float
    best: bool
    wrong: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Itself in words."""
        found = f"likeness {self.likeness:.0%}, prompts met {self.prompt:.0%}"
        return f"step {self.number}: {found}{', the best so far' if self.best else ''}"

    @property
    def scores(self) -> dict[str, float]:
        """Its figures by name."""
        return {"likeness": self.likeness, "prompt": self.prompt, _SCORE: self.score}


def offer(folder: Path, concept: Concept, findings: Findings) -> Scored:
    """Keep what was just scored if it is the best of the run so far.

    The file itself says what it scored, so that nothing else must be kept in step with it: a run
    that goes back and learns the same again finds it there, no worse and no better.
    """
    number, before, verdict = concept.provenance.steps, kept(folder), findings.verdict
    was = before.provenance.scores if before else {}
    # Where nothing is alike at all, what is least unlike.
    best = (verdict.best, verdict.likeness) > (was.get(_SCORE, -1.0), was.get("likeness", 0.0))
    said = tuple(sentences(findings))
    found = Scored(number, verdict.likeness, verdict.prompt, verdict.best, best, said)
    if best:
        replace(concept, provenance=replace(concept.provenance, scores=found.scores)).save(
            folder / FILE
        )
    return found


def kept(folder: Path) -> Concept | None:
    """The best of a run, if one was kept and is sound."""
    try:
        return Concept.load(folder / FILE)
    except PinxitError:
        return None
