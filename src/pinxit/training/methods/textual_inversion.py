"""Textual inversion: train only the embedding of a new token (arXiv:2208.01618)."""

from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.prompt import FixedNormEmbeddings
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

# object.txt is the list of the paper's appendix D, style.txt that of the authors' code.
_TEMPLATES = Path(__file__).parent / "prompt_templates"


class TextualInversion(Method):
    """Train the embedding of a new token; the base model does not change."""

    num_vectors: int | None = Option(
        None, ge=1, le=16, aliases=("vectors",), default_is="objects: 1, styles: 4"
    )
    """number of embedding vectors of the token; more vectors give images closer to the training
    images that follow the prompt less"""
    initializer: Literal["class-noun", "random"] = Option("class-noun", aliases=("start",))
    """initial embedding: that of the class noun, or random vectors"""
    embedding_norm: Literal["fixed", "free"] = Option(
        "free", aliases=("length",), values={"held": "fixed"}
    )
    """norm of the embedding: fixed keeps the norm of the class noun's embedding; free may grow, and
    then the token outweighs the other words of the prompt"""
    captions: bool | None = Option(None, default_is="on for styles, off for objects")
    """use the captions of the training images as prompts, where they have one, instead of templates
    """

    @property
    def independent_concepts(self) -> bool:
        """True: an embedding changes only prompts that contain its token."""
        return True

    def advise(self, model: Model, image_count: int) -> Advice:  # noqa: ARG002
        """Default steps, batch size and learning rate, the same for any number of images."""
        return _ADVICE[model_size(model)]

    def settle(self, model: Model, subject: Subject) -> Self:
        """The method with the number of vectors chosen; RecipeError without a text encoder."""
        EmbeddingAdapter.check_trainable(model)
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
            tables: dict[str, Tensor] = {}
            for name, text_encoder in model.text_encoders.items():
                rng = generator(subject.seed, "start", text_encoder.name)
                std = float(text_encoder.embedding.weight.std())
                tables[name] = torch.randn(count, text_encoder.width, generator=rng) * std
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
        file = _TEMPLATES / f"{subject.kind}.txt"
        templates = file.read_text(encoding="utf-8").splitlines()
        prompts = prompts_for(images, subject, templates, captions=self.captions)
        return (ImagePool("own", images, prompts),)

    def _num_vectors(self, subject: Subject) -> int:
        return self.num_vectors or _VECTORS[subject.kind]
