"""LoRA and its kin: small weights beside the base's, which stay as they are (arXiv:2106.09685)."""

from typing import Literal

from pydantic import Field

from pinxit.adapter import NewWord
from pinxit.lora import Form, Layers, LowRank
from pinxit.method import Learnable, Plan, Subject
from pinxit.model import Model
from pinxit.peft_layers import Kind
from pinxit.tuning import Tuning, share_of_steps, size

# Steps, batch size and rate by the denoiser's size. Tune here.
_PLANS = {"little": Plan(steps=300, batch_size=4, rate=2e-3), "real": Plan(1000, 1, 1e-4)}
# How fast a new word is learned beside them.
_WORD_RATES = {"little": 1e-2, "real": 1e-3}


class Lora(Tuning):
    """Learn small weights beside the layers, in a file of a few megabytes."""

    adapter: Kind = Field(default="lora", description="how the weights change a layer")
    rank: int = Field(
        default=4, ge=1, le=1024, description="how much they can hold; of oft, a block's side"
    )
    alpha: float | None = Field(
        default=None, gt=0, description="they count alpha / rank times; the rank if unset"
    )
    layers: Layers = Field(default="attention", description="which layers; all has convolutions")
    word: Literal["rare", "new"] = Field(
        default="rare",
        description="rare: the base's rare word before the class noun; new: vectors learned too",
    )
    vectors: int = Field(default=1, ge=1, le=16, description="vectors of a new word")
    word_rate: float | None = Field(default=None, gt=0, description="rate of a new word")

    def plan(self, model: Model, count: int) -> Plan:
        """More pictures take more steps to be seen equally often."""
        plan = _PLANS[size(model)]
        return Plan(round(plan.steps * share_of_steps(count)), plan.batch_size, plan.rate)

    def adapters(self, model: Model, subject: Subject, rate: float) -> tuple[Learnable, ...]:
        """The word, the denoiser's small weights, and the text towers' if wanted."""
        form = Form(self.adapter, self.rank, self.alpha or self.rank, self.layers)
        rates = {"denoiser": rate}
        if self.train_text_encoder:
            rates |= dict.fromkeys(model.towers, rate * self.text_rate)
        tuned = [
            Learnable(LowRank.of(model, target, form, subject.seed), own)
            for target, own in rates.items()
        ]
        if self.word == "rare":
            return (Learnable(self.alias(model, subject), 0.0), *tuned)
        word = NewWord.of(model, subject.token, subject.class_noun, self.vectors)
        return (Learnable(word, self.word_rate or _WORD_RATES[size(model)]), *tuned)
