"""The authors' own embeddings (CompVis): a torch file by placeholder, without a name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pinxit.concepts.format import Embedding, Word, flat, packed
from pinxit.files.open_any import Opened

# What the authors' configuration takes for its placeholder, and CLIP's id of it.
_PLACEHOLDER, _ID = "*", 265


class Compvis(Embedding):
    """`string_to_param` of one or several placeholders."""

    endings = (".pt",)
    used_by = "the code of arXiv:2208.01618, AUTOMATIC1111, Forge, ComfyUI, InvokeAI"

    def recognises(self, found: Opened) -> bool:
        """By its table, and by having no name."""
        return bool(found.table("string_to_param")) and "name" not in found.content

    def unpack(self, found: Opened) -> Sequence[Word]:
        """A word for each placeholder."""
        held = found.table("string_to_param").items()
        return [Word(name, {"text": flat(t)}, {}) for name, t in held if isinstance(t, Tensor)]

    def pack(self, word: Word) -> Mapping[str, object]:
        """The word for their usual placeholder: any other must be one token of CLIP's."""
        tables = packed(word.tables, _PLACEHOLDER)
        return {
            "string_to_token": {_PLACEHOLDER: torch.tensor(_ID)},
            "string_to_param": nn.ParameterDict({n: nn.Parameter(t) for n, t in tables.items()}),
        }
