"""The base model that previews are generated on: the one that is trained on, or a faster one."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

from pinxit.adapters.adapter import applied
from pinxit.concepts.concept import Concept, combined_adapters
from pinxit.concepts.metadata import Provenance
from pinxit.errors import RecipeError
from pinxit.models.model import Model
from pinxit.models.open_base import family_of, find_source, open_base
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.recipe import Recipe
from pinxit.training.shared_state import gather_weights

# Opened once for all runs that train together; its weights are offloaded between previews.
_open_base = lru_cache(maxsize=1)(open_base)


def preview_model(recipe: Recipe, model: Model) -> Model:
    """The base model for previews; opened if it is not the one that is trained on."""
    if recipe.preview_base is None:
        return model
    device, precision = str(model.device), model.placement.precision
    return _open_base(recipe.preview_base, device, precision, recipe.vae, recipe.text_encoders)


def check_preview_base(recipe: Recipe, model: Model) -> None:
    """RecipeError if the base model for previews is of another family than the one to train on."""
    if recipe.preview_base is None or not recipe.preview_every:
        return
    source = find_source(recipe.preview_base, recipe.vae, recipe.text_encoders)
    family, own = family_of(source), type(model)
    source.close()
    if family is not own:
        raise RecipeError(
            f"previews cannot be generated on {recipe.preview_base}: it is {family.facts.title}, "
            f"but {model.name} is {own.facts.title}",
            "give a base model of the same family with --preview-base, or leave it out",
        )


@contextmanager
def previewed(trainer: ConceptTrainer) -> Generator[Model]:
    """The base model for previews with the concept trained so far, without the assistant.

    The weights of another base model are offloaded afterwards.
    """
    model = preview_model(trainer.plan.recipe, trainer.model)
    with trainer.averaged_weights():
        if model is trainer.model:
            with trainer.assistant.off():
                yield model
                if trainer.plan.recipe.score_previews:  # the best are saved
                    gather_weights(trainer)
            return
        parts = tuple(adapter.part() for adapter in trainer.adapters)
        concept = Concept(parts, Provenance.from_metadata(trainer.plan.recipe.token, {}))
        try:
            with applied(model, combined_adapters([concept], model)):
                yield model
        finally:
            model.offload()
