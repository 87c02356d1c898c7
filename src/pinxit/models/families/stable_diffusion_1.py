# pyright: standard
"""Stable Diffusion 1.x: one CLIP text encoder and a U-Net."""

from pinxit.models.latent_model import SingleTextEncoder
from pinxit.models.source import Source


class StableDiffusion1(SingleTextEncoder):
    """Stable Diffusion 1.x (arXiv:2112.10752), of any width, depth and image size."""

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has one text encoder and a U-Net with convolutional projections."""
        return cls.has_single_text_encoder(source) and not source.config("unet").get(
            "use_linear_projection"
        )
