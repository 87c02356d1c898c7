"""A complete model as one checkpoint file with the original names (SD 1, 2 and XL)."""

import os
from math import log

import torch
from torch import Tensor

from pinxit.concepts.a1111_config import a1111_config
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import LIKELY, Format, Target
from pinxit.concepts.full_model_file import (
    base_source,
    completed_networks,
    full_model_metadata,
    read_full_model,
)
from pinxit.concepts.metadata import PROVENANCE_KEY
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import write_text
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import write_tensors
from pinxit.models import original_names
from pinxit.models.family import network_folders
from pinxit.models.open_base import family_of
from pinxit.models.prediction import SPACING_KEY
from pinxit.models.source import Source

_DENOISER = "model.diffusion_model."
# A scheduler's values, their defaults in diffusers, and those that programs take for single files.
_STATED: tuple[tuple[str, object, tuple[object, ...]], ...] = (
    ("prediction_type", "epsilon", ("epsilon", "v_prediction")),
    ("beta_schedule", "linear", ("scaled_linear",)),
    ("beta_start", 0.0001, (0.00085,)),
    ("beta_end", 0.02, (0.012,)),
    ("trained_betas", None, (None,)),
    ("num_train_timesteps", 1000, (1000,)),
)
_FOLDER_HINT = "write a folder with --format diffusers"


class SingleFile(Format):
    """A checkpoint with denoiser, VAE and text encoders."""

    contents = ("full weights",)
    writes_config = True
    preferred_for = frozenset({("full weights", ".safetensors")})
    suffixes = (".safetensors",)
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, diffusers' `from_single_file`"

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if the file has the denoiser under its original names."""
        return LIKELY if any(name.startswith(_DENOISER) for name in file.content) else 0

    def check_base(self, source: Source) -> None:
        """Networks, layers, noise schedule and prediction must be what a single file can have."""
        prefixes, config = family_of(source).facts.single_file_prefixes, source.config("scheduler")
        problems = [
            f"has a `{folder}`, which single files (SD 1, 2 and XL) cannot store"
            for folder in filter(source.has, network_folders())
            if folder not in prefixes
        ]
        for name, default, allowed in _STATED:
            if (value := config.get(name, default)) not in allowed:
                problems.append(
                    f"has a scheduler with {name} {str(value)[:40]}, which single files cannot "
                    "state: programs would generate with another one"
                )
        for problem in problems:
            raise ConceptError(f"{source.name} {problem}", _FOLDER_HINT)
        original_names.original_unet(source.weights("unet"))  # a ConceptError names the first

    def read(self, file: OpenedFile) -> Concept:
        """Read the trained networks; without a description by pinxit, all networks."""
        return read_full_model(file, file.text(PROVENANCE_KEY))

    def write(self, concept: Concept, target: Target) -> None:
        """Write the base model with the concept's weights.

        Beside a model of SD 1 or 2 that predicts v, a .yaml file for AUTOMATIC1111. Raises
        ConceptError if there is such a file already: it would be read in place of this one.
        """
        source = base_source(concept, target)
        self.check_base(source)
        config, config_file = a1111_config(source), target.out.with_suffix(".yaml")
        if os.path.lexists(config_file):
            raise ConceptError(
                f"{config_file} exists already, and programs would read it with {target.out.name}",
                "choose another name, or remove it first",
            )
        tensors: dict[str, Tensor] = {}
        for folder, weights in completed_networks(concept, source, target.precision):
            prefix, renamed = _original_names(folder, weights, source)
            tensors |= {prefix + name: tensor for name, tensor in renamed.items()}
        tensors |= _markers(source)
        metadata = full_model_metadata(concept, source, tensors, target.out.stem)
        if spacing := source.config("scheduler").get(SPACING_KEY):
            metadata[SPACING_KEY] = str(spacing)
        write_tensors(target.out, tensors, metadata)
        if config:
            write_text(config_file, config)


def _markers(source: Source) -> dict[str, Tensor]:
    """Empty tensors by which ComfyUI and Forge know v-prediction and zero terminal SNR."""
    config = source.config("scheduler")
    if config.get("prediction_type") != "v_prediction":
        return {}
    names = ["v_pred", "ztsnr"] if config.get("rescale_betas_zero_snr") else ["v_pred"]
    return {name: torch.zeros(0) for name in names}


def _original_names(
    folder: str, weights: dict[str, Tensor], source: Source
) -> tuple[str, dict[str, Tensor]]:
    """The prefix of a network in the file, and its weights by their names after the prefix."""
    prefix = family_of(source).facts.single_file_prefixes[folder]
    if folder == "unet":
        return prefix, original_names.original_unet(weights)
    if folder == "vae":
        return prefix, _with_usual_scale(original_names.original_vae(weights), source)
    # The CLIP of OpenAI uses quick GELU, that of OpenCLIP plain GELU.
    is_openai = source.config(folder).get("hidden_act", "quick_gelu") == "quick_gelu"
    if is_openai:
        return prefix, original_names.original_clip(weights)
    return prefix, original_names.original_open_clip(weights)


def _with_usual_scale(weights: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """The VAE's weights for the scaling factor that programs take for single files.

    The layer behind the encoder, and the one before the decoder, have the difference in them.
    """
    usual = 0.13025 if source.has("text_encoder_2") else 0.18215
    ratio = source.config("vae").get("scaling_factor", 0.18215) / usual
    if ratio == 1:
        return weights
    changed = {
        name: weight.to(torch.float32, copy=True)
        for name, weight in weights.items()
        if "quant_conv." in name
    }
    for name in ("quant_conv.weight", "quant_conv.bias"):
        changed[name].chunk(2)[0].mul_(ratio)  # the mean
    changed["quant_conv.bias"].chunk(2)[1].add_(2 * log(ratio))  # the logarithm of the variance
    changed["post_quant_conv.weight"].div_(ratio)
    return weights | {name: tensor.to(weights[name].dtype) for name, tensor in changed.items()}
