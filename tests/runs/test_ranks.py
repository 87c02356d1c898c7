"""Several processes train one run: the same result, whatever their number, and however it ends."""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pinxit.errors import RunError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.generation import image_cache, sample
from pinxit.generation.finite import NotFiniteError
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.images.folder import read_images
from pinxit.models import ranks as ranks_module
from pinxit.models.joining import joined
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.models.ranks import ALONE, LeaderEndedError, Ranks
from pinxit.reports.comparison import evaluate
from pinxit.reports.figures import EvaluationSettings
from pinxit.runs import folder as run_folder
from pinxit.runs import preview
from pinxit.runs.follow import OpenBase, follow
from pinxit.runs.run import Run
from pinxit.training.batches import Batch
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.memory import MemoryPlan
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train
from tests.seeing import save_seeing
from tests.short_runs import concept_trainer

pytest_plugins = ["tests.runs.test_many"]  # the fixture `double`
pytestmark = pytest.mark.long  # each test starts processes

WORD: dict[str, object] = {"name": "textual-inversion"}
LORA: dict[str, object] = {"name": "lora", "rank": 2, "class_images": 2}
DREAMBOOTH: dict[str, object] = {
    "name": "dreambooth",
    "preserve": "base-answer",
    "train_text_encoder": True,
}


_LIMIT = 300  # seconds after which processes are killed, so that a test fails instead of hanging


def _kill(children: list[int]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def in_ranks(
    size: int, work: Callable[[Ranks], Any], folder: Path, *, shard_weights: bool = False
) -> list[Any]:
    """What a function returns in each of several forked processes; -N for signal N."""
    # The store is in the first child: a fork beside the thread of a store can hang the new process.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    children: dict[int, Path] = {}
    for rank in range(size):
        file = folder / f"result-{rank}"
        file.unlink(missing_ok=True)
        child = os.fork()
        if child:
            children[child] = file
            continue
        try:
            # A shell starts processes in the background with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ |= {**common, "RANK": str(rank)}
            with joined("cpu", shard_weights=shard_weights) as ranks:
                torch.save(work(ranks), file)
            # Python can abort if it ends before the threads of gloo.
            threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
            assert not [name for name in threads if "gloo" in name]
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            torch.save(f"{type(error).__name__}: {error}", file)
            if not isinstance(error, (RunError, KeyboardInterrupt, SystemExit)):
                traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(0)
    watch = threading.Timer(_LIMIT, _kill, [list(children)])
    watch.start()
    ends = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    watch.cancel()
    return [
        torch.load(file, weights_only=False) if file.exists() else ends[child]
        for child, file in children.items()
    ]


def recipe_for(pictures: Path, method: dict[str, object], **changes: object) -> Recipe:
    options = {"token": "<t>", "class_noun": "toy", "images": pictures, "preview_every": 0}
    return Recipe.model_validate({**options, "method": method, "batch_size": 3, **changes})


def trained_weights(model: Model, recipe: Recipe, ranks: Ranks) -> tuple[Tensor, int]:
    """All weights after training, and the bytes of gradients that were summed in each step."""
    trainer = concept_trainer(model, recipe, ranks)
    steps = [step.number for step in train(TrainingSession(model, [trainer], ranks))]
    weights = torch.cat([weight.detach().flatten() for weight in trainer.weights])
    return weights, ranks.summed_bytes // len(steps)


@pytest.mark.parametrize("method", [WORD, LORA, DREAMBOOTH], ids=lambda one: one["name"])
def test_the_number_of_processes_changes_only_rounding(
    double: Model, pictures: Path, tmp_path: Path, method: dict[str, object]
) -> None:
    recipe = recipe_for(pictures, method, steps=8, early_stop=1e-12, validate_every=4)
    work = lambda ranks: trained_weights(double, recipe, ranks)  # noqa: E731
    expected, _ = in_ranks(1, work, tmp_path)[0]
    assert expected.dtype == torch.float64
    for size in (2, 4):  # three samples are shared unevenly
        for weights, num_bytes in in_ranks(size, work, tmp_path):
            assert float((weights - expected).abs().max()) <= 1e-10
            assert num_bytes == expected.nbytes


OTHERS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    **{kind: ({**LORA, "adapter": kind}, {}) for kind in ("dora", "loha", "lokr", "oft")},
    "custom-diffusion": ({"name": "custom-diffusion", "class_images": 2}, {}),
    "prodigy": (WORD, {"optimizer": "prodigy", "ema": True}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_adapters_and_optimizers_too(
    double: Model, pictures: Path, tmp_path: Path, name: str
) -> None:
    method, changes = OTHERS[name]
    recipe = recipe_for(pictures, method, steps=4, **changes)
    work = lambda ranks: trained_weights(double, recipe, ranks)  # noqa: E731
    ((expected, _),) = in_ranks(1, work, tmp_path)
    for weights, _ in in_ranks(2, work, tmp_path):
        assert float((weights - expected).abs().max()) <= 1e-10


def train_run(model: Model, folder: Path, recipe: Recipe, ranks: Ranks) -> str:
    """What the command line does in each process; returns the last saved step."""
    if ranks.rank:
        follow(ranks, lambda _: model)
    run = Run.open(folder, recipe.steps) if Run.exists(folder) else Run.create(folder, recipe)
    run.ranks = ranks
    ranks.exchange(OpenBase(run.recipe))
    for _ in run.train(model):
        pass
    return f"saved {run.saved_step}"


def state_of(folder: Path) -> dict[str, Tensor]:
    return dict(read_safetensors(max((folder / "checkpoints").iterdir()))[0])


def test_processes_divide_the_optimizer_of_all_weights(
    double: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "BUCKET_BYTES", 5000)  # most weights are smaller
    recipe = recipe_for(pictures, DREAMBOOTH, steps=8)
    half = recipe.model_copy(update={"steps": 4})

    def work(ranks: Ranks) -> tuple[int, int]:
        images = read_images(recipe.images)
        trainer = ConceptTrainer(double, TrainingPlan.of(half, double, 3), images, (), ranks)
        step, gradients = trainer.optimizer.step, []

        def counted(*given: Any) -> None:
            present = [weight.grad for weight in trainer.weights if weight.grad is not None]
            gradients.append(sum(gradient.nbytes for gradient in present))
            step(*given)

        trainer.optimizer.step = counted  # type: ignore[method-assign]
        for _ in train(TrainingSession(double, [trainer], ranks)):
            pass
        states = trainer.optimizer.state.values()
        return sum(t.nbytes for state in states for t in state.values()), max(gradients)

    (whole,), shares = in_ranks(1, work, tmp_path), in_ranks(2, work, tmp_path)
    for all_bytes, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sum(parts) == all_bytes
        assert max(parts) < 0.51 * all_bytes

    def run(size: int, name: str, recipe: Recipe) -> str:
        # In processes of their own: the networks are read from their files again afterwards.
        start = lambda ranks: train_run(double, tmp_path / name, recipe, ranks)  # noqa: E731
        return str(in_ranks(size, start, tmp_path)[0])

    for name, size in (("alone", 1), ("run", 2)):
        assert run(size, name, half) == "saved 4"
        assert run(1, name, recipe) == "saved 8"
    expected, state = state_of(tmp_path / "alone"), state_of(tmp_path / "run")
    assert expected.keys() == state.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, state[name], rtol=0, atol=1e-10), name


@pytest.fixture(scope="module")
def straight(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe, and the folder of its run, trained by two processes without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    Image.new("RGB", (40, 48), "crimson").save(folder / "0.png")
    recipe = recipe_for(folder, LORA, steps=6, checkpoint_every=50)
    work = lambda ranks: train_run(model, folder / "run", recipe, ranks)  # noqa: E731
    assert in_ranks(2, work, folder)[0] == "saved 6"
    return recipe, folder / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_continues_after_a_process_ends(
    model: Model, straight: tuple[Recipe, Path], tmp_path: Path, number: int
) -> None:
    assert stop_and_continue(model, *straight, tmp_path, number) == "0000003"


@pytest.mark.parametrize(
    ("number", "saved"), [(signal.SIGKILL, "0000002"), (signal.SIGINT, "0000003")]
)
def test_a_divided_optimizer_continues_after_a_process_ends(
    model: Model, pictures: Path, tmp_path: Path, number: int, saved: str
) -> None:
    recipe = recipe_for(pictures, DREAMBOOTH, steps=6, checkpoint_every=2)
    work = lambda ranks: train_run(model, tmp_path / "run", recipe, ranks)  # noqa: E731
    assert in_ranks(2, work, tmp_path)[0] == "saved 6"
    assert stop_and_continue(model, recipe, tmp_path / "run", tmp_path, number) == saved


def stop_and_continue(
    model: Model, recipe: Recipe, expected: Path, tmp_path: Path, number: int
) -> str:
    """The last checkpoint after a signal in step 4; the run then ends like the expected one."""
    folder = tmp_path / "stopped"

    def stopped(ranks: Ranks) -> str:
        if ranks.rank:
            summed = ranks.sum_gradients

            def stop_in_step_4(*given: Any) -> Any:
                ranks.steps = getattr(ranks, "steps", 0) + 1  # type: ignore[attr-defined]
                if ranks.steps == 4:  # type: ignore[attr-defined]
                    os.kill(os.getpid(), number)
                return summed(*given)

            ranks.sum_gradients = stop_in_step_4  # type: ignore[method-assign]
        return train_run(model, folder, recipe, ranks)

    first, second = in_ranks(2, stopped, tmp_path)
    if number == signal.SIGKILL:
        assert second == -signal.SIGKILL
        assert "one of the 2 processes has ended" in first
    else:
        assert first.startswith("KeyboardInterrupt") and second.startswith("KeyboardInterrupt")
    last = max(file.stem for file in (folder / "checkpoints").iterdir())
    work = lambda ranks: train_run(model, folder, recipe, ranks)  # noqa: E731
    assert in_ranks(2, work, tmp_path)[0] == "saved 6"
    state = state_of(folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(expected).items())
    return last


def test_another_number_of_processes_continues_a_run(
    model: Model, straight: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, expected = straight
    folder, half = tmp_path / "half", recipe.model_copy(update={"steps": 3})
    work = lambda ranks: train_run(model, folder, half, ranks)  # noqa: E731
    assert in_ranks(4, work, tmp_path)[0] == "saved 3"
    assert train_run(model, folder, recipe, ALONE) == "saved 6"
    state = state_of(folder)
    for name, tensor in state_of(expected).items():
        assert torch.allclose(tensor, state[name], atol=1e-4), name


def test_out_of_memory_in_one_process_makes_all_smaller(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(pictures, WORD, steps=3, batch_size=8)

    def work(ranks: Ranks) -> list[Any]:
        images = read_images(recipe.images)
        trainer = ConceptTrainer(model, TrainingPlan.of(recipe, model, 3), images, (), ranks)
        session = TrainingSession(model, [trainer], ranks)
        session.memory_plan, losses = MemoryPlan(4), session.losses

        def limited(batch: Batch, *given: Any) -> Tensor:
            if ranks.rank and len(batch) > 2:
                raise torch.OutOfMemoryError
            return losses(batch, *given)

        session.losses = limited  # type: ignore[method-assign]
        plans = [session.memory_plan for _ in train(session)]
        return [plans, trainer.weights[0].detach()]

    (plans, weight), (others, same) = in_ranks(2, work, tmp_path)
    assert plans == others == [MemoryPlan(2)] * 3
    assert torch.equal(weight, same)


def test_a_process_with_other_images_is_an_error(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(pictures, WORD, steps=3)

    def work(ranks: Ranks) -> str:
        if ranks.rank:
            ranks.check_same = lambda inputs: Ranks.check_same(  # type: ignore[method-assign]
                ranks, {**inputs, "images": {}}
            )
        return train_run(model, tmp_path / "run", recipe, ranks)

    first, second = in_ranks(2, work, tmp_path)
    assert first.startswith("RunError: process 1 of 2: its images differ from those of process 0")
    assert second == "SystemExit: 2"


def test_a_process_stops_if_what_started_it_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(0, 2)
    monkeypatch.setattr(os, "getppid", lambda: -1)
    with pytest.raises(KeyboardInterrupt):
        ranks.exchange(None)


def test_images_are_the_same_and_shared_out(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_MAX_BATCH", 2)
    request = GenerationRequest(prompt="a toy", num_images=5, steps=2)

    def work(ranks: Ranks) -> dict[int, bytes]:
        events = sample.sample_images(model, request, (), ranks)
        images = [event for event in events if isinstance(event, GeneratedImage)]
        return {one.request.seed: one.image.tobytes() for one in images}

    alone, first, second = work(ALONE), *in_ranks(2, work, tmp_path)
    assert list(first) == [0, 1, 4]
    assert list(second) == [2, 3]
    assert first | second == alone


def test_previews_are_the_same_and_shared_out(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"preview_every": 1, "score_previews": False}
    own = ("a red {}", "{} on grass", "a {}")
    recipe = recipe_for(pictures, LORA, steps=3, preview_prompts=own, **options)
    generated: list[int] = []
    generate, save = sample.generate_images, preview.save_preview
    shared = tmp_path / "run" / "previews"

    def limited(model: Model, request: GenerationRequest, ranks: Ranks) -> list[GeneratedImage]:
        generated.append(request.num_images)
        if ranks.rank and len(generated) == 5:  # two batches of four are its share of a preview
            raise NotFiniteError("the latents are infinite", "none")
        return generate(model, request)

    def twice(model: Model, recipe: Recipe, step: int, *given: Any) -> Any:
        alone, _ = save(model, recipe, step, tmp_path)
        result = save(model, recipe, step, *given)
        assert alone.path.read_bytes() == result[0].path.read_bytes()
        return result

    def work(ranks: Ranks) -> list[int] | str:
        monkeypatch.setattr(preview, "generate_images", partial(limited, ranks=ranks))
        monkeypatch.setattr(run_folder, "save_preview", twice)
        with suppress(LeaderEndedError):
            train_run(model, tmp_path / "run", recipe, ranks)
        return generated

    assert in_ranks(2, work, tmp_path) == [[4, 1, 1, 1, 4, 1] * 3, [1, 1] * 2 + [1]]
    assert sorted(file.stem for file in shared.iterdir()) == ["0000001", "0000002"]
    journal = (tmp_path / "run" / "journal.jsonl").read_text(encoding="utf-8")
    assert "no preview of step 3: the latents are infinite" in journal


def test_an_evaluation_is_the_same(
    nano: Path, straight: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[str, Any] = {}
    for kind in ("dino", "clip"):
        (tmp_path / kind).mkdir()
        models[f"{kind}_model"] = str(save_seeing(kind, tmp_path / kind))
    settings = EvaluationSettings(prompts="pocket-styles", num_images=1, steps=1, **models)
    generated: list[str] = []
    sampled = image_cache.sample_images

    def counted(model: Model, request: GenerationRequest, *given: Any) -> Any:
        generated.append(request.prompt)
        return sampled(model, request, *given)

    monkeypatch.setattr(image_cache, "sample_images", counted)

    def work(ranks: Ranks) -> list[str]:
        out = tmp_path / f"out-{ranks.size}"
        evaluate([straight[1]], out, lambda _: open_base(nano), print, settings, None, ranks)
        return generated

    everything, first, second = work(ALONE), *in_ranks(2, work, tmp_path)
    assert sorted(first[len(everything) :] + second[len(everything) :]) == sorted(everything)
    assert len(everything) > len(second) - len(everything) > 1
    names = ("metrics.csv", "report.html")
    for name in names:
        assert (tmp_path / "out-1" / name).read_bytes() == (tmp_path / "out-2" / name).read_bytes()
