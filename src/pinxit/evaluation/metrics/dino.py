"""Subject fidelity by DINO or DINOv2: similarity to the references; for photographs."""

from dataclasses import dataclass

from pinxit.evaluation.vision import ReferenceSimilarity


@dataclass(frozen=True)
class Dino(ReferenceSimilarity):
    """Mean cosine to the references by DINO, which tells individuals of a class apart.

    DINOv2 is the same with `weights="facebook/dinov2-small"`.
    """

    weights: str = "facebook/dino-vits16"
