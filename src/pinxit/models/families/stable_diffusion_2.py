# pyright: standard
"""Stable Diffusion 2.x: one OpenCLIP text encoder and a U-Net, with v-prediction in 768 models."""

from pinxit.models.latent_model import SingleTextEncoder
from pinxit.models.source import Source


class StableDiffusion2(SingleTextEncoder):
    """Stable Diffusion 2.x. Its files contain the text encoder up to the penultimate layer.

    Unlike 1.x, its U-Net has linear projections around the attention layers.
    """

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has one text encoder and a U-Net with linear projections."""
        return cls.has_single_text_encoder(source) and bool(
            source.config("unet").get("use_linear_projection")
        )
