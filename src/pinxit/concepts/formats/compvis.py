"""Embeddings of the original textual inversion code (CompVis): torch files without a name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pinxit.concepts.format import POSSIBLE, EmbeddingFormat, StoredEmbedding, as_table
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile

# The default placeholder in the configuration of that code, and its id in CLIP's vocabulary.
_PLACEHOLDER, _PLACEHOLDER_ID = "*", 265


class Compvis(EmbeddingFormat):
    """`string_to_param` with one or more placeholder tokens."""

    suffixes = (".pt",)
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, ai-toolkit"

    def confidence(self, file: OpenedFile) -> float:
        """POSSIBLE if the file has the table, which files of AUTOMATIC1111 have too."""
        return POSSIBLE if file.table("string_to_param") else 0

    def unpack(self, file: OpenedFile) -> Sequence[StoredEmbedding]:
        """One embedding for each placeholder token."""
        return [
            StoredEmbedding(token, {"text": as_table(table)}, {})
            for token, table in file.table("string_to_param").items()
            if isinstance(table, Tensor)
        ]

    def pack(self, embedding: StoredEmbedding) -> Mapping[str, object]:
        """The content with the default placeholder: others must be one token of CLIP.

        The table is a plain tensor: programs unpickle no other types of torch. Raises ConceptError
        for an embedding for two text encoders, which that code does not have.
        """
        if set(embedding.tables) != {"text"}:
            raise ConceptError(
                f"{embedding.token} has vectors for {', '.join(embedding.tables)}, but this format "
                "stores those of one text encoder",
                "write it with --format emb-params",
            )
        return {
            "string_to_token": {_PLACEHOLDER: torch.tensor(_PLACEHOLDER_ID)},
            "string_to_param": {_PLACEHOLDER: embedding.tables["text"]},
        }
