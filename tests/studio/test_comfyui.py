"""The ComfyUI nodes against a running studio: only ComfyUI's progress bar is replaced."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.studio.conftest import start_studio

EXAMPLE = Path(__file__).parents[2] / "examples" / "comfyui" / "__init__.py"


def run_node(nodes: Any, name: str, **given: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: all it knows is in the node's class."""
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    assert name in nodes.NODE_DISPLAY_NAME_MAPPINGS
    assert kind.CATEGORY
    inputs = {
        key: given.pop(key) if key in given else options[0]["default"]
        for key, (_, *options) in kind.INPUT_TYPES()["required"].items()
    }
    assert not given
    result = getattr(kind(), kind.FUNCTION)(**inputs)
    assert isinstance(result, tuple)
    assert len(result) == len(kind.RETURN_TYPES)
    return result


@pytest.mark.long
def test_nodes_train_and_generate(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[tuple[int, int]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int) -> None:
            updates.append((value, total))

    utils = types.ModuleType("comfy.utils")
    utils.ProgressBar = ProgressBar  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.utils", utils)
    studio = start_studio(tmp_path / "studio", "cpu", "--base", str(nano))
    try:
        monkeypatch.setenv("PINXIT_ADDRESS", studio.address)
        monkeypatch.setenv("PINXIT_TOKEN", studio.workspace.token_for("api"))
        spec = importlib.util.spec_from_file_location("pinxit_comfyui", EXAMPLE)
        assert spec
        assert spec.loader
        nodes: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nodes)
        images = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
        concept, token = run_node(nodes, "PinxitTrain", images=images, steps=3)
        assert token == "<mydog>"
        assert updates[-1] == (3, 3)
        prompt = f"a photo of {token}"
        (batch,) = run_node(nodes, "PinxitGenerate", concept=concept, prompt=prompt, num_images=2)
        assert batch.shape == (2, 64, 64, 3)
        assert 0 <= float(batch.min()) < float(batch.max()) <= 1
        with pytest.raises(RuntimeError, match="no job"):
            run_node(nodes, "PinxitGenerate", concept="000999")
    finally:
        studio.stop()
