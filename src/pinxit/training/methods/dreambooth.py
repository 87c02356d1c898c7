"""DreamBooth: the whole network tuned to "a [V] class", the class kept alive (arXiv:2208.12242)."""

from typing import ClassVar

from pinxit.adapters.adapter import TunedWeights
from pinxit.models.model import Model
from pinxit.training.finetuning import Tuning
from pinxit.training.method import Learnable, Plan, Subject

_DECAY = 1e-2


class Dreambooth(Tuning):
    """Tune all of the base's denoiser to the subject."""

    # As in the paper for real ones. Tune here.
    plans: ClassVar = {"little": Plan(200, 4, rate=3e-4), "real": Plan(800, 1, rate=5e-6)}

    def adapters(self, model: Model, subject: Subject, rate: float) -> tuple[Learnable, ...]:
        """The denoiser's weights, the text towers' if wanted, and the word for "[V] class"."""
        tuned = [Learnable(TunedWeights.of(model, "denoiser"), rate, _DECAY)]
        if self.train_text_encoder:
            tuned += [
                Learnable(TunedWeights.of(model, tower), rate * self.text_rate, _DECAY)
                for tower in model.towers
            ]
        return (Learnable(self.alias(model, subject), 0.0), *tuned)
