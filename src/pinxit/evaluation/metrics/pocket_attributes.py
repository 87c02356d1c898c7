"""Fraction of the attributes in a prompt that its image shows: class, colour and so on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pinxit.errors import RequestError
from pinxit.evaluation.metric import Images, Metric, stack_images
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.prompt_attributes import prompt_attributes


@dataclass(frozen=True)
class PocketAttributes(Metric):
    """The fraction of a prompt's attributes that pocket's classifier finds in its image.

    Only attributes in `questions` count. Placeholder tokens have no meaning here: replace them by
    the class noun or the name of the style.
    """

    better = "more"
    eyes: Eyes = field(default_factory=Eyes.load)
    questions: tuple[str, ...] = ("class", "colour", "background", "style")

    def score(self, images: Images, references: Images, prompts: Sequence[str]) -> list[float]:  # noqa: ARG002
        """A fraction for each image; RequestError if a prompt has none of the attributes."""
        outputs = self.eyes.look(stack_images(images))
        answers = {question: outputs.named(question) for question in self.questions}
        scores: list[float] = []
        for number, prompt in enumerate(prompts):
            expected = {q: a for q, a in prompt_attributes(prompt).items() if q in answers}
            if not expected:
                raise RequestError(
                    f"pocket's classifier cannot measure the prompt `{prompt}`",
                    f"mention one of: {', '.join(self.questions)}, in pocket's words, or choose "
                    "--prompts pocket-objects or pocket-styles",
                )
            correct = [answers[q][number] == answer for q, answer in expected.items()]
            scores.append(sum(correct) / len(correct))
        return scores
