"""LoRA and its kin: small weights beside the base's, which stay as they are (arXiv:2106.09685)."""

from typing import ClassVar, Literal, Self

from pydantic import Field

from pinxit.adapters.adapter import NewWord
from pinxit.adapters.lora import Form, Layers, LowRank
from pinxit.adapters.peft_layers import Kind as Adapted
from pinxit.models.model import Model
from pinxit.training.finetuning import Size, Tuning, size
from pinxit.training.method import Kind, Learnable, Plan, Subject

# A little base has so few layers with attention that they hold less than a subject.
_LAYERS: dict[Size, Layers] = {"little": "all", "real": "transformer"}
# By what is learned: how it is said, and of how many vectors a new word is. A style has no class
# noun to lean on, and no rare word is near it (docs/styles.md).
_WORDS: dict[Kind, tuple[str, int]] = {"object": ("rare", 1), "style": ("new", 2)}
# How fast a new word is learned beside them.
_WORD_RATES = {"little": 1e-2, "real": 1e-3}


class Lora(Tuning):
    """Learn small weights beside the layers, in a file of a few megabytes."""

    plans: ClassVar = {"little": Plan(300, 4, rate=1e-3), "real": Plan(1000, 1, rate=1e-4)}

    adapter: Adapted = Field(default="lora", description="how the weights change a layer")
    rank: int = Field(
        default=4, ge=1, le=1024, description="how much they can hold; of oft, a block's side"
    )
    alpha: float | None = Field(
        default=None, gt=0, description="they count alpha / rank times; the rank if unset"
    )
    layers: Layers | None = Field(
        default=None,
        description="which layers: transformer has attention and what is between, all has "
        "convolutions too; unset, transformer of a real base",
    )
    word: Literal["rare", "new"] | None = Field(
        default=None,
        description="rare: the base's rare word before the class noun; new: vectors learned too; "
        "unset, rare for a thing and new for a style",
    )
    vectors: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="vectors of a new word; unset, one for a thing and two for a style",
    )
    word_rate: float | None = Field(default=None, gt=0, description="rate of a new word")

    @property
    def apart(self) -> bool:
        """Plain LoRAs of the denoiser can each be kept to its own samples."""
        return self.adapter == "lora" and not self.train_text_encoder

    @property
    def says_rare(self) -> bool:
        """Unless it learns a new word."""
        return self.word != "new"

    def settled(self, model: Model, subject: Subject) -> Self:
        """With the layers and the word chosen too."""
        word, vectors = _WORDS[subject.kind]
        chosen = {
            "layers": self.layers or _LAYERS[size(model)],
            "word": self.word or word,
            "vectors": self.vectors or vectors,
        }
        return super(Lora, self.model_copy(update=chosen)).settled(model, subject)

    def adapters(self, model: Model, subject: Subject, rate: float) -> tuple[Learnable, ...]:
        """The word, the denoiser's small weights, and the text towers' if wanted."""
        layers = self.layers or _LAYERS[size(model)]
        form = Form(self.adapter, self.rank, self.alpha or self.rank, layers)
        rates = {"denoiser": rate}
        if self.train_text_encoder:
            rates |= dict.fromkeys(model.towers, rate * self.text_rate)
        tuned = [
            Learnable(LowRank.of(model, target, form, subject.seed), own)
            for target, own in rates.items()
        ]
        if self.says_rare:
            return (Learnable(self.alias(model, subject), 0.0), *tuned)
        word = NewWord.of(model, subject.token, subject.class_noun, self.vectors or 1)
        return (Learnable(word, self.word_rate or _WORD_RATES[size(model)]), *tuned)
