"""Training all weights of a network in several processes, which divide what each weight needs."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pinxit import registry
from pinxit.errors import RecipeError
from pinxit.models.ranks import Ranks
from pinxit.models.sharding import ShardedNetwork, own_rows
from pinxit.training.optimizer import Optimizer, chunk_norms, in_memory, norms_without_gradient
from pinxit.training.recipe import Recipe


class Division:
    """Which process updates each weight, by number, and has its summed gradient and its state.

    If nothing is divided, `owners` is empty, and every process updates all. `complete` is False
    while a step has changed only the weights of this process: then there is nothing to save.

    With `shards`, each process has a part of every weight instead. They are divided when the
    `networks` are there, which compute with them; until then every process has whole weights.
    """

    def __init__(self, ranks: Ranks, weights: Sequence[nn.Parameter], *, divided: bool) -> None:
        self.ranks, self._weights = ranks, weights
        self.divided = divided and ranks.size > 1
        self.shards = self.divided and ranks.shard_weights
        self.networks: tuple[ShardedNetwork, ...] = ()
        self._shapes = [weight.shape for weight in weights]
        self.complete = True
        self.owners: list[int] = []
        num_bytes = [0] * ranks.size
        for weight in weights if self.divided and not self.shards else ():
            owner = num_bytes.index(min(num_bytes))
            self.owners.append(owner)
            num_bytes[owner] += weight.nbytes
        self._no_norms = [norms_without_gradient(weight, whole=self.divided) for weight in weights]

    @property
    def own_weights(self) -> list[nn.Parameter]:
        """The weights that this process updates."""
        if not self.owners:
            return list(self._weights)
        pairs = zip(self._weights, self.owners, strict=True)
        return [weight for weight, owner in pairs if owner == self.ranks.rank]

    def gradient_norms(self) -> Sequence[Tensor]:
        """The norms of the chunks of each gradient, also where another process has it.

        Without a gradient they are zero or empty.
        """
        pairs = zip(self._weights, self._no_norms, strict=True)
        norms = [
            none if weight.grad is None else chunk_norms(weight.grad) for weight, none in pairs
        ]
        if not self.divided:
            return norms
        lengths = list(map(len, self._no_norms))
        own = torch.cat(norms)
        if self.networks:
            lengths = [1] * len(norms)
            own = torch.stack([torch.linalg.vector_norm(one) ** 2 for one in norms])
        parts = self.ranks.exchange(own.tolist())  # zero but in one process, so the sum is exact
        total = own.new_tensor(parts).sum(dim=0)
        return (total.sqrt() if self.networks else total).split(lengths)

    @contextmanager
    def sharing(self) -> Generator[None]:
        """Send the weights that each process has updated in the block to all processes.

        Raises an error before the block, so that no process changes anything, if one has ended.
        """
        if not self.divided:
            yield
            return
        self.ranks.exchange(None)
        if self.networks:
            yield
            return
        self.complete = False
        yield
        pairs = zip(self._weights, self.owners, strict=True)
        self.ranks.share_weights([(in_memory(weight.detach()), owner) for weight, owner in pairs])
        self.complete = True

    @contextmanager
    def equal_passes(self, count: int) -> Generator[int]:
        """A block in which all processes compute the same number of passes.

        `count` is the number that this process needs; yields how many more it must compute, because
        all processes gather weights in each pass.
        """
        if not self.networks:
            yield 0
            return
        with self.ranks.in_step(count) as counts:
            yield max(counts) - count

    def take_gradients(self) -> None:
        """Move the gradients of this process's parts to its weights."""
        for network in self.networks:
            network.take_gradients()

    def own_part(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a tensor of the trainer's state that this process has, by name."""
        number = name.rpartition(".")[2]
        if not (self.shards and number.isdecimal() and tensor.shape == self._shapes[int(number)]):
            return tensor
        return own_rows(tensor, self.ranks.rank, self.ranks.size)

    def gather(self, version: object, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The whole tensors of a state, on the CPU, on rank 0; None if the versions differ."""
        ranks = self.ranks
        parts = {f"{n}@{ranks.rank}": one for n, one in state.items() if "." in n and one.ndim}
        gathered = ranks.gather(version, parts)
        if gathered is None or ranks.rank:
            return None if gathered is None else {}
        whole = dict(state)
        for name in [name for name in state if f"{name}@0" in gathered]:
            pieces = [gathered.pop(f"{name}@{rank}").cpu() for rank in range(ranks.size)]
            whole[name] = torch.cat(pieces)
        return whole


def check_shards(recipe: Recipe, *, several: bool) -> None:
    """RecipeError unless there are several processes that can divide the weights of this recipe."""
    optimizer: type[Optimizer] = registry.load("optimizers", recipe.optimizer)
    method, without = recipe.method, "leave out --shard-weights"
    reasons = {
        "one process has nobody to divide the weights with": ("give --gpus N with it", several),
        f"{method.name} trains few weights, which are not worth dividing": (
            "train dreambooth",
            method.trains_all_weights,
        ),
        f"the state of {recipe.optimizer} cannot be divided with the weights": (
            "choose --optimizer adamw or lion",
            optimizer.elementwise,
        ),
        "an assistant does not work with divided weights": ("train a LoRA", not recipe.assistant),
    }
    for message, (hint, is_possible) in reasons.items():
        if not is_possible:
            raise RecipeError(message, f"{hint}, or {without}")
