"""What other programs do with the files that pinxit writes: the table `programs.toml`."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.joined_lora import original_table
from pinxit.concepts.lora_file import alias_texts

# Kinds of adapters; the first that a concept has decides what programs do with it.
_KINDS = ("oft", "dora", "lokr", "loha", "lora")


@cache
def programs_table() -> Mapping[str, Any]:
    """The whole table."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def content_kind(concept: Concept, *, bundled: bool = True) -> str:
    """The kind of a concept's content in the table.

    Without `bundled`, the embeddings of a LoRA are in files of their own.
    """
    if concept.has_full_weights:
        return "full weights"
    variants = {part.variant for part in concept.parts_of(LoraPart)}
    embeddings = concept.parts_of(EmbeddingPart)
    kind = next((kind for kind in _KINDS if kind in variants), "")
    if not kind and concept.parts_of(DifferencePart):
        kind = "difference"
    if kind:
        with_embedding = kind in ("lora", "difference") and embeddings and bundled
        is_transformer = original_table(concept.parts) is not None
        ending = " with embedding" * bool(with_embedding) + " of a transformer" * is_transformer
        return f"{kind}{ending}"
    families = [facts for part in embeddings for facts in part.families]
    if families and all(facts.original_layers for facts in families):
        return "embedding of a transformer"
    several = any(len(part.widths) > 1 for part in embeddings)
    return "embedding for two text encoders" if several else "embedding"


def outcomes(
    format_name: str, suffix: str, concept: Concept, *, bundled: bool = True
) -> dict[str, str]:
    """What each program does with a file, in words; programs that do not read it are left out."""
    kind, name = content_kind(concept, bundled=bundled), format_name
    if name == "a1111":
        name = "a1111 .pt" if suffix == ".pt" else "emb-params"
    if name == "full-difference":
        kind = "difference"
    if name == "xlabs":
        kind = "lora of a transformer"
    return programs_table().get(name, {}).get(kind, {})


def usage(program: str, concept: Concept, out: Path) -> str:
    """What to do and to type in a program to use a file; "" if it is not known."""
    if not out.suffix and program != "diffusers":
        return ""  # it takes the files in the folder, under their own names
    group = "embedding" if concept.content == "embeddings" else "adapter"
    group = "full weights" if concept.has_full_weights else group
    text: str = programs_table()["usage"][group].get(program, "")
    embeddings = [part.token for part in concept.parts_of(EmbeddingPart)]
    token = ", ".join([*alias_texts(concept), *embeddings] or concept.tokens) or "nothing more"
    if program == "diffusers" and not out.suffix:
        text = 'from_pretrained("{path}")' if concept.has_full_weights else text
        text = text.replace(', weight_name="{file}"', "").replace("{folder}", "{path}")
    names = {"file": out.name, "stem": out.stem, "folder": out.parent, "path": out.as_posix()}
    return text.format(**names, token=token)
