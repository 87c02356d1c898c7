"""CLIP-T: how well images follow their prompts; for photographs."""

from collections.abc import Sequence
from dataclasses import dataclass

from pinxit.evaluation.metric import Images, Metric
from pinxit.evaluation.vision import vision_encoder


@dataclass(frozen=True)
class ClipT(Metric):
    """Cosine of an image and its prompt (arXiv:2208.12242).

    Placeholder tokens have no meaning to CLIP: replace them by the class noun or nothing.
    `weights` is a hub id or a folder; openai/clip-vit-large-patch14 is a larger network.
    """

    better = "more"
    weights: str = "openai/clip-vit-base-patch32"

    def score(self, images: Images, references: Images, prompts: Sequence[str]) -> list[float]:  # noqa: ARG002
        """A cosine for each image; a good photograph of its prompt has about 0.3."""
        encoder = vision_encoder(self.weights)
        return (encoder.encode_images(images) * encoder.encode_texts(prompts)).sum(1).tolist()
