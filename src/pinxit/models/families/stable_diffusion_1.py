# pyright: standard
"""Stable Diffusion 1.x: one CLIP text tower, a U-Net in the latents of a KL autoencoder."""

from pinxit.models.latent_model import OneTower
from pinxit.models.source import Source


class StableDiffusion1(OneTower):
    """Stable Diffusion 1.x (arXiv:2112.10752), of any width, depth and size of picture."""

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Whether the base has a U-Net that one text tower speaks to by convolutions."""
        return cls.has_one_tower(source) and not source.config("unet").get("use_linear_projection")
