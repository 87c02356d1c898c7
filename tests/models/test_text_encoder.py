"""Prompts: placeholder tokens, their embeddings and gradients, weights, chunks and clip skip."""

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.errors import ConceptError, ModelError
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.models.prompt import (
    PromptPiece,
    TokenEmbedding,
    parse_prompt,
    parse_weights,
    plain_text,
    token_pattern,
)
from pinxit.models.text_encoder import DEFAULT_PARSING, PromptParsing

GENERATION = PromptParsing(weights=True, long_prompts=True)
LONG_PROMPT = " ".join(["a red dog on the beach"] * 20)  # 120 tokens


def embedding(model: Model, count: int = 1, token: str = "<mytoy>") -> EmbeddingAdapter:
    generator = torch.Generator().manual_seed(5)
    vectors = {
        name: torch.randn(count, text_encoder.width, generator=generator)
        for name, text_encoder in model.text_encoders.items()
    }
    return EmbeddingAdapter(token, "toy", vectors)


@pytest.mark.parametrize(
    ("prompt", "count"),
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
def test_tokens_match_only_whole_words(prompt: str, count: int) -> None:
    assert len(token_pattern(("<toy>",)).findall(prompt)) == count


def test_the_longer_of_two_tokens_matches() -> None:
    placeholders = {"my": TokenEmbedding("one"), "my-toy": TokenEmbedding("two")}
    assert plain_text("my-toy and My dog", placeholders, weights=False) == "two and one dog"


def test_a_placeholder_token_works_like_a_vocabulary_token(nano: Path, model: Model) -> None:
    """The reference is a base model with the vectors in its own embedding layer, as rare tokens."""
    other = open_base(nano)
    table = other.text_encoders["text"].embedding.weight
    added = embedding(model, 2)
    zwx, qvj = (other.text_encoders["text"].ids(rare)[0] for rare in ("zwx", "qvj"))
    table.data[zwx], table.data[qvj] = added.tables["text"].detach()
    with applied(model, [added]):
        states = model.condition(["a photo of a <mytoy> on the beach", "<mytoy>", "a dog"]).states
        without_token = model.condition(["a photo of a toy on the beach"]).states
    prompts = ["a photo of a zwx qvj on the beach", "zwx qvj", "a dog"]
    assert torch.allclose(states, other.condition(prompts).states, atol=1e-6)
    assert torch.equal(without_token, model.condition(["a photo of a toy on the beach"]).states)


def test_a_prompt_is_tokenized_once_for_all_embeddings(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, prompt = model.text_encoders["text"], "once a photo of <mytoy>"
    parsed: list[str] = []

    def parse(
        text: str, placeholders: Mapping[str, TokenEmbedding], *, weights: bool
    ) -> tuple[PromptPiece, ...]:
        parsed.append(text)
        return parse_prompt(text, placeholders, weights=weights)

    monkeypatch.setattr("pinxit.models.text_encoder.parse_prompt", parse)
    for count, scale in ((2, 1.0), (2, 3.0), (3, 1.0)):
        table = torch.ones(count, encoder.width) * scale
        plan = encoder.tokenize([prompt], {"<mytoy>": TokenEmbedding("toy", {"text": table})})
        assert plan.embeddings is not None
        assert torch.equal(plan.embeddings, table)
        assert int((plan.embedding_rows >= 0).sum()) == count
    assert parsed == [prompt] * 2  # the third embedding has another length


def test_two_placeholder_tokens_in_one_prompt(model: Model) -> None:
    one, two = embedding(model, 1, "<one>"), embedding(model, 3, "<two>")
    with applied(model, [one, two]):
        tokens = model.text_encoders["text"].tokenize(
            ["<two> on <one> and <two>"], model.placeholders
        )
        assert [row for row in tokens.embedding_rows[0, 0].tolist() if row >= 0] == [
            1,
            2,
            3,
            0,
            1,
            2,
            3,
        ]
        both = model.condition(["<one> <two>"]).states
    with applied(model, [two, one]):
        assert torch.equal(both, model.condition(["<one> <two>"]).states)


def test_only_placeholder_embeddings_get_a_gradient(model: Model) -> None:
    added = embedding(model, 2)
    with applied(model, [added]):
        model.condition(["a <mytoy>"]).states.square().sum().backward()
    gradient = added.tables["text"].grad
    assert gradient is not None
    assert bool((gradient.abs().sum(1) > 0).all())
    assert all(weight.grad is None for weight in model.networks["text"].parameters())


def test_a_long_prompt_is_truncated_and_reported(model: Model) -> None:
    fits = " ".join(["dog"] * 30)
    assert model.truncated_text(fits) == ""
    assert model.truncated_text(f"{fits} on the red beach") == "on the red beach"
    with applied(model, [embedding(model, 4)]):
        assert model.truncated_text(f"<mytoy> {fits}") == "dog dog dog dog"
        encoder: Any = model.text_encoders["text"]
        tokens = encoder.tokenize([f"{fits} <mytoy>"], model.placeholders, GENERATION)
    assert tokens.ids.shape == (1, 1, 32)
    assert tokens.ids[0, 0, -1] == encoder.tokenizer.eos_token_id
    rows = tokens.embedding_rows[0, 0]
    assert rows[rows >= 0].tolist() == [0, 1, 2, 3]


def test_an_alias_is_replaced_by_its_text(model: Model) -> None:
    with applied(model, [AliasAdapter("<mytoy>", "sks toy")]):
        states = model.condition(["a <mytoy> on the beach"]).states
    assert torch.equal(states, model.condition(["a sks toy on the beach"]).states)


def test_a_token_cannot_be_defined_twice(model: Model) -> None:
    with (
        pytest.raises(ConceptError, match="two concepts define the token `<MyToy>`"),
        applied(model, [embedding(model), AliasAdapter("<MyToy>", "sks")]),
    ):
        pass
    assert not model.placeholders


def test_rare_tokens_have_no_vowels(model: Model) -> None:
    assert set(model.text_encoders["text"].rare_tokens()) == {"sks", "zwx", "qvj"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
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
def test_attention_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert [(part.text, pytest.approx(part.weight)) for part in parse_weights(prompt)] == expected


def test_a_weight_multiplies_states_and_the_mean_is_restored(
    bases: Callable[[str], Path],
) -> None:
    """AUTOMATIC1111's formula; without restoring the mean if states are not normalized."""
    weights = torch.ones(1, 77, 1)
    weights[0, 3:5] = 1.3  # after the start token: a photo | red dog | on the beach
    for family, normalized in (("stable-diffusion-1", True), ("stable-diffusion-xl", False)):
        model = open_base(bases(family))
        network: Any = model.text_encoders["text"].loaded
        torch.nn.init.constant_(network.final_layer_norm.bias, 0.2)
        plain = model.condition(["a photo red dog on the beach"])
        expected = plain.states * weights
        if normalized:
            expected *= plain.states.mean() / expected.mean()
        weighted = model.condition(["a photo (red dog:1.3) on the beach"], GENERATION)
        assert torch.allclose(weighted.states, expected, atol=1e-5)
        assert not torch.allclose(weighted.states, plain.states, atol=1e-3)
        if weighted.pooled is not None and plain.pooled is not None:
            assert torch.equal(weighted.pooled, plain.pooled)


@pytest.mark.parametrize("weight", ["1.1", "0", "-1", "1000"])
def test_weights_of_states_with_mean_0_are_finite(
    weight: str, opened: Callable[[str], Model]
) -> None:
    """A base whose last layer norm is not trained yet: the mean of its states is rounding error."""
    model = opened("stable-diffusion-1")
    plain = model.condition(["a red dog"])
    states = model.condition([f"a (red:{weight}) dog"], GENERATION).states
    assert plain.states.mean().abs() < 1e-5
    assert states.isfinite().all()
    assert states[0, [0, 1, 3]].tolist() == plain.states[0, [0, 1, 3]].tolist()


def test_a_placeholder_token_can_have_a_weight(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-1")
    with applied(model, [embedding(model, 2)]):
        tokens = model.text_encoders["text"].tokenize(
            ["a (<mytoy>:1.5) dog"], model.placeholders, GENERATION
        )
        values = [tensor[0, 0, :6].tolist() for tensor in (tokens.embedding_rows, tokens.weights)]
        assert values == [[-1, -1, 0, 1, -1, -1], [1, 1, 1.5, 1.5, 1, 1]]
        assert plain_text("a (<mytoy>:1.5) dog", model.placeholders, weights=True) == "a toy dog"


def test_prompts_without_weights_do_not_depend_on_the_parsing(
    opened: Callable[[str], Model],
) -> None:
    for family in ("stable-diffusion-1", "stable-diffusion-xl"):
        prompts = ["a red dog", "a cat"]
        states = [
            opened(family).condition(prompts, parsing).states
            for parsing in (DEFAULT_PARSING, GENERATION)
        ]
        assert torch.equal(states[0], states[1])


def test_a_long_prompt_is_encoded_in_chunks(opened: Callable[[str], Model]) -> None:
    words = LONG_PROMPT.split()
    for family in ("stable-diffusion-1", "stable-diffusion-xl"):
        model = opened(family)
        encoded = model.condition(["a cat", LONG_PROMPT], GENERATION)
        single = [model.condition([part]) for part in ("a cat", " ".join(words[:75]))]
        assert encoded.states.shape[1] == 2 * 77
        second_chunk = model.condition([" ".join(words[75:])]).states
        assert torch.allclose(
            encoded.states[1], torch.cat([single[1].states, second_chunk], 1)[0], atol=1e-5
        )
        assert torch.allclose(encoded.states[0, :77], single[0].states[0], atol=1e-5)
        if encoded.pooled is not None and single[1].pooled is not None:
            assert torch.allclose(encoded.pooled[1], single[1].pooled[0], atol=1e-5)
        assert model.truncated_text(LONG_PROMPT, GENERATION) == ""
        assert model.truncated_text(LONG_PROMPT) == " ".join(words[75:])
        assert model.condition(["a cat", LONG_PROMPT]).states.shape[1] == 77


def test_clip_skip_uses_an_earlier_layer(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-2")
    text_encoder = model.text_encoders["text"]
    ids = text_encoder.tokenize(["a red dog"], {}).ids[0]
    network: Any = model.networks["text"]
    hidden_states = network(ids, output_hidden_states=True).hidden_states
    expected = network.final_layer_norm(hidden_states[-2])
    states = [
        model.condition(["a red dog"], PromptParsing(clip_skip=n)).states for n in (None, 1, 2)
    ]
    assert torch.allclose(states[2], expected, atol=1e-6)
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[1], states[2], atol=1e-3)
    with pytest.raises(ModelError, match="clip skip 3 is more than the 2 layers"):
        model.condition(["a red dog"], PromptParsing(clip_skip=3))


@pytest.mark.parametrize("family", ["nano", "stable-diffusion-1", "stable-diffusion-xl"])
@pytest.mark.parametrize("words_before", [0, 29, 30, 73, 75, 76, 200])
@pytest.mark.parametrize("parsing", [DEFAULT_PARSING, GENERATION])
def test_a_token_is_never_cut_off_or_torn(
    opened: Callable[[str], Model], family: str, words_before: int, parsing: PromptParsing
) -> None:
    """Whatever the length of a caption, the first token stays, whole, in one window."""
    model = opened(family)
    prompt = f"{'dog ' * words_before}<mytoy>{' cat' * 80}"
    with applied(model, [embedding(model, 3), AliasAdapter("<other>", "sks toy")]):
        for encoder in model.text_encoders.values():
            plan = encoder.tokenize([prompt], model.placeholders, parsing)
            windows = [
                [row for row in rows if row >= 0] for rows in plan.embedding_rows[0].tolist()
            ]
            assert [rows for rows in windows if rows] == [[0, 1, 2]]
        text_encoder = model.text_encoders["text"]
        alias = text_encoder.tokenize(
            [prompt.replace("<mytoy>", "<other>")], model.placeholders, parsing
        )
        sks, toy = text_encoder.ids("sks toy")
        windows = alias.ids[0].tolist()
        assert sum(ids.count(sks) and ids[ids.index(sks) + 1] == toy for ids in windows) == 1
        if alias.ids.shape[1] == 1 and not (parsing.long_prompts and family != "nano"):
            assert "cat" in model.truncated_text(prompt, parsing)


def test_t5_keeps_the_text_of_a_token(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-3")
    encoder: Any = model.frozen_text_encoders["text_3"]
    prompt = f"{'dog ' * 300}<mytoy>"
    ids = encoder.tokenize([prompt], {"<mytoy>": TokenEmbedding("toy")}).ids[0, 0].tolist()
    short = encoder.tokenize(["dog toy"], {}).ids[0, 0].tolist()
    assert ids[-2:] == short[1:3]
    assert ids[:3] == [short[0]] * 3


NOTATIONS = [
    *(
        "<toy>",
        "[toy]",
        "(toy)",
        "{toy}",
        "((toy))",
        "<<toy>>",
        "*toy*",
        "toy-1",
        "my_toy",
        "a.toy",
    ),
    *(
        "toy:1.2",
        "<toy:1.2>",
        "t\\(oy",
        "TOY9",
        "\u732b\u732b",
        "<\u00c9t\u00e9>",
        "s\u017f\u212a",
        "+toy",
        "'toy'",
    ),
]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "template",
    [
        "{}",
        "a photo of {}",
        "{}, a dog",
        "a dog, ({}:1.3)",
        "[{}] {}.",
        "\u4e00\u53ea{}\u5728\u6d77\u6ee9",
    ],
)
@pytest.mark.parametrize("token", NOTATIONS)
def test_every_notation_of_a_token_is_found(token: str, template: str, weights: bool) -> None:
    placeholders = {
        token: TokenEmbedding("sks"),
        f"{token}2": TokenEmbedding("wrong"),
        token[:-1] or "x": TokenEmbedding("wrong"),
    }
    prompt = template.format(token, token)
    for spelled in (prompt, unicodedata.normalize("NFD", prompt)):
        text = plain_text(spelled, placeholders, weights=weights)
        assert text.count("sks") == template.count("{}")
        assert "wrong" not in text


def test_letters_whose_case_changes_length_are_one_token(model: Model) -> None:
    for token, other in (("<\u017f>", "<S>"), ("<k>", "<\u212a>"), ("<\u03c2>", "<\u03a3>")):
        assert plain_text(other, {token: TokenEmbedding("toy")}, weights=True) == "toy"
        with (
            pytest.raises(ConceptError, match="two concepts define"),
            applied(model, [AliasAdapter(token, "a"), AliasAdapter(other, "b")]),
        ):
            pass
