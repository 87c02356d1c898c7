"""What a checkpoint file says about its denoiser's prediction and noise schedule."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pinxit.errors import ModelError
from pinxit.files.text import read_any_text

# Spellings of predictions, without the words and signs of `_FILLING`.
_PREDICTIONS = {
    **dict.fromkeys(("v", "velocity"), "v_prediction"),
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("sample", "x0", "xstart"), "sample"),
}
_FILLING = re.compile(r"[^a-z0-9]|pred(iction)?|param(eterization)?")
# Names of marks, without the prefixes of programs: modelspec's, those of sd-scripts, OneTrainer,
# ComfyUI and diffusers. The first have a prediction as their value, the others are true or false.
_PREFIXES = re.compile(r"^(modelspec\.|ss_|model_|use_)+")
_PREDICTION_KEYS = {"prediction_type", "predict_key", "prediction", "parameterization"}
_VELOCITY_KEYS = {"v_pred", "v_prediction", "v_parameterization"}
_ZERO_SNR_KEYS = {
    *("ztsnr", "zsnr", "zero_snr", "zero_terminal_snr"),
    *("rescale_betas_zero_snr", "rescale_zero_terminal_snr"),
}
SPACING_KEY = "timestep_spacing"
_SPACINGS = ("leading", "trailing", "linspace")
_TRUE = {"true", "1", "yes", "on"}
_YAML_COMMENT = re.compile(r"(^|\s)#.*", re.M)
_YAML_PAIR = re.compile(r"\b([\w.]+)[\"']?[ \t]*:[ \t]*[\"']?([\w-]+)")
# The class by which configs of Stability's later code (sgm) say what a model predicts.
_SGM_SCALING = re.compile(r"denoiser_scaling\.(V|Eps|EDM)Scaling\b")
# A key of CompVis's configs, which predict epsilon unless they say otherwise.
_COMPVIS_KEY = "linear_start"
_EDM_TENSORS = "edm_"
_MAX_YAML_BYTES = 2**20

_Marks = dict[str, str]


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
    """The changes to the configs of a checkpoint's parts that follow from its marks, by part.

    A .yaml file of the same name, marker tensors and the metadata are read, in this order. Without
    any of them, v-prediction follows from the standard deviation of a tensor, as in ComfyUI.
    Raises FileError if the .yaml file is no text, ModelError for a prediction or a noise schedule
    that is not supported.
    """
    if any(name.startswith(_EDM_TENSORS) for name in tensors):
        raise ModelError(
            f"{path} uses the EDM noise schedule, which is not supported", "use another base model"
        )
    yaml_path = path.with_suffix(".yaml")
    yaml = _read_yaml(yaml_path)
    # Marker tensors have no "." in their names; all weights of networks have one.
    names = dict.fromkeys((name for name in tensors if "." not in name), "true")
    sources = {yaml_path: _marks(yaml), path: _marks(metadata) | _marks(names)}
    stated = (_prediction(where, marks) for where, marks in sources.items())
    prediction = next(filter(None, stated), None)
    if prediction is None and _COMPVIS_KEY in yaml:
        prediction = "epsilon"
    if prediction is None and _looks_like_velocity(tensors, metadata, looks):
        prediction = "v_prediction"
    scheduler: dict[str, Any] = {"prediction_type": prediction} if prediction else {}
    if any(_is_true(marks, _ZERO_SNR_KEYS) for marks in sources.values()):
        scheduler |= {"rescale_betas_zero_snr": True, SPACING_KEY: "trailing"}
    scheduler |= _timestep_spacing(path, sources.values())
    changes = {"scheduler": scheduler} if scheduler else {}
    if looks and prediction == "v_prediction":
        changes["unet"] = {"sample_size": looks.sample_size}
    return changes


def _timestep_spacing(path: Path, sources: Iterable[_Marks]) -> dict[str, str]:
    """The scheduler's setting of the spacing that marks name; {} without a mark."""
    value = next((marks[SPACING_KEY].lower() for marks in sources if SPACING_KEY in marks), "")
    if value and value not in _SPACINGS:
        raise ModelError(
            f"{path} has the timestep spacing `{value[:80]}`",
            f"supported are {', '.join(_SPACINGS)}",
        )
    return {SPACING_KEY: value} if value else {}


def _looks_like_velocity(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], looks: VelocityLooks | None
) -> bool:
    if "-768-v" in metadata.get("modelspec.architecture", ""):
        return True
    tensor = tensors.get(looks.tensor) if looks else None
    if looks is None or tensor is None:
        return False
    return float(tensor.float().std(correction=0)) > looks.std


def _marks(values: Mapping[str, str]) -> _Marks:
    """A file's metadata: values by key, in lower case and without the prefix of a program."""
    return {_PREFIXES.sub("", name.lower()): value for name, value in values.items()}


def _is_true(marks: _Marks, names: set[str]) -> bool:
    return any(marks[name].lower() in _TRUE for name in marks.keys() & names)


def _prediction(where: Path, marks: _Marks) -> str | None:
    """The prediction that the marks state, by its name in diffusers; None if they state none."""
    if _is_true(marks, _VELOCITY_KEYS):
        return "v_prediction"
    value = next((marks[name] for name in sorted(marks.keys() & _PREDICTION_KEYS)), "")
    if not value:
        return None
    prediction = _PREDICTIONS.get(_FILLING.sub("", value.lower()))
    if prediction is None:
        raise ModelError(
            f"{where} says that the model predicts `{value[:80]}`, which is not supported",
            "supported are epsilon, v and sample (x0)",
        )
    return prediction


def _read_yaml(file: Path) -> dict[str, str]:
    """The names and values in the .yaml file next to a checkpoint, {} without one."""
    if not file.is_file():
        return {}
    text, _ = read_any_text(file, _MAX_YAML_BYTES)
    text = _YAML_COMMENT.sub("", text)
    pairs = dict(_YAML_PAIR.findall(text))
    if scaling := _SGM_SCALING.search(text):
        pairs.setdefault("prediction_type", scaling[1])
    return pairs
