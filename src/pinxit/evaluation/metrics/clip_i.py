"""How alike a picture is to the references, as CLIP sees it; for photographs."""

from dataclasses import dataclass

from pinxit.evaluation.vision import Alike


@dataclass(frozen=True)
class ClipI(Alike):
    """Mean cosine to the references by CLIP, which sees what a thing is before which one.

    The larger network is `weights="openai/clip-vit-large-patch14"`.
    """

    weights: str = "openai/clip-vit-base-patch32"
