# pyright: standard
"""Stable Diffusion 2.x: OpenCLIP's text tower, a U-Net that may be asked for velocities."""

from pinxit.models.latent_model import OneTower
from pinxit.models.source import Source


class StableDiffusion2(OneTower):
    """Stable Diffusion 2.x: its text tower's file ends with the layer that is taken.

    Its U-Net speaks to the text through linear layers, which no 1.x does.
    """

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Whether the base has a U-Net that one text tower speaks to by linear layers."""
        return cls.has_one_tower(source) and bool(
            source.config("unet").get("use_linear_projection")
        )
