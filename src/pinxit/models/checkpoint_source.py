# pyright: standard
"""A base in one file, in the layouts of CompVis's and Stability's own code."""

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

# The tensor by which a kind of part is known, after the part's prefix.
_MARKS = {
    "unet": "input_blocks.0.0.weight",
    "mmdit": "joint_blocks.0.x_block.attn.qkv.weight",
    "autoencoder": "decoder.conv_in.weight",
    "clip": "text_model.embeddings.token_embedding.weight",
    "open-clip": "token_embedding.weight",
}
# How ComfyUI tells the velocity models of Stable Diffusion 2 from the others: by this spread.
_VELOCITY_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_VELOCITY_SPREAD = 0.09

_Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """One part of a layout: what kind it is, where in the file, and what no tensor tells."""

    kind: str
    settings: dict[str, Any]
    prefix: str = ""

    def is_in(self, names: Mapping[str, Tensor]) -> bool:
        """Whether a file with tensors of these names has the part."""
        return self.kind not in _MARKS or f"{self.prefix}{_MARKS[self.kind]}" in names


class SingleFile(Source):
    """A base in a `.safetensors` or `.ckpt` file: its layout is known by the names in it.

    Widths and depths follow from the tensors' shapes, all else from a table of the layout that
    ships with pinxit.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._stored, about = read_weights(path)
        self._parts = self._recognised()
        self._changes = self._prediction(about)

    def has(self, part: str) -> bool:
        """Whether the file's layout has the part, and the file too."""
        return part in self._parts

    def config(self, part: str) -> dict[str, Any]:
        """What the layout and the shapes of the tensors say of a part."""
        if part not in self._parts:
            return {}
        kind, told = self._parts[part].kind, dict(self._parts[part].settings)
        if kind in _MARKS:
            blank = {name: empty(t.shape, device="meta") for name, t in self._stored.items()}
            with self._whole(part):
                told |= config_from_shapes.settings(kind, _converted(self._parts[part], blank))
                told |= config_from_shapes.heads(told, told.pop("head_width", None))
        return told | self._changes.get(part, {})

    def weights(self, part: str) -> _Weights:
        """The tensors of a part under diffusers' names; of a closed file they are read again."""
        if not self._stored:
            self._stored, _ = read_weights(self.path)
        with self._whole(part):
            return _converted(self._parts[part], self._stored)

    @contextmanager
    def _whole(self, part: str) -> Generator[None]:
        """ModelError if the part lacks tensors that each of its kind has."""
        try:
            yield
        except (LookupError, StopIteration, TypeError, ValueError, RuntimeError) as trouble:
            raise ModelError(
                f"{self.path} has a {part} that is not as in checkpoints: {trouble!r}",
                "download it again, or take another base",
            ) from trouble

    def tokenizer(self, part: str) -> Path:  # noqa: ARG002
        """CLIP's vocabulary, which ships with pinxit."""
        return _VOCABULARY

    def fingerprints(self) -> Iterator[str]:
        """That of the file."""
        yield f"{sha256(self.path)}\n"

    def close(self) -> None:
        """Let go of the file."""
        self._stored = {}

    def _recognised(self) -> dict[str, _Part]:
        """The parts that are there of the layout that the file has most of."""
        best: tuple[list[str], dict[str, _Part]] | None = None
        for path in sorted(_LAYOUTS.glob("*.json")):
            layout = json.loads(path.read_text(encoding="utf-8"))
            parts = {name: _Part(**part) for name, part in layout.items()}
            there = {name: part for name, part in parts.items() if part.is_in(self._stored)}
            if any(part.kind in _MARKS for part in there.values()):
                missing = [name for name in parts if name not in there]
                if best is None or len(missing) < len(best[0]):
                    best = (missing, there)
        if best is None:
            raise ModelError(
                f"{self.path} is no base that pinxit knows: it holds {len(self._stored)} tensors, "
                f"such as `{next(iter(self._stored), '')}`",
                "pinxit inspect tells what a file is; a base is a whole checkpoint",
            )
        missing, there = best
        if set(missing) - {"vae"}:
            raise ModelError(
                f"{self.path} is no whole base: it lacks {', '.join(missing)}",
                "take the checkpoint with its text encoders, or a folder in diffusers' layout",
            )
        return there

    def _prediction(self, about: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """What settings change if the denoiser was trained to predict velocities.

        Said by a .yaml of CompVis's code beside the file, by marks in it, or by its metadata;
        by the spread of one of its tensors where nothing is said.
        """
        if any(name.startswith("edm_") for name in self._stored):
            raise ModelError(
                f"{self.path} is trained on a schedule that pinxit does not know: EDM's",
                "take another base",
            )
        beside = self.path.with_suffix(".yaml")
        marked = self._stored.get(_VELOCITY_MARK)
        if beside.is_file():
            with beside.open(encoding="utf-8", errors="replace") as file:
                velocity = bool(re.search(r"parameterization: *[\"']?v\b", file.read(2**16)))
        elif "v_pred" in self._stored or "modelspec.predict_key" in about:
            velocity = "v_pred" in self._stored or about["modelspec.predict_key"] == "v"
        elif about.get("modelspec.architecture", "").endswith("-768-v"):
            velocity = True
        else:
            spread = 0.0 if marked is None else float(marked.float().std(correction=0))
            velocity = self._is_second() and spread > _VELOCITY_SPREAD
        if not velocity:
            return {}
        scheduler: dict[str, Any] = {"prediction_type": "v_prediction"}
        if "ztsnr" in self._stored:
            scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        larger = {"unet": {"sample_size": 96}} if self._is_second() else {}
        return {"scheduler": scheduler, **larger}

    def _is_second(self) -> bool:
        """Whether it is Stable Diffusion 2, of which there are two that look alike."""
        return self.has("text_encoder") and self._parts["text_encoder"].kind == "open-clip"


def _converted(part: _Part, stored: Mapping[str, Tensor]) -> _Weights:
    """The tensors of one part under diffusers' names."""
    from diffusers.loaders import single_file_utils as theirs

    own = {name: tensor for name, tensor in stored.items() if name.startswith(part.prefix)}
    bare = {name.removeprefix(part.prefix): tensor for name, tensor in own.items()}
    if part.kind == "unet":
        return theirs.convert_ldm_unet_checkpoint(own, _unet_layout(bare))
    if part.kind == "mmdit":
        return theirs.convert_sd3_transformer_checkpoint_to_diffusers(own)
    if part.kind == "open-clip":
        width = bare[_MARKS[part.kind]].shape[1]
        network = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        return theirs.convert_open_clip_checkpoint(network, own, part.prefix)
    if part.kind == "autoencoder":
        levels = range(config_from_shapes.count(bare, r"encoder\.down\.(\d+)\."))
        settings = {"down_block_types": levels, "up_block_types": levels}
        # A file with an autoencoder alone may have diffusers' names already.
        return theirs.convert_ldm_vae_checkpoint(bare, settings) if levels else bare
    return _text_tower(bare, projected=bool(part.settings.get("projected")))


def _unet_layout(names: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the conversion wants to know: how many layers stand before the first narrowing."""
    narrowing = [int(name.split(".")[1]) for name in names if re.match(r".*\d\.0\.op\.", name)]
    deep = min(narrowing, default=config_from_shapes.count(names, r"input_blocks\.(\d+)\."))
    adds = "text_time" if "label_emb.0.0.weight" in names else None
    return {"layers_per_block": deep - 1, "addition_embed_type": adds}


def _text_tower(bare: _Weights, *, projected: bool) -> _Weights:
    """CLIP's tower; where one has a projection and the file has none, that changes nothing."""
    text = {name: tensor for name, tensor in bare.items() if name.startswith("text_model.")}
    if projected:
        vectors = bare[_MARKS["clip"]]
        identity = eye(vectors.shape[1], device=vectors.device)
        text["text_projection.weight"] = bare.get("text_projection.weight", identity)
    return text
