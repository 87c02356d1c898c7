"""What a concept says about its training, without names that are private."""

from pathlib import Path

from pinxit.concepts.metadata import Provenance
from pinxit.files.portable import last_name, numbered, with_tilde
from pinxit.images.folder import TrainingImage, fingerprints
from pinxit.models.model import Model
from pinxit.training.recipe import Recipe


def provenance(
    recipe: Recipe, model: Model, base_hash: str, steps: int, images: tuple[TrainingImage, ...]
) -> Provenance:
    """The provenance of the concept of a run.

    A concept may be shared: it has no names of images, and no name of the user's account.
    """
    changes = {
        "images": Path(recipe.images.name),
        "base": with_tilde(recipe.base),
        "vae": recipe.vae and with_tilde(recipe.vae),
        "preview_base": recipe.preview_base and with_tilde(recipe.preview_base),
        "assistant": recipe.assistant and last_name(with_tilde(recipe.assistant)),
        "text_encoders": tuple(map(with_tilde, recipe.text_encoders)),
    }
    return Provenance(
        token=recipe.token,
        class_noun=recipe.class_noun,
        method=recipe.method.name,
        base=with_tilde(model.name),
        base_hash=base_hash,
        steps=steps,
        images=numbered(fingerprints(images)),
        recipe=recipe.model_copy(update=changes).to_toml(),
    )
