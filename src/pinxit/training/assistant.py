"""An assistant: a LoRA that undoes the distillation of a base model while it is trained on."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

from torch import Tensor, nn

from pinxit.adapters.adapter import applied
from pinxit.adapters.batched_lora import BatchedLora, LoraFactors
from pinxit.adapters.kinds.lora import LoraAdapter, lora_factors
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.strength import Strength, layer_strength
from pinxit.concepts.read import ConceptReference, open_concept, recognize_format
from pinxit.errors import RecipeError
from pinxit.files.atomic_write import sha256
from pinxit.files.untrusted import expanded
from pinxit.models.model import Model


class Assistant:
    """A LoRA with a strength, under the adapters that are trained; it may be none.

    It is in every loss and in the answers of the base model, but not in previews and in the
    result. `fingerprint` has the hash of its file.
    """

    def __init__(self, reference: str | None) -> None:
        """Read FILE or FILE:0.7; RecipeError if it has anything but LoRAs."""
        self.fingerprint: dict[str, str] = {}
        self._parts: list[LoraPart] = []
        self._strength: Strength = 1.0
        self._loras: list[_SwitchedLora] = []
        if reference is None:
            return
        chosen = ConceptReference.parse(reference)
        file = open_concept(chosen.path)
        parts = [part for part in recognize_format(file).read(file).parts if part.tensors]
        self._parts = [
            part for part in parts if isinstance(part, LoraPart) and part.variant == "lora"
        ]
        if len(self._parts) != len(parts) or not parts:
            content = ", ".join(getattr(part, "variant", part.kind) for part in parts)
            raise RecipeError(
                f"the assistant {chosen.path} must be a LoRA, but has {content or 'no weights'}",
                "give the training adapter that was made for the distilled base model",
            )
        self._strength = chosen.strength
        self.fingerprint = {f"assistant {chosen.path.name}": sha256(file.path)}

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """The model with its effect inside the block; ConceptError if it does not fit."""
        self._loras = [_SwitchedLora.of(part, model, self._strength) for part in self._parts]
        with applied(model, self._loras):
            yield

    @contextmanager
    def off(self) -> Generator[None]:
        """Without its effect inside the block."""
        self._switch(active=False)
        try:
            yield
        finally:
            self._switch(active=True)

    def _switch(self, *, active: bool) -> None:
        for lora in self._loras:
            lora.active = active


class _SwitchedLora(BatchedLora):
    """A LoRA as hooks of layers, for all samples of a batch or for none.

    It is not merged into the weights, because that needs a second copy of them.
    """

    active = True

    @classmethod
    def of(cls, part: LoraPart, model: Model, strength: Strength) -> Self:
        """ConceptError if it does not fit the model."""
        lora = LoraAdapter.restore(part, model)
        layers: dict[str, LoraFactors] = {}
        for name in lora.layers:
            factors = lora_factors([lora], name)
            layer = layer_strength(strength, model, lora.network, name)
            layers[name] = replace(factors, scale=[layer * factors.scale[0]])
        return cls(lora.network, layers)

    def before_denoise(self, timesteps: Tensor, concepts: Tensor | None) -> None:
        """Do nothing: the assistant is the same for all concepts."""

    def add_lora(
        self, factors: LoraFactors, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """The layer's output with the LoRA, or without it while it is off."""
        return super().add_lora(factors, layer, inputs, output) if self.active else output


def resolved(reference: str) -> str:
    """FILE or FILE:0.7 with an absolute path."""
    chosen = ConceptReference.parse(reference)
    return str(replace(chosen, path=expanded(str(chosen.path)).resolve()))
