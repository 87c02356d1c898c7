"""Several processes that work on one task, one for each device; a process alone is one of one.

Each has a number, its rank; the one with rank 0 writes all files.
"""

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from signal import SIGINT, SIGTERM
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pinxit.errors import PinxitError, RunError, first_line
from pinxit.files.atomic_write import defer_signals

T = TypeVar("T")

_RESUME = "a run goes on with: pinxit train --resume RUN"
_NO_MEMORY = "not enough memory for a step, which cannot be repeated in smaller parts here"
# Gradients are summed in a buffer of this size: those of adapters in one piece.
BUCKET_BYTES = 2**28
# Weights, and the rank that gets the sum of their gradients; None for all.
_Bucket = tuple[int | None, list[nn.Parameter]]


class LeaderEndedError(Exception):
    """Rank 0 has nothing more to do; never shown to a user."""


@dataclass(frozen=True)
class _Leaving:
    """What a process sends instead of a value when it ends: its error, its signal, or neither."""

    error: tuple[str, str] | None = None
    signal: int | None = None

    def exception(self, rank: int, size: int) -> BaseException:
        """What the other processes raise."""
        if self.signal is not None:
            return KeyboardInterrupt(self.signal)
        if self.error:
            message, hint = self.error
            return RunError(f"process {rank} of {size}: {message}", hint)
        return LeaderEndedError()


class Ranks:
    """This process as one of `size` processes; alone, nothing is sent.

    All processes must call `exchange`, `sum_gradients` and `broadcast` in the same order. If one
    of them fails, is stopped by a signal or is killed, the others raise an error there.
    `summed_bytes` counts the bytes of all gradients that were summed; `lost` is whether the
    connection to a process was lost. `shard_weights`: divide weights that are trained as a whole.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, shard_weights: bool = False) -> None:
        self.rank = rank
        self.size = size
        self.shard_weights = shard_weights
        self.summed_bytes = 0
        self._connected = size > 1
        self.lost = False
        self._parent = os.getppid()

    def owns(self, number: int) -> bool:
        """Whether this process does a part of the work, by its number."""
        return number % self.size == self.rank

    def share(self, items: Sequence[T]) -> list[T]:
        """The items that this process works on."""
        return [item for number, item in enumerate(items) if self.owns(number)]

    def exchange(self, value: T) -> list[T]:
        """The values of all processes, by rank; waits until all have called it.

        Raises RunError if another process failed or was killed, KeyboardInterrupt if it was
        stopped, and LeaderEndedError if rank 0 has ended.
        """
        if self.size == 1:
            return [value]
        if os.getppid() != self._parent:  # what started it was killed, and can stop it no more
            raise KeyboardInterrupt(SIGTERM)
        with defer_signals():  # an interrupt between two messages would mix them up
            return self._exchange(value)

    def receive(self) -> object:
        """What rank 0 asks for in `exchange`."""
        return self.exchange(cast("object", None))[0]

    def check_same(self, inputs: Mapping[str, object]) -> None:
        """RunError if an input of this process, by name, is not that of rank 0."""
        for name, expected in self.exchange(inputs)[0].items():
            if inputs[name] != expected:
                raise RunError(
                    f"its {name} differ from those of process 0",
                    "start all processes with the same versions and files",
                )

    def broadcast(
        self, tensors: Mapping[str, Tensor], part: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of rank 0, on the CPU, of which each process keeps a `part`, by name."""
        if self.size == 1:
            return dict(tensors)
        with defer_signals():
            described = {name: (one.shape, one.dtype) for name, one in tensors.items()}
            received: dict[str, Tensor] = {}
            for name, (shape, dtype) in self._exchange(described)[0].items():
                whole = torch.empty(shape, dtype=dtype)
                if self.rank == 0:
                    whole = tensors[name].detach().cpu().contiguous()
                self._collective(partial(dist.broadcast, whole, src=0))
                received[name] = part(name, whole)
        return received

    def sum_gradients(
        self, weights: Sequence[nn.Parameter], value: T | None, owners: Sequence[int] = ()
    ) -> list[T | None]:
        """Sum the gradients of all processes; returns the values of all.

        With `owners`, the rank of each weight, only that process gets the sum, and the others have
        no gradient of it any more. If the value of one process is None, or its memory runs out,
        nothing is summed. A weight that has no gradient in any process stays without.
        """
        if self.size == 1:
            return [value]
        present = [weight.grad is not None for weight in weights]
        buckets, buffer = _buckets(weights, owners), torch.empty(0)
        try:
            buffer = self._buffer_for(buckets)
        except torch.OutOfMemoryError:
            value = None
        with defer_signals():
            results = self._exchange((value, present))
            values = [one for one, _ in results]
            if any(one is None for one in values):
                return values
            for owner, bucket in buckets:
                self._sum_bucket(buffer, bucket, owner)
        for weight, *has_gradient in zip(weights, *(flags for _, flags in results), strict=True):
            if not any(has_gradient):
                weight.grad = None
        return values

    def _buffer_for(self, buckets: Sequence[_Bucket]) -> Tensor:
        """The bytes for the largest bucket; every gradient that will be the sum exists then."""
        for owner, bucket in buckets:
            for weight in bucket if owner in (None, self.rank) else ():
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
        largest = max(sum(weight.nbytes for weight in bucket) for _, bucket in buckets)
        return torch.empty(largest, dtype=torch.uint8, device=buckets[0][1][0].device)

    def _sum_bucket(
        self, buffer: Tensor, weights: Sequence[nn.Parameter], owner: int | None
    ) -> None:
        """Sum the gradients of some weights in the buffer, for one process or for all."""
        total = sum(weight.nbytes for weight in weights)
        flat = buffer[:total].view(weights[0].dtype)
        views: list[Tensor] = []
        start = 0
        for weight in weights:
            views.append(view := flat.as_strided(weight.shape, weight.stride(), start))
            start += weight.numel()
            view.zero_() if weight.grad is None else view.copy_(weight.grad)
        if owner is None:
            self._collective(partial(dist.all_reduce, flat))
        else:
            self._collective(partial(dist.reduce, flat, owner))
        self.summed_bytes += total
        for weight, view in zip(weights, views, strict=True):
            if owner in (None, self.rank):
                assert weight.grad is not None
                weight.grad.copy_(view)
            else:
                weight.grad = None

    @contextmanager
    def in_step(self, value: T) -> Generator[list[T]]:
        """A block in which torch sends tensors, the same in all processes; yields all values.

        Others cannot be told of an error in it: they end because the connection is lost.
        """
        with defer_signals():
            values = self._exchange(value)
            try:
                yield values
            except torch.OutOfMemoryError as error:
                self._connected, self.lost = False, True
                raise RunError(_NO_MEMORY, _RESUME) from error
            except BaseException as error:
                self._connected, self.lost = False, True
                if isinstance(error, dist.DistError) or "gloo" in str(error):
                    raise self._lost() from error
                raise

    def share_weights(self, weights: Sequence[tuple[Tensor, int]]) -> None:
        """Replace each contiguous tensor by that of the process whose rank is with it."""
        with defer_signals():
            self._exchange(None)  # raises here if a process has failed before it could send
            for tensor, source in weights:
                self._collective(partial(dist.broadcast, tensor, src=source))

    def gather(self, version: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """On rank 0 the tensors of all, those of others on the CPU; only the own on others.

        None if the processes have different versions.
        """
        gathered = dict(tensors)
        with defer_signals():
            described = {name: (one.shape, one.dtype) for name, one in tensors.items()}
            parts = self._exchange((version, described))
            if any(other != version for other, _ in parts):
                return None
            for source, (_, part) in enumerate(parts[1:], 1):
                for name, (shape, dtype) in part.items():
                    if self.rank == source:
                        own = tensors[name].detach().cpu().contiguous()
                        self._collective(partial(dist.send, own, 0))
                    elif self.rank == 0:
                        gathered[name] = torch.empty(shape, dtype=dtype)
                        self._collective(partial(dist.recv, gathered[name], source))
        return gathered

    @contextmanager
    def ending(self, error: BaseException | None) -> Generator[None]:
        """A block that all processes run when they end; they leave it together."""
        self.leave(error)
        try:
            yield
        finally:
            with suppress(RunError), defer_signals():
                self._exchange(None)

    def leave(self, error: BaseException | None = None) -> None:
        """Tell the other processes that this one ends, unless they know it."""
        if not self._connected:
            return
        leaving = _Leaving()
        if isinstance(error, KeyboardInterrupt):
            leaving = _Leaving(signal=next(iter(error.args), SIGINT))
        elif isinstance(error, PinxitError):
            leaving = _Leaving((error.message, error.hint))
        elif error and not isinstance(error, GeneratorExit):
            leaving = _Leaving((first_line(error), "see its traceback above"))
        # The own error is the one to show.
        with suppress(PinxitError, KeyboardInterrupt, LeaderEndedError), defer_signals():
            self._exchange(leaving)

    def _exchange(self, value: T) -> list[T]:
        values: list[T | _Leaving] = [_Leaving()] * self.size
        self._collective(partial(dist.all_gather_object, values, value))
        for rank, one in enumerate(values):
            if isinstance(one, _Leaving):
                self._connected = False
                raise one.exception(rank, self.size)
        return [one for one in values if not isinstance(one, _Leaving)]

    def _collective(self, operation: partial[object]) -> None:
        if self.lost:
            raise self._lost()
        try:
            operation()
        except RuntimeError as error:
            self._connected, self.lost = False, True
            raise self._lost() from error

    def _lost(self) -> RunError:
        return RunError(
            f"one of the {self.size} processes has ended, so the others cannot go on",
            f"if it printed nothing it was killed, perhaps for its memory; {_RESUME}",
        )


ALONE = Ranks()


def _buckets(weights: Sequence[nn.Parameter], owners: Sequence[int]) -> list[_Bucket]:
    """The weights in parts of limited bytes, each of one owner and one dtype."""
    buckets: list[_Bucket] = []
    latest: dict[tuple[int | None, torch.dtype], list[nn.Parameter]] = {}
    sizes = Counter[tuple[int | None, torch.dtype]]()
    for weight, owner in zip(weights, owners or [None] * len(weights), strict=True):
        kind = owner, weight.dtype
        sizes[kind] += weight.nbytes
        if kind not in latest or sizes[kind] > BUCKET_BYTES:
            latest[kind], sizes[kind] = [], weight.nbytes
            buckets.append((owner, latest[kind]))
        latest[kind].append(weight)
    return buckets
