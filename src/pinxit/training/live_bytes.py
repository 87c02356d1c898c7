# pyright: standard, reportPrivateImportUsage=false
"""Measure memory and operations of a computation, also without running it."""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_T = TypeVar("_T")

_ATEN: Any = torch.ops.aten
_ATTENTION = "_scaled_dot_product_flash_attention"
# Functions that give the floating-point operations of a call; torch has none for the last three.
_PRODUCTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._int_mm: flop_registry[_ATEN.mm],
    **{
        getattr(_ATEN, f"{_ATTENTION}_for_cpu{end}"): flop_registry[
            getattr(_ATEN, _ATTENTION + end)
        ]
        for end in ("", "_backward")
    },
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make inside the block: `live` and `peak`.

    Tensors that exist before are not counted. Memory that a kernel takes and returns inside one
    operation is not seen. Also counts the `calls` of operations, the bytes `moved` to and from
    memory, and the floating-point operations of `products` (convolutions and attention, too) by
    dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.calls = self.moved = 0
        self.products = Counter[torch.dtype]()
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count it, with the storages of its result that are new."""
        options = kwargs or {}
        inputs = _tensors((args, options))
        for tensor in inputs:
            self._add(tensor, 0)
        result = operation(*args, **options)
        outputs = _tensors(result)
        for tensor in outputs:
            self._add(tensor, tensor.untyped_storage().nbytes())
        if operation.namespace == "prim":  # a question to a tensor without content
            return result
        self.calls += 1
        if not operation.is_view:
            self.moved += sum(tensor.nbytes for tensor in (*inputs, *outputs))
        if products := _PRODUCTS.get(operation.overloadpacket):
            self.products[inputs[0].dtype] += products(*args, **options, out_val=result)
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


def count(compute: Callable[[], object]) -> LiveBytes:
    """What a computation needs besides tensors that exist."""
    with LiveBytes() as counter:
        compute()
    return counter


def dry_count(compute: Callable[[_T], object], inputs: _T, shared: Iterable[object]) -> LiveBytes:
    """What `count` of `compute(inputs)` would be, without computing or allocating anything.

    It gets a copy of its inputs whose tensors have shapes and no content, so that no such tensor
    can stay in the inputs, not even in a cache of a network. Objects in `shared` are not copied.
    Raises an error if the computation needs the content of a tensor, or uses one that is not in
    its inputs.
    """
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        copied = copy.deepcopy(inputs, {id(one): one for one in shared})
    with fake:
        return count(lambda: compute(copied))


def storage_address(tensor: Tensor) -> int:
    """A number that identifies a tensor's storage while it exists."""
    return tensor.untyped_storage()._cdata


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
