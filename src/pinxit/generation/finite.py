"""Values that are infinite or NaN: an error that names what holds them, never a black image."""

from collections.abc import Iterator

from torch import Tensor

from pinxit.errors import RequestError
from pinxit.models.model import Model

_MAX_NAMES = 3


class NotFiniteError(RequestError):
    """Generated values are infinite or NaN."""


def check_finite(model: Model, latents: Tensor, pixels: Tensor) -> None:
    """NotFiniteError if images have values that are infinite or NaN; `latents` are theirs."""
    if pixels.isfinite().all():
        return
    names = list(_weights_not_finite(model))
    if names:
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        raise NotFiniteError(
            f"weights are infinite or NaN: {', '.join(names[:_MAX_NAMES])}{more}",
            "the base model or a concept is damaged: get the file again, or leave the concept out",
        )
    place = "the VAE's output" if latents.isfinite().all() else "the latents of the denoiser"
    raise NotFiniteError(
        f"{place} became infinite or NaN, although all weights are finite",
        f"use smaller weights in the prompt, smaller strengths and a lower guidance scale; "
        f"computed in {model.placement.precision}: --precision fp32 has the largest range",
    )


def _weights_not_finite(model: Model) -> Iterator[str]:
    """The names of the weights and of the embeddings of tokens that are not finite."""
    for name, network in model.all_networks.items():
        for weight_name, weight in network.state_dict().items():
            if weight.is_floating_point() and not weight.isfinite().all():
                yield f"`{weight_name}` of the {name} of {model.name}"
    for token, meaning in model.placeholders.items():
        for encoder, table in meaning.vectors.items():
            if not table.isfinite().all():
                yield f"the embedding of {token} for `{encoder}`"
