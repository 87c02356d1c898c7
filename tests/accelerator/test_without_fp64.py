"""Nothing is computed in 64 bits on the device: MPS has no such numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_flux
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinxit import registry
from pinxit.generation.schedulers import SCHEDULERS
from pinxit.models import device
from pinxit.models.open_base import open_base
from pinxit.training.recipe import Recipe
from tests.accelerator.conftest import DEVICE, Open
from tests.accelerator.test_combinations import FAMILIES, generated, train_with_a_stop

pytestmark = pytest.mark.accelerator
_WIDE = (torch.float64, torch.complex128)


class WithoutFp64(TorchDispatchMode):
    """An operator that makes a tensor of 64-bit numbers on the device is an error."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == DEVICE:
                assert leaf.dtype not in _WIDE, f"{func} makes {leaf.dtype} on the device"
        return result


def narrow(_dtype: torch.dtype, _device: torch.device) -> torch.dtype:
    return torch.float32


@pytest.fixture(autouse=True)
def without_fp64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device, "_NO_FP64", {DEVICE})
    # diffusers knows the devices without such numbers by name.
    monkeypatch.setattr(transformer_flux, "maybe_adjust_dtype_for_device", narrow)
    with WithoutFp64():
        yield


def test_the_check_notices_fp64() -> None:
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(1, dtype=torch.float64, device=DEVICE)
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(1, device=DEVICE).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(
    open_on_device: Open, recipe: Callable[..., Recipe], tmp_path: Path, family: str
) -> None:
    model = open_on_device(family, "fp32")
    options: dict[str, Any] = {"steps": 2, "preview_every": 2, "checkpoint_every": 1}
    run = train_with_a_stop(model, recipe(model, {"name": "lora"}, **options), tmp_path / "run")
    generated(model, (run.folder,))


@pytest.mark.parametrize("optimizer", registry.names("optimizers"))
def test_optimizers(
    open_on_device: Open, recipe: Callable[..., Recipe], tmp_path: Path, optimizer: str
) -> None:
    model = open_on_device("stable-diffusion-1", "fp32")
    options: dict[str, Any] = {"optimizer": optimizer, "early_stop": 0.05, "validate_every": 1}
    options |= {"steps": 3, "preview_every": 3, "checkpoint_every": 1}
    train_with_a_stop(model, recipe(model, {"name": "lora"}, **options), tmp_path / "run")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(bases: Callable[[str], Path], scheduler: str) -> None:
    generated(open_base(bases("stable-diffusion-1")), scheduler=scheduler, steps=4)
