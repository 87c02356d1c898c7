"""How well pictures show what their prompts say, as CLIP sees it; for photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pinxit.evaluation.metric import Metric
from pinxit.evaluation.vision import onlooker

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ClipT(Metric):
    """Cosine of a picture and its prompt (arXiv:2208.12242).

    A learned word says nothing to CLIP: put the class noun or nothing in its place. `weights` is
    a hub id or a folder; openai/clip-vit-large-patch14 is the larger one.
    """

    better = "more"
    weights: str = "openai/clip-vit-base-patch32"

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],  # noqa: ARG002
        prompts: Sequence[str],
    ) -> list[float]:
        """A cosine for each picture; a good photograph of its prompt reaches about 0.3."""
        eyes = onlooker(self.weights)
        return (eyes.look(images) * eyes.read(prompts)).sum(1).tolist()
