"""What a checkpoint file says about its denoiser's prediction and noise schedule."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pinxit.errors import ModelError
from pinxit.files.untrusted import open_untrusted

_PREDICTIONS = {
    "v": "v_prediction",
    "vpred": "v_prediction",
    "vprediction": "v_prediction",
    "velocity": "v_prediction",
    "epsilon": "epsilon",
    "eps": "epsilon",
    "noise": "epsilon",
    "sample": "sample",
    "x0": "sample",
    "xstart": "sample",
}
# Keys of metadata: modelspec's, as sd-scripts and OneTrainer write it, and ComfyUI's.
_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
_ZERO_SNR_KEYS = ("ss_zero_terminal_snr", "modelspec.ztsnr", "ztsnr", "zero_terminal_snr")
_YAML_PREDICTION = re.compile(r"^\s*(?:parameterization|prediction_type): *[\"']?(\w+)", re.M)
_YAML_ZERO_SNR = re.compile(
    r"^\s*(?:rescale_betas_zero_snr|zero_terminal_snr|ztsnr|use_ztsnr): *[\"']?true\b", re.M | re.I
)
# Marks in the names of tensors, as ComfyUI reads them.
_VELOCITY_TENSOR, _ZERO_SNR_TENSOR, _EDM_TENSORS = "v_pred", "ztsnr", "edm_"


@dataclass(frozen=True)
class VelocityLooks:
    """A tensor whose standard deviation tells models with v-prediction from those that look alike.

    `sample_size` is the size of their latents.
    """

    tensor: str
    std: float
    sample_size: int


def prediction_config(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    looks: VelocityLooks | None,
) -> dict[str, dict[str, Any]]:
    """The changes to the configs of a checkpoint's parts that its marks ask for, by part.

    A .yaml file of the same name, marker tensors and the metadata are read, in this order. Without
    any of them, v-prediction follows from the standard deviation of a tensor, as in ComfyUI.
    Raises ModelError for a prediction or a noise schedule that is not supported.
    """
    if any(name.startswith(_EDM_TENSORS) for name in tensors):
        raise ModelError(
            f"{path} uses the EDM noise schedule, which is not supported", "use another base model"
        )
    yaml = _read_yaml(path)
    prediction = _stated_prediction(path, yaml, tensors, metadata)
    if prediction is None and looks and (tensor := tensors.get(looks.tensor)) is not None:
        is_velocity = float(tensor.float().std(correction=0)) > looks.std
        prediction = "v_prediction" if is_velocity else None
    scheduler: dict[str, Any] = {"prediction_type": prediction} if prediction else {}
    if (
        _ZERO_SNR_TENSOR in tensors
        or any(metadata.get(key, "").lower() in ("true", "1") for key in _ZERO_SNR_KEYS)
        or _YAML_ZERO_SNR.search(yaml)
    ):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    changes = {"scheduler": scheduler} if scheduler else {}
    if looks and prediction == "v_prediction":
        changes["unet"] = {"sample_size": looks.sample_size}
    return changes


def _stated_prediction(
    path: Path, yaml: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> str | None:
    """The prediction that a mark names, as diffusers calls it; None without a mark."""
    if match := _YAML_PREDICTION.search(yaml):
        return _known(match[1], path.with_suffix(".yaml"))
    if yaml:
        return "epsilon"  # CompVis's default
    if _VELOCITY_TENSOR in tensors:
        return "v_prediction"
    for key in _PREDICTION_KEYS:
        if value := metadata.get(key):
            return _known(value, path)
    is_velocity = metadata.get("modelspec.architecture", "").endswith("-768-v")
    return "v_prediction" if is_velocity else None


def _known(value: str, path: Path) -> str:
    prediction = _PREDICTIONS.get(re.sub(r"[^a-z0-9]", "", value.lower()))
    if prediction is None:
        raise ModelError(
            f"{path} says that the model predicts `{value[:80]}`, which is not supported",
            "supported are epsilon, v and sample (x0)",
        )
    return prediction


def _read_yaml(path: Path) -> str:
    """The first 64 KiB of the .yaml file next to a checkpoint, "" without one."""
    file = path.with_suffix(".yaml")
    if not file.is_file():
        return ""
    with open_untrusted(file) as opened:
        return opened.read(2**16).decode(errors="replace")
