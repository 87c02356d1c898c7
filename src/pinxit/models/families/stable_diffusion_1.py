# pyright: standard
"""Stable Diffusion 1.x: one CLIP text encoder and a U-Net."""

from typing import ClassVar

from pinxit.models.family import COMPVIS_PREFIXES, FamilyFacts, KohyaNames
from pinxit.models.unet_model import SingleTextEncoder


class StableDiffusion1(SingleTextEncoder):
    """Stable Diffusion 1.x (arXiv:2112.10752), of any width, depth and image size."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Stable Diffusion 1.x",
        pipeline="StableDiffusionPipeline",
        released="2022-08",
        architecture="stable-diffusion-v1",
        native_size=512,
        networks={"unet": "denoiser", "text_encoder": "text"},
        text_widths=(768,),
        context_width=768,
        single_file_prefixes=COMPVIS_PREFIXES,
        kohya=KohyaNames("sd_v1", {"denoiser": "unet", "text": "te"}),
    )

    linear_projection: ClassVar[bool] = False
