"""Base models and runs on an accelerator: a CUDA device, or the stand-in; see tests/standin."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.generation.request import GenerationRequest
from pinxit.models.families import chroma, flux_1, stable_diffusion_3
from pinxit.models.model import Model, Precision
from pinxit.models.open_base import open_base
from pinxit.runs import class_images, preview
from pinxit.training.recipe import Recipe
from tests import standin

DEVICE = "cuda" if torch.cuda.is_available() else "standin"
# These tests set limits on the memory of the stand-in.
collect_ignore = ["test_memory.py"] if DEVICE == "cuda" else []
Open = Callable[[str, Precision], Model]


@pytest.fixture(autouse=True, scope="session")
def without_accelerator() -> Iterator[None]:
    """Here torch finds an accelerator."""
    if DEVICE == "standin":
        standin.register()
    yield


@pytest.fixture(autouse=True, scope="session")
def less_work() -> Iterator[None]:
    """Previews and class images take two steps, and T5 reads short texts."""
    request = partial(GenerationRequest, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "GenerationRequest", request)
        patch.setattr(class_images, "GenerationRequest", request)
        patch.setattr(stable_diffusion_3, "_T5_LENGTH", 32)
        patch.setattr(flux_1, "_DEV_LENGTH", 32)
        patch.setattr(chroma, "_TEXT_LENGTH", 32)
        yield


@pytest.fixture(scope="session")
def open_on_device(bases: Callable[[str], Path]) -> Open:
    """Opens the small base model of a family on the accelerator, once for each precision."""

    @cache
    def opened(family: str, precision: Precision) -> Model:
        return open_base(bases(family), precision=precision)

    return opened


@pytest.fixture
def recipe(pictures: Path) -> Callable[..., Recipe]:
    """A recipe of two steps for a base model on the accelerator."""

    def small(model: Model, method: object, **options: Any) -> Recipe:
        if isinstance(method, dict) and not model.text_encoders:
            if method["name"] == "textual-inversion":
                pytest.skip("no text encoder for embeddings; tests/models checks the refusal")
            method = {**method, "placeholder": "rare-token"} if "placeholder" in method else method
        usual: dict[str, Any] = {"steps": 2, "batch_size": 2, "preview_every": 0, "score": False}
        usual |= {"images": pictures, "token": "<zwx>", "class_noun": "dog", "base": model.name}
        return Recipe.model_validate({**usual, "method": method, **options})

    return small
