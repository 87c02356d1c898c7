"""TrainingPlan: a recipe with every value chosen for a base model and a number of images."""

import math
from dataclasses import dataclass
from typing import Self
from unicodedata import category

import torch

from pinxit import registry
from pinxit.errors import RecipeError, did_you_mean
from pinxit.files.untrusted import exists, expanded
from pinxit.models.model import QUANTIZED, SMALL, Model, Precision
from pinxit.models.prompt import TokenEmbedding, file_name, parse_prompt
from pinxit.pocket.words import BROAD_NOUNS
from pinxit.pocket.world.attributes import CLASSES
from pinxit.training.assistant import Assistant, resolved
from pinxit.training.early_stopping import validation_interval
from pinxit.training.method import ClassImages, Method
from pinxit.training.optimizer import Optimizer
from pinxit.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe and the values that it may leave open, chosen once before training.

    `recipe` contains the chosen values too: it is the one to save.
    """

    recipe: Recipe
    method: Method
    class_images: ClassImages
    steps: int
    batch_size: int
    learning_rate: float
    resolution: int
    validate_every: int

    @classmethod
    def of(cls, recipe: Recipe, model: Model, image_count: int) -> Self:
        """The plan for a recipe, a base model and a number of images.

        Raises RecipeError if the token is already a word of the base model, the base model does
        not know the class noun, is distilled or cannot train at the resolution, or its noise
        schedule does not support min-SNR weighting.
        """
        subject = recipe.subject
        check_words(recipe)
        check_options(recipe)
        _check_token(model, subject.token)
        check_class_noun(model, subject.class_noun)
        _check_model(recipe, model)
        advice = recipe.method.advise(model, image_count)
        method = recipe.method.settle(model, subject)
        steps = recipe.steps or advice.steps
        batch_size = recipe.batch_size or advice.batch_size
        samples = batch_size * recipe.gradient_accumulation_steps
        optimizer: type[Optimizer] = registry.load("optimizers", recipe.optimizer)
        learning_rate = recipe.learning_rate or optimizer.default_rate(advice.learning_rate)
        resolution = recipe.resolution or model.default_size
        interval = recipe.validate_every or validation_interval(advice.steps, batch_size)
        cached = recipe.cache_encodings
        cached = model.num_parameters >= SMALL if cached is None else cached
        values = {
            "method": method,
            "images": recipe.images.expanduser().resolve(),
            "assistant": recipe.assistant and resolved(recipe.assistant),
            "preview_base": recipe.preview_base and _absolute(recipe.preview_base),
            "steps": steps,
            "batch_size": batch_size,
            "validate_every": interval,
            "learning_rate": learning_rate,
            "resolution": resolution,
            "base": model.name,
            "vae": model.source.vae,
            "text_encoders": model.source.text_encoders,
            "precision": model.placement.precision,
            "cache_encodings": cached,
            "caption_dropout": _caption_dropout(recipe),
        }
        complete = recipe.model_copy(update=values)
        class_images = method.required_class_images(model, subject)
        return cls(
            complete, method, class_images, steps, samples, learning_rate, resolution, interval
        )

    @property
    def optimizer(self) -> type[Optimizer]:
        """The class of the optimizer."""
        return registry.load("optimizers", self.recipe.optimizer)

    def lr_factor(self, step: int) -> float:
        """The factor of the learning rate in a step, counted from 0: warm-up and schedule."""
        recipe, warmup = self.recipe, self.recipe.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(self.steps - warmup, 1)
        if recipe.lr_schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2 if recipe.lr_schedule == "cosine" else 1.0


def _caption_dropout(recipe: Recipe) -> float:
    if recipe.caption_dropout is not None:
        return recipe.caption_dropout
    return recipe.method.style_caption_dropout if recipe.kind == "style" else 0.0


def _absolute(base: str) -> str:
    """A base model on this machine with its absolute path; a hub id is unchanged."""
    path = expanded(base)
    return str(path.resolve()) if exists(path) else base


def _check_model(recipe: Recipe, model: Model) -> None:
    _check_quantized(recipe, model.placement.precision)
    model.schedule.loss_weight(torch.zeros(1, dtype=torch.long), recipe.min_snr_gamma)
    if model.trainable_partner and not recipe.assistant:
        raise RecipeError(
            f"{model.name} is distilled to few steps, which training would undo",
            f"train on {model.trainable_partner}; the concept can be used with {model.name}. Or "
            "give a LoRA that undoes the distillation meanwhile with --assistant FILE",
        )
    if recipe.precision not in (None, model.placement.precision):
        raise RecipeError(
            f"the recipe needs precision {recipe.precision}, but {model.name} is open in "
            f"{model.placement.precision}",
            f"open it with --precision {recipe.precision}",
        )
    if recipe.resolution and recipe.resolution % model.size_multiple:
        raise RecipeError(
            f"{model.name} cannot train at resolution {recipe.resolution}",
            f"choose a multiple of {model.size_multiple}",
        )


def check_words(recipe: Recipe) -> None:
    """Raise RecipeError for a token or class noun that is wrong whatever the base model is."""
    if not _is_found(recipe.token):
        raise RecipeError(
            f"the token `{recipe.token}` would not be found in every prompt: it has characters "
            "that are not text, or that text encoders replace",
            "use letters, digits, - and _, best in angle brackets, such as <mytoy>",
        )
    check_noun(recipe.class_noun)


def check_options(recipe: Recipe) -> None:
    """Raise an error for options that are wrong whatever the base model is."""
    recipe.method.check(recipe.subject)
    _check_quantized(recipe, recipe.precision)
    if recipe.assistant:
        Assistant(recipe.assistant)
    if recipe.preview_base and recipe.preview_every and recipe.method.trains_all_weights:
        raise RecipeError(
            f"full weights cannot be previewed on {recipe.preview_base}, whose own they would "
            "replace",
            "leave out --preview-base, or train a LoRA",
        )


def _check_quantized(recipe: Recipe, precision: Precision | None) -> None:
    needs = recipe.method.needs_weights
    if needs and precision in QUANTIZED:
        raise RecipeError(
            f"{needs} cannot be trained on a base model in {precision}",
            "use --precision bf16, or train a plain LoRA",
        )


def check_noun(noun: str) -> None:
    """Raise RecipeError for a class noun that is empty or begins with an article."""
    article, _, rest = noun.partition(" ")
    if not noun.strip():
        raise RecipeError("the class noun is empty", "write what the images show, such as: toy")
    if article.lower() in ("a", "an", "the") and rest:
        raise RecipeError(f"the class noun `{noun}` begins with an article", f"write: {rest}")


def _check_token(model: Model, token: str) -> None:
    if any(len(encoder.ids(token)) == 1 for encoder in model.text_encoders.values()):
        raise RecipeError(
            f"the token `{token}` is already a word of {model.name}",
            f"choose a new word, such as <my{file_name(token)}>",
        )


def check_class_noun(model: Model, noun: str) -> None:
    """Raise RecipeError if a text encoder does not know the class noun."""
    for text_encoder in model.text_encoders.values():
        if not all(map(text_encoder.has_word, noun.split())):
            raise RecipeError(
                f"{model.name} does not know the class noun `{noun}`",
                did_you_mean(noun, filter(text_encoder.has_word, (*CLASSES, *BROAD_NOUNS))),
            )


def _is_found(token: str) -> bool:
    """Whether prompts with and without weights contain exactly this token, not a mere `)`."""
    known = {token: TokenEmbedding("")}
    prompts = (f"{token}, ", f"({token}:1.2)", f"[{token}].", token.upper(), token.lower())
    has_sign = any(one.isalnum() or category(one) == "So" for one in token)
    return (
        has_sign
        and token.isprintable()
        and all(
            [piece.token for piece in parse_prompt(prompt, known, weights=True) if piece.token]
            == [token]
            for prompt in prompts
        )
    )
