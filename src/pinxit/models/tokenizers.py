# pyright: standard
"""Building tokenizers from the files of a base model."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from tokenizers import AddedToken, Encoding, Tokenizer

from pinxit.errors import ModelError, first_line
from pinxit.files.untrusted import read_untrusted_text
from pinxit.models.loading import silence_libraries
from pinxit.models.source import COPY_HINT, Source, read_json
from pinxit.models.tokenizer_rules import check_rules

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

# Limits against malicious files; no base model exceeds them.
_MAX_TOKENS = 500_000
_MAX_ADDED_TOKENS = 20_000
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def clip_tokenizer(source: Source, part: str) -> "CLIPTokenizer":
    """CLIP's byte-pair tokenizer from vocab.json and merges.txt, or from tokenizer.json.

    It has the tokens that were added to it. Raises ModelError if the files are invalid.
    """
    from transformers import CLIPTokenizer

    silence_libraries()
    folder = source.tokenizer(part)
    content = _read_object(folder, "tokenizer.json")
    vocabulary, merges = _read_vocabulary(folder, content)
    if len(vocabulary) > _MAX_TOKENS or len(merges) > _MAX_TOKENS:
        raise ModelError(
            f"{folder} has a vocabulary of {len(vocabulary):,} tokens",
            f"the limit is {_MAX_TOKENS:,} tokens",
        )
    config = source.config(part)
    names = ("pad", "bos", "eos", "unk")
    special = {f"{name}_token": _content(config.get(f"{name}_token")) for name in names}
    special = {name: token for name, token in special.items() if token in vocabulary}
    with _errors_as(f"{folder} has no valid CLIP vocabulary"):
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=cast("Any", merges), **special)
    _add_tokens(tokenizer.backend_tokenizer, folder, config, content.get("added_tokens"))
    return tokenizer


def read_tokenizer(source: Source, part: str) -> Tokenizer:
    """A tokenizer from tokenizer.json, with the tokens that were added to it.

    Raises ModelError if its file is invalid.
    """
    file = source.tokenizer(part) / "tokenizer.json"
    content = _read_object(file.parent, file.name)  # checks the size and depth
    check_rules(file, content)
    added = content.get("added_tokens")
    if isinstance(added, list) and len(added) > _MAX_ADDED_TOKENS:
        raise ModelError(
            f"{file} has {len(added):,} added tokens", f"the limit is {_MAX_ADDED_TOKENS:,} tokens"
        )
    with _errors_as(f"{file} is not a valid tokenizer"):
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _add_tokens(tokenizer, file.parent, source.config(part), None)  # it has those of its own file
    return tokenizer


def encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """The tokens of a text; ModelError if the tokenizer has none for one of its characters."""
    with _errors_as(f"the tokenizer cannot read `{text:.60}`"):
        return tokenizer.encode(text, add_special_tokens=False)


@contextmanager
def _errors_as(message: str) -> Generator[None]:
    """Raise ModelError for any error of the tokenizers library."""
    try:
        yield
    except Exception as error:  # the library raises no more specific class
        raise ModelError(f"{message}: {first_line(error)}", COPY_HINT) from error


def fast_tokenizer(source: Source, part: str, chat_template: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a text encoder that is not CLIP, from tokenizer.json.

    It has a chat template and the source's padding token, or without a template T5's tokens.
    """
    from transformers import PreTrainedTokenizerFast

    file = source.tokenizer(part) / "tokenizer.json"
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if chat_template:
        special = {"pad_token": _content(source.config(part).get("pad_token")) or "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    tokenizer.chat_template = chat_template or None
    return tokenizer


def read_rare_tokens(source: Source, part: str) -> list[str]:
    """The rare tokens that a base model lists, best first; empty for most base models."""
    path = source.tokenizer(part) / "rare_words.txt"
    return read_untrusted_text(path, inside=path.parent).split() if path.is_file() else []


def _add_tokens(
    tokenizer: Tokenizer, folder: "Path", config: Mapping[str, Any], listed: object
) -> None:
    """Add the tokens that the folder's files list, such as those of a trained embedding.

    `listed` are those of tokenizer.json. Raises ModelError if one of them cannot have the id that
    the files give it.
    """
    tokens: dict[str, dict[str, Any]] = {}
    for token in _listed_tokens(folder, config, listed):
        tokens.setdefault(token["content"], token)
    if len(tokens) > _MAX_ADDED_TOKENS:
        raise ModelError(
            f"{folder} has {len(tokens):,} added tokens",
            f"the limit is {_MAX_ADDED_TOKENS:,} tokens",
        )
    for token in sorted(tokens.values(), key=lambda token: token["id"]):
        flags = {name: bool(token[name]) for name in _FLAGS if name in token}
        add = tokenizer.add_special_tokens if token.get("special") else tokenizer.add_tokens
        add([AddedToken(token["content"], **flags)])
        token_id = tokenizer.token_to_id(token["content"])
        if token_id != token["id"]:
            raise ModelError(
                f"{folder} gives its added token `{token['content'][:80]}` the id {token['id']}, "
                f"but its vocabulary leads to {token_id}",
                f"{COPY_HINT}: its tokenizer files do not belong together",
            )


def _listed_tokens(
    folder: "Path", config: Mapping[str, Any], listed: object
) -> Iterator[dict[str, Any]]:
    """The added tokens of all files that may list them, the most detailed first."""
    decoder = config.get("added_tokens_decoder")
    details = decoder.items() if isinstance(decoder, dict) else ()
    texts = _read_object(folder, "added_tokens.json").items()
    entries = listed if isinstance(listed, list) else []
    tables = chain(
        ({**token, "id": number} for number, token in details if isinstance(token, dict)),
        (token for token in entries if isinstance(token, dict)),
        ({"content": text, "id": number} for text, number in texts),
    )
    for token in tables:
        content, number = _content(token), str(token.get("id"))
        is_text = content and content == content.encode(errors="ignore").decode()
        if not is_text or not number.isascii() or not number.isdigit() or len(number) > 9:
            raise ModelError(f"{folder} lists an added token without text or id", COPY_HINT)
        yield {**token, "id": int(number)}


def _read_object(folder: "Path", name: str) -> dict[str, Any]:
    """The JSON object in a file of a folder, empty if there is no such file or object."""
    content = read_json(folder / name, folder) if (folder / name).is_file() else {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _read_vocabulary(
    folder: "Path", content: Mapping[str, Any]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The token ids, and the pairs of tokens to merge in order of priority.

    They are in merges.txt and vocab.json, or in the `content` of tokenizer.json.
    """
    tokens: Any = None
    pairs: Any
    if (folder / "merges.txt").is_file():
        lines = read_untrusted_text(folder / "merges.txt", inside=folder).splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        vocabulary_file = folder / "vocab.json"
        tokens = read_json(vocabulary_file, folder) if vocabulary_file.is_file() else None
    else:
        model = content.get("model") or {}
        tokens = model.get("vocab") or ()
        pairs = model.get("merges") or ()
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    valid = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    merges = [(first, second) for first, second in pairs] if valid else []
    if tokens is None:  # as in CLIP, the ids follow from the merges
        from pinxit.pocket.tokenizer import vocabulary

        tokens = vocabulary(merges)
    valid = valid and isinstance(tokens, dict)
    # The tokenizers library crashes if a token that a merge uses or gives is not in the vocabulary.
    valid = valid and all(
        isinstance(piece, str) and piece in tokens
        for first, second in merges
        for piece in (first, second, f"{first}{second}")
    )
    if not valid or not all(isinstance(index, int) for index in tokens.values()):
        raise ModelError(f"{folder} has no valid CLIP vocabulary", COPY_HINT)
    return tokens, merges


def _content(token: object) -> str:
    """The text of a token, which configs write as a text or as a table."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
