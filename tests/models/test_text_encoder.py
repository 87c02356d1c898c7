"""New words: where they are found, what stands in their place, and what flows back to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.adapters.adapter import Alias, NewWord, injected
from pinxit.errors import ConceptError, ModelError
from pinxit.models.model import Model, open_base
from pinxit.models.prompt import Meaning, pattern, rewrite, spans, spoken
from pinxit.models.text_encoder import LITERALLY, Reading

PAINTING = Reading(weights=True, long=True)
LONG = " ".join(["a red dog on the beach"] * 20)  # 120 tokens


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
        assert [row for row in tokens.rows[0, 0].tolist() if row >= 0] == [1, 2, 3, 0, 1, 2, 3]
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
        tokens = model.towers["text"].tokens([f"{fits} <mytoy>"], model.words, PAINTING)
    assert tokens.ids.shape == (1, 1, 32)
    assert tokens.ids[0, 0, -1] == model.towers["text"].tokenizer.eos_token_id
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


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("", []),
        ("a red dog", [("a red dog", 1)]),
        ("a (red:1.2) dog", [("a ", 1), ("red", 1.2), (" dog", 1)]),
        ("(a (red:1.5)) [dog]", [("a ", 1.1), ("red", 1.65), (" ", 1), ("dog", 1 / 1.1)]),
        (r"a \(red\) dog", [("a (red) dog", 1)]),
        ("a dog :) in (red", [("a dog :) in (red", 1)]),
        ("(red: 1.2 ) [red:.5) (red:x)", [("red", 1.2), (" [red:.5) ", 1), ("red:x", 1.1)]),
        ("(<mytoy>:0)", [("<mytoy>", 0)]),
    ],
)
def test_weights_in_brackets(prompt: str, read: list[tuple[str, float]]) -> None:
    assert [(span.text, pytest.approx(span.weight)) for span in spans(prompt)] == read


def test_a_weight_multiplies_states_and_the_mean_is_put_back(
    opened: Callable[[str], Model],
) -> None:
    """AUTOMATIC1111's rule, written out; where states are not normalised, without the mean."""
    weights = torch.ones(1, 77, 1)
    weights[0, 3:5] = 1.3  # after the mark of beginning: a photo | red dog | on the beach
    for family, normalised in (("stable-diffusion-1", True), ("stable-diffusion-xl", False)):
        model = opened(family)
        plain = model.condition(["a photo red dog on the beach"])
        wanted = plain.states * weights
        if normalised:
            wanted *= plain.states.mean() / wanted.mean()
        told = model.condition(["a photo (red dog:1.3) on the beach"], PAINTING)
        assert torch.allclose(told.states, wanted, atol=1e-5)
        assert not torch.allclose(told.states, plain.states, atol=1e-3)
        if told.pooled is not None and plain.pooled is not None:
            assert torch.equal(told.pooled, plain.pooled)


def test_a_learned_word_can_be_weighed(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-1")
    with injected(model, [word(model, 2)]):
        tokens = model.towers["text"].tokens(["a (<mytoy>:1.5) dog"], model.words, PAINTING)
        found = [tensor[0, 0, :6].tolist() for tensor in (tokens.rows, tokens.weights)]
        assert found == [[-1, -1, 0, 1, -1, -1], [1, 1, 1.5, 1.5, 1, 1]]
        assert spoken("a (<mytoy>:1.5) dog", model.words, weights=True) == "a toy dog"


def test_prompts_without_brackets_are_read_alike(opened: Callable[[str], Model]) -> None:
    for family in ("stable-diffusion-1", "stable-diffusion-xl"):
        prompts = ["a red dog", "a cat"]
        said = [opened(family).condition(prompts, how).states for how in (LITERALLY, PAINTING)]
        assert torch.equal(said[0], said[1])


def test_a_long_prompt_is_told_in_windows(opened: Callable[[str], Model]) -> None:
    words = LONG.split()
    for family in ("stable-diffusion-1", "stable-diffusion-xl"):
        model = opened(family)
        told = model.condition(["a cat", LONG], PAINTING)
        alone = [model.condition([part]) for part in ("a cat", " ".join(words[:75]))]
        assert told.states.shape[1] == 2 * 77
        rest = model.condition([" ".join(words[75:])]).states
        assert torch.allclose(told.states[1], torch.cat([alone[1].states, rest], 1)[0], atol=1e-5)
        assert torch.allclose(told.states[0, :77], alone[0].states[0], atol=1e-5)
        if told.pooled is not None and alone[1].pooled is not None:
            assert torch.allclose(told.pooled[1], alone[1].pooled[0], atol=1e-5)
        assert model.cut(LONG, PAINTING) == ""
        assert model.cut(LONG) == " ".join(words[75:])
        assert model.condition(["a cat", LONG]).states.shape[1] == 77


def test_clip_skip_is_a_layer_further_up(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-2")
    tower = model.towers["text"]
    ids = tower.tokens(["a red dog"], {}).ids[0]
    network: Any = model.networks["text"]
    layers = network(ids, output_hidden_states=True).hidden_states
    wanted = network.final_layer_norm(layers[-2])
    told = [model.condition(["a red dog"], Reading(clip_skip=n)).states for n in (None, 1, 2)]
    assert torch.allclose(told[2], wanted, atol=1e-6)
    assert torch.equal(told[0], told[1])
    assert not torch.allclose(told[1], told[2], atol=1e-3)
    with pytest.raises(ModelError, match="clip skip 3 is more than the layers"):
        model.condition(["a red dog"], Reading(clip_skip=3))
