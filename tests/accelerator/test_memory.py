"""What is done where the memory of a device is short, with a limit that really ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.errors import ModelError, RequestError, RunError
from pinxit.generation import sample
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import generate_images, sample_images
from pinxit.models.device import device_name, find_device, free_memory, placement_notices
from pinxit.models.model import Model
from pinxit.models.open_base import Bases, open_base
from pinxit.progress import Notice
from pinxit.runs.events import MemoryNotice
from pinxit.runs.run import Run, train_run
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult
from tests import standin
from tests.accelerator.conftest import Open

pytestmark = [pytest.mark.accelerator, pytest.mark.xdist_group("memory")]
MakeRecipe = Callable[..., Recipe]
MB = 10**6


@pytest.fixture
def model(open_on_device: Open) -> Model:
    return open_on_device("stable-diffusion-1", "fp32")


def peak_of(action: Callable[[], object]) -> int:
    """The most bytes that an action needs in addition to those in use."""
    before = standin.memory_used()
    torch.accelerator.reset_peak_memory_stats()
    action()
    return torch.accelerator.max_memory_allocated() - before


def request(**options: Any) -> GenerationRequest:
    return GenerationRequest.model_validate(
        {"prompt": "a dog", "steps": 2, "num_images": 8, **options}
    )


def test_the_device_is_found_and_its_memory_known(model: Model) -> None:
    assert find_device() == torch.device("standin")
    assert device_name(model.device) == "standin (stand-in accelerator)"
    with standin.memory_limit(5 * MB):
        assert free_memory(model.device) == 5 * MB
    assert len(list(placement_notices(model))) == 1
    cpu = open_base(model.name, "cpu")
    _, unused = placement_notices(cpu)
    assert "not used: standin (stand-in accelerator)" in unused.message


def test_the_precision_is_the_device_s(model: Model) -> None:
    assert open_base(model.name).placement.precision == "bf16"
    quantized = open_base(model.name, precision="int8")
    assert quantized.placement.dtype == torch.bfloat16
    assert any(w.dtype == torch.int8 for w in quantized.networks["denoiser"].parameters())
    with pytest.raises(ModelError, match="`standin:1` is not available"):
        open_base(model.name, "standin:1")


def test_a_tensor_on_the_cpu_is_an_error(model: Model) -> None:
    conditioning = model.condition(["a dog"])
    with pytest.raises(RuntimeError, match="same device"):
        model.denoise(torch.zeros(1, 4, 4, 4), torch.tensor([1]), conditioning)


def losses_of(run: Run) -> list[float]:
    return [step.loss for step in run.state.steps]


def test_micro_batches_fit_into_the_memory(
    model: Model, recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = recipe(model, {"name": "lora", "layers": "all"}, batch_size=8)
    runs = [Run.create(tmp_path / name, settings) for name in ("free", "limited")]
    train = [lambda run=run: list(run.train(model)) for run in runs]
    peak = peak_of(train[0])
    with standin.memory_limit(peak // 2):
        events = train[1]()
    (notice,) = [event for event in events if isinstance(event, MemoryNotice)]
    assert notice.micro_batch < 8
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=1e-4)


def test_a_step_that_runs_out_of_memory_is_done_in_smaller_parts(
    model: Model, recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(model, {"name": "lora", "layers": "all"}, batch_size=8)
    runs = [Run.create(tmp_path / name, settings) for name in ("free", "limited")]
    train = [lambda run=run: list(run.train(model)) for run in runs]
    peak = peak_of(train[0])
    # The plan believes that there is more memory than there is.
    monkeypatch.setattr("pinxit.training.memory_trial.free_memory", lambda _: 10**12)
    with standin.memory_limit(peak // 2):
        events = train[1]()
    notices = [event for event in events if isinstance(event, MemoryNotice)]
    assert notices[-1].micro_batch < 8
    assert sum(isinstance(event, StepResult) for event in events) == 2
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=1e-4)


def test_training_that_cannot_fit_is_an_error(
    model: Model, recipe: MakeRecipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", recipe(model, "dreambooth"))
    # Memory runs out in a training step, or while class images are generated.
    with standin.memory_limit(MB // 100), pytest.raises((RunError, RequestError), match="memory"):
        list(run.train(model))
    assert list(run.train(model))  # with enough memory it goes on


def test_generation_halves_its_batches(model: Model) -> None:
    expected: list[GeneratedImage] = []
    generate_images(model, request(num_images=1))  # all networks are in memory
    peak = peak_of(lambda: expected.extend(generate_images(model, request())))
    with standin.memory_limit(peak * 2 // 3):
        events = list(sample_images(model, request()))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any("memory ran out: 4 at a time from now on" in message for message in notices)
    images = [event for event in events if isinstance(event, GeneratedImage)]
    assert [image.request.seed for image in images] == [image.request.seed for image in expected]
    for ours, theirs in zip(images, expected, strict=True):
        assert torch.allclose(ours.latents, theirs.latents, rtol=1e-3, atol=1e-3)


def test_an_image_that_cannot_fit_is_an_error(model: Model) -> None:
    with standin.memory_limit(1000), pytest.raises(RequestError, match="not enough memory"):
        generate_images(model, request(num_images=1))
    assert generate_images(model, request(num_images=1))  # networks are read again


def test_networks_are_offloaded_before_an_image_fails(open_on_device: Open) -> None:
    model = open_on_device("stable-diffusion-3", "fp32")
    (expected,) = generate_images(model, request(num_images=1))
    peak = peak_of(lambda: generate_images(model, request(num_images=1)))
    with standin.memory_limit(peak - 1000):
        (image,) = generate_images(model, request(num_images=1))
    assert torch.equal(image.latents, expected.latents)


def test_a_base_model_that_does_not_fit(model: Model) -> None:
    with standin.memory_limit(MB // 10), pytest.raises(ModelError, match="not enough memory on"):
        open_base(model.name)
    assert open_base(model.name)


def test_offloaded_weights_leave_the_device_and_come_back(bases: Callable[[str], Path]) -> None:
    before = standin.memory_used()
    loaded = Bases(max_loaded=1)
    first = loaded.open(bases("stable-diffusion-xl"))
    in_use = standin.memory_used() - before
    (expected,) = generate_images(first, request(num_images=1))
    first.offload()
    assert standin.memory_used() - before < in_use / 4
    loaded.open(bases("stable-diffusion-1"))
    (image,) = generate_images(first, request(num_images=1))
    assert torch.equal(image.latents, expected.latents)


def test_a_concept_survives_offloading(
    open_on_device: Open, recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text encoder that a concept has changed stays; the others are read again."""
    model = open_on_device("stable-diffusion-2", "bf16")
    for method in ({"name": "lora", "train_text_encoder": True}, {"name": "lora"}):
        run = train_run(model, recipe(model, method), tmp_path / str(len(method)))
        expected = generate_images(model, request(num_images=1), [run.folder])
        failures = iter([True])
        original = sample.prepare_controls

        def fails_once(*arguments: Any, failures: Any = failures, original: Any = original) -> Any:
            if next(failures, False):
                raise torch.OutOfMemoryError
            return original(*arguments)

        monkeypatch.setattr(sample, "prepare_controls", fails_once)
        images = generate_images(model, request(num_images=1), [run.folder])
        monkeypatch.undo()
        assert next(failures, None) is None
        assert torch.equal(images[0].latents, expected[0].latents)
