"""OneTrainer embeddings: `emp_params` (spelled so), and vectors for text encoder outputs."""

from collections.abc import Mapping, Sequence

from pinxit.concepts.format import (
    LIKELY,
    TEXT_ENCODER_KEYS,
    EmbeddingFormat,
    StoredEmbedding,
    tables_from_keys,
    tables_to_keys,
)
from pinxit.files.open_any import OpenedFile

_KEY = "emp_params"
# OneTrainer's vectors for the output of a text encoder: kept in the concept, not used by pinxit.
_OUTPUT_NAMES = {name: f"{name}.out" for name in TEXT_ENCODER_KEYS.values()}
_OUTPUT_KEYS = {f"{key}_out" for key in (_KEY, *TEXT_ENCODER_KEYS)}


class Onetrainer(EmbeddingFormat):
    """An embedding under the keys of OneTrainer."""

    suffixes = (".safetensors",)
    used_by = "OneTrainer; AUTOMATIC1111, Forge and ComfyUI where it has one tensor"

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY with a key of OneTrainer; other files for two encoders look the same."""
        return LIKELY if file.tensors.keys() & {_KEY, *_OUTPUT_KEYS} else 0

    def unpack(self, file: OpenedFile) -> Sequence[StoredEmbedding]:
        """The embedding; its token is the file name."""
        return [StoredEmbedding("", tables_from_keys(file.tensors, _KEY), {})]

    def pack(self, embedding: StoredEmbedding) -> Mapping[str, object]:
        """The tables by key, those for outputs with the suffix `_out`."""
        inputs = {name: table for name, table in embedding.tables.items() if name in _OUTPUT_NAMES}
        keys = tables_to_keys(inputs, _KEY)
        outputs = {
            f"{key}_out": embedding.tables[_OUTPUT_NAMES[name]]
            for key, name in zip(keys, inputs, strict=True)
            if _OUTPUT_NAMES[name] in embedding.tables
        }
        return keys | outputs
