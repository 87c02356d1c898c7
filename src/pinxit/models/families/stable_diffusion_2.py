# pyright: standard
"""Stable Diffusion 2.x: one OpenCLIP text encoder and a U-Net, with v-prediction in 768 models."""

from typing import ClassVar

from pinxit.models.family import COMPVIS_PREFIXES, FamilyFacts, KohyaNames
from pinxit.models.unet_model import SingleTextEncoder


class StableDiffusion2(SingleTextEncoder):
    """Stable Diffusion 2.x. Its files contain the text encoder up to the penultimate layer.

    Unlike 1.x, its U-Net has linear projections around the attention layers.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Stable Diffusion 2.x",
        pipeline="StableDiffusionPipeline",
        released="2022-11",
        architecture="stable-diffusion-v2-512",
        native_size=512,
        networks={"unet": "denoiser", "text_encoder": "text"},
        text_widths=(1024,),
        context_width=1024,
        velocity_architecture=("stable-diffusion-v2-768-v", 768),
        single_file_prefixes=COMPVIS_PREFIXES,
        kohya=KohyaNames("sd_v2", {"denoiser": "unet", "text": "te"}),
    )

    linear_projection: ClassVar[bool] = True
