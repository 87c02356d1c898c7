"""The device to compute on: any that torch knows, found by itself or given by name."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from pinxit.errors import ModelError, PinxitError, did_you_mean
from pinxit.models.model import Model, Placement, Precision
from pinxit.progress import Notice

AUTO = "auto"
_NO_FP64 = {"mps"}
_CPU_FEATURES: tuple[tuple[str, Precision], ...] = (
    ("amx_bf16", "bf16"),
    ("avx512_fp16", "fp16"),
    ("avx512_bf16", "bf16"),
)
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


def accelerator() -> torch.device | None:
    """The kind of accelerator that torch finds on this machine (CUDA, ROCm, XPU, MPS, ...)."""
    return torch.accelerator.current_accelerator(check_available=True)


def find_device(name: str = AUTO) -> torch.device:
    """The device of that name, such as cpu, mps or cuda:1; "auto" takes an accelerator if any.

    Raises ModelError if torch does not know the name or the machine does not have the device.
    """
    default = accelerator()
    if name == AUTO:
        return default or torch.device("cpu")
    names = [AUTO, "cpu", *([default.type] if default else [])]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"there is no device `{name}`", did_you_mean(name, names)) from error
    count = {"cpu": 1, **({default.type: torch.accelerator.device_count()} if default else {})}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ModelError(
            f"device `{name}` is not available: torch finds {_available(count)}",
            f"use --device {AUTO}, or install a torch build for this device",
        )
    return device


def all_devices(name: str = AUTO) -> list[str]:
    """The names of all devices of the kind that a name without a number means, such as cuda.

    Raises ModelError like `find_device`.
    """
    device = find_device(name)
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    numbered = ":" not in str(device) and count > 1
    return [f"{device}:{number}" for number in range(count)] if numbered else [str(device)]


def device_name(device: torch.device) -> str:
    """What a person calls the device: "CPU", or the name of the hardware."""
    if device.type == "cpu":
        return "CPU"
    name: Any = getattr(torch.get_device_module(device), "get_device_name", None)
    return f"{device} ({name(device)})" if name else str(device)


def fast_precision(device: torch.device, *, small: bool) -> Precision:
    """The precision in which the device is fastest; fp32 if torch does not say it.

    A CPU runs `small` models in fp32. Intel CPUs without AMX multiply bf16 at half the speed of
    fp16 and fp32.
    """
    if device.type == "mps" or (device.type == "cpu" and small):
        return "fp32"
    if device.type == "cpu":
        features = cpu_features()
        fast: list[Precision] = [one for feature, one in _CPU_FEATURES if feature in features]
        return fast[0] if fast else "fp32"
    supported: Any = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if supported is None:
        return "fp32"
    try:
        return "bf16" if supported(including_emulation=False) else "fp16"
    except TypeError:  # a kind of accelerator without emulation
        return "bf16" if supported() else "fp16"


def widest_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on a kind of device that has no numbers of 64 bits."""
    return torch.float32 if device.type in _NO_FP64 else torch.float64


def cpu_features() -> set[str]:
    """The CPU's features for matrix multiplication, as far as torch reports them."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return {feature for feature, available in capabilities.items() if available is True}


def multiplies_int8(placement: Placement) -> bool:
    """Whether int8 means products of 8-bit integers: on CPUs with instructions for them."""
    is_int8_on_cpu = placement.precision == "int8" and placement.device.type == "cpu"
    return is_int8_on_cpu and bool(cpu_features() & {"avx512_vnni", "avx_vnni", "amx_int8"})


def free_memory(device: torch.device) -> int:
    """Free memory in bytes: of the accelerator, or what the process may use of the main memory."""
    if device.type != "cpu":
        newer = hasattr(torch.accelerator, "get_memory_info")
        module: Any = torch.accelerator if newer else torch.get_device_module(device)
        try:
            free, _ = (module.get_memory_info if newer else module.mem_get_info)(device)
            return free + module.memory_reserved(device) - module.memory_allocated(device)
        except (RuntimeError, AttributeError):  # such as MPS, whose memory is that of the CPU
            pass
    left = psutil.virtual_memory().available
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return left if limit == "max" else min(left, int(limit) - int(_USED.read_text()))


def release_unused_memory() -> None:
    """Give back memory of the accelerator that torch has reserved for later."""
    if accelerator():
        torch.accelerator.empty_cache()


@contextmanager
def memory_errors(kind: type[PinxitError], purpose: str, hint: str) -> Generator[None]:
    """Raise an error of that kind if memory runs out in the block."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise kind(f"not enough memory {purpose}", hint) from error


def placement_notices(model: Model) -> Iterator[Notice]:
    """Where and in which precision a base model runs, and whether a faster device is unused."""
    placement: Placement = model.placement
    yield Notice(f"{model.name} runs on {device_name(placement.device)} in {placement.precision}")
    unused = accelerator()
    if placement.device.type == "cpu" and unused is not None:
        yield Notice(
            f"this machine has an accelerator that is not used: {device_name(unused)}. "
            f"hint: leave --device out, or give --device {unused.type}"
        )


def _available(count: dict[str, int]) -> str:
    return ", ".join(
        kind if number == 1 else f"{number} of {kind}" for kind, number in count.items()
    )
