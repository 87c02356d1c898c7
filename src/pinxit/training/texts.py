"""The exact texts that a training uses, and their tokens, before anything is trained."""

from collections.abc import Sequence
from typing import Any

from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe


def training_texts(model: Model, recipe: Recipe, images: Sequence[TrainingImage]) -> dict[str, Any]:
    """`texts`: each text with its `tokens`, and what is `cut` off because it is too long.

    `images`: the caption of each image by file name, and the numbers of the texts of which each
    step takes one. The tokens are those of the first text encoder. RecipeError as for training.
    """
    trainer = ConceptTrainer(model, TrainingPlan.of(recipe, model, len(images)), images)
    placeholders = trainer.placeholders()
    prompts, cuts = trainer.samples.training_prompts, trainer.cut_prompts()
    texts = list(dict.fromkeys(text for choice in prompts.values() for text in choice))
    encoder = next(iter(model.text_encoders.values()), None)
    return {
        "texts": [
            {
                "text": text,
                "tokens": encoder.token_texts(text, placeholders, recipe.prompt_parsing)
                if encoder
                else [],
                "cut": cuts.get(text, ""),
            }
            for text in texts
        ],
        "images": {
            image.path.name: {
                "caption": image.caption or "",
                "texts": [texts.index(text) for text in prompts[image.path.name]],
            }
            for image in images
        },
    }
