"""DreamBooth: train the whole denoiser and preserve the class (arXiv:2208.12242)."""

from typing import ClassVar

from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.models.model import Model
from pinxit.training.finetuning import Finetuning
from pinxit.training.method import Advice, Subject, TrainableAdapter

_WEIGHT_DECAY = 1e-2


class Dreambooth(Finetuning):
    """Train all weights of the denoiser."""

    trains_all_weights: ClassVar[bool] = True

    # For large models as in the paper.
    advice_by_size: ClassVar = {
        "small": Advice(200, 4, learning_rate=3e-4),
        "large": Advice(800, 1, learning_rate=5e-6),
    }

    def create_adapters(
        self, model: Model, subject: Subject, learning_rate: float
    ) -> tuple[TrainableAdapter, ...]:
        """The alias "[V] class", the denoiser and, with `train_text_encoder`, text encoders."""
        pull = self.pull(model, subject)
        networks = [
            TrainableAdapter(FullWeightsAdapter.of(model, network), rate, _WEIGHT_DECAY, pull=pull)
            for network, rate in self.learning_rates(model, learning_rate).items()
        ]
        return (self.alias_adapter(model, subject), *networks)
