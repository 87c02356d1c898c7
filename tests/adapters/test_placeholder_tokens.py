"""Textual inversion: embeddings with fixed or free norm, weight averaging, captions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.models.model import Model
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train


def recipe(images: Path, embedding_norm: str = "fixed", **options: Any) -> Recipe:
    method = {"name": "textual-inversion", "num_vectors": 2, "embedding_norm": embedding_norm}
    data = {"images": images, "token": "<mytoy>", "class_noun": "toy", "preview_every": 0}
    training = {"steps": 6, "batch_size": 2, "learning_rate": 0.1}
    return Recipe.model_validate({"method": method, **data, **training, **options})


def trained_embedding(model: Model, options: Recipe) -> EmbeddingAdapter:
    images = options.read_images()
    session = TrainingSession(
        model, [ConceptTrainer(model, TrainingPlan.of(options, model, len(images)), images)]
    )
    for _ in train(session):
        pass
    embedding = session.adapters[0]
    assert isinstance(embedding, EmbeddingAdapter)
    return embedding


def norms(model: Model, embedding: EmbeddingAdapter) -> tuple[Tensor, float]:
    """The norms of the embedding's vectors, and the mean norm of those of the class noun."""
    noun_norm = model.text_encoders["text"].token_embeddings("toy").norm(dim=1).mean()
    return embedding.part().tensors["text"].norm(dim=1), float(noun_norm)


def test_a_fixed_norm_stays_and_a_free_one_grows(model: Model, pictures: Path) -> None:
    fixed, noun_norm = norms(model, trained_embedding(model, recipe(pictures)))
    assert torch.allclose(fixed, torch.full((2,), noun_norm), rtol=1e-4)
    free, noun_norm = norms(model, trained_embedding(model, recipe(pictures, "free")))
    assert bool((free > 1.2 * noun_norm).all())


def test_the_saved_vectors_are_the_averaged_ones(model: Model, pictures: Path) -> None:
    embedding = trained_embedding(model, recipe(pictures))
    restored = EmbeddingAdapter.restore(embedding.part(), model)
    assert torch.equal(restored.vectors["text"], embedding.vectors["text"])
    assert not torch.equal(embedding.vectors["text"], embedding.tables["text"])


def test_a_resumed_run_equals_an_uninterrupted_one(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    uninterrupted = train_run(model, recipe(pictures, steps=6), tmp_path / "uninterrupted")
    train_run(model, recipe(pictures, steps=3), tmp_path / "resumed")
    resumed = Run.open(tmp_path / "resumed", steps=6)
    list(resumed.train(model))
    tables = [run.concept.parts[0].tensors["text"] for run in (uninterrupted, resumed)]
    assert torch.equal(*tables)


@pytest.mark.parametrize(
    ("kind", "start"), [("style", "a dog"), ("object", "a photo of a <mytoy>")]
)
def test_only_styles_are_trained_with_captions(pictures: Path, kind: str, start: str) -> None:
    (pictures / "0.txt").write_text("a dog on grass")
    options = recipe(pictures, kind=kind)
    images = options.read_images()
    pools = options.method.image_pools(options.subject, images)
    assert any(prompt.startswith(start) for prompt in pools[0].prompts[0])
    method = {"name": "textual-inversion", "captions": False}
    without_captions = recipe(pictures, kind=kind, method=method)
    pools = without_captions.method.image_pools(without_captions.subject, images)
    assert len(pools[0].prompts[0]) > 1


def test_a_style_has_more_vectors_and_no_class_to_preserve(model: Model, pictures: Path) -> None:
    def settled(kind: str, method: str) -> Any:
        return TrainingPlan.of(recipe(pictures, kind=kind, method=method), model, 3).method

    style, thing = (settled(kind, "textual-inversion") for kind in ("style", "object"))
    assert style.num_vectors > thing.num_vectors
    preserved = [settled(kind, "lora").preserve for kind in ("style", "object")]
    assert preserved == [None, "base-answer"]
