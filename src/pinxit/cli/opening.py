"""Open the base model of a recipe or a request, with a bar for its download."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pinxit import registry
from pinxit.cli.screen import bars, say
from pinxit.generation.request import GenerationRequest
from pinxit.models.device import AUTO, placement_notices
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.recipe import Recipe


@dataclass(frozen=True)
class Opening:
    """How a command opens base models: on the device that was typed, or the recipe's, or auto.

    `judges` are the networks to download if the images of the base model are scored by them.
    """

    device: str | None = None
    judges: tuple[str, ...] = ()

    @classmethod
    def typed(cls, given: Mapping[str, Any]) -> Self:
        """What the flags --device and --download say."""
        return cls.of(given.get("device"), download=given.get("download", False))

    @classmethod
    def of(cls, device: str | None, *, download: bool) -> Self:
        """A device, or None, and whether DINO and CLIP may be downloaded."""
        from pinxit.evaluation.networks import CLIP, DINO

        return cls(device, (DINO, CLIP) if download else ())

    def open(self, options: Recipe | GenerationRequest) -> Model:
        """Open the base model that the options name; print its family, image size and device."""
        own_device = options.device if isinstance(options, Recipe) else None
        device, precision = self.device or own_device or AUTO, options.precision or "auto"
        with bars():
            model = open_base(options.base, device, precision, options.vae, options.text_encoders)
            if self.judges:
                _fetch_judges(model, self.judges)
        if options.base != "pocket":
            prediction_type = model.scheduler_config.get("prediction_type")
            prediction = f", {prediction_type} prediction" if prediction_type else ""
            family = registry.name_of(type(model))
            say(f"{model.name}: {family}, {model.default_size} pixels{prediction}")
        say(*(notice.message for notice in placement_notices(model)))
        return model


def _fetch_judges(model: Model, names: tuple[str, ...]) -> None:
    from pinxit.evaluation.judge import uses_pocket_vocabulary
    from pinxit.evaluation.networks import fetch_networks

    if not uses_pocket_vocabulary(model):
        fetch_networks(names)
