"""How much the subject is the references' own: cosine of pocket's instance embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.nn import functional as F

from pinxit.evaluation.metric import Metric, stacked
from pinxit.pocket.eyes import Eyes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Likeness(Metric):
    """Cosine between a picture's instance embedding and the mean of the references'."""

    better = "more"
    eyes: Eyes = field(default_factory=Eyes.load)

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],
        prompts: Sequence[str] = (),  # noqa: ARG002
    ) -> list[float]:
        """A cosine for each picture, 1 at best."""
        wanted = F.normalize(self.eyes.look(stacked(references)).instance.mean(0), dim=0)
        return (self.eyes.look(stacked(images)).instance @ wanted).tolist()
