"""Base models and runs on the stand-in accelerator; see tests/standin."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pinxit.models.model import Model, Precision
from pinxit.models.open_base import open_base
from pinxit.training.recipe import Recipe
from tests import standin

Open = Callable[[str, Precision], Model]


@pytest.fixture(autouse=True, scope="session")
def without_accelerator() -> Iterator[None]:
    """Here torch finds an accelerator."""
    standin.register()
    yield


@pytest.fixture(scope="session")
def on_device(bases: Callable[[str], Path]) -> Open:
    """Opens the small base model of a family on the accelerator, once for each precision."""

    @cache
    def opened(family: str, precision: Precision) -> Model:
        return open_base(bases(family), precision=precision)

    return opened


@pytest.fixture
def recipe(pictures: Path) -> Callable[..., Recipe]:
    """A recipe of two steps for a base model on the accelerator."""

    def small(model: Model, method: object, **options: Any) -> Recipe:
        usual: dict[str, Any] = {"steps": 2, "batch_size": 2, "preview_every": 0, "score": False}
        usual |= {"images": pictures, "token": "<zwx>", "class_noun": "dog", "base": model.name}
        return Recipe.model_validate({**usual, "method": method, **options})

    return small
