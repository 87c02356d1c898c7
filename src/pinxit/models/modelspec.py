"""Model families by the widths of their weights, and modelspec 1.0.1 metadata."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class ModelFamily(NamedTuple):
    """A model family as far as the widths of weights tell, with its modelspec architecture.

    `text_widths` are the widths of the text encoders' embeddings, `context_width` is the width of
    the denoiser's cross-attention input.
    """

    title: str
    text_widths: tuple[int, ...]
    context_width: int
    architecture: str
    resolution: int


MODEL_FAMILIES = (
    ModelFamily("Stable Diffusion 1.x", (768,), 768, "stable-diffusion-v1", 512),
    ModelFamily("Stable Diffusion 2.x", (1024,), 1024, "stable-diffusion-v2-512", 512),
    ModelFamily(
        "Stable Diffusion XL, 3 or 3.5", (768, 1280), 2048, "stable-diffusion-xl-v1-base", 1024
    ),
)
_VELOCITY_ARCHITECTURES = {"stable-diffusion-v2-512": ("stable-diffusion-v2-768-v", 768)}


def family_by_text_widths(widths: Sequence[int]) -> ModelFamily | None:
    """The model family whose text encoders have these embedding widths."""
    return next((family for family in MODEL_FAMILIES if family.text_widths == tuple(widths)), None)


def family_of_denoiser(weights: Mapping[str, Tensor]) -> ModelFamily | None:
    """The model family of a denoiser's weights, by the width of its cross-attention input."""
    keys = (tensor for name, tensor in weights.items() if name.endswith("attn2.to_k.weight"))
    return family_by_context_width(next((tensor.shape[1] for tensor in keys), 0))


def family_by_context_width(width: int) -> ModelFamily | None:
    """The model family whose denoiser has a cross-attention input of this width."""
    return next((family for family in MODEL_FAMILIES if family.context_width == width), None)


def modelspec_metadata(
    family: ModelFamily | None, title: str, trigger: str, addition: str = ""
) -> dict[str, str]:
    """The modelspec metadata of a file.

    `addition` is the kind of addition to a base model, such as "/lora", and "" for a base model.
    """
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": (family.architecture if family else "other") + addition,
        "implementation": "diffusers" if addition else "sgm",
        "title": title,
        "trigger_phrase": trigger,
        "resolution": f"{family.resolution}x{family.resolution}" if family else "",
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}


def with_velocity_prediction(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a base model with v-prediction, with the field that ComfyUI reads."""
    fields = {"prediction_type": "v", "predict_key": "v"}
    velocity = _VELOCITY_ARCHITECTURES.get(metadata["modelspec.architecture"])
    if velocity:
        architecture, resolution = velocity
        fields |= {"architecture": architecture, "resolution": f"{resolution}x{resolution}"}
    return {**metadata, **{f"modelspec.{name}": value for name, value in fields.items()}}
