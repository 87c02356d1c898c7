# pyright: standard
"""Base models in one checkpoint file, in the layouts of CompVis's and Stability's code."""

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, empty, eye

from pinxit import registry
from pinxit.errors import ModelError
from pinxit.files.atomic_write import sha256
from pinxit.models import config_from_shapes
from pinxit.models.checkpoint_names import usual_names
from pinxit.models.joined_layers import LayerTable
from pinxit.models.prediction import VelocityLooks, prediction_config
from pinxit.models.quantized import check_scales, dequantized
from pinxit.models.source import Source, read_weights

_LAYOUTS = Path(__file__).parent / "layouts"
_VOCABULARY = _LAYOUTS / "clip"

_Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """A part of a layout: its kind, its prefix in the file, and config values no tensor has.

    `marker` has the names of tensors that every network of this kind has, without the prefix:
    alternatives are separated by `|`, and the names of one by `,`; "" for a part without tensors.
    `velocity` tells models with v-prediction from those that look alike by the standard deviation
    of one tensor, as ComfyUI does, and has their `sample_size`. `shapes` are the rules of
    `stated_config`. `names` are names of the `family` that are only in checkpoints, and `unused`
    those of tensors to leave out. `variants` are settings for files with a tensor, or with a word
    in their name after `file:`. `example` is what to give for a part that a file lacks.
    """

    kind: str
    settings: dict[str, Any]
    prefix: str = ""
    marker: str = ""
    velocity: dict[str, Any] | None = None
    shapes: dict[str, Any] = field(default_factory=dict[str, Any])
    family: str = ""
    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    unused: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    example: str = ""

    def in_file(self, names: Mapping[str, Tensor]) -> "_Part | None":
        """The part with its prefix in a file with tensors of these names; None if it is absent.

        A transformer may be alone in its file, without a prefix.
        """
        if not self.marker:
            return self
        prefixes = (self.prefix, "") if self.family else (self.prefix,)
        present = (prefix for prefix in prefixes if _has(names, self.marker, prefix))
        prefix = next(present, None)
        return None if prefix is None else replace(self, prefix=prefix)

    def variant(self, file: str, names: Mapping[str, Tensor]) -> dict[str, Any]:
        """The settings for what this file has, besides `settings`."""
        changes: dict[str, Any] = {}
        for marker, settings in self.variants.items():
            word = marker.removeprefix("file:")
            is_named = word != marker and word in file.casefold()
            if is_named or any(_has(names, marker, p) for p in ("", "model.diffusion_model.")):
                changes |= settings
        return changes


def _has(names: Mapping[str, Tensor], marker: str, prefix: str) -> bool:
    """Whether `names` has every name of at least one alternative: "a,b|c" is a and b, or c."""
    alternatives = (alternative.split(",") for alternative in marker.split("|"))
    return any(all(f"{prefix}{name}" in names for name in one) for one in alternatives)


class CheckpointSource(Source):
    """A `.safetensors` or `.ckpt` file, whose layout follows from the names of its tensors.

    Widths and depths follow from the tensors' shapes. All other config values are in the layout's
    JSON file, which is part of pinxit.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._tensors, metadata = self._read()
        self._layout, self._parts = self._find_parts()
        # They are needed also when the tensors are released.
        self._configs = dict[str, dict[str, Any]]()
        scheduler = self._parts.get("scheduler")
        self._config_changes = dict[str, dict[str, Any]]()
        if scheduler and "prediction_type" in scheduler.settings:  # else it is a rectified flow
            looks = VelocityLooks(**scheduler.velocity) if scheduler.velocity else None
            self._config_changes = prediction_config(path, self._tensors, metadata, looks)
        for part_name, part in self._parts.items():
            if changes := part.variant(path.name, self._tensors):
                changes = self._config_changes.get(part_name, {}) | changes
                self._config_changes[part_name] = changes

    def has(self, part: str) -> bool:
        """Whether the file contains the part."""
        return part in self._parts

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, from the layout and the tensors' shapes.

        For a part that the file lacks, it has what no tensor shows.
        """
        if part not in self._parts:
            return dict(self._layout[part].settings) if part in self._layout else {}
        if part not in self._configs:
            self._configs[part] = self._config(part)
        return dict(self._configs[part])

    def _config(self, part: str) -> dict[str, Any]:
        kind, config = self._parts[part].kind, dict(self._parts[part].settings)
        if self._parts[part].marker:
            shapes = {
                name: empty(tensor.shape, dtype=tensor.dtype, device="meta")
                for name, tensor in self._tensors.items()
            }
            with self._complete(part):
                weights = self._weights(self._parts[part], shapes)
                rules = self._parts[part].shapes
                config |= (
                    config_from_shapes.stated_config(rules, weights)
                    if rules
                    else config_from_shapes.network_config(kind, weights)
                )
                head_width = config.pop("head_width", None)
                config |= config_from_shapes.attention_heads(config, head_width)
        return config | self._config_changes.get(part, {})

    def weights(self, part: str) -> _Weights:
        """The tensors of a part under diffusers' names; a closed file is read again."""
        if not self._tensors:
            self._tensors, _ = self._read()
        with self._complete(part):
            return self._weights(self._parts[part], self._tensors)

    def _read(self) -> tuple[_Weights, dict[str, str]]:
        tensors, metadata = read_weights(self.path)
        check_scales(tensors, str(self.path), metadata.get("_quantization_metadata", ""))
        if any(re.match(r"(model\.diffusion_model\.)?nerf_blocks\.", name) for name in tensors):
            raise ModelError(
                f"{self.path} is Chroma-Radiance, which denoises pixels instead of latents",
                "use a Chroma with latents, such as Chroma1-HD",
            )
        return usual_names(tensors), metadata

    def _weights(self, part: _Part, tensors: Mapping[str, Tensor]) -> _Weights:
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(part.prefix)}
        return _converted(part, dequantized(own, str(self.path)))

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

    def kind(self, part: str) -> str:
        """What the part is in this layout, whether the file has it or not."""
        return self._layout[part].kind if part in self._layout else ""

    @property
    def missing(self) -> dict[str, str]:
        """The parts that other files must have, with examples."""
        return {
            name: part.example
            for name, part in self._layout.items()
            if part.example and name not in self._parts
        }

    def _find_parts(self) -> tuple[dict[str, _Part], dict[str, _Part]]:
        """The single-file layout that fits best: all its parts by name, and those in the file."""
        layouts: list[tuple[dict[str, _Part], dict[str, _Part]]] = []
        for path in sorted(_LAYOUTS.glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            layout = {name: _Part(**part) for name, part in content.items()}
            parts = {name: part.in_file(self._tensors) for name, part in layout.items()}
            present = {name: part for name, part in parts.items() if part}
            if any(part.marker for part in present.values()):
                layouts.append((layout, present))
        if not layouts:
            raise ModelError(
                f"{self.path} is not a supported base model: it has {len(self._tensors)} tensors, "
                f"such as `{next(iter(self._tensors), '')}`",
                "pinxit inspect shows what a file is; a base model is a complete checkpoint, or a "
                "transformer with --vae and --text-encoder; LoRAs and embeddings are for --concept",
            )
        layout, present = min(layouts, key=lambda one: len(one[0]) - len(one[1]))
        missing = [name for name in layout if name not in present]
        is_incomplete = not any(part.family for part in present.values())
        if is_incomplete and set(missing) - {"vae"}:
            raise ModelError(
                f"{self.path} is not a complete base model: it lacks {', '.join(missing)}",
                "use a checkpoint with text encoders, or a folder in diffusers' layout",
            )
        return layout, present


def _converted(part: _Part, prefixed: _Weights) -> _Weights:
    """The tensors of one part under diffusers' names."""
    from diffusers.loaders import single_file_utils as conversions

    bare = {name.removeprefix(part.prefix): tensor for name, tensor in prefixed.items()}
    if part.family:
        facts = registry.load("families", part.family).facts
        used = {name: tensor for name, tensor in bare.items() if name not in part.unused}
        return LayerTable({**facts.original_layers, **part.names}).to_diffusers(used)
    if part.kind in ("t5", "qwen3"):
        return bare
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
