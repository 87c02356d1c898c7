"""AUTOMATIC1111 embeddings: `.pt` with training history, hidden in a PNG, or safetensors."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pinxit.concepts.format import (
    EMB_PARAMS,
    LIKELY,
    EmbeddingFormat,
    StoredEmbedding,
    as_table,
    tables_to_keys,
)
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile

_METADATA_FIELDS = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
# The id of CLIP's token `*</w>`, which all files of AUTOMATIC1111 use as placeholder.
_TOKEN_IDS = {"*": 265}


class A1111(EmbeddingFormat):
    """`string_to_param["*"]` with the name, the steps and the checkpoint."""

    suffixes = (".pt", ".safetensors")
    preferred_for = frozenset({("embeddings", ".pt")})
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, diffusers"

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if a torch file or an image has the table and a `name`."""
        return LIKELY if file.table("string_to_param") and "name" in file.content else 0

    def unpack(self, file: OpenedFile) -> Sequence[StoredEmbedding]:
        """The embedding; an image states its token, for other files it is the file name."""
        tables = [t for t in file.table("string_to_param").values() if isinstance(t, Tensor)]
        if len(tables) != 1:
            raise ConceptError(
                f"{file.path} has {len(tables)} tables, but files of AUTOMATIC1111 have one",
                "the file is damaged or was edited by hand; use a copy of the original",
            )
        values = {name: file.content.get(name) for name in _METADATA_FIELDS}
        metadata = {name: str(value) for name, value in values.items() if value is not None}
        token = metadata.get("name", "") if file.container == "image" else ""
        return [StoredEmbedding(token, {"text": as_table(tables[0])}, metadata)]

    def pack(self, embedding: StoredEmbedding) -> Mapping[str, object]:
        """The content of a file for one text encoder; for several, that of `emb-params`."""
        if set(embedding.tables) != {"text"}:
            return tables_to_keys(embedding.tables, EMB_PARAMS)
        step = embedding.metadata.get("step", "")
        return {
            "string_to_token": _TOKEN_IDS,
            "string_to_param": {"*": embedding.tables["text"]},
            "name": embedding.metadata.get("name", embedding.token),
            "step": int(step) if step.isdecimal() else None,
            "sd_checkpoint": embedding.metadata.get("sd_checkpoint"),
            "sd_checkpoint_name": embedding.metadata.get("sd_checkpoint_name"),
        }
