"""The exact texts of a training, or a prompt, with their tokens, before anything is trained."""

from collections.abc import Sequence
from typing import Any

from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.prompt import Placeholders
from pinxit.models.text_encoder import PromptParsing
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe


def text_with_tokens(
    model: Model,
    text: str,
    parsing: PromptParsing,
    placeholders: Placeholders | None = None,
) -> dict[str, Any]:
    """A `text` with its `tokens`, and what is `cut` off because it is too long.

    `windows` are how many windows of the text encoder it fills, and the length of one with start
    and end tokens. Tokens are those of the first text encoder that can show them.
    `placeholders` are the active ones if not given.
    """
    known = model.placeholders if placeholders is None else placeholders
    result: dict[str, Any] = {"text": text, "tokens": [], "windows": [0, 0]}
    for encoder in [*model.text_encoders.values()][:1]:
        result["tokens"] = encoder.token_texts(text, known, parsing)
        result["windows"] = [*encoder.tokenize([text], known, parsing).ids.shape[1:]]
    return {**result, "cut": model.truncated_text(text, parsing, known)}


def training_texts(model: Model, recipe: Recipe, images: Sequence[TrainingImage]) -> dict[str, Any]:
    """`texts`: each text as in `text_with_tokens`.

    `images`: the caption of each image by file name, and the numbers of the texts of which each
    step takes one. RecipeError as for training.
    """
    trainer = ConceptTrainer(model, TrainingPlan.of(recipe, model, len(images)), images)
    placeholders, parsing = trainer.placeholders(), recipe.prompt_parsing
    prompts = trainer.samples.training_prompts
    texts = list(dict.fromkeys(text for choice in prompts.values() for text in choice))
    return {
        "texts": [text_with_tokens(model, text, parsing, placeholders) for text in texts],
        "images": {
            image.path.name: {
                "caption": image.caption or "",
                "texts": [texts.index(text) for text in prompts[image.path.name]],
            }
            for image in images
        },
    }
