"""Join the processes that torchrun or `pinxit ... --gpus N` started together."""

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist

from pinxit.errors import ModelError, PinxitError
from pinxit.models.device import find_device
from pinxit.models.ranks import ALONE, LeaderEndedError, Ranks
from pinxit.models.sharding import torch_caches

# Rank 0 may take this long for previews while the others wait; a lost connection is noticed at
# once.
_TIMEOUT = timedelta(days=30)
_BAD_INPUT = 2


def is_rank() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def device_of_rank(name: str) -> torch.device:
    """The device of that name; with several accelerators, the one with this process's number.

    ModelError if the machine has fewer, or if all processes would use the same one.
    """
    device = find_device(name)
    if not is_rank() or device.type == "cpu":
        return device
    if ":" in str(device):
        raise ModelError(
            f"all processes would use the device {device}", f"give --device {device.type}"
        )
    return find_device(f"{device.type}:{os.environ['LOCAL_RANK']}")


@contextmanager
def joined(device_name: str, *, shard_weights: bool = False) -> Generator[Ranks]:
    """Join the processes that were started together; all leave if one leaves the block.

    Errors of the block are shown by rank 0: another process ends with SystemExit.
    """
    if not is_rank():
        yield ALONE
        return
    with torch_caches() if shard_weights else nullcontext():
        yield from _joined(device_of_rank(device_name), shard_weights=shard_weights)


def _joined(device: torch.device, *, shard_weights: bool) -> Generator[Ranks]:
    backend = "gloo"
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), shard_weights=shard_weights)
    try:
        yield ranks
    except LeaderEndedError:
        pass
    except BaseException as error:
        ranks.leave(error)
        if ranks.rank and isinstance(error, PinxitError):
            raise SystemExit(_BAD_INPUT) from error
        raise
    else:
        ranks.leave()
    finally:
        # The threads of gloo hold results that must be freed before Python ends. NCCL would wait
        # for a process that was killed.
        if device.type == "cpu" or not ranks.lost:
            dist.destroy_process_group()
