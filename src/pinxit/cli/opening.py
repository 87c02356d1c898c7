"""Opening the base of a recipe or a request, with a bar for its download, and saying what it is."""

from pinxit import registry
from pinxit.cli.screen import bars, say
from pinxit.generation.generate import Request
from pinxit.models.model import Model, open_base
from pinxit.training.recipe import Recipe


def opened(asked: Recipe | Request, device: str) -> Model:
    """The base that was asked for; a line says of which family it is found to be."""
    with bars():
        model = open_base(asked.base, device, asked.precision or "auto", asked.vae)
    if asked.base != "pocket":
        told = model.solver_config.get("prediction_type")
        predicts = f", predicts {told}" if told else ""
        family = registry.name_of(type(model))
        say(f"{model.name}: {family}, {model.picture_size} pixels{predicts}")
    return model
