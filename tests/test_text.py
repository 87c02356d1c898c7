"""New words: where they are found, what stands in their place, and what flows back to them."""

from pathlib import Path

import pytest
import torch

from pinxit.adapter import Alias, NewWord, injected
from pinxit.errors import ConceptError
from pinxit.model import Model, open_base
from pinxit.text import Meaning, pattern, rewrite


def word(model: Model, count: int = 1, name: str = "<mytoy>") -> NewWord:
    draw = torch.Generator().manual_seed(5)
    towers = model.towers.items()
    tables = {key: torch.randn(count, tower.width, generator=draw) for key, tower in towers}
    return NewWord(name, "toy", tables)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a photo of <toy>", 1),
        ("<toy>, <TOY> and (<toy>)", 3),
        ("<toy>'s hat", 1),
        ("a<toy>", 0),
        ("<toy>s", 0),
        ("<<toy>>", 0),
        ("<toyland>", 0),
    ],
)
def test_words_are_found_whole(prompt: str, found: int) -> None:
    assert len(pattern(("<toy>",)).findall(prompt)) == found


def test_the_longer_of_two_words_is_found() -> None:
    words = {"my": Meaning("one"), "my-toy": Meaning("two")}
    assert rewrite("my-toy and My dog", words) == "two and one dog"


def test_a_new_word_is_as_if_the_vocabulary_had_it(nano: Path, model: Model) -> None:
    """The oracle: a base whose own table has the vectors, at ids its prompt would not use."""
    other = open_base(nano)
    table = other.towers["text"].embedding.weight
    added = word(model, 2)
    zwx, qvj = (other.towers["text"].ids(rare)[0] for rare in ("zwx", "qvj"))
    table.data[zwx], table.data[qvj] = added.tables["text"].detach()
    with injected(model, [added]):
        told = model.condition(["a photo of a <mytoy> on the beach", "<mytoy>", "a dog"]).states
        untold = model.condition(["a photo of a toy on the beach"]).states
    wanted = ["a photo of a zwx qvj on the beach", "zwx qvj", "a dog"]
    assert torch.allclose(told, other.condition(wanted).states, atol=1e-6)
    assert torch.equal(untold, model.condition(["a photo of a toy on the beach"]).states)


def test_two_words_in_one_prompt(model: Model) -> None:
    one, two = word(model, 1, "<one>"), word(model, 3, "<two>")
    with injected(model, [one, two]):
        tokens = model.towers["text"].tokens(["<two> on <one> and <two>"], model.words)
        assert [row for row in tokens.rows[0].tolist() if row >= 0] == [1, 2, 3, 0, 1, 2, 3]
        both = model.condition(["<one> <two>"]).states
    with injected(model, [two, one]):
        assert torch.equal(both, model.condition(["<one> <two>"]).states)


def test_only_the_new_vectors_get_a_gradient(model: Model) -> None:
    added = word(model, 2)
    with injected(model, [added]):
        model.condition(["a <mytoy>"]).states.square().sum().backward()
    gradient = added.tables["text"].grad
    assert gradient is not None
    assert bool((gradient.abs().sum(1) > 0).all())
    assert all(weight.grad is None for weight in model.networks["text"].parameters())


def test_too_long_a_prompt_is_cut_and_said(model: Model) -> None:
    fits = " ".join(["dog"] * 30)
    assert model.cut(fits) == ""
    assert model.cut(f"{fits} on the red beach") == "on the red beach"
    with injected(model, [word(model, 4)]):
        assert model.cut(f"<mytoy> {fits}") == "dog dog dog dog"
        tokens = model.towers["text"].tokens([f"{fits} <mytoy>"], model.words)
    assert tokens.ids.shape == (1, 32)
    assert tokens.ids[0, -1] == model.towers["text"].tokenizer.eos_token_id
    assert bool((tokens.rows < 0).all())


def test_an_alias_is_other_words(model: Model) -> None:
    with injected(model, [Alias("<mytoy>", "sks toy")]):
        told = model.condition(["a <mytoy> on the beach"]).states
    assert torch.equal(told, model.condition(["a sks toy on the beach"]).states)


def test_a_word_has_one_meaning(model: Model) -> None:
    with (
        pytest.raises(ConceptError, match="two concepts want the word `<MyToy>`"),
        injected(model, [word(model), Alias("<MyToy>", "sks")]),
    ):
        pass
    assert not model.words


def test_rare_words_are_no_words(model: Model) -> None:
    assert set(model.towers["text"].rare_words()) == {"sks", "zwx", "qvj"}
