"""How much of what a prompt asks for is there: class, colour, background, style."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pinxit.errors import RequestError
from pinxit.evaluation.metric import Metric, stacked
from pinxit.pocket.asked import asked
from pinxit.pocket.eyes import Eyes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Attributes(Metric):
    """The share of a prompt's attributes that pocket's eyes find in its picture.

    Only `questions` count. A learned word says nothing here: put the class noun or the style's
    name in its place.
    """

    better = "more"
    eyes: Eyes = field(default_factory=Eyes.load)
    questions: tuple[str, ...] = ("class", "colour", "background", "style")

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],  # noqa: ARG002
        prompts: Sequence[str],
    ) -> list[float]:
        """A share for each picture; RequestError if a prompt asks none of the questions."""
        seen = self.eyes.look(stacked(images))
        answers = {question: seen.named(question) for question in self.questions}
        scores: list[float] = []
        for number, prompt in enumerate(prompts):
            wanted = {q: a for q, a in asked(prompt).items() if q in answers}
            if not wanted:
                raise RequestError(
                    f"the prompt `{prompt}` asks for nothing that can be checked",
                    f"name one of: {', '.join(self.questions)}",
                )
            right = [answers[question][number] == answer for question, answer in wanted.items()]
            scores.append(sum(right) / len(right))
        return scores
