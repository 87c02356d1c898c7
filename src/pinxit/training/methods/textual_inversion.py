"""Textual inversion: train only the embedding of a new token (arXiv:2208.01618)."""

from typing import Literal, Self

import torch
from torch import Tensor

from pinxit.adapters.adapter import EmbeddingAdapter
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.prompt import FixedNormEmbeddings
from pinxit.models.text_encoder import PlaceholderEncoder
from pinxit.options import Option
from pinxit.rng import generator
from pinxit.training.finetuning import ModelSize, model_size
from pinxit.training.method import (
    Advice,
    ImagePool,
    Method,
    Subject,
    SubjectKind,
    TrainableAdapter,
    prompts_for,
)

# Small models need a higher learning rate; for large ones it is that of the authors' code.
_ADVICE: dict[ModelSize, Advice] = {
    "small": Advice(steps=300, batch_size=8, learning_rate=1e-2),
    "large": Advice(steps=2000, batch_size=2, learning_rate=5e-3),
}

# One vector is not enough for a style.
_VECTORS: dict[SubjectKind, int] = {"object": 1, "style": 4}

# The list of the paper's appendix D, and the list for styles of the authors' code.
_OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
_STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)


class TextualInversion(Method):
    """Train the embedding of a new token; the base model does not change."""

    num_vectors: int | None = Option(
        None,
        ge=1,
        le=16,
        aliases=("vectors",),
        help="number of embedding vectors of the token; more vectors give images closer to the "
        "training images that follow the prompt less",
        default_is="objects: 1, styles: 4",
    )
    initializer: Literal["class-noun", "random"] = Option(
        "class-noun",
        aliases=("start",),
        help="initial embedding: that of the class noun, or random vectors",
    )
    embedding_norm: Literal["fixed", "free"] = Option(
        "free",
        aliases=("length",),
        values={"held": "fixed"},
        help="norm of the embedding: fixed keeps the norm of the class noun's embedding; free may "
        "grow, and then the token outweighs the other words of the prompt",
    )
    captions: bool | None = Option(
        None,
        help="use the captions of the training images as prompts, where they have one, instead of "
        "templates",
        default_is="on for styles, off for objects",
    )

    @property
    def independent_concepts(self) -> bool:
        """True: an embedding changes only prompts that contain its token."""
        return True

    def advise(self, model: Model, image_count: int) -> Advice:  # noqa: ARG002
        """Default steps, batch size and learning rate, the same for any number of images."""
        return _ADVICE[model_size(model)]

    def settle(self, model: Model, subject: Subject) -> Self:  # noqa: ARG002
        """The method with the number of vectors chosen."""
        return self.model_copy(update={"num_vectors": self._num_vectors(subject)})

    def create_adapters(
        self, model: Model, subject: Subject, learning_rate: float
    ) -> tuple[TrainableAdapter, ...]:
        """The adapter of the new token, with an embedding table for every text encoder."""
        count = self._num_vectors(subject)
        adapter = EmbeddingAdapter.of(model, subject.token, subject.class_noun, count)
        # Rounded, so that the norm does not depend on the number of threads.
        noun_norms = {
            name: round(float(table.detach().norm(dim=1).mean()), 6)
            for name, table in adapter.tables.items()
        }
        if self.initializer == "random":
            tables = {
                name: _random_embedding(text_encoder, count, subject.seed)
                for name, text_encoder in model.text_encoders.items()
            }
            adapter = EmbeddingAdapter(subject.token, subject.class_noun, tables)
        if self.embedding_norm == "fixed":
            adapter.vectors = FixedNormEmbeddings(adapter.tables, noun_norms)
        return (TrainableAdapter(adapter, learning_rate, average=True),)

    def image_pools(
        self,
        subject: Subject,
        images: tuple[TrainingImage, ...],
        class_images: tuple[TrainingImage, ...] = (),  # noqa: ARG002
    ) -> tuple[ImagePool, ...]:
        """The training images with templates that contain the token, or with their captions."""
        templates = _STYLE_TEMPLATES if subject.kind == "style" else _OBJECT_TEMPLATES
        prompts = prompts_for(images, subject, templates, captions=self.captions)
        return (ImagePool("own", images, prompts),)

    def _num_vectors(self, subject: Subject) -> int:
        return self.num_vectors or _VECTORS[subject.kind]


def _random_embedding(text_encoder: PlaceholderEncoder, count: int, seed: int) -> Tensor:
    """Random vectors (count, width) with the standard deviation of the embedding table."""
    rng = generator(seed, "start", text_encoder.name)
    std = float(text_encoder.embedding.weight.std())
    return torch.randn(count, text_encoder.width, generator=rng) * std
