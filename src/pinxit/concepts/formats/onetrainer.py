"""OneTrainer's embeddings: `emp_params` (their spelling), and vectors for the encoder's output."""

from collections.abc import Mapping, Sequence

from pinxit.concepts.format import TOWERS, Embedding, Word, flat, packed, unpacked
from pinxit.files.open_any import Opened

_KEY = "emp_params"
# Vectors that OneTrainer puts behind a text encoder are kept, beside those that pinxit uses.
_OUT = {tower: f"{tower}.out" for tower in TOWERS.values()}
_BEHIND = {f"{_KEY}_out": "text.out"} | {f"{name}_out": _OUT[at] for name, at in TOWERS.items()}


class Onetrainer(Embedding):
    """A word under OneTrainer's keys."""

    endings = (".safetensors",)
    used_by = "OneTrainer; AUTOMATIC1111, Forge and ComfyUI where it has one tensor"

    def recognises(self, found: Opened) -> bool:
        """By a key that only OneTrainer has: its files for two towers are else like anyone's."""
        return bool(found.tensors.keys() & {_KEY, *_BEHIND})

    def unpack(self, found: Opened) -> Sequence[Word]:
        """The word, which only its file's name names."""
        behind = {_BEHIND[name]: flat(t) for name, t in found.tensors.items() if name in _BEHIND}
        return [Word("", unpacked(found.tensors, _KEY) | behind, {})]

    def pack(self, word: Word) -> Mapping[str, object]:
        """The word under their keys."""
        before = {name: table for name, table in word.tables.items() if name in _OUT}
        names = packed({tower: before[tower] for tower in before}, _KEY)
        behind = {
            f"{name}_out": word.tables[_OUT[tower]]
            for name, tower in zip(names, before, strict=True)
            if _OUT[tower] in word.tables
        }
        return names | behind
