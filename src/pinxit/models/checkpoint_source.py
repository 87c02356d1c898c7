# pyright: standard
"""Base models in one checkpoint file, in the layouts of CompVis's and Stability's code."""

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, empty, eye

from pinxit.errors import ModelError
from pinxit.files.atomic_write import sha256
from pinxit.models import config_from_shapes
from pinxit.models.source import Source, read_weights

_LAYOUTS = Path(__file__).parent / "layouts"
_VOCABULARY = _LAYOUTS / "clip"

_Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """A part of a layout: its kind, its prefix in the file, and config values no tensor has.

    `marker` is a tensor that every network of this kind has, without the prefix; "" for a part
    without tensors. `velocity` tells models with v-prediction from those that look alike by the
    standard deviation of one tensor, as ComfyUI does, and has their `sample_size`.
    """

    kind: str
    settings: dict[str, Any]
    prefix: str = ""
    marker: str = ""
    velocity: dict[str, Any] | None = None

    def is_in(self, names: Mapping[str, Tensor]) -> bool:
        """Whether a file with tensors of these names contains the part."""
        return not self.marker or f"{self.prefix}{self.marker}" in names


class CheckpointSource(Source):
    """A `.safetensors` or `.ckpt` file, whose layout follows from the names of its tensors.

    Widths and depths follow from the tensors' shapes. All other config values are in the layout's
    JSON file, which is part of pinxit.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._tensors, metadata = read_weights(path)
        self._parts = self._find_parts()
        self._config_changes = self._prediction_config(metadata)

    def has(self, part: str) -> bool:
        """Whether the file contains the part."""
        return part in self._parts

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, from the layout and the tensors' shapes."""
        if part not in self._parts:
            return {}
        kind, config = self._parts[part].kind, dict(self._parts[part].settings)
        if self._parts[part].marker:
            shapes = {
                name: empty(tensor.shape, device="meta") for name, tensor in self._tensors.items()
            }
            with self._complete(part):
                config |= config_from_shapes.network_config(
                    kind, _converted(self._parts[part], shapes)
                )
                head_width = config.pop("head_width", None)
                config |= config_from_shapes.attention_heads(config, head_width)
        return config | self._config_changes.get(part, {})

    def weights(self, part: str) -> _Weights:
        """The tensors of a part under diffusers' names; a closed file is read again."""
        if not self._tensors:
            self._tensors, _ = read_weights(self.path)
        with self._complete(part):
            return _converted(self._parts[part], self._tensors)

    @contextmanager
    def _complete(self, part: str) -> Generator[None]:
        """Raise ModelError if the part lacks tensors that all parts of its kind have."""
        try:
            yield
        except (LookupError, StopIteration, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the {part} of {self.path} is damaged or of an unknown layout: {error!r}",
                "download it again, or use another base model",
            ) from error

    def tokenizer(self, part: str) -> Path:  # noqa: ARG002
        """The folder with CLIP's vocabulary, which is part of pinxit."""
        return _VOCABULARY

    def fingerprints(self) -> Iterator[str]:
        """The SHA-256 of the file."""
        yield f"{sha256(self.path)}\n"

    def close(self) -> None:
        """Release the file's tensors."""
        self._tensors = {}

    def _find_parts(self) -> dict[str, _Part]:
        """The parts in the file, named by the single-file layout that fits best."""
        best: tuple[list[str], dict[str, _Part]] | None = None
        for path in sorted(_LAYOUTS.glob("*.json")):
            layout = json.loads(path.read_text(encoding="utf-8"))
            parts = {name: _Part(**part) for name, part in layout.items()}
            present = {name: part for name, part in parts.items() if part.is_in(self._tensors)}
            if any(part.marker for part in present.values()):
                missing = [name for name in parts if name not in present]
                if best is None or len(missing) < len(best[0]):
                    best = (missing, present)
        if best is None:
            raise ModelError(
                f"{self.path} is not a supported base model: it has {len(self._tensors)} tensors, "
                f"such as `{next(iter(self._tensors), '')}`",
                "pinxit inspect shows what a file is; a base model is a complete checkpoint",
            )
        missing, present = best
        if set(missing) - {"vae"}:
            raise ModelError(
                f"{self.path} is not a complete base model: it lacks {', '.join(missing)}",
                "use a checkpoint with text encoders, or a folder in diffusers' layout",
            )
        return present

    def _prediction_config(self, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The changes to the parts' configs if the denoiser was trained with v-prediction."""
        if any(name.startswith("edm_") for name in self._tensors):
            raise ModelError(
                f"{self.path} uses the EDM noise schedule, which is not supported",
                "use another base model",
            )
        marks = self._parts["scheduler"].velocity if self.has("scheduler") else None
        if not self._predicts_velocity(metadata, marks):
            return {}
        scheduler: dict[str, Any] = {"prediction_type": "v_prediction"}
        if "ztsnr" in self._tensors:
            scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        larger = {"unet": {"sample_size": marks["sample_size"]}} if marks else {}
        return {"scheduler": scheduler, **larger}

    def _predicts_velocity(
        self, metadata: Mapping[str, str], marks: Mapping[str, Any] | None
    ) -> bool:
        """Whether the denoiser was trained with v-prediction.

        A CompVis .yaml file next to the checkpoint, marker tensors or the metadata say so. Without
        any of these it follows from the standard deviation of the tensor that `marks` names.
        """
        yaml_file = self.path.with_suffix(".yaml")
        if yaml_file.is_file():
            with yaml_file.open(encoding="utf-8", errors="replace") as file:
                return bool(re.search(r"parameterization: *[\"']?v\b", file.read(2**16)))
        if "v_pred" in self._tensors or "modelspec.predict_key" in metadata:
            return "v_pred" in self._tensors or metadata["modelspec.predict_key"] == "v"
        if metadata.get("modelspec.architecture", "").endswith("-768-v"):
            return True
        tensor = self._tensors.get(marks["tensor"]) if marks else None
        if tensor is None or marks is None:
            return False
        return float(tensor.float().std(correction=0)) > marks["std"]


def _converted(part: _Part, tensors: Mapping[str, Tensor]) -> _Weights:
    """The tensors of one part under diffusers' names."""
    from diffusers.loaders import single_file_utils as conversions

    prefixed = {name: tensor for name, tensor in tensors.items() if name.startswith(part.prefix)}
    bare = {name.removeprefix(part.prefix): tensor for name, tensor in prefixed.items()}
    if part.kind == "unet":
        return conversions.convert_ldm_unet_checkpoint(prefixed, _unet_config(bare))
    if part.kind == "mmdit":
        return conversions.convert_sd3_transformer_checkpoint_to_diffusers(prefixed)
    if part.kind == "open-clip":
        width = bare[part.marker].shape[1]
        network = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        return conversions.convert_open_clip_checkpoint(network, prefixed, part.prefix)
    if part.kind == "autoencoder":
        levels = range(config_from_shapes.count_numbered(bare, r"encoder\.down\.(\d+)\."))
        settings = {"down_block_types": levels, "up_block_types": levels}
        # A file with only an autoencoder may have diffusers' names already.
        return conversions.convert_ldm_vae_checkpoint(bare, settings) if levels else bare
    return _clip_text_encoder(bare, part)


def _unet_config(names: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config values that the conversion needs: layers per block, and added embeddings."""
    downsamplers = [int(name.split(".")[1]) for name in names if re.match(r".*\d\.0\.op\.", name)]
    first_downsampler = min(
        downsamplers, default=config_from_shapes.count_numbered(names, r"input_blocks\.(\d+)\.")
    )
    added = "text_time" if "label_emb.0.0.weight" in names else None
    return {"layers_per_block": first_downsampler - 1, "addition_embed_type": added}


def _clip_text_encoder(bare: _Weights, part: _Part) -> _Weights:
    """A CLIP text encoder; a projection that the file lacks is the identity."""
    text = {name: tensor for name, tensor in bare.items() if name.startswith("text_model.")}
    if part.settings.get("projected"):
        embeddings = bare[part.marker]
        identity = eye(embeddings.shape[1], device=embeddings.device)
        text["text_projection.weight"] = bare.get("text_projection.weight", identity)
    return text
