"""Whatever is typed: the outputs exist and say how they were made, or one error with a hint."""

import io
import itertools
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pinxit.cli import main, opening
from pinxit.generation.request import GenerationRequest
from pinxit.models.model import Model
from pinxit.training.recipe import Recipe

# What a shell can pass: any text without a NUL, and single bytes that are not UTF-8.
TYPED = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
BYTES = st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), min_size=1, max_size=2)
PIECES = ["(dog:1.2)", "[red", "a toy", "<mytoy>", "BREAK", "\\(", "Negative prompt: x", "\n", "é"]
PROMPTS = st.lists(
    st.sampled_from([*PIECES, "Steps: 9, Seed: 3", "/", "犬", "🐕"]), max_size=5
).map(" ".join)
BIG = "9" * 4400  # more digits than Python reads
NUMBERS = st.integers(-3, 40).map(str) | st.sampled_from(
    ["0", "1e3", "9" * 30, BIG, "1.5", "nan", "inf", "-0", "٣", "0x10", "1_0", "", " 1", "²"]
)
SIZES = st.sampled_from(["32", "32x40", "40x32", "33", "0", "8", "1e2", "x", BIG, "٣٢", "-8"])
OPTIONS: dict[str, st.SearchStrategy[str]] = {
    "--seed": NUMBERS,
    "--steps": st.sampled_from(["1", "2"]) | NUMBERS.filter(lambda text: len(text) != 2),
    "--num-images": st.sampled_from(["1", "2", "0", "-1", "nan", BIG, "²"]),
    "--size": SIZES,
    "--guidance-scale": NUMBERS,
    "--clip-skip": NUMBERS,
    "--denoising-strength": NUMBERS,
    "--scheduler": st.sampled_from(["ddim", "Euler", "euler_a", "dpmpp_2m", "", "x"]) | TYPED,
    "--negative-prompt": PROMPTS | TYPED,
    "--precision": st.sampled_from(["fp32", "bf16", "", "fp64"]),
    "--concept": TYPED,
    "--init-image": TYPED,
}
_folders = itertools.count()


@pytest.fixture
def shared_base(opened: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> Model:
    """The nano base model, which commands use without opening it again."""
    model = opened("nano")
    monkeypatch.setattr(opening, "open_source", Mock(return_value=model))
    return model


def typed(*words: str) -> tuple[int, list[str], str]:
    """The exit status of a command, its lines of output, and its messages."""
    output, messages = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(messages):
        status = main(words)
    text = messages.getvalue()
    assert status in (0, 2), text
    if status:
        assert text.count("error:") == text.count("hint:") == 1 or "note: " in text, text
        assert text.splitlines()[-1].startswith("hint: "), text
    return status, output.getvalue().splitlines(), text


@pytest.mark.usefixtures("shared_base")
@given(prompt=PROMPTS | TYPED | BYTES, flags=st.data())
def test_generate(
    tmp_path_factory: pytest.TempPathFactory, nano: Path, prompt: str, flags: st.DataObject
) -> None:
    names = flags.draw(st.lists(st.sampled_from(list(OPTIONS)), unique=True, max_size=3))
    words = [word for name in names for word in (name, flags.draw(OPTIONS[name]))]
    out = tmp_path_factory.mktemp("out")
    usual = ["--base", str(nano), "--out", str(out)]
    usual += [] if "--num-images" in names else ["--num-images", "1"]
    usual += [] if "--steps" in names else ["--steps", "1"]
    status, lines, messages = typed("generate", prompt, *words, *usual)
    if status:
        assert not list(out.iterdir()), messages
        return
    images = [Path(line) for line in lines if not line.endswith("-sheet.png")]
    count = int([*words, *usual][[*words, *usual].index("--num-images") + 1])
    assert len(images) == count
    request = GenerationRequest.from_png(images[0])
    assert request.prompt == prompt
    shown = request.model_dump(mode="json")
    for name, value in zip(words[::2], words[1::2], strict=True):
        field = name[2:].replace("-", "_")
        if field in ("seed", "steps", "clip_skip", "guidance_scale", "denoising_strength"):
            assert shown[field] == float(value)
        elif field in ("negative_prompt", "precision"):
            assert shown[field] == value
    again = out / "again"
    status, lines, messages = typed("generate", "--from-png", str(images[0]), "--out", str(again))
    assert status == 0, messages
    with Image.open(images[0]) as one, Image.open(lines[0]) as other:
        assert one.tobytes() == other.tobytes()
        assert one.info["pinxit"] == other.info["pinxit"]


TRAIN: dict[str, st.SearchStrategy[str]] = {
    "--token": st.sampled_from(["<mytoy>", "(toy)", "my toy", "", "-x", "犬", "toy", "a/b", "<é>"])
    | TYPED
    | BYTES,
    "--class-noun": st.sampled_from(["toy", "dog", "red toy", "", "[toy]"]) | TYPED,
    "--seed": NUMBERS,
    "--learning-rate": NUMBERS,
    "--batch-size": st.sampled_from(["1", "2", "0", "x"]),
    "--resolution": SIZES,
    "--caption-dropout": NUMBERS,
    "--warmup-steps": NUMBERS,
    "--max-grad-norm": NUMBERS,
    "--min-snr-gamma": NUMBERS,
    "--early-stop": NUMBERS,
    "--num-vectors": st.sampled_from(["1", "3", "0", BIG]),
    "--caption-extension": st.sampled_from(["txt", ".TXT", "", "a/b", "*"]) | TYPED,
    "--preview-prompt": PROMPTS,
}


@pytest.mark.usefixtures("shared_base")
@given(flags=st.data())
def test_train(tmp_path_factory: pytest.TempPathFactory, nano: Path, flags: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("train")
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    names = flags.draw(st.lists(st.sampled_from(list(TRAIN)), unique=True, max_size=3))
    given_words = {name: flags.draw(TRAIN[name]) for name in names}
    words = {"--token": "<mytoy>", "--class-noun": "toy", "--base": str(nano), "--steps": "1"}
    words |= {"--preview-every": "0", "--out": str(folder / "run"), **given_words}
    flat = [word for pair in words.items() for word in pair]
    status, lines, messages = typed("train", "textual-inversion", str(folder), *flat)
    if status:
        return
    assert lines == [str(folder / "run" / "concept.safetensors")]
    assert Path(lines[0]).is_file()
    recipe = Recipe.from_toml(folder / "run" / "recipe.toml")
    assert Recipe.from_toml(_written(folder / "copy.toml", recipe.to_toml())) == recipe
    stored: dict[str, Any] = recipe.model_dump(mode="json")
    for name, value in given_words.items():
        field = name[2:].replace("-", "_")
        if field in stored and isinstance(stored[field], int | float):
            assert float(stored[field]) == float(value)
    status, lines, messages = typed("inspect", lines[0])
    assert status == 0, messages


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@given(
    command=st.sampled_from(["show", "inspect", "check", "runs", "convert", "lora resize"]),
    words=st.lists(TYPED | BYTES | st.sampled_from(["--out", "--to", "-h1", "."]), max_size=3),
)
def test_any_words_after_a_command(
    tmp_path_factory: pytest.TempPathFactory, command: str, words: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        typed(*command.split(), *words)
