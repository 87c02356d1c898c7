"""Several processes divide the weights too: the same result as one, and less in each of them."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pinxit.errors import RecipeError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.images.folder import read_images
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.runs.class_images import read_class_images
from pinxit.training.batches import Batch
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.division import check_shards
from pinxit.training.memory import SMALLEST
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.shared_state import gather_state, share_state
from pinxit.training.train import TrainingSession, train
from tests.runs.test_ranks import DREAMBOOTH, WORD, in_ranks, recipe_for, state_of, train_run

pytest_plugins = ["tests.runs.test_many"]  # the fixture `double`

ALL_WEIGHTS: dict[str, object] = {"name": "dreambooth", "preserve": "none"}
PULLED: dict[str, object] = {"name": "dreambooth", "preserve": "weights"}


def session_of(model: Model, recipe: Recipe, ranks: Ranks) -> TrainingSession:
    """The training session of a recipe; the weights are divided if `ranks` says so."""
    images = read_images(recipe.images)
    plan = TrainingPlan.of(recipe, model, len(images))
    class_images = read_class_images(model, plan.class_images)
    trainer = ConceptTrainer(model, plan, images, class_images, ranks)
    share_state(ranks, trainer, images)
    return TrainingSession(model, [trainer], ranks)


def trained_state(model: Model, recipe: Recipe, ranks: Ranks) -> dict[str, Tensor]:
    """The whole state after training, in float64, on rank 0."""
    session = session_of(model, recipe, ranks)
    for _ in train(session):
        pass
    return {name: tensor.double() for name, tensor in gather_state(session.trainers[0]).items()}


def largest_difference(state: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert state.keys() == expected.keys()
    return max(float((state[name] - tensor).abs().max()) for name, tensor in expected.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "method", "changes"),
    [
        (2, DREAMBOOTH, {"steps": 20, "early_stop": 1e-12, "validate_every": 5, "ema": True}),
        (3, PULLED, {"steps": 3, "batch_size": 1}),  # two processes have no sample
        (2, ALL_WEIGHTS, {"steps": 3, "batch_size": 5}),  # three and two
    ],
    ids=["text-encoder", "without-samples", "micro-batches"],
)
def test_divided_weights_change_only_rounding(
    double: Model,
    pictures: Path,
    tmp_path: Path,
    size: int,
    method: dict[str, object],
    changes: dict[str, Any],
) -> None:
    recipe = recipe_for(pictures, method, **changes)
    work = lambda ranks: trained_state(double, recipe, ranks)  # noqa: E731
    (expected,) = in_ranks(1, work, tmp_path)
    state = in_ranks(size, work, tmp_path, shard_weights=True)[0]
    assert largest_difference(state, expected) < 1e-10


@pytest.mark.long
@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux-1"])
def test_networks_of_other_families_too(
    opened: Callable[[str], Model], pictures: Path, tmp_path: Path, family: str
) -> None:
    model = opened(family)
    method = {**ALL_WEIGHTS, "train_text_encoder": family != "flux-1"}
    recipe = recipe_for(pictures, method, steps=2, learning_rate=3e-4, precision="fp32")
    work = lambda ranks: trained_state(model, recipe, ranks)  # noqa: E731
    (expected,) = in_ranks(1, work, tmp_path)
    state = in_ranks(2, work, tmp_path, shard_weights=True)[0]
    names = [name for name in expected if name.startswith("weight.")]
    assert largest_difference(*({n: one[n] for n in names} for one in (state, expected))) < 1e-4


@pytest.mark.long
def test_each_process_has_a_part_of_weights_gradients_and_state(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(pictures, {**ALL_WEIGHTS, "train_text_encoder": True}, steps=2)

    def work(ranks: Ranks) -> dict[str, int]:
        session = session_of(model, recipe, ranks)
        trainer = session.trainers[0]
        step, num_bytes = trainer.optimizer.step, dict[str, int]()

        def counted(*given: Any) -> None:
            gradients = [w.grad for w in trainer.weights if w.grad is not None]
            networks = [model.all_networks[name].parameters() for name in ("denoiser", "text")]
            held = {"whole": [w for group in networks for w in group if not hasattr(w, "_spec")]}
            held |= {"weights": trainer.weights, "gradients": gradients}
            num_bytes.update({name: sum(w.nbytes for w in some) for name, some in held.items()})
            step(*given)

        trainer.optimizer.step = counted  # type: ignore[method-assign]
        for _ in train(session):
            assert ranks.size == 1 or session.memory_plan == SMALLEST
        states = trainer.optimizer.state.values()
        num_bytes["state"] = sum(t.nbytes for state in states for t in state.values() if t.ndim)
        return num_bytes

    (whole,), parts = in_ranks(1, work, tmp_path), in_ranks(2, work, tmp_path, shard_weights=True)
    for name in ("weights", "gradients", "state"):
        assert sum(part[name] for part in parts) == whole[name]
        assert max(part[name] for part in parts) < 0.51 * whole[name]
    assert [part["whole"] for part in parts] == [0, 0]


def nothing(_: Ranks) -> None:
    """Change nothing."""


def run(
    model: Model, folder: Path, recipe: Recipe, size: int, change: Callable[[Ranks], None] = nothing
) -> list[Any]:
    """A whole run in processes of their own, with divided weights if there are several."""

    def work(ranks: Ranks) -> str:
        change(ranks)
        return train_run(model, folder, recipe, ranks)

    folder.parent.mkdir(exist_ok=True)
    return in_ranks(size, work, folder.parent, shard_weights=size > 1)


@pytest.mark.long
def test_a_run_goes_on_with_divided_weights_and_without(
    double: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(pictures, ALL_WEIGHTS, steps=4, ema=True)
    half = recipe.model_copy(update={"steps": 2})
    for name, sizes in {"alone": (1, 1), "joined": (2, 1), "divided": (1, 2)}.items():
        folder = tmp_path / name / "run"
        assert run(double, folder, half, sizes[0])[0] == "saved 2"
        assert run(double, folder, recipe, sizes[1])[0] == "saved 4"
    expected = state_of(tmp_path / "alone" / "run")
    for name in ("joined", "divided"):
        assert largest_difference(state_of(tmp_path / name / "run"), expected) < 1e-10


@pytest.mark.long
def test_concepts_previews_and_checkpoints_are_written(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"preview_every": 2, "save_every": 1, "score_previews": True}
    recipe = recipe_for(pictures, ALL_WEIGHTS, steps=2, **options)
    for name, size in {"alone": 1, "divided": 2}.items():
        assert run(model, tmp_path / name / "run", recipe, size)[0] == "saved 2"
    alone, divided = (tmp_path / name / "run" for name in ("alone", "divided"))
    names = [sorted(str(p.relative_to(one)) for p in one.rglob("*.*")) for one in (alone, divided)]
    assert names[0] == names[1]
    for name in ("concept.safetensors", "concepts/0000001.safetensors"):
        expected, state = (dict(read_safetensors(one / name)[0]) for one in (alone, divided))
        assert largest_difference(state, expected) < 1e-3  # of a rate of 3e-4


def losses_in_step_3(change: Callable[[Ranks, Tensor], Tensor]) -> Callable[[Ranks], None]:
    """Change the losses of the third pass of each process."""

    def patch(ranks: Ranks) -> None:
        compute, passes = TrainingSession.losses, iter(range(100))

        def losses(session: TrainingSession, batch: Batch, *given: Any) -> Tensor:
            computed = compute(session, batch, *given)
            return change(ranks, computed) if next(passes) == 2 else computed

        TrainingSession.losses = losses  # type: ignore[method-assign]

    return patch


@pytest.mark.long
def test_a_run_that_diverges_goes_on_with_a_lower_learning_rate(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(pictures, ALL_WEIGHTS, steps=4, batch_size=2, checkpoint_every=2)
    change = losses_in_step_3(lambda _, losses: losses * torch.nan)
    assert run(model, tmp_path / "parent" / "run", recipe, 2, change)[0] == "saved 4"
    journal = (tmp_path / "parent" / "run" / "journal.jsonl").read_text(encoding="utf-8")
    assert '"type": "LearningRateReduction", "step": 3' in journal


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError


@pytest.mark.long
@pytest.mark.parametrize(
    ("action", "first", "second", "saved"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "RunError", -signal.SIGKILL, "0000002"),
        (lambda: os.kill(os.getpid(), signal.SIGINT), "Keyboard", "Keyboard", "0000002"),
        (run_out_of_memory, "RunError: one of the 2 processes", "SystemExit: 2", "0000002"),
    ],
    ids=["killed", "stopped", "memory"],
)
def test_a_process_that_ends_loses_nothing_that_was_saved(
    model: Model,
    pictures: Path,
    tmp_path: Path,
    action: Callable[[], None],
    first: str,
    second: str | int,
    saved: str,
) -> None:
    recipe = recipe_for(pictures, ALL_WEIGHTS, steps=4, batch_size=2, checkpoint_every=2)
    straight, stopped = tmp_path / "straight" / "run", tmp_path / "stopped" / "run"
    assert run(model, straight, recipe, 2)[0] == "saved 4"

    def end(ranks: Ranks, losses: Tensor) -> Tensor:
        if ranks.rank:
            action()
        return losses

    ends = run(model, stopped, recipe, 2, losses_in_step_3(end))
    assert str(ends[0]).startswith(first), ends
    assert ends[1] == second or str(ends[1]).startswith(str(second)), ends
    last = max(file.stem for file in (stopped / "checkpoints").iterdir())
    assert last >= saved
    assert run(model, stopped, recipe, 2)[0] == "saved 4"
    state = state_of(stopped)
    assert all(torch.equal(tensor, state[n]) for n, tensor in state_of(straight).items())


@pytest.mark.parametrize(
    ("method", "changes", "several", "message"),
    [
        (ALL_WEIGHTS, {}, False, "one process has nobody to divide the weights with"),
        (WORD, {}, True, "textual-inversion trains few weights"),
        (ALL_WEIGHTS, {"optimizer": "prodigy"}, True, "the state of prodigy cannot be divided"),
        (ALL_WEIGHTS, {"optimizer": "adamw-8bit"}, True, "the state of adamw-8bit cannot be"),
        (ALL_WEIGHTS, {"assistant": "lora"}, True, "an assistant does not work"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    pictures: Path,
    method: dict[str, object],
    changes: dict[str, Any],
    several: bool,
    message: str,
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_shards(recipe_for(pictures, method, **changes), several=several)
    check_shards(recipe_for(pictures, ALL_WEIGHTS), several=True)
    assert not ALONE.shard_weights
