"""Values that are infinite or NaN: an error that names what holds them, never a black image."""

from torch import Tensor

from pinxit.errors import RequestError
from pinxit.models.model import Model


class NotFiniteError(RequestError):
    """Generated values are infinite or NaN."""


def check_finite(model: Model, latents: Tensor, pixels: Tensor) -> None:
    """NotFiniteError if images have values that are infinite or NaN; `latents` are theirs."""
    if pixels.isfinite().all():
        return
    if damage := model.damage():
        raise NotFiniteError(
            damage,
            "the base model or a concept is damaged: get the file again, or leave the concept out",
        )
    place = "the VAE's output" if latents.isfinite().all() else "the latents of the denoiser"
    raise NotFiniteError(
        f"{place} became infinite or NaN, although all weights are finite",
        f"use smaller weights in the prompt, smaller strengths and a lower guidance scale; "
        f"computed in {model.placement.precision}: --precision fp32 has the largest range",
    )
