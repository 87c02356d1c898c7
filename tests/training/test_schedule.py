"""Optimizers, learning-rate schedules, weight decay, averaged weights and caption dropout."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.errors import RecipeError
from pinxit.models.model import Model
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train


def session(model: Model, pictures: Path, **options: object) -> TrainingSession:
    method = {"name": "lora", "class_images": 0, "rank": 2}
    common = {"images": pictures, "token": "<my>", "class_noun": "toy", "steps": 4}
    recipe = Recipe.model_validate({**common, "method": method, "batch_size": 1, **options})
    images = recipe.read_images()
    return TrainingSession(
        model, [ConceptTrainer(model, TrainingPlan.of(recipe, model, 3), images)]
    )


def trained(model: Model, pictures: Path, **options: object) -> tuple[list[float], list[Tensor]]:
    """The learning rate of each step, and the weights to save."""
    one = session(model, pictures, **options)
    rates = [step.learning_rate for step in train(one)]
    (trainer,) = one.trainers
    with trainer.averaged_weights():
        return rates, [weight.detach().clone() for weight in trainer.weights]


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 1, 1, 1]),
        ({"lr_scheduler": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"lr_schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447]),
        ({"lr_warmup_steps": 2}, [0.5, 1, 1, 1]),
        ({"lr_schedule": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.5]),
    ],
)
def test_the_learning_rate_follows_the_schedule(
    model: Model, pictures: Path, options: dict[str, object], factors: list[float]
) -> None:
    rates, _ = trained(model, pictures, learning_rate=0.01, **options)
    assert rates == pytest.approx([0.01 * factor for factor in factors], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"lr_schedule": "cosine"},
        {"warmup_steps": 4},
        {"weight_decay": 0.5},
        {"ema": True},
        {"caption_dropout": 0.9},
        {"gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_every_option_changes_the_weights(
    model: Model, pictures: Path, options: dict[str, object]
) -> None:
    _, plain = trained(model, pictures)
    _, changed = trained(model, pictures, **options)
    assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


@pytest.mark.long
def test_accumulation_is_a_larger_batch(model: Model, pictures: Path) -> None:
    _, added_up = trained(model, pictures, gradient_accumulation_steps=3)
    _, large = trained(model, pictures, batch_size=3)
    assert all(torch.equal(a, b) for a, b in zip(added_up, large, strict=True))


def test_captions_are_dropped_from_a_fraction_of_the_samples(model: Model, pictures: Path) -> None:
    (trainer,) = session(model, pictures, batch_size=8, caption_dropout=0.25).trainers
    (plain,) = session(model, pictures, batch_size=8).trainers
    prompts = [
        sample.prompt for step in range(25) for sample in trainer.samples.draw_samples(step, 0)
    ]
    assert 30 <= prompts.count("") <= 70  # 50 of 200 on average
    assert "" in trainer.samples.prompts
    assert "" not in plain.samples.prompts
    noise = [torch.cat([s.noise for s in t.samples.draw_samples(0, 0)]) for t in (trainer, plain)]
    assert torch.equal(*noise)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_styles_that_change_the_denoiser_drop_captions(
    model: Model, pictures: Path, name: str
) -> None:
    common = {"images": pictures, "token": "<my>", "class_noun": "toy", "method": name}
    for kind, given, expected in (
        ("object", None, 0.0),
        ("style", None, 0.0 if name == "textual-inversion" else 0.1),
        ("style", 0.0, 0.0),
    ):
        recipe = Recipe.model_validate({**common, "kind": kind, "caption_dropout": given})
        assert TrainingPlan.of(recipe, model, 3).recipe.caption_dropout == expected


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_every_optimizer_resumes_to_the_bit(name: str, model: Model, pictures: Path) -> None:
    options = {"optimizer": name, "steps": 5, "checkpoint_every": 1}
    whole = session(model, pictures, **options)
    losses = [step.loss for step in train(whole)]
    first = session(model, pictures, **options)
    steps = train(first)
    assert [next(steps).loss for _ in range(3)] == losses[:3]
    state = {key: tensor.clone() for key, tensor in first.trainers[0].state().items()}
    steps.close()
    second = session(model, pictures, **options)
    second.trainers[0].restore(state)
    assert [step.loss for step in train(second)] == losses[3:]
    for one, other in zip(second.trainers[0].weights, whole.trainers[0].weights, strict=True):
        assert torch.equal(one, other)


def test_learning_rates_of_optimizers(model: Model, pictures: Path) -> None:
    options = {"method": {"name": "lora", "class_images": 0, "placeholder": "new-embedding"}}
    adamw, lion, prodigy = (
        [
            group.learning_rate
            for group in session(model, pictures, optimizer=name, **options)
            .trainers[0]
            .optimizer.groups
        ]
        for name in ("AdamW", "Lion", "prodigy")
    )
    assert lion == pytest.approx([0.3 * rate for rate in adamw])
    assert prodigy == [1.0] * len(adamw)
    typed = session(model, pictures, optimizer="AdamW8bit", learning_rate=0.5).trainers[0]
    assert typed.plan.recipe.optimizer == "adamw-8bit"
    assert typed.optimizer.groups[-1].learning_rate == 0.5
    with pytest.raises(RecipeError, match="unknown optimizer `adafactor`"):
        session(model, pictures, optimizer="adafactor")
