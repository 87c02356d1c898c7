# pyright: standard, reportPrivateImportUsage=false
"""How much memory a computation needs at most, also without computing or allocating anything."""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_T = TypeVar("_T")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make inside the block: `live` and `peak`.

    Tensors that exist before are not counted. Memory that a kernel takes and returns inside one
    operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count the storages that only its result has."""
        for tensor in _tensors((args, kwargs)):
            self._add(tensor, 0)
        result = operation(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._add(tensor, tensor.untyped_storage().nbytes())
        return result

    def _add(self, tensor: Tensor, size: int) -> None:
        """Count a tensor's storage with this size until it is freed, if it is not known yet."""
        address = storage_address(tensor)
        if address not in self._known:
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(tensor.untyped_storage(), self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that a computation needs at a time besides tensors that exist."""
    # Otherwise torch.compile skips for ever what is first called while operations are counted.
    with torch.compiler.set_stance("force_eager"), LiveBytes() as counter:
        compute()
    return counter.peak


def dry_peak_bytes(compute: Callable[[_T], object], inputs: _T, shared: Iterable[object]) -> int:
    """What `peak_bytes` of `compute(inputs)` would be, without computing or allocating anything.

    It gets a copy of its inputs whose tensors have shapes and no content, so that no such tensor
    can stay in the inputs, not even in a cache of a network. Objects in `shared` are not copied.
    Raises an error if the computation needs the content of a tensor, or uses one that is not in
    its inputs.
    """
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        copied = copy.deepcopy(inputs, {id(one): one for one in shared})
    with fake:
        return peak_bytes(lambda: compute(copied))


def storage_address(tensor: Tensor) -> int:
    """A number that identifies a tensor's storage while it exists."""
    return tensor.untyped_storage()._cdata


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
