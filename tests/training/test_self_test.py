"""The self-test of training: gradients, inputs that are not used, and what was saved."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pinxit import registry
from pinxit.adapters.adapter import Adapter
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import Part
from pinxit.errors import ImageError, RunError
from pinxit.models.model import Model
from pinxit.progress import Notice
from pinxit.runs.events import Finished
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import ConceptLoss, ConceptTrainer
from pinxit.training.method import ImagePool
from pinxit.training.recipe import Recipe
from pinxit.training.self_test import GradientCheck

FAMILIES = [pytest.param(name, marks=pytest.mark.long) for name in registry.names("families")]
# Layers whose output these families do not use.
UNUSED = {
    "stable-diffusion-3": "denoiser.transformer_blocks.1.attn.",
    "stable-diffusion-xl": "text.encoder.layers.1.",
}
LORAS = ("lora", "dora", "loha", "lokr", "oft")
TEXT = {"train_text_encoder": True, "class_images": 0}
METHODS: dict[str, dict[str, object]] = {
    "embedding": {"name": "textual-inversion"},
    "dreambooth": {"name": "dreambooth", **TEXT},
    **{kind: {"name": "lora", "adapter": kind, **TEXT} for kind in LORAS},
    "lora with embedding": {"name": "lora", "placeholder": "new-embedding", "class_images": 0},
}


def recipe(pictures: Path, method: dict[str, object], **changes: object) -> Recipe:
    small = {"steps": 3, "batch_size": 2, "preview_every": 0, "checkpoint_every": 100}
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy", "learning_rate": 1e-3}
    return Recipe.model_validate({"method": method, **subject, **small, **changes})


def notices(run: Run, model: Model) -> list[str]:
    events = list(run.train(model))
    assert any(isinstance(event, Finished) for event in events)
    return [event.message for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("family", ["nano", *FAMILIES])
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_trained_and_the_concept_is_read_back(
    method: str, family: str, opened: Callable[[str], Model], pictures: Path, tmp_path: Path
) -> None:
    if family == "z-image" and "embedding" in method:
        pytest.skip("a language model reads the prompts")
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS[method]))
    messages = notices(run, opened(family))
    trains_text = "train_text_encoder" in METHODS[method]
    trains_layers = trains_text or (family == "stable-diffusion-3" and method != "embedding")
    if family in UNUSED and trains_layers:
        names = re.findall("`(.*?)`", messages[0])
        assert len(messages) == 1
        assert names
        assert all(name.startswith(UNUSED[family]) for name in names)
    elif family == "z-image" and trains_text:  # a language model reads its prompts
        assert len(messages) == 1
        assert "has no text encoder that can be trained" in messages[0]
    else:
        assert not messages


def without_gradient(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[str], bool]) -> None:
    """Training from now on gives the chosen tensors no gradient."""
    clip = ConceptTrainer.clip_gradients

    def emptied(self: ConceptTrainer, loss: ConceptLoss) -> float:
        for name, weight in zip(self._weight_names(), self.weights, strict=True):
            if chosen(name) and weight.grad is not None:
                weight.grad.zero_()
        return clip(self, loss)

    monkeypatch.setattr(ConceptTrainer, "clip_gradients", emptied)


@pytest.mark.long
@pytest.mark.parametrize("method", ["dreambooth", *LORAS])
def test_a_tensor_without_gradient_is_named(
    method: str, model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def chosen(name: str) -> bool:
        names.append(name)
        return name == names[0]

    without_gradient(monkeypatch, chosen)
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS[method]))
    (message,) = notices(run, model)
    assert f"`{names[0]}`" in message
    # Without one factor of a LoKr, the other one has no gradient either.
    assert message.startswith("2 of " if method == "lokr" else "1 of ")
    assert "hint: " in message
    assert run.state.notices == [message]


@pytest.mark.parametrize("method", ["embedding", "dreambooth", "lora"])
def test_training_that_changes_nothing_stops(
    method: str, model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gradient(monkeypatch, lambda _: True)
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS[method]))
    with pytest.raises(RunError, match=r"none of the .* trained tensors has a gradient"):
        notices(run, model)
    assert run.state.state == "failed"


def test_a_factor_that_is_zero_in_the_first_step_only_is_right() -> None:
    check = GradientCheck(["down", "up"], ["a <toy>"])
    for step in range(2):
        assert not list(check.add_step(["a <toy>"], [torch.tensor([step]), torch.ones(1)]))


def test_steps_in_which_no_prompt_has_the_token_do_not_count() -> None:
    check, none = GradientCheck(["vector", "other"], ["a <toy>"]), torch.empty(0)
    for prompts in ([""], ["", "a toy"], ["", ""]):
        assert not list(check.add_step(prompts, [none, none]))
    norms = [torch.ones(1), torch.zeros(1)]
    messages = [list(check.add_step(["", "a <toy>"], norms)) for _ in range(3)]
    assert [len(one) for one in messages] == [0, 1, 0]
    assert "1 of 2 trained tensors have no gradient" in messages[1][0]
    assert "`other`" in messages[1][0]


@pytest.mark.parametrize(("steps", "batch_size", "unused"), [(1, 1, 2), (1, 2, 1), (3, 1, 0)])
def test_images_that_no_step_uses_are_named(
    steps: int, batch_size: int, unused: int, model: Model, pictures: Path, tmp_path: Path
) -> None:
    sizes = {"steps": steps, "batch_size": batch_size}
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS["embedding"], **sizes))
    messages = notices(run, model)
    assert len(messages) == (unused > 0)
    if messages:
        assert "will not be used; hint: choose a larger --steps" in messages[0]
        assert sum(name in messages[0] for name in ("0.png", "1.png", "2.png")) == unused


@pytest.mark.parametrize("method", ["embedding", "lora"])
@pytest.mark.parametrize("without", [1, 3])
def test_prompts_without_the_token_are_named(
    method: str,
    without: int,
    model: Model,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan_type = type(recipe(pictures, METHODS[method]).method)
    image_pools = plan_type.image_pools

    def pools(self: object, *given: object) -> tuple[ImagePool, ...]:
        own, *others = image_pools(self, *given)
        prompts = [("a photo of nothing",)] * without + [("a <mytoy>",)] * (3 - without)
        return replace(own, prompts=tuple(prompts)), *others

    monkeypatch.setattr(plan_type, "image_pools", pools)
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS[method]))
    if without == 3:
        with pytest.raises(RunError, match="no text encoder sees <mytoy>"):
            notices(run, model)
        return
    (message,) = notices(run, model)
    assert message.startswith("1 of 2 training prompts do not show <mytoy>: `a photo of nothing`")


def test_a_token_outside_the_window_is_named(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pinxit.models.clip_encoder import ClipEncoder

    monkeypatch.setattr(ClipEncoder, "_window", lambda *_: [])
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS["embedding"]))
    with pytest.raises(RunError, match="no text encoder sees <mytoy>"):
        notices(run, model)


def test_a_mask_that_leaves_nothing_of_an_image_is_named(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    mask = Image.new("L", (41, 48))
    mask.putpixel((20, 20), 1)
    mask.save(pictures / "1.mask.png")
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS["embedding"], masks="files"))
    with pytest.raises(ImageError, match=r"nothing of the mask of 1\.png is left"):
        notices(run, model)


def changed_alpha(part: LoraPart) -> LoraPart:
    """A LoRA with twice its effect."""
    layers = {
        name: {key: t * 2 if key == "alpha" else t for key, t in tensors.items()}
        for name, tensors in part.layers.items()
    }
    return replace(part, layers=layers)


DAMAGES: dict[str, tuple[type[Adapter], Callable[[Any], Part]]] = {
    "embedding": (
        EmbeddingAdapter,
        lambda part: replace(part, tables={name: -one for name, one in part.tables.items()}),
    ),
    "dreambooth": (
        FullWeightsAdapter,
        lambda part: replace(part, weights={name: one * 1.1 for name, one in part.weights.items()}),
    ),
    "lora": (LoraAdapter, changed_alpha),
}


@pytest.mark.parametrize("method", DAMAGES)
def test_a_saved_concept_must_equal_the_trained_one(
    method: str, model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, damage = DAMAGES[method]
    part = kind.part
    monkeypatch.setattr(kind, "part", lambda adapter: damage(part(adapter)))
    high = {"learning_rate": 0.3 if method == "embedding" else 0.01}
    run = Run.create(tmp_path / "run", recipe(pictures, METHODS[method], **high))
    with pytest.raises(RunError, match="the saved concept was read back"):
        list(run.train(model))
    assert run.state.state == "failed"
    assert not run.finished
