"""Which device is chosen, and what is said about it; the accelerators here are invented."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pinxit
from pinxit.errors import ModelError
from pinxit.models import device
from pinxit.models.model import Model
from pinxit.training.recipe import Recipe


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch finds two GPUs of the kind xpu."""
    module = SimpleNamespace(
        get_device_name=lambda one: f"GPU {torch.device(one).index or 0}",
        is_bf16_supported=lambda including_emulation=True: including_emulation,
    )
    device = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)


def test_cpu_without_an_accelerator(model: Model) -> None:
    assert device.find_device() == torch.device("cpu")
    assert [notice.message for notice in device.placement_notices(model)] == [
        f"{model.name} runs on CPU in fp32"
    ]


@pytest.mark.usefixtures("two_gpus")
def test_the_accelerator_is_chosen_and_named() -> None:
    assert device.find_device() == torch.device("xpu")
    assert device.find_device("xpu:1") == torch.device("xpu", 1)
    assert device.device_name(torch.device("xpu", 1)) == "xpu:1 (GPU 1)"
    with pytest.raises(ModelError, match="not available: torch finds cpu, 2 of xpu"):
        device.find_device("xpu:2")
    with pytest.raises(ModelError, match="not available"):
        device.find_device("cuda")
    with pytest.raises(ModelError, match="there is no device `xpuu`") as caught:
        device.find_device("xpuu")
    assert "did you mean xpu?" in caught.value.hint


@pytest.mark.usefixtures("two_gpus")
def test_bf16_that_is_only_emulated_is_not_chosen() -> None:
    assert device.fast_precision(torch.device("xpu"), small=True) == "fp16"


@pytest.mark.usefixtures("two_gpus")
def test_an_unused_accelerator_is_mentioned(model: Model) -> None:
    _, unused = device.placement_notices(model)
    assert "an accelerator that is not used: xpu (GPU 0)" in unused.message
    assert "--device xpu" in unused.message


def test_a_recipe_may_name_a_device(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'method = "lora"\nimages = "toy"\ntoken = "<mytoy>"\nclass_noun = "toy"\ndevice = "cpu"\n'
    )
    recipe = Recipe.from_toml(tmp_path / "recipe.toml")
    assert recipe.device == "cpu"
    assert 'device = "cpu"' in recipe.to_toml()
    assert "device" not in recipe.model_copy(update={"device": None}).to_toml()


def test_no_kind_of_accelerator_is_spelled_in_the_source() -> None:
    spelled = re.compile(r"\b(torch\.(cuda|xpu|hpu)\b|\.cuda\b|is_cuda|\"cuda)")
    source = Path(pinxit.__file__).parent
    lines = {
        f"{file.name}: {line.strip()}"
        for file in source.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if spelled.search(line)
    }
    # The version of CUDA that torch was built with.
    assert lines == {"doctor.py: cuda, hip = torch.version.cuda, torch.version.hip"}
