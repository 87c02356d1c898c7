"""The memory of a training step: predicted without computing, and counted while training."""

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pinxit import registry
from pinxit.errors import RunError
from pinxit.models.kernels.quantize import stored_tensors
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training import memory_trial, step_time
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.live_bytes import LiveBytes, count, dry_count
from pinxit.training.losses import denoising_losses
from pinxit.training.memory import MemoryPlan, plan_memory
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult
from pinxit.training.train import TrainingSession, train_with_plans

pytestmark = pytest.mark.usefixtures("every_trial")
METHODS: dict[str, dict[str, Any]] = {
    "textual-inversion": {"name": "textual-inversion"},
    "lora": {"name": "lora", "placeholder": "rare-token", "class_images": 0},
    "dreambooth": {"name": "dreambooth", "class_images": 0},
    "custom-diffusion": {"name": "custom-diffusion", "class_images": 0},
}


def session_of(model: Model, pictures: Path, method: str, **options: Any) -> TrainingSession:
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    settings = {"steps": 3, "batch_size": 2, "resolution": 64, **options}
    recipe = Recipe.model_validate({"method": METHODS[method], **subject, **settings})
    images = recipe.read_images()
    plan = TrainingPlan.of(recipe, model, len(images))
    return TrainingSession(model, [ConceptTrainer(model, plan, images)])


FAMILIES = registry.names("families")
PREDICTED = [
    *[(family, "lora") for family in FAMILIES],
    *[(family, "textual-inversion") for family in FAMILIES if family != "z-image"],
    *[("stable-diffusion-1", method) for method in ("dreambooth", "custom-diffusion")],
    ("z-image", "dreambooth"),
]


@pytest.mark.long
@pytest.mark.parametrize(("family", "method"), PREDICTED)
def test_the_prediction_is_what_training_needs(
    opened: Callable[[str], Model],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: str,
) -> None:
    """Within 10%: the bytes of all tensors that exist at a time during three steps."""
    if (family, method) != (
        "chroma",
        "textual-inversion",
    ):  # prompts are cut by values: a real pass
        only_dry_passes(monkeypatch)
    check_prediction(session_of(opened(family), pictures, method))


def only_dry_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict without computing, as for large bases; what fails must not be computed instead."""

    def real_pass(_: object) -> LiveBytes:
        raise AssertionError("the dry pass failed")

    monkeypatch.setattr(memory_trial, "SMALL", 0)
    monkeypatch.setattr(memory_trial, "count", real_pass)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("stable-diffusion-1", "lora"),
        ("stable-diffusion-3", "textual-inversion"),
        ("z-image", "lora"),
    ],
)
def test_no_tensor_without_content_stays_in_a_model(
    bases: Callable[[str], Path],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: str,
) -> None:
    """Not even where a dry pass needs networks that are offloaded, or is the first to fill caches.

    A kernel that reads such a tensor ends the process.
    """
    model = open_base(bases(family))
    session = session_of(model, pictures, method)
    model.offload()
    only_dry_passes(monkeypatch)
    with closing(train_with_plans(session)) as events:
        assert isinstance(next(events), MemoryPlan)
        gc.collect()  # the copy, whose parts refer to each other
        assert not [one for one in gc.get_objects() if type(one) is FakeTensor]
        for network in model.all_networks.values():
            tensors = [*network.parameters(), *network.buffers()]
            assert all(tensor.data_ptr() for tensor in tensors if tensor.numel())
        assert [type(next(events)) for _ in range(2)] == [StepResult] * 2


def check_prediction(session: TrainingSession) -> list[tuple[float, ...]]:
    """The tensors of three steps need the predicted bytes, to 10%; returns the losses."""
    session.offload_unused()
    predicted = before = 0
    losses: list[tuple[float, ...]] = []
    with LiveBytes() as counter:
        for event in train_with_plans(session):
            if isinstance(event, MemoryPlan):
                gc.collect()
                predicted, counter.peak, before = event.step_bytes, counter.live, counter.live
                assert event.seconds > 0
            else:
                losses.append(event.losses)
    assert len(losses) == 3
    assert counter.peak - before == pytest.approx(predicted, rel=0.1)
    return losses


@pytest.mark.long
@pytest.mark.parametrize("family", ["stable-diffusion-1", "z-image"])
def test_training_goes_on_where_a_dry_pass_fails(
    opened: Callable[[str], Model], pictures: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """A real pass follows, and leaves the steps as they are; an interrupt ends training."""
    errors: list[BaseException] = []

    def losses(*arguments: Any) -> Tensor:
        result = denoising_losses(*arguments)
        if isinstance(result, FakeTensor) and errors:
            raise errors[0]
        return result

    monkeypatch.setattr("pinxit.training.losses.denoising_losses", losses)
    model = opened(family)
    expected = check_prediction(session_of(model, pictures, "lora"))
    monkeypatch.setattr(memory_trial, "SMALL", 0)
    assert check_prediction(session_of(model, pictures, "lora")) == expected
    errors.append(NotImplementedError("no shapes"))
    assert check_prediction(session_of(model, pictures, "lora")) == expected
    errors[:] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        check_prediction(session_of(model, pictures, "lora"))


def test_a_real_pass_is_tried_only_if_it_should_fit(
    opened: Callable[[str], Model], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(opened("stable-diffusion-1"), pictures, "lora", batch_size=4)
    sizes: list[int] = []

    def count_nothing(_: object) -> LiveBytes:
        sizes.append(1)
        counter = LiveBytes()
        counter.peak = 10**9
        return counter

    def free_memory(_: torch.device) -> int:
        return 3 * 10**9

    monkeypatch.setattr(memory_trial, "count", count_nothing)
    monkeypatch.setattr(memory_trial, "free_memory", free_memory)
    with closing(train_with_plans(session)) as events:
        plan = next(events)
    assert isinstance(plan, MemoryPlan)
    assert (plan.micro_batch, plan.gradient_checkpointing, len(sizes)) == (2, False, 1)


def test_a_dry_pass_counts_what_a_real_one_needs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    images = torch.randn(5, 3, 8, 8)

    def compute(inputs: tuple[nn.Module, Tensor]) -> object:
        network, images = inputs
        return torch.autograd.grad(network(images).square().mean(), list(network.parameters()))

    real = count(lambda: compute((network, images)))
    dry = dry_count(compute, (network, images), [])
    assert (real.peak, real.products, real.moved, real.calls) == (
        dry.peak,
        dry.products,
        dry.moved,
        dry.calls,
    )
    assert real.peak > sum(weight.nbytes for weight in network.parameters())
    # Two for each multiply and add: forward, for the weights, and for the input of the second.
    convolution, linear = 5 * 36 * 16 * 27, 5 * 16 * 36 * 4
    assert real.products == {torch.float32: 2 * (2 * convolution + 3 * linear)}
    assert all(weight.grad is None for weight in network.parameters())


def test_attention_and_8_bit_products_are_counted() -> None:
    states, integers = torch.zeros(2, 3, 5, 8), torch.zeros(32, 32, dtype=torch.int8)
    with LiveBytes() as counter:
        torch.nn.functional.scaled_dot_product_attention(states, states, states)
        torch.ops.aten._int_mm(integers, integers)
    attention = 2 * 3 * 5 * 5 * 8
    assert counter.products == {torch.float32: 2 * 2 * attention, torch.int8: 2 * 32**3}


def test_scales_of_quantized_layers_are_weights() -> None:
    layer = nn.Linear(4, 4)
    layer.scale = torch.ones(4)
    assert sum(tensor.nbytes for tensor in stored_tensors(layer)) == 4 * (16 + 4 + 4)


def test_seconds_follow_from_operations_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rate in {"product": 1, "byte": 10, "call": 100}.items():
        monkeypatch.setattr(step_time, f"_seconds_of_{name}", Mock(return_value=rate))
    counter = LiveBytes()
    counter.products, counter.moved, counter.calls = Counter({torch.float32: 4}), 3, 2
    seconds = [step_time.predicted_seconds(torch.device(one), counter) for one in ("cpu", "meta")]
    assert seconds == [234, 200]  # an accelerator computes while operations are called


def test_rates_of_this_device_are_measured() -> None:
    counter = LiveBytes()
    counter.products[torch.float32] = 1
    counter.moved = counter.calls = 1
    assert 1e-9 < step_time.predicted_seconds(torch.device("cpu"), counter) < 1


@pytest.mark.long
def test_gradient_checkpointing_is_predicted(
    opened: Callable[[str], Model], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(num_samples: int, needs: Callable[[int, bool], int], _: int) -> tuple[int, bool, int]:
        with_it, without = needs(num_samples, True), needs(num_samples, False)
        assert with_it < without
        return num_samples, True, with_it

    monkeypatch.setattr(memory_trial, "plan_memory", plan)
    only_dry_passes(monkeypatch)
    check_prediction(session_of(opened("flux-1"), pictures, "lora", resolution=128))


def test_the_largest_micro_batch_that_fits() -> None:
    def needs(micro_batch: int, checkpointing: bool) -> int:
        return 100 + micro_batch * (3 if checkpointing else 10)

    assert plan_memory(8, needs, 180) == (8, False, 180)
    assert plan_memory(8, needs, 155) == (5, False, 150)
    assert plan_memory(8, needs, 109) == (3, True, 109)
    with pytest.raises(RunError, match="a training step needs"):
        plan_memory(8, needs, 102)


def test_the_message_says_what_is_predicted_and_chosen() -> None:
    gb = 10**9
    plan = MemoryPlan(2, True, 3 * gb, 10 * gb, 12 * gb, ("text", "vae"), 123.4)
    assert plan.description("bf16") == (
        "training in bf16, micro-batch size 2, gradient checkpointing, offloaded: text, vae; "
        "predicted peak: 13.0 GB of memory (10.0 GB weights, 3.0 GB of 12.0 GB free for a step); "
        "about 120 s a step"
    )
