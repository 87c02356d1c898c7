"""The tokens of a text while it is typed, with the copy of a tokenizer that a worker has made.

Without torch. No file of a base model is opened, and none that a visitor has sent.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinxit.models.prompt import PromptPiece, TokenEmbedding, parse_prompt
from pinxit.studio.jobs import Job, read_json
from pinxit.studio.workspace import ROOM, TOKENIZER, TOKENS, Workspace

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def token_count(
    workspace: Workspace, base: str, text: str, concepts: Sequence[Job], *, weights: bool
) -> str:
    """How many tokens a text has, as a sentence; empty if that cannot be known, or not yet.

    `weights`: brackets are attention weights, as in prompts. RequestError if one is not finite.
    """
    file = workspace.base_folder(base) / TOKENIZER
    if not text or not file.is_file() or not file.stat().st_size:
        return ""
    meanings = {token: one for job in concepts for token, one in _meanings(workspace, job)}
    pieces = parse_prompt(text, meanings, weights=weights)
    try:
        count = _num_tokens(pieces, meanings, _tokenizer(file, file.stat().st_mtime_ns))
    except Exception:  # the tokenizers library raises no more specific class
        return ""
    room = int(file.with_name(ROOM).read_text("utf-8"))
    sentence = f"{count} token{'' if count == 1 else 's'}, {room} fit into one window"
    return sentence + (f": {count - room} too many" if count > room else "")


def _num_tokens(
    pieces: Sequence[PromptPiece], meanings: Mapping[str, TokenEmbedding], tokenizer: "Tokenizer"
) -> int:
    """The number of tokens; texts that touch are tokenized as one text, as by a text encoder."""
    count = 0
    vectors_of = {token: len(one.vectors.get("", ())) for token, one in meanings.items()}
    keys = [(piece.weight, vectors_of[piece.token] if piece.token else 0) for piece in pieces]
    for (_, vectors), group in groupby(zip(keys, pieces, strict=True), lambda item: item[0]):
        texts = [piece.text for _, piece in group]
        if vectors:
            count += vectors * len(texts)
        else:
            count += len(tokenizer.encode("".join(texts), add_special_tokens=False))
    return count


def _meanings(workspace: Workspace, job: Job) -> list[tuple[str, TokenEmbedding]]:
    """What the tokens of a concept stand for: a text, or a number of vectors."""
    known: dict[str, tuple[str, int]] = read_json(job.folder / TOKENS) or {
        workspace.token(job): ("", 1)
    }
    vectors: dict[str, Any] = {
        token: {"": range(size)} if size else {} for token, (_, size) in known.items()
    }
    return [
        (name, TokenEmbedding(text, vectors[name])) for name, (text, _) in known.items() if name
    ]


@lru_cache(4)
def _tokenizer(file: Path, _modified: int) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))
