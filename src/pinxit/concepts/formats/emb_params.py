"""The most portable: `emb_params`, or `clip_l` and `clip_g`, as kohya, Invoke and others write."""

from collections.abc import Mapping, Sequence

from pinxit.concepts.format import EMB_PARAMS, TOWERS, Embedding, Word, packed, unpacked
from pinxit.files.open_any import Opened


class EmbParams(Embedding):
    """A word under one key for one text tower, under the towers' names for two."""

    endings = (".safetensors",)
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, kohya, ai-toolkit; diffusers with `token=`"

    def recognises(self, found: Opened) -> bool:
        """By its keys, of which it has no others."""
        names = found.tensors.keys()
        return names == {EMB_PARAMS} or (bool(names) and names <= TOWERS.keys())

    def unpack(self, found: Opened) -> Sequence[Word]:
        """The word, which only its file's name names."""
        return [Word("", unpacked(found.tensors, EMB_PARAMS), {})]

    def pack(self, word: Word) -> Mapping[str, object]:
        """The word's tables."""
        return packed(word.tables, EMB_PARAMS)
