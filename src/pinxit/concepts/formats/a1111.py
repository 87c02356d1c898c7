"""AUTOMATIC1111's embeddings: `.pt` with the word's history, hidden in a PNG, or safetensors."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pinxit.concepts.format import EMB_PARAMS, Embedding, Word, flat, packed
from pinxit.concepts.png_embedding import hidden_in
from pinxit.errors import ConceptError
from pinxit.files.open_any import Opened

_TOLD = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
# CLIP's id of `*</w>`, which stands for the word in all of their files.
_TOKEN = {"*": 265}


class A1111(Embedding):
    """`string_to_param["*"]` with the word's name, steps and checkpoint."""

    endings = (".pt", ".safetensors")
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, diffusers"

    def recognises(self, found: Opened) -> bool:
        """By its table and its name, in a torch file or in a picture."""
        found = _shown(found)
        return bool(found.table("string_to_param")) and "name" in found.content

    def unpack(self, found: Opened) -> Sequence[Word]:
        """The word: a picture says how it is called, other files only are called something."""
        shown = _shown(found)
        tables = [t for t in shown.table("string_to_param").values() if isinstance(t, Tensor)]
        if len(tables) != 1:
            raise ConceptError(
                f"{found.path} holds {len(tables)} tables of vectors, and A1111's files hold one",
                "it is damaged, or was put together by hand",
            )
        known = {name: shown.content.get(name) for name in _TOLD}
        told = {name: str(value) for name, value in known.items() if value is not None}
        name = told.get("name", "") if found.container == "picture" else ""
        return [Word(name, {"text": flat(tables[0])}, told)]

    def pack(self, word: Word) -> Mapping[str, object]:
        """The word as they save it; for several text towers, as they read it."""
        if set(word.tables) != {"text"}:
            return packed(word.tables, EMB_PARAMS)
        step = word.told.get("step", "")
        return {
            "string_to_token": _TOKEN,
            "string_to_param": {"*": word.tables["text"]},
            "name": word.told.get("name", word.name),
            "step": int(step) if step.isdecimal() else None,
            "sd_checkpoint": word.told.get("sd_checkpoint"),
            "sd_checkpoint_name": word.told.get("sd_checkpoint_name"),
        }


def _shown(found: Opened) -> Opened:
    """A picture with what is hidden in it for its content; anything else as it is."""
    if found.container != "picture":
        return found
    return Opened(found.path, found.container, hidden_in(found.path))
