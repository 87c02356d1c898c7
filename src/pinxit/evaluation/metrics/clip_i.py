"""CLIP-I: similarity of images to the references; for photographs."""

from dataclasses import dataclass

from pinxit.evaluation.vision import ReferenceSimilarity


@dataclass(frozen=True)
class ClipI(ReferenceSimilarity):
    """Mean cosine to the references by CLIP, which tells classes apart better than individuals.

    The larger network is `weights="openai/clip-vit-large-patch14"`.
    """

    weights: str = "openai/clip-vit-base-patch32"
