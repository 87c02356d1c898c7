"""The adapter protocols, and the adapters for embeddings, token aliases and full weights."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from pinxit.errors import ConceptError
from pinxit.models.family import families_by_text_widths
from pinxit.models.model import Model
from pinxit.models.prompt import TokenEmbedding


@dataclass(frozen=True)
class Part:
    """An adapter as data: its kind, settings and tensors, ready to be written to a file."""

    kind: str
    settings: Mapping[str, str]
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class ModelChange(Protocol):
    """A reversible change to a model: `eject` restores the state before `inject`, to the bit."""

    def inject(self, model: Model) -> None:
        """Apply the change to the model."""
        ...

    def eject(self, model: Model) -> None:
        """Remove the change from the model."""
        ...


@runtime_checkable
class PerConcept(ModelChange, Protocol):
    """The changes of several concepts in one model; each sample of a batch uses one of them."""

    def select(self, concepts: Tensor) -> None:
        """Set the concept index of each sample, (B,); shape (1,) applies to the whole batch."""
        ...


@runtime_checkable
class Batchable(Protocol):
    """An adapter type whose instances must be combined to train several concepts in one model."""

    @classmethod
    def batched(cls, adapters: Sequence[Self]) -> PerConcept:
        """Combine one adapter per concept, in this order, into one change.

        The result uses the weights of the adapters themselves, not copies.
        """
        ...


class Adapter(ModelChange, Protocol):
    """A model change that can be saved, and perhaps trained.

    `changes_conditioning` is True if training it changes the conditioning of prompts, so that
    prompts must be encoded again in every step.
    """

    changes_conditioning: bool

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The trainable weights by name; empty if the adapter is not trainable."""
        ...

    def part(self) -> Part:
        """The adapter as data, with detached tensors on the CPU."""
        ...

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """Build the adapter for this model from its data; ConceptError if it does not fit."""
        ...


@contextmanager
def applied(model: Model, adapters: Sequence[ModelChange]) -> Generator[Model]:
    """Inject the adapters in order; on exit, also after an error, eject them in reverse order."""
    with ExitStack() as stack:
        for adapter in adapters:
            adapter.inject(model)
            stack.callback(adapter.eject, model)
        yield model


class EmbeddingAdapter:
    """A placeholder token with its own embeddings (textual inversion, arXiv:2208.01618).

    `tables` has a table (n, width) for each text encoder. `filler` is the text that is tokenized
    in place of the token; its embeddings are replaced.
    """

    changes_conditioning = True

    def __init__(self, token: str, filler: str, tables: Mapping[str, Tensor]) -> None:
        self.token = token
        self.filler = filler
        self.tables = {name: nn.Parameter(table) for name, table in tables.items()}
        self.vectors: Mapping[str, Tensor] = self.tables

    @classmethod
    def of(cls, model: Model, token: str, noun: str, num_vectors: int) -> Self:
        """A trainable embedding of `num_vectors` vectors, initialized from the noun's embeddings.

        If the noun has fewer tokens than that, its vectors repeat. If it has more, each vector
        starts as the mean of a group of neighbouring tokens.
        """
        tables: dict[str, Tensor] = {}
        for name, text_encoder in model.text_encoders.items():
            vectors = text_encoder.token_embeddings(noun)
            groups = vectors.tensor_split(min(num_vectors, len(vectors)))
            means = [group.mean(0) for group in groups]
            tables[name] = torch.stack([means[i % len(means)] for i in range(num_vectors)])
        return cls(token, noun, tables)

    def inject(self, model: Model) -> None:
        """Define the token in the model; ConceptError if the model has such a token already."""
        _define_token(model, self.token, TokenEmbedding(self.filler, self.vectors))

    def eject(self, model: Model) -> None:
        """Remove the token from the model."""
        del model.placeholders[self.token]

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The embedding tables by text encoder."""
        return self.tables

    def part(self) -> Part:
        """The vectors, the token and its filler as data."""
        settings = {"word": self.token, "stand_in": self.filler}
        return Part("new-word", settings, _on_cpu(self.vectors))

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The embedding for this model.

        Raises ConceptError if the model has other text encoders, or other embedding widths.
        """
        token, widths = part.settings["word"], embedding_widths(part.tensors)
        if widths.keys() != model.text_encoders.keys():
            raise ConceptError(
                f"{token} has embeddings for the text encoders {', '.join(widths) or '(none)'}, "
                f"but {model.name} has {', '.join(model.text_encoders)}",
                _base_hint(widths),
            )
        for name, text_encoder in model.text_encoders.items():
            if widths[name] != text_encoder.width:
                raise ConceptError(
                    f"the embeddings of {token} are {widths[name]} wide, but those of "
                    f"{model.name} are {text_encoder.width} wide",
                    _base_hint(widths),
                )
        tables = {name: part.tensors[name].to(model.device) for name in widths}
        return cls(token, part.settings["stand_in"], tables)


class AliasAdapter:
    """A placeholder token that is replaced by a text, such as DreamBooth's rare token."""

    changes_conditioning = False

    def __init__(self, token: str, text: str) -> None:
        self.token = token
        self.text = text

    def inject(self, model: Model) -> None:
        """Define the token in the model; ConceptError if the model has such a token already."""
        _define_token(model, self.token, TokenEmbedding(self.text))

    def eject(self, model: Model) -> None:
        """Remove the token from the model."""
        del model.placeholders[self.token]

    def weights(self) -> Mapping[str, nn.Parameter]:
        """An empty mapping: an alias is not trainable."""
        return {}

    def part(self) -> Part:
        """The token and its text as data."""
        return Part("alias", {"word": self.token, "text": self.text})

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:  # noqa: ARG003
        """The alias, which fits every model."""
        return cls(part.settings["word"], part.settings["text"])


class FullWeightsAdapter:
    """Trained weights that replace all weights of a network, which are unloaded meanwhile."""

    def __init__(self, network: str, tensors: Mapping[str, Tensor], *, text: bool) -> None:
        self.network = network
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.changes_conditioning = text
        self._module = nn.Module()
        self._originals: dict[str, nn.Parameter] = {}

    @classmethod
    def of(cls, model: Model, network: str) -> Self:
        """Start training from the network's weights, which the adapter takes over.

        Raises ConceptError if the network is open in int8.
        """
        _check_not_int8(model, network)
        weights = {name: w.detach() for name, w in model.networks[network].named_parameters()}
        model.offload(network)
        return cls(network, weights, text=network in model.text_encoders)

    def inject(self, model: Model) -> None:
        """Put the adapter's weights into the network."""
        self._module = model.emptied(self.network)
        for name, weight in self.parameters.items():
            self._originals[name] = _replace_weight(self._module, name, weight)

    def eject(self, model: Model) -> None:
        """Restore the network; its weights are read from the file again when they are needed."""
        for name, weight in self._originals.items():
            _replace_weight(self._module, name, weight)
        self._originals = {}
        model.offload(self.network)

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All weights by their names in the network."""
        return self.parameters

    def part(self) -> Part:
        """The weights and the name of their network as data."""
        return Part("tuned-weights", {"network": self.network}, _on_cpu(self.parameters))

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The weights for this model; ConceptError if names or shapes differ from the model's."""
        network = part.settings["network"]
        _check_not_int8(model, network)
        module = model.networks.get(network, nn.Module())
        originals = dict(module.named_parameters())
        # Some releases of transformers prefix the weight names of text encoders, others do not.
        names = {name.removeprefix("text_model."): name for name in originals}
        weights = {
            names.get(name.removeprefix("text_model."), name): tensor
            for name, tensor in part.tensors.items()
        }
        if originals.keys() != weights.keys():
            raise ConceptError(
                f"the concept has {len(part.tensors)} weights for the network `{network}`, but "
                f"{model.name} has {len(originals)} for it, or has other names",
                "use it with the kind of base model that it was trained on",
            )
        for name, tensor in weights.items():
            if tensor.shape != originals[name].shape:
                raise ConceptError(
                    f"`{network}.{name}` has the shape {tuple(tensor.shape)} in the concept, but "
                    f"{tuple(originals[name].shape)} in {model.name}",
                    "use it with the kind of base model that it was trained on",
                )
        tensors = {name: _channels_last(t).to(originals[name]) for name, t in weights.items()}
        return cls(network, tensors, text=network in model.text_encoders)


def _check_not_int8(model: Model, network: str) -> None:
    if model.placement.precision == "int8" and network == "denoiser":
        raise ConceptError(
            f"{model.name} is open in int8, so its denoiser weights cannot be trained or replaced",
            "open it with another --precision, such as bf16",
        )


def _define_token(model: Model, token: str, embedding: TokenEmbedding) -> None:
    if token.lower() in {name.lower() for name in model.placeholders}:
        raise ConceptError(
            f"two concepts define the token `{token}`",
            "train one of them again with another --token, or use only one of them",
        )
    model.placeholders[token] = embedding


def _replace_weight(network: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
    """Set a weight of a network and return the previous one."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    previous = module.get_parameter(leaf)
    setattr(module, leaf, weight)
    return previous


def _channels_last(tensor: Tensor) -> Tensor:
    """Convolution weights in the memory layout that computes fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def embedding_widths(tables: Mapping[str, Tensor]) -> dict[str, int]:
    """The embedding width for each text encoder, 0 where a table is not 2-D.

    Tables of other programs that pinxit does not use, with a `.` in their name, are left out.
    """
    names = [name for name in sorted(tables) if "." not in name]
    return {name: tables[name].shape[1] if tables[name].ndim == 2 else 0 for name in names}


def _base_hint(widths: Mapping[str, int]) -> str:
    """The hint for an embedding that does not fit a base model."""
    titles = [family.title for family in families_by_text_widths(list(widths.values()))]
    models = " or ".join(titles) or "the kind of base model it was trained on"
    return f"it fits {models}: choose such a base model with --base"


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
