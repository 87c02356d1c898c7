"""Subject fidelity in pocket's world: cosine of the classifier's instance embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.nn import functional as F

from pinxit.evaluation.metric import Images, Metric, stack_images
from pinxit.pocket.eyes import Eyes


@dataclass(frozen=True)
class PocketLikeness(Metric):
    """Cosine between an image's instance embedding and the mean of the references'."""

    better = "more"
    eyes: Eyes = field(default_factory=Eyes.load)

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A cosine for each image, at most 1."""
        target = F.normalize(self.eyes.look(stack_images(references)).instance.mean(0), dim=0)
        return (self.eyes.look(stack_images(images)).instance @ target).tolist()
