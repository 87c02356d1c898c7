"""Limits for the configs of base models: a file must not make pinxit run forever or crash."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from pinxit.errors import ModelError
from pinxit.models.source import COPY_HINT

# No base model exceeds these limits.
_MAX_NUMBER = 1_000_000
_MAX_LAYERS = 256
_MAX_LAYERS_IN_ALL = 1_000
_MAX_ITEMS = 1_000
_MAX_TIMESTEPS = 10_000
_MAX_LATENT_SIZE = 1024

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_network_config(config: Mapping[str, Any], context: str) -> None:
    """Raise ModelError if a network of this config is so large that building it takes forever."""
    _check_numbers(config, context, "")
    depths = [_largest(value) for key, value in config.items() if key.endswith("layers_per_block")]
    blocks = config.get("block_out_channels")
    count = math.prod(depths) * (len(blocks) if isinstance(blocks, list) else 1)
    if count > _MAX_LAYERS_IN_ALL:
        raise ModelError(
            f"{context}: its config describes about {count:,} layers",
            f"no network of this class has more than {_MAX_LAYERS_IN_ALL:,}",
        )


def check_diffusion_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if a scheduler's config is not that of a diffusion that can be trained."""
    timesteps = config.get("num_train_timesteps", 1000)
    if not _is_size(timesteps, _MAX_TIMESTEPS):
        raise _invalid(name, "num_train_timesteps", timesteps, f"1 to {_MAX_TIMESTEPS}")
    for key, default, known in (
        ("beta_schedule", "linear", _BETA_SCHEDULES),
        ("prediction_type", "epsilon", _PREDICTIONS),
    ):
        value = config.get(key, default)
        if value not in known:
            raise _invalid(name, key, value, ", ".join(known))
    kind = config.get("_class_name", "")
    if config.get("use_flow_sigmas") or (isinstance(kind, str) and kind.startswith("FlowMatch")):
        raise ModelError(
            f"{name} is a rectified flow, which is not supported for this model family",
            "use a base model whose scheduler is a diffusion",
        )
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") in (None, "epsilon"):
        raise ModelError(
            f"{name} ends in pure noise (zero terminal SNR), from which a model that predicts the "
            "noise (epsilon) cannot start",
            "such a model predicts v: set prediction_type to v_prediction if it was trained so, or "
            "remove rescale_betas_zero_snr",
        )


def check_latent_config(denoiser: Mapping[str, Any], vae: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if the size or the scale of the latents is not a usable number."""
    size = denoiser.get("sample_size", 1)  # some denoisers have none
    if not _is_size(size, _MAX_LATENT_SIZE):
        raise _invalid(name, "sample_size", size, f"1 to {_MAX_LATENT_SIZE}")
    scale, shift = vae.get("scaling_factor"), vae.get("shift_factor") or 0.0
    if not _is_finite(scale) or scale <= 0:
        raise _invalid(name, "scaling_factor", scale, "a number above 0")
    if not _is_finite(shift):
        raise _invalid(name, "shift_factor", shift, "a number")


def _check_numbers(config: object, context: str, key: str) -> None:
    if isinstance(config, Mapping):
        for name, value in config.items():
            _check_numbers(value, context, str(name))
    elif isinstance(config, list):
        if len(config) > _MAX_ITEMS:
            raise ModelError(f"{context}: {key} has {len(config):,} items", COPY_HINT)
        for value in config:
            _check_numbers(value, context, key)
    elif isinstance(config, int) and config > (_MAX_LAYERS if "layers" in key else _MAX_NUMBER):
        raise ModelError(
            f"{context}: {key} is {config:,}", "no network of this class is that large"
        )


def _largest(value: object) -> int:
    """The largest integer in a number or a nested list of numbers; 1 if there is none."""
    if isinstance(value, list):
        return max(map(_largest, value), default=1)
    return max(value, 1) if isinstance(value, int) else 1


def _is_size(value: object, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= maximum


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _invalid(name: str, key: str, value: object, allowed: str) -> ModelError:
    shown = str(value)[:80]
    return ModelError(f"{name}: {key} cannot be `{shown}`", f"allowed: {allowed}; {COPY_HINT}")
