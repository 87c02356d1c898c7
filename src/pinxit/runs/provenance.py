"""What a concept says about its training, without names that are private."""

from pathlib import Path

from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept
from pinxit.errors import PinxitError
from pinxit.files.portable import last_name, numbered, with_tilde
from pinxit.images.folder import TrainingImage, fingerprints
from pinxit.models.model import Model
from pinxit.progress import Notice
from pinxit.runs.file_names import RECIPE
from pinxit.training.recipe import Recipe

# Options that a resumed run may change, and paths that may have moved.
_FREE = {"steps", "early_stop", "images", "base", "assistant"}


def changed_options(file: Path, new: Provenance) -> list[Notice]:
    """A notice of the options of a run that differ from those of its concept's file.

    [] if there is no difference, or if the file is damaged.
    """
    try:
        before, after = map(_options, (read_concept(file).provenance, new))
    except PinxitError:
        return []
    names = [name for name in after if name not in _FREE and after[name] != before.get(name)]
    changes = ", ".join(f"{name} = {after[name]} (was {before.get(name)})" for name in names)
    what = f"{RECIPE} differs from what the last checkpoint was trained with, and is used as it is"
    return [Notice(f"{what}: {changes}")] if changes else []


def _options(about: Provenance) -> dict[str, object]:
    values = Recipe.model_validate(about.recipe_values).model_dump(mode="json")
    return {**values, **values.pop("method")}


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
