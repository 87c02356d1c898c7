"""Custom Diffusion: train a word, and the keys and values of cross-attention (arXiv:2212.04488)."""

from typing import ClassVar

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.weight_difference import WeightDifference
from pinxit.errors import RecipeError
from pinxit.models.model import Model
from pinxit.options import Option
from pinxit.training.finetuning import EMBEDDING_LEARNING_RATES, Finetuning, model_size
from pinxit.training.method import Advice, Subject, TrainableAdapter


class CustomDiffusion(Finetuning):
    """Train the embedding of a new token, and only the weights through which images read text."""

    advice_by_size: ClassVar = {
        "small": Advice(300, 4, learning_rate=1e-3),
        "large": Advice(500, 2, learning_rate=2e-5),
    }

    num_vectors: int = Option(1, ge=1, le=16, aliases=("vectors",))
    """number of embedding vectors of the token"""
    embedding_learning_rate: float | None = Option(
        None, gt=0, default_is="pocket: 1e-2, larger base models: 1e-3"
    )
    """learning rate of the embedding"""

    def uses_rare_token(self, subject: Subject) -> bool:  # noqa: ARG002
        """False: the token has an embedding of its own."""
        return False

    def check(self, subject: Subject) -> None:
        """Raise RecipeError for options of the other methods too."""
        if self.train_text_encoder or self.rare_token:
            option = "--train-text-encoder" if self.train_text_encoder else "--rare-token"
            raise RecipeError(
                f"{option} does not fit custom-diffusion, which trains an embedding instead",
                "leave it out, or use pinxit train lora",
            )
        super().check(subject)

    def create_adapters(
        self, model: Model, subject: Subject, learning_rate: float
    ) -> tuple[TrainableAdapter, ...]:
        """The embedding, and the differences of the keys and values."""
        embedding = EmbeddingAdapter.of(model, subject.token, subject.class_noun, self.num_vectors)
        rate = self.embedding_learning_rate or EMBEDDING_LEARNING_RATES[model_size(model)]
        pattern = model.layer_pattern("denoiser", "text-keys-values")
        modules = model.networks["denoiser"].named_modules()
        layers = [name for name, _ in modules if pattern.search(name)]
        difference = WeightDifference.of(model, "denoiser", layers)
        pull = self.pull(model, subject)
        return (
            TrainableAdapter(embedding, rate),
            TrainableAdapter(difference, learning_rate, pull=pull),
        )
