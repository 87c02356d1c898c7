"""`emb_params`, or `clip_l` and `clip_g`: the most portable format, written by kohya and others."""

from collections.abc import Mapping, Sequence

from pinxit.concepts.format import (
    EMB_PARAMS,
    LIKELY,
    TEXT_ENCODER_KEYS,
    EmbeddingFormat,
    StoredEmbedding,
    tables_from_keys,
    tables_to_keys,
)
from pinxit.files.open_any import OpenedFile


class EmbParams(EmbeddingFormat):
    """`emb_params` for one text encoder, `clip_l` and `clip_g` for two."""

    suffixes = (".safetensors",)
    preferred_for = frozenset({("embeddings", ".safetensors")})
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, kohya, ai-toolkit; diffusers with `token=`"

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if the file has these keys and no others."""
        names = file.tensors.keys()
        is_known = names == {EMB_PARAMS} or (names and names <= TEXT_ENCODER_KEYS.keys())
        return LIKELY if is_known else 0

    def unpack(self, file: OpenedFile) -> Sequence[StoredEmbedding]:
        """The embedding; its token is the file name."""
        return [StoredEmbedding("", tables_from_keys(file.tensors, EMB_PARAMS), {})]

    def pack(self, embedding: StoredEmbedding) -> Mapping[str, object]:
        """The tables by key."""
        return tables_to_keys(embedding.tables, EMB_PARAMS)
