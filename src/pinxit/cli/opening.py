"""Open the base model of a recipe or a request, with a bar for its download."""

from pinxit import registry
from pinxit.cli.screen import bars, say
from pinxit.generation.request import GenerationRequest
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.recipe import Recipe


def open_base_model(options: Recipe | GenerationRequest, device: str) -> Model:
    """Open the base model that the options name, and print its family and image size."""
    with bars():
        model = open_base(options.base, device, options.precision or "auto", options.vae)
    if options.base != "pocket":
        prediction_type = model.scheduler_config.get("prediction_type")
        prediction = f", {prediction_type} prediction" if prediction_type else ""
        family = registry.name_of(type(model))
        say(f"{model.name}: {family}, {model.default_size} pixels{prediction}")
    return model
