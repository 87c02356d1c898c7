"""The adapter protocol: a reversible change to a model, which can be stored and trained."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from pinxit import registry
from pinxit.adapters.parts import Part
from pinxit.adapters.strength import Strength
from pinxit.errors import ConceptError
from pinxit.models.model import Model
from pinxit.models.prompt import Placeholders, TokenEmbedding, same_token
from pinxit.models.sharding import ShardedNetwork


class ModelChange(ABC):
    """A reversible change to a model."""

    @abstractmethod
    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Change the model inside a `with` block; afterwards it is as before, to the bit."""

    def before_denoise(self, timesteps: Tensor, concepts: Tensor | None) -> None:  # noqa: B027
        """Called before each call of the denoiser, in training and in generation.

        `timesteps` and `concepts`, the index of each sample's concept, have the shape (B,), or (1,)
        for the whole batch; without `concepts` they stay as they are. A change that depends on one
        of them must not be merged into the weights. The default does nothing.
        """


@runtime_checkable
class Batchable(Protocol):
    """An adapter type whose instances must be combined to train several concepts in one model."""

    @classmethod
    def batched(cls, adapters: Sequence[Self]) -> ModelChange:
        """Combine one adapter per concept, in this order, into one change.

        The result uses the weights of the adapters themselves, not copies, and selects the concept
        of each sample in `before_denoise`.
        """
        ...


class Adapter(ModelChange):
    """A model change that can be stored, and perhaps trained. Its kind is a plug-in.

    `part_type` is the type of its data. `changes_conditioning` is True if training it changes the
    conditioning of prompts, so that prompts must be encoded again in every step. `strength` scales
    the change of a trained adapter whose part has `has_strength`; it is None during training.
    `whole` are the weights by name, on the CPU, if those of `weights` are parts of them that this
    process has.
    """

    part_type: type[Part]
    changes_conditioning: bool = False
    strength: Strength | None = None
    whole: Mapping[str, Tensor] | None = None

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The trainable weights by name; empty if the adapter is not trainable."""
        return {}

    def placeholders(self) -> Placeholders:
        """The placeholder tokens that it defines."""
        return {}

    def shard(self, model: Model) -> ShardedNetwork | None:  # noqa: ARG002
        """Divide all weights of a network among processes; None if it has only some weights."""
        return None

    @abstractmethod
    def part(self) -> Part:
        """The adapter as data, with detached tensors on the CPU."""

    @classmethod
    @abstractmethod
    def restore(cls, part: Any, model: Model) -> Self:
        """Build the adapter for this model from its data; ConceptError if it does not fit."""


@contextmanager
def applied(model: Model, adapters: Sequence[ModelChange]) -> Generator[Model]:
    """Apply the adapters in order; on exit, also after an error, remove them in reverse order."""
    with ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.applied(model))
            model.changes.append(adapter)
            stack.callback(model.changes.remove, adapter)
        yield model


def before_denoise(model: Model, timesteps: Tensor, concepts: Tensor | None = None) -> None:
    """Tell all changes of a model the timesteps and concepts of the next call of the denoiser."""
    for change in model.changes:
        change.before_denoise(timesteps, concepts)


def adapter_type(kind: str) -> type[Adapter]:
    """The class of a kind of adapter; ConceptError if the kind is unknown."""
    return registry.load("kinds", kind)


@contextmanager
def placeholder(model: Model, token: str, embedding: TokenEmbedding) -> Generator[None]:
    """Define a placeholder token in a model; ConceptError if the model has such a token already."""
    if any(same_token(token, name) for name in model.placeholders):
        raise ConceptError(
            f"two concepts define the token `{token}`",
            "train one of them again with another --token, or use only one of them",
        )
    model.placeholders[token] = embedding
    try:
        yield
    finally:
        del model.placeholders[token]


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached tensors on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
