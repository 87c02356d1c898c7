"""Changes to a model that can be undone: new words, other words, tuned weights."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from pinxit.errors import ConceptError
from pinxit.models.model import Model
from pinxit.models.modelspec import fitting
from pinxit.models.prompt import Meaning


@dataclass(frozen=True)
class Part:
    """An adapter as it is kept in a file: its kind, what it needs to know, and its tensors."""

    kind: str
    settings: Mapping[str, str]
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Change(Protocol):
    """A change to a model: after `eject` the model is to the bit what it was before `inject`."""

    def inject(self, model: Model) -> None:
        """Make the change."""
        ...

    def eject(self, model: Model) -> None:
        """Undo it."""
        ...


@runtime_checkable
class Shared(Change, Protocol):
    """Changes of several concepts at once, each to its own samples of a batch."""

    def serve(self, concepts: Tensor) -> None:
        """Sample n is of the concept `concepts[n]` from now on; if there is one, so are all."""
        ...


@runtime_checkable
class Joinable(Protocol):
    """An adapter of which several must be joined, to be in a model at once."""

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Shared:
        """Theirs as one change, by concept in this order; it reads their weights as they are."""
        ...


class Adapter(Change, Protocol):
    """A change that can be kept, and perhaps trained.

    `touches_text` says whether prompts mean something else while it is trained, so that their
    conditioning cannot be kept from step to step.
    """

    touches_text: bool

    def weights(self) -> Mapping[str, nn.Parameter]:
        """What training may change; nothing if it is fixed."""
        ...

    def part(self) -> Part:
        """Itself, to be kept."""
        ...

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The adapter that was kept, for this model; ConceptError if it does not fit."""
        ...


@contextmanager
def injected(model: Model, adapters: Sequence[Change]) -> Generator[Model]:
    """The model with the adapters in it, in order; all are undone whatever happens."""
    with ExitStack() as undo:
        for adapter in adapters:
            adapter.inject(model)
            undo.callback(adapter.eject, model)
        yield model


class NewWord:
    """A word with vectors of its own in every text tower (textual inversion, arXiv:2208.01618)."""

    touches_text = True

    def __init__(self, word: str, stand_in: str, tables: Mapping[str, Tensor]) -> None:
        self.word = word
        self.stand_in = stand_in
        self.tables = {tower: nn.Parameter(table) for tower, table in tables.items()}
        self.vectors: Mapping[str, Tensor] = self.tables

    @classmethod
    def of(cls, model: Model, word: str, noun: str, count: int) -> Self:
        """A word to be trained, of so many vectors a tower: at first the noun's own, in turn.

        With fewer vectors than the noun has tokens, each starts as the mean of its share of them.
        """
        tables: dict[str, Tensor] = {}
        for name, tower in model.towers.items():
            known = tower.word_vectors(noun)
            shares = [share.mean(0) for share in known.tensor_split(min(count, len(known)))]
            tables[name] = torch.stack([shares[at % len(shares)] for at in range(count)])
        return cls(word, noun, tables)

    def inject(self, model: Model) -> None:
        """The word means its vectors from now on."""
        _define(model, self.word, Meaning(self.stand_in, self.vectors))

    def eject(self, model: Model) -> None:
        """The word means nothing again."""
        del model.words[self.word]

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The tables, by tower."""
        return self.tables

    def part(self) -> Part:
        """Its vectors, and the word."""
        settings = {"word": self.word, "stand_in": self.stand_in}
        return Part("new-word", settings, _detached(self.vectors))

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The word again; ConceptError if the base's towers are others, or of another width."""
        word, widths = part.settings["word"], word_widths(part.tensors)
        if widths.keys() != model.towers.keys():
            raise ConceptError(
                f"{word} has vectors for the text towers {', '.join(widths) or 'of no base'}, and "
                f"{model.name} has {', '.join(model.towers)}",
                _fitting(widths),
            )
        for name, tower in model.towers.items():
            if widths[name] != tower.width:
                raise ConceptError(
                    f"{word} has vectors of {widths[name]} numbers, and those of {model.name} "
                    f"have {tower.width}",
                    _fitting(widths),
                )
        tables = {name: part.tensors[name].to(model.device) for name in widths}
        return cls(word, part.settings["stand_in"], tables)


class Alias:
    """A word that stands for other words the base has, as DreamBooth's for its rare token."""

    touches_text = False

    def __init__(self, word: str, text: str) -> None:
        self.word = word
        self.text = text

    def inject(self, model: Model) -> None:
        """The word means the text from now on."""
        _define(model, self.word, Meaning(self.text))

    def eject(self, model: Model) -> None:
        """The word means nothing again."""
        del model.words[self.word]

    def weights(self) -> Mapping[str, nn.Parameter]:
        """Nothing: it is not trained."""
        return {}

    def part(self) -> Part:
        """The word and its text."""
        return Part("alias", {"word": self.word, "text": self.text})

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:  # noqa: ARG003
        """The alias again; any model takes it."""
        return cls(part.settings["word"], part.settings["text"])


class TunedWeights:
    """Other weights for a whole network of the model; its own leave memory meanwhile."""

    def __init__(self, network: str, tensors: Mapping[str, Tensor], *, text: bool) -> None:
        self.network = network
        self.tuned = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.touches_text = text
        self._inside = nn.Module()
        self._originals: dict[str, nn.Parameter] = {}

    @classmethod
    def of(cls, model: Model, network: str) -> Self:
        """The network's weights, to be trained: they are the adapter's own from now on.

        ConceptError if they are in 8 bits.
        """
        _must_be_whole(model, network)
        own = {name: w.detach() for name, w in model.networks[network].named_parameters()}
        model.rest(network)
        return cls(network, own, text=network in model.towers)

    def inject(self, model: Model) -> None:
        """The network has the tuned weights from now on."""
        self._inside = model.vacated(self.network)
        for name, weight in self.tuned.items():
            self._originals[name] = _swap(self._inside, name, weight)

    def eject(self, model: Model) -> None:
        """The network has its own weights again, read anew when they are needed."""
        for name, weight in self._originals.items():
            _swap(self._inside, name, weight)
        self._originals = {}
        model.rest(self.network)

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All of them, by their names in the network."""
        return self.tuned

    def part(self) -> Part:
        """The weights, and whose they are."""
        return Part("tuned-weights", {"network": self.network}, _detached(self.tuned))

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The weights again; ConceptError if the base's network has others, or other shapes."""
        network = part.settings["network"]
        _must_be_whole(model, network)
        own = dict(model.networks[network].named_parameters()) if network in model.networks else {}
        # Releases of transformers name a text tower's weights with this prefix or without.
        named = {name.removeprefix("text_model."): name for name in own}
        kept = {
            named.get(name.removeprefix("text_model."), name): tensor
            for name, tensor in part.tensors.items()
        }
        if own.keys() != kept.keys():
            raise ConceptError(
                f"the concept has {len(part.tensors)} weights for `{network}`, and that of "
                f"{model.name} has {len(own)} of its own",
                "use it with the kind of base it was trained on",
            )
        for name, tensor in kept.items():
            if tensor.shape != own[name].shape:
                raise ConceptError(
                    f"`{network}.{name}` is {tuple(tensor.shape)} in the concept and "
                    f"{tuple(own[name].shape)} in {model.name}",
                    "use it with the kind of base it was trained on",
                )
        tensors = {name: _laid_out(tensor).to(own[name]) for name, tensor in kept.items()}
        return cls(network, tensors, text=network in model.towers)


def _must_be_whole(model: Model, network: str) -> None:
    if model.placement.precision == "int8" and network == "denoiser":
        raise ConceptError(
            f"a denoiser's weights cannot be tuned, or take the place of others, in 8 bits, and "
            f"{model.name} is open so",
            "open it with another --precision",
        )


def _define(model: Model, word: str, meaning: Meaning) -> None:
    if word.lower() in {known.lower() for known in model.words}:
        raise ConceptError(
            f"two concepts want the word `{word}`",
            "train one of them again with another --token, or use one at a time",
        )
    model.words[word] = meaning


def _swap(network: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
    """Put a weight into a network; the one that was there."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    old = module.get_parameter(leaf)
    setattr(module, leaf, weight)
    return old


def _laid_out(tensor: Tensor) -> Tensor:
    """A convolution's weights as they are multiplied fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def word_widths(tables: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers a word's vectors have for each text tower; others' extra tables left out."""
    own = {name: tables[name] for name in sorted(tables) if "." not in name}
    return {name: table.shape[1] if table.ndim == 2 else 0 for name, table in own.items()}


def _fitting(widths: Mapping[str, int]) -> str:
    """The hint for a word that does not fit a base."""
    kind = fitting(list(widths.values()))
    named = f"a base of {kind.title}" if kind else "the kind of base it was trained on"
    return f"it fits {named}: give one with --base"


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
