# pyright: standard, reportPrivateUsage=false
"""A network whose weights are divided among processes, and gathered block by block (FSDP2)."""

import copy
import gc
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class ShardedNetwork:
    """A copy of a network that has a part of each weight: some rows of its first dimension.

    Each block gathers its weights before it computes, and frees them afterwards; gradients are
    summed, and each process gets those of its part. So all processes must compute the same number
    of passes. The tensors of `weights` become parts of the process, which `module` computes with.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device, copies = next(iter(weights.values())).device, dict[int, nn.Parameter]()
        for name, weight in network.named_parameters():
            copies[id(weight)] = nn.Parameter(weights[name].data.contiguous())
            weights[name].data = torch.empty(0, dtype=weight.dtype, device=device)
        self.module: Any = copy.deepcopy(network, copies)  # with these in place of its weights
        self._own = weights
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        # What diffusers and transformers keep on one device is computed by one call.
        blocks = set(getattr(network, "_no_split_modules", None) or ())
        modules = [one for one in self.module.modules() if type(one).__name__ in blocks]
        for module in (*reversed(modules), self.module):
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)  # the sum, as the losses have weights
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        if outputs := getattr(network, "_can_record_outputs", None):
            from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

            _CAN_RECORD_REGISTRY[self.module] = outputs  # by class, of which it has a new one
        self._sharded: dict[str, Any] = dict(self.module.named_parameters())
        for name, weight in weights.items():
            weight.data = self._sharded[name].detach().to_local()

    def take_gradients(self) -> None:
        """Move the gradients of this process's parts to its weights."""
        for name, weight in self._own.items():
            gradient: Any = self._sharded[name].grad
            weight.grad = None if gradient is None else gradient.to_local()
            self._sharded[name].grad = None

    def reshard(self) -> None:
        """Free gathered weights: they must be gathered again after a change of the parts."""
        self.module.reshard()


@contextmanager
def torch_caches() -> Generator[None]:
    """A block that begins before the processes connect; nothing in torch holds on to that after it.

    Gloo's threads must have ended before Python ends.
    """
    import_module("torch.distributed.fsdp")  # default arguments hold connections that exist then
    try:
        yield
    finally:
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache

        _clear_sharding_prop_cache()
        gc.collect()


def own_tensor(weight: Any) -> Tensor:
    """The part of a divided weight that this process has, or the whole weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def own_rows(tensor: Tensor, rank: int, size: int) -> Tensor:
    """A copy of the part of a whole tensor that a process has in a `ShardedNetwork`."""
    parts = tensor.chunk(size)
    own = parts[rank] if rank < len(parts) else tensor[:0]
    return own.clone(memory_format=torch.contiguous_format)
