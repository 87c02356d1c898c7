"""Tokenizer folders with added tokens, read as diffusers reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest

from pinxit.errors import ModelError
from pinxit.models.open_base import open_base

PROMPTS = (
    "a photo of <cat-toy> dog",
    "zzcat on grass",
    "ZZCAT, zzcats and <cat-toy>s",
    "a<cat-toy>b [wide] [ wide ]",
)


@pytest.fixture
def base(nano: Path, tmp_path: Path, copied: Callable[[Path], Path]) -> Path:
    """A base model with tokens that were added to its tokenizer."""
    folder = copied(nano)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipe.tokenizer.add_tokens(["<cat-toy>", "zzcat", "[wide]"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.save_pretrained(tmp_path / "added")
    return tmp_path / "added"


def edit(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content))


def test_an_added_token_that_is_not_text_is_refused(
    nano: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(nano)
    (folder / "tokenizer" / "added_tokens.json").write_text('{"<\\ud800>": 7}')
    with pytest.raises(ModelError, match="without text or id"):
        open_base(folder)


def test_a_tokenizer_without_a_token_for_unknown_characters(
    bases: Callable[[str], Path], copied: Callable[[Path], Path]
) -> None:
    folder = copied(bases("stable-diffusion-3"))
    edit(folder / "tokenizer_3" / "tokenizer.json", lambda c: c["model"].update(unk_id=None))
    with pytest.raises(ModelError, match="cannot read `a \u72ac`"):
        open_base(folder).frozen_text_encoders["text_3"].tokenize(["a \u72ac"], {})


def as_old_files(folder: Path) -> None:
    """The same tokens in the files of older versions of transformers."""
    tokenizer = folder / "tokenizer"
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    model, added = content["model"], content["added_tokens"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tokenizer / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    new = {
        token["content"]: token["id"] for token in added if token["content"] not in model["vocab"]
    }
    (tokenizer / "added_tokens.json").write_text(json.dumps(new))
    (tokenizer / "tokenizer.json").unlink()
    edit(tokenizer / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder", None))


@pytest.mark.parametrize("change", [lambda _: None, as_old_files], ids=["new", "old"])
def test_added_tokens_are_read_as_diffusers_reads_them(
    base: Path, change: Callable[[Path], None]
) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(base).tokenizer
    change(base)
    encoder = open_base(base).text_encoders["text"]
    for prompt in PROMPTS:
        ids = encoder.tokenize([prompt], {}).ids.flatten().tolist()
        expected = theirs(prompt)["input_ids"]
        assert ids[: len(expected)] == expected, prompt


def test_tokens_with_other_ids_are_refused(base: Path) -> None:
    as_old_files(base)
    edit(base / "tokenizer" / "added_tokens.json", lambda c: c.update({"zzcat": 7000}))
    with pytest.raises(ModelError, match="but its vocabulary leads to"):
        open_base(base)


def test_a_token_without_an_embedding_is_refused(
    nano: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(nano)
    vocabulary = len(open_base(folder).text_encoders["text"].tokenizer.get_vocab())  # type: ignore[attr-defined]
    new = {"<new>": vocabulary}
    edit(folder / "tokenizer" / "added_tokens.json", lambda c: c.update(new))
    encoder = open_base(folder).text_encoders["text"]
    encoder.tokenize(["a dog"], {})
    with pytest.raises(ModelError, match="token embeddings, but its tokenizer has a token with id"):
        encoder.tokenize(["a <new> dog"], {})
