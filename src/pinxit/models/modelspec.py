"""Which kind of base a word or a network fits, by its widths, and how modelspec 1.0.1 names it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Kind(NamedTuple):
    """A kind of base: the widths of its words and of its cross-attention, and modelspec's terms."""

    title: str
    widths: tuple[int, ...]
    context: int
    architecture: str
    side: int


KINDS = (
    Kind("Stable Diffusion 1.x", (768,), 768, "stable-diffusion-v1", 512),
    Kind("Stable Diffusion 2.x", (1024,), 1024, "stable-diffusion-v2-512", 512),
    Kind("Stable Diffusion XL, 3 or 3.5", (768, 1280), 2048, "stable-diffusion-xl-v1-base", 1024),
)
_VELOCITY = {"stable-diffusion-v2-512": ("stable-diffusion-v2-768-v", 768)}


def fitting(widths: Sequence[int]) -> Kind | None:
    """The kind of base whose text towers have these widths."""
    return next((kind for kind in KINDS if kind.widths == tuple(widths)), None)


def attending(weights: Mapping[str, Tensor]) -> Kind | None:
    """The kind of base whose denoiser this is, by the width of what its cross-attention reads."""
    keys = (tensor for name, tensor in weights.items() if name.endswith("attn2.to_k.weight"))
    return reading(next((tensor.shape[1] for tensor in keys), 0))


def reading(width: int) -> Kind | None:
    """The kind of base whose denoiser reads conditioning of this width."""
    return next((kind for kind in KINDS if kind.context == width), None)


def card(kind: Kind | None, title: str, trigger: str, addition: str = "") -> dict[str, str]:
    """modelspec's fields for a file; `addition` says what it adds to a base, "" for a base."""
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": (kind.architecture if kind else "other") + addition,
        "implementation": "diffusers" if addition else "sgm",
        "title": title,
        "trigger_phrase": trigger,
        "resolution": f"{kind.side}x{kind.side}" if kind else "",
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}


def predicting_velocity(told: Mapping[str, str]) -> dict[str, str]:
    """A base's fields if it predicts velocities: modelspec's, and the one that ComfyUI reads."""
    architecture, side = _VELOCITY.get(told["modelspec.architecture"], ("", 0))
    changed = {"architecture": architecture, "resolution": f"{side}x{side}"} if side else {}
    fields = {**changed, "prediction_type": "v", "predict_key": "v"}
    return {**told, **{f"modelspec.{name}": value for name, value in fields.items()}}
