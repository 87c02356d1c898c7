"""How much the subject is the references' own, as DINO or DINOv2 sees it; for photographs."""

from dataclasses import dataclass

from pinxit.evaluation.vision import Alike


@dataclass(frozen=True)
class Dino(Alike):
    """Mean cosine to the references by DINO, which tells individuals of a class apart.

    DINOv2 is the same with `weights="facebook/dinov2-small"`.
    """

    weights: str = "facebook/dino-vits16"
