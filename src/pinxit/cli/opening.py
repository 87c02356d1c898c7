"""Open the base model of a recipe or a request, with a bar for its download."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import Any, Self

import torch

from pinxit import registry
from pinxit.cli.launch import StartRanks
from pinxit.cli.screen import bars, killable, say
from pinxit.errors import RequestError
from pinxit.generation.request import GenerationRequest
from pinxit.models.device import AUTO, find_device, placement_notices
from pinxit.models.joining import device_of_rank, is_rank, joined
from pinxit.models.model import Model
from pinxit.models.open_base import compile_denoiser, find_source, open_source
from pinxit.models.ranks import Ranks
from pinxit.training.recipe import Recipe

_PATIENCE = 2.0  # seconds


@dataclass(frozen=True)
class Opening:
    """How a command opens base models: on the device that was typed, or the recipe's, or auto.

    `judges` are the networks to download if the images of the base model are scored by them, and
    `gpus` is the number of processes. With `compiled` the denoiser is compiled, with `graphs` to be
    replayed as CUDA graphs. With `shard_weights` the processes divide trained weights.
    """

    device: str | None = None
    judges: tuple[str, ...] = ()
    gpus: int = 1
    compiled: bool = False
    graphs: bool = False
    shard_weights: bool = False

    @classmethod
    def typed(cls, given: Mapping[str, Any]) -> Self:
        """The values of the typed options, such as --device and --gpus."""
        from pinxit.evaluation.networks import CLIP, DINO

        judges, gpus = (DINO, CLIP) if given.get("download") else (), given.get("gpus")
        compiled, graphs = given.get("compile", False), given.get("cuda_graphs", False)
        shards = given.get("shard_weights", False)
        count = 1 if gpus is None else gpus
        return cls(given.get("device"), judges, count, compiled, graphs, shards)

    @contextmanager
    def joined(self, own_device: str | None = None) -> Generator[Ranks]:
        """Work with the processes of this command; StartRanks if they are still to be started.

        `own_device` is that of the recipe. RequestError if the machine has fewer GPUs.
        """
        name = self.device or own_device or AUTO
        if self.gpus != 1 and not is_rank():
            device = find_device(name)
            limit = torch.accelerator.device_count() if device.type != "cpu" else os.cpu_count()
            if not 1 <= self.gpus <= (limit or 1):
                raise RequestError(
                    f"--gpus {self.gpus} is not possible: this machine has {limit} for {device}",
                    "give the number of GPUs to use, or try it with --device cpu",
                )
            raise StartRanks(self.gpus)
        with joined(name, shard_weights=self.shard_weights) as ranks:
            yield ranks

    def open(self, options: Recipe | GenerationRequest) -> Model:
        """Open the base model that the options name; print its family, image size and device."""
        own_device = options.device if isinstance(options, Recipe) else None
        device, precision = self.device or own_device or AUTO, options.precision or "auto"
        with _said_if_slow(f"opening {options.base}"):
            with bars():  # of downloads
                source = find_source(options.base, options.vae, options.text_encoders)
            with killable():
                model = open_source(source, str(device_of_rank(device)), precision)
        if self.judges:
            from pinxit.evaluation.judge import uses_pocket_vocabulary
            from pinxit.evaluation.networks import fetch_networks

            with bars():
                fetch_networks(() if uses_pocket_vocabulary(model) else self.judges)
        if self.compiled or self.graphs:
            compile_denoiser(model, graphs=self.graphs)
        if options.base != "pocket":
            prediction_type = model.scheduler_config.get("prediction_type")
            prediction = f", {prediction_type} prediction" if prediction_type else ""
            family = registry.name_of(type(model))
            say(f"{model.name}: {family}, {model.default_size} pixels{prediction}")
        say(*(notice.message for notice in placement_notices(model)))
        return model


@contextmanager
def _said_if_slow(text: str) -> Generator[None]:
    """Print a line if the block takes longer than a person likes to wait."""
    timer = Timer(_PATIENCE, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
