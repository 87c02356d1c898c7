# pyright: standard, reportPrivateImportUsage=false
"""Base models taken from the networks of a diffusers pipeline in memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import ModelError
from pinxit.models.family import network_folders, part_folders
from pinxit.models.model import Model, Placement, Precision
from pinxit.models.open_base import family_of
from pinxit.models.source import Source

_PRECISIONS: dict[torch.dtype, Precision] = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def from_pipeline(pipeline: Any) -> Model:
    """A model of a pipeline's networks; see `Model.from_pipeline`."""
    if not hasattr(pipeline, "components"):
        raise ModelError(
            f"{pipeline!r:.80} is not a diffusers pipeline", "give a text-to-image pipeline"
        )
    source = PipelineSource(pipeline)
    family = family_of(source)
    family.check_usable(source)
    precision = _PRECISIONS.get(pipeline.dtype, "fp32")
    model = family.open(source, Placement(pipeline.device, precision))
    for name in model.all_networks:  # copied now: the pipeline may change later
        model.network(name)
    return model


class PipelineSource(Source):
    """The parts of a pipeline. Tokenizers are written to a temporary folder."""

    def __init__(self, pipeline: Any) -> None:
        parts = {name: getattr(pipeline, name, None) for name in part_folders()}
        self._parts: dict[str, Any] = {name: part for name, part in parts.items() if part}
        self._settings = {"_class_name": type(pipeline).__name__, **pipeline.config}
        self._folder = TemporaryDirectory(prefix="pinxit-")
        self.name = pipeline.config.get("_name_or_path") or "pipeline"

    def has(self, part: str) -> bool:
        """Whether the pipeline has this part."""
        return part in self._parts

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part; of a tokenizer its special tokens."""
        if part.startswith("tokenizer") and self.has(part):
            return dict(self._parts[part].special_tokens_map)
        if not part:
            return self._settings
        if not self.has(part):
            return {}
        config: Any = self._parts[part].config
        return config.to_dict() if hasattr(config, "to_dict") else dict(config)

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part, which are the pipeline's own."""
        weights = self._parts[part].state_dict()
        if any(".base_layer." in name for name in weights):
            raise ModelError(
                f"`{part}` of the pipeline has LoRAs that are not fused",
                "call fuse_lora() and then unload_lora_weights(), or only the latter",
            )
        return weights

    def tokenizer(self, part: str) -> Path:
        """A temporary folder with the tokenizer's vocabulary."""
        folder = Path(self._folder.name) / part
        if not folder.is_dir():
            self._parts[part].save_pretrained(folder)
        return folder

    def fingerprints(self) -> Iterator[str]:
        """A line for the weights of each network."""
        for part in filter(self.has, network_folders()):
            digest = hashlib.sha256()
            for name, tensor in sorted(self.weights(part).items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            yield f"{part}:{digest.hexdigest()}\n"
