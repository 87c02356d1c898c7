"""Prompts of any text: the parser and the windows agree with a second, simple implementation."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.model import Model
from pinxit.models.prompt import TokenEmbedding, parse_prompt, parse_weights
from pinxit.models.text_encoder import PromptParsing
from pinxit.models.text_window import split_windows, window_indices
from pinxit.training.method import Subject, insert_token
from pinxit.training.plan import _is_found  # pyright: ignore[reportPrivateUsage]

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
# Everything that the grammar gives a meaning, and text of several scripts.
PARTS = st.sampled_from(
    [*"()[]<>:\\a1é犬🐕,_ß\n \ufdd0", "e\u0301", "dog", "BREAK", "AND", ":1.2)", ": 0.5 )", ":-1)"]
)
PROMPTS = st.lists(PARTS, max_size=20).map("".join) | TEXT
TOKENS = (
    st.sampled_from(["<mytoy>", "sks", "[toy]", "(toy)", "my-toy", "my_toy", "v1.5", "<Straße>"])
    | st.sampled_from(["犬", "<e\u0301>", ":)", "a:1.2", "*", "&", "<a><b>", "toy", "TOY", "_x_"])
    | st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
)


def normal(prompt: str) -> str:
    return unicodedata.normalize("NFC", prompt.replace("\ufdd0", ""))


def weights_of_characters(prompt: str) -> list[tuple[str, float]]:
    """The grammar as the guide describes it, one character after the other."""
    result: list[list[Any]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    position = 0
    while position < len(prompt):
        character, rest = prompt[position], prompt[position:]
        number = re.match(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)", rest)
        escaped = character == "\\" and rest[1:2] in tuple("\\()[]")
        closes = "(" if character == ")" or number else "[" if character == "]" else ""
        if escaped:
            result.append([rest[1], 1.0])
        elif closes and open_at[closes]:
            start = open_at[closes].pop()
            factor = float(number[1]) if number else 1.1 if closes == "(" else 1 / 1.1
            result[start][0] = ""
            for item in result[start:]:
                item[1] *= factor
        else:
            if character in open_at:
                open_at[character].append(len(result))
            result += [[one, 1.0] for one in (number[0] if number else character)]
        position += 2 if escaped else len(number[0]) if number else 1
    return [(text, weight) for text, weight in result if text]


@given(PROMPTS)
def test_weights_are_those_of_each_character(prompt: str) -> None:
    parts = parse_weights(prompt)
    single = [(one, part.weight) for part in parts for one in part.text]
    assert single == [(text, pytest.approx(w)) for text, w in weights_of_characters(prompt)]


@given(PROMPTS)
def test_without_weights_the_text_is_literal(prompt: str) -> None:
    text = "".join(piece.text for piece in parse_prompt(prompt, {}, weights=False))
    assert text == normal(prompt)


@given(st.lists(TOKENS, min_size=1, max_size=3, unique=True), st.data())
def test_tokens_that_training_accepts_are_found(tokens: list[str], data: st.DataObject) -> None:
    """Between other words, in brackets with weights, next to punctuation and in any case."""
    assume(all(_is_found(token) and len(token) > 1 for token in tokens))
    folded = [unicodedata.normalize("NFC", token).casefold() for token in tokens]
    assume(not any(one in other for one in folded for other in folded if one is not other))
    assume(len(set(folded)) == len(folded))
    words = data.draw(st.lists(st.sampled_from([*tokens, "xylophone", "of 77 quilts"]), max_size=6))
    frame = st.sampled_from(["{}", "({})", "[{}]", "(zebra {}:1.3)", "{},", "quoth {}."])
    frames = [data.draw(frame) for _ in words]
    assume(not any(one in fixed for one in folded for fixed in ("xylophone", "of 77 quilts")))
    assume(not any(one in fixed for one in folded for fixed in ("zebra", "quoth", ":1.3")))
    change = data.draw(st.sampled_from([str, str.lower, str.upper]))
    assume(all(map(_is_found, map(change, tokens))))
    prompt = " ".join(f.replace("{}", change(word)) for f, word in zip(frames, words, strict=True))
    meanings = {token: TokenEmbedding("", {"text": torch.zeros(1, 1)}) for token in tokens}
    pieces = parse_prompt(prompt, meanings, weights=True)
    assert [piece.token for piece in pieces if piece.token] == [w for w in words if w in tokens]


@pytest.mark.parametrize("token", ["\u0130x", "<\u0130>", "Stra\u00dfe", "<\ufb01x>", "\u0390x"])
def test_tokens_whose_length_changes_with_the_case_are_refused(token: str) -> None:
    assert not _is_found(token)


@given(TEXT, TOKENS.map(normal), st.sampled_from(["toy", "c++", "_x_", "<a>", "é"]), st.booleans())
@example("", "sks", "<a>", False)  # in _<a>_, the noun is a word, and sks would not be
@example("", "<\u00e9>", "toy", False)
def test_the_token_is_in_every_caption(caption: str, token: str, noun: str, style: bool) -> None:
    assume(_is_found(token))
    subject = Subject(token, noun, "style" if style else "object", 0)
    decomposed = unicodedata.normalize("NFD", token)
    for text in (caption, f"a {noun} {caption}", f"_{noun}_", decomposed):
        prompt = insert_token(text, subject)
        pieces = parse_prompt(prompt, {token: TokenEmbedding("")}, weights=False)
        assert [piece.token for piece in pieces].count(token) >= 1
        assert insert_token(prompt, subject) == prompt


UNITS = st.lists(
    st.none() | st.tuples(st.sampled_from(["<a>", "<b>"]), st.just(0)), max_size=12
).flatmap(lambda units: st.tuples(st.just(units), st.lists(st.integers(1, 5), max_size=12)))


def spread(drawn: tuple[list[Any], list[int]]) -> list[Any]:
    """Each placeholder with a number of its own, as many times as it has vectors."""
    units, lengths = drawn
    pairs = enumerate(zip(units, [*lengths, *[1] * len(units)], strict=False))
    spread: list[Any] = []
    for number, (unit, length) in pairs:
        spread += [None] if unit is None else [(unit[0], number)] * length
    return spread


@given(UNITS.map(spread), st.integers(1, 9))
def test_windows_contain_every_token_and_divide_no_placeholder(units: list[Any], size: int) -> None:
    windows = split_windows(units, size)
    assert [index for window in windows for index in window] == list(range(len(units)))
    assert all(len(window) <= size for window in windows)
    for before, after in pairwise(windows):
        first = units[after.start]
        torn = first is not None and units[before.stop - 1] == first
        block = 1 if first is None else units.count(first)
        assert not torn or block > size
        assert len(before) + block > size  # the next one would not have fitted


@given(UNITS.map(spread), st.integers(1, 9))
def test_one_window_has_the_first_of_each_placeholder(units: list[Any], size: int) -> None:
    stay = window_indices(units, size)
    assert stay == sorted(set(stay))
    assert len(stay) <= size
    firsts = {unit[0]: unit for unit in reversed(units) if unit}.values()
    if sum(map(units.count, firsts)) <= size:
        assert all(index in stay for index, unit in enumerate(units) if unit in firsts)
    for unit in set(units) - {None}:
        inside = [index for index in stay if units[index] == unit]
        assert len(inside) in (0, units.count(unit))
    if len(units) <= size:
        assert len(stay) == len(units)


def chunks(ids: Sequence[int], size: int) -> list[list[int]]:
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)] or [[]]


@given(data=st.data())
@pytest.mark.parametrize("base", ["stable-diffusion-1", "stable-diffusion-xl"])
def test_tokens_of_clip_are_those_of_transformers(
    opened: Callable[[str], Model], base: str, data: st.DataObject
) -> None:
    prompt, model = data.draw(PROMPTS), opened(base)
    for encoder in model.text_encoders.values():
        assert isinstance(encoder, ClipEncoder)
        tokenizer: Any = encoder.tokenizer
        size = encoder.network.config.max_position_embeddings
        padded = {"truncation": True, "padding": "max_length", "max_length": size}
        text = normal(prompt)
        short = tokenizer(text, **padded).input_ids
        assert encoder.tokenize([prompt], {}).ids[0, 0].tolist() == short
        ids = tokenizer(text, add_special_tokens=False).input_ids
        long = encoder.tokenize([prompt], {}, PromptParsing(long_prompts=True)).ids[0].tolist()
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        for window, part in zip(long, chunks(ids, size - 2), strict=True):
            assert window == [start, *part, end, *[pad] * (size - 2 - len(part))]


@given(data=st.data())
@pytest.mark.parametrize(("base", "part"), [("stable-diffusion-3", "3"), ("z-image", "")])
def test_tokens_of_other_encoders_are_those_of_transformers(
    opened: Callable[[str], Model], base: str, part: str, data: st.DataObject
) -> None:
    from transformers import PreTrainedTokenizerFast

    prompt, model = data.draw(PROMPTS.map(normal)), opened(base)
    folder = model.source.tokenizer(f"tokenizer_{part}" if part else "tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    encoders = {**model.text_encoders, **model.frozen_text_encoders}
    encoder: Any = encoders[f"text_{part}" if part else "text"]
    plan = encoder.tokenize([prompt], {})
    if part:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids[: plan.ids.shape[-1] - 1]
        end = encoder.network.config.eos_token_id
        assert plan.ids[0, 0, : len(ids) + 1].tolist() == [*ids, end]
        return
    tokenizer.chat_template = encoder.chat_template
    message = [{"role": "user", "content": prompt}]
    text: Any = tokenizer.apply_chat_template(message, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert plan.ids[0, 0].tolist() == ids[: encoder._length]
