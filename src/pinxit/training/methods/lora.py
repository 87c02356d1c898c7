"""LoRA and similar adapters: the weights of the base model are frozen (arXiv:2106.09685)."""

from typing import ClassVar, Literal, Self

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LayerGroup, LoraConfig, LoraVariant
from pinxit.models.model import Model
from pinxit.options import Option
from pinxit.training.finetuning import EMBEDDING_LEARNING_RATES, Finetuning, ModelSize, model_size
from pinxit.training.method import Advice, Subject, SubjectKind, TrainableAdapter

# In a small model, the attention layers alone cannot represent a subject.
_LAYERS: dict[ModelSize, LayerGroup] = {"small": "all", "large": "transformer"}
# Default placeholder and number of vectors. No rare token is close to a style, and a style has no
# class noun that helps (docs/results/styles.md).
_PLACEHOLDERS: dict[SubjectKind, tuple[str, int]] = {
    "object": ("rare-token", 1),
    "style": ("new-embedding", 2),
}


# 16 preserves the class of a subject better, and gains nothing for a style (docs/results/scale.md).
_RANKS: dict[SubjectKind, int] = {"object": 16, "style": 4}


class Lora(Finetuning):
    """Train small weights that are added to the layers; the file has a few megabytes."""

    advice_by_size: ClassVar = {
        "small": Advice(300, 4, learning_rate=1e-3),
        "large": Advice(1000, 1, learning_rate=1e-4),
    }
    object_preservation: ClassVar = "base-answer"  # as good as class images for a LoRA

    adapter: LoraVariant = "lora"
    """kind of adapter: how the trained weights change a layer"""
    rank: int | None = Option(
        None,
        ge=1,
        le=1024,
        aliases=("network_dim", "dim"),
        default_is="objects: 16, styles and other kinds of adapters: 4",
    )
    """LoRA rank (for OFT: block size); a higher rank learns more detail and makes a larger file"""
    alpha: float | None = Option(None, gt=0, aliases=("network_alpha",), default_is="the rank")
    """LoRA alpha; the trained weights are multiplied by alpha / rank"""
    layers: LayerGroup | None = Option(
        None, default_is="pocket: all; larger base models: transformer"
    )
    """layers to train: only cross-attention, all attention, transformer blocks, or all layers
    (convolutions too)"""
    placeholder: Literal["rare-token", "new-embedding"] | None = Option(
        None,
        aliases=("word",),
        values={"rare": "rare-token", "new": "new-embedding"},
        default_is=(
            "objects: rare-token, styles: new-embedding where the base model has text "
            "encoders for it"
        ),
    )
    """what the placeholder token is: a rare token of the base model before the class noun, or a new
    embedding that is trained too"""
    num_vectors: int | None = Option(
        None, ge=1, le=16, aliases=("vectors",), default_is="objects: 1, styles: 2"
    )
    """number of vectors of a new embedding"""
    embedding_learning_rate: float | None = Option(
        None,
        gt=0,
        aliases=("word_rate",),
        default_is="pocket: 1e-2, larger base models: 1e-3; optimizers other than adamw: converted",
    )
    """learning rate of a new embedding"""

    @property
    def independent_concepts(self) -> bool:
        """True for plain LoRAs of the denoiser, which can be applied to each sample separately."""
        return self.adapter == "lora" and not self.train_text_encoder

    @property
    def needs_weights(self) -> str:
        """The kind of adapter that needs the layers' weights; "" for plain LoRA."""
        return "" if self.adapter == "lora" else self.adapter

    def uses_rare_token(self, subject: Subject) -> bool:
        """Whether the placeholder token stands for a rare token of the base model."""
        return self._placeholder(subject)[0] == "rare-token"

    def settle(self, model: Model, subject: Subject) -> Self:
        """The method with the layers, placeholder, class images and rare token chosen."""
        placeholder, num_vectors = self._placeholder(subject)
        if not (self.placeholder or model.text_encoders):
            placeholder = "rare-token"
        chosen = {
            "rank": self._rank(subject),
            "layers": self.layers or _LAYERS[model_size(model)],
            "placeholder": placeholder,
            "num_vectors": num_vectors,
        }
        return super(Lora, self.model_copy(update=chosen)).settle(model, subject)

    def create_adapters(
        self, model: Model, subject: Subject, learning_rate: float
    ) -> tuple[TrainableAdapter, ...]:
        """Adapters of the token, the denoiser and, with `train_text_encoder`, text encoders."""
        size = model_size(model)
        rank, layers = self._rank(subject), self.layers or _LAYERS[size]
        config = LoraConfig(self.adapter, rank, self.alpha or rank, layers)
        pull, seed = self.pull(model, subject), subject.seed
        loras: list[TrainableAdapter] = []
        for network, rate in self.learning_rates(model, learning_rate).items():
            adapter = LoraAdapter.of(model, network, config, seed)
            loras.append(TrainableAdapter(adapter, rate, pull=pull))
        if self.uses_rare_token(subject):
            return (self.alias_adapter(model, subject), *loras)
        _, num_vectors = self._placeholder(subject)
        embedding = EmbeddingAdapter.of(model, subject.token, subject.class_noun, num_vectors)
        embedding_rate = self.embedding_learning_rate or EMBEDDING_LEARNING_RATES[size]
        is_default = self.embedding_learning_rate is None
        return (TrainableAdapter(embedding, embedding_rate, adamw_rate=is_default), *loras)

    def _rank(self, subject: Subject) -> int:
        return self.rank or (_RANKS[subject.kind] if self.adapter == "lora" else 4)

    def _placeholder(self, subject: Subject) -> tuple[str, int]:
        """What the placeholder token is, and the number of vectors of a new embedding."""
        placeholder, num_vectors = _PLACEHOLDERS[subject.kind]
        return self.placeholder or placeholder, self.num_vectors or num_vectors
