"""A new word's vectors while they are learned: held to a length, or free to grow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pinxit.adapters.adapter import NewWord
from pinxit.models.model import Model
from pinxit.runs.run import Run, teach
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, train


def recipe(pictures: Path, length: str = "held", **changed: Any) -> Recipe:
    method = {"name": "textual-inversion", "vectors": 2, "length": length}
    given = {"pictures": pictures, "token": "<mytoy>", "class_noun": "toy", "preview_every": 0}
    return Recipe.model_validate(
        {"method": method, **given, "steps": 6, "batch_size": 2, "rate": 0.1, **changed}
    )


def learned(model: Model, wanted: Recipe) -> NewWord:
    pictures = wanted.read_pictures()
    lesson = Lesson.of(model, wanted.settled(model, len(pictures)), pictures)
    for _ in train(lesson):
        pass
    word = lesson.adapters[0]
    assert isinstance(word, NewWord)
    return word


def norms(model: Model, word: NewWord) -> tuple[Tensor, float]:
    own = model.towers["text"].word_vectors("toy").norm(dim=1).mean()
    return word.part().tensors["text"].norm(dim=1), float(own)


def test_held_vectors_stay_as_long_as_the_nouns_and_free_ones_grow(
    model: Model, pictures: Path
) -> None:
    held, own = norms(model, learned(model, recipe(pictures)))
    assert torch.allclose(held, torch.full((2,), own), rtol=1e-4)
    free, own = norms(model, learned(model, recipe(pictures, "free")))
    assert bool((free > 1.2 * own).all())


def test_what_is_kept_means_what_was_learned(model: Model, pictures: Path) -> None:
    word = learned(model, recipe(pictures))
    again = NewWord.restore(word.part(), model)
    assert torch.equal(again.vectors["text"], word.vectors["text"])
    assert not torch.equal(word.vectors["text"], word.tables["text"])


def test_a_held_word_goes_on_to_the_last_bit(model: Model, pictures: Path, tmp_path: Path) -> None:
    whole = teach(model, recipe(pictures, steps=6), tmp_path / "whole")
    teach(model, recipe(pictures, steps=3), tmp_path / "part")
    more = Run.open(tmp_path / "part", steps=6)
    list(more.learn(model))
    one, other = (run.concept.parts[0].tensors["text"] for run in (whole, more))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("kind", "said"), [("style", "a dog"), ("object", "a photo of a <mytoy>")])
def test_captions_are_learned_with_where_a_style_is(
    model: Model, pictures: Path, kind: str, said: str
) -> None:
    (pictures / "0.txt").write_text("a dog on grass")
    wanted = recipe(pictures, kind=kind)
    shown = wanted.read_pictures()
    pools = wanted.method.pools(model, wanted.subject, shown)
    assert any(prompt.startswith(said) for prompt in pools[0].prompts[0])
    plain = recipe(pictures, kind=kind, method={"name": "textual-inversion", "captions": False})
    pools = plain.method.pools(model, plain.subject, shown)
    assert len(pools[0].prompts[0]) > 1


def test_a_style_takes_more_vectors_and_no_class_pictures(model: Model, pictures: Path) -> None:
    def settled(kind: str, method: str) -> Any:
        return recipe(pictures, kind=kind, method=method).settled(model, 3).method

    words = (settled(kind, "textual-inversion").vectors for kind in ("style", "object"))
    assert next(words) > next(words)
    assert settled("style", "lora").prior_pictures == 0 < settled("object", "lora").prior_pictures
