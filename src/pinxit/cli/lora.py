"""`pinxit lora`: merge LoRAs, reduce them, merge them into a base model, extract them from one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from pinxit.cli.convert import WeightPrecision, written_lines
from pinxit.cli.screen import Switch, bars, data, say, table
from pinxit.errors import RequestError

if TYPE_CHECKING:
    from pinxit.concepts.concept import Concept
    from pinxit.concepts.layer_errors import LayerError
    from pinxit.concepts.low_rank import RankLimit
    from pinxit.concepts.read import ConceptReference

lora = App(
    name="lora",
    help="Merge, reduce and extract LoRAs.",
    help_format="plaintext",
    result_action="return_value",
)

_SCALED = "FILE:0.7 for a weight of 0.7"
_Loras = Annotated[str, Parameter(help=f"LoRA files of any program, or run folders; {_SCALED}")]
_Lora = Annotated[str, Parameter(help=f"LoRA file of any program, or a run folder; {_SCALED}")]
_OwnBase = Annotated[
    str | None,
    Parameter(
        help="base model, to compute the changes of DoRA, LoHa, LoKr and OFT "
        "(default: the one that they were trained on)"
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class _LoraFile:
    """The LoRA to write: where, in which format, and the rank of its layers.

    Args:
        out: file or folder to write; must be new
        rank: largest rank of a layer (default: no limit)
        energy: share of each layer's squared singular values to keep, such as 0.99 (default: all)
        format_: file format (default: chosen by the suffix of OUT)
        precision: number format of the weights in the file (default: unchanged)
        separate_embeddings: write embeddings to files of their own beside OUT
    """

    out: Path
    rank: int | None = None
    energy: float | None = None
    format_: str | None = None
    precision: WeightPrecision | None = None
    separate_embeddings: Switch = False

    def limit(self) -> "RankLimit":
        """The limit of the ranks, after a check that the file can be written."""
        from pinxit.concepts.conversion import prepare_output
        from pinxit.concepts.low_rank import RankLimit

        limit = RankLimit(self.rank, self.energy)
        prepare_output(self.out, self.format_, "adapters")
        return limit

    def write(self, concept: "Concept", errors: "Sequence[LayerError]") -> None:
        """Write the LoRA, and show what its layers lost by group."""
        from pinxit.concepts.layer_errors import error_rows
        from pinxit.concepts.lora_tools import write_lora

        separate = self.separate_embeddings
        writer = write_lora(
            concept, self.out, self.format_, self.precision, separate_embeddings=separate
        )
        say(*written_lines(writer, concept, self.out, bundled=not separate))
        table(("layers", "number", "rank", "error"), error_rows(errors))


@lora.command
def merge(*loras: _Loras, file: _LoraFile, base: _OwnBase = None) -> None:
    """Merge several LoRAs into one: exact, or with --rank or --energy by singular values."""
    _merge(_references(loras), file, base)


@lora.command
def resize(lora: _Lora, *, file: _LoraFile, base: _OwnBase = None) -> None:
    """Reduce the rank of a LoRA by its singular values, to a smaller file."""
    if file.rank is None and file.energy is None:
        raise RequestError("there is no rank to reduce to", "give --rank N or --energy 0.99")
    _merge(_references([lora]), file, base)


@lora.command
def fuse(
    *loras: _Loras,
    out: Path,
    base: str | None = None,
    format_: str | None = None,
    precision: WeightPrecision | None = None,
) -> None:
    """Merge LoRAs into the weights of a base model: a checkpoint file, or a diffusers folder.

    Args:
        out: file or folder to write; must be new
        base: base model: a name, a folder, a checkpoint file or a Hugging Face id
            (default: the one that the first LoRA was trained on)
        format_: file format (default: chosen by the suffix of OUT)
        precision: number format of the weights in the file (default: unchanged)
    """
    from pinxit.adapters.parts import EmbeddingPart
    from pinxit.concepts.conversion import prepare_output
    from pinxit.concepts.kohya_file import embedding_file
    from pinxit.concepts.lora_fuse import fuse_loras

    references = _references(loras)
    prepare_output(out, format_, "full weights")
    with bars() as progress:
        concept, writer = fuse_loras(references, out, base, format_, precision, progress)
    say(*written_lines(writer, concept, out))
    for part in concept.parts:
        if isinstance(part, EmbeddingPart):
            say(f"note: the embedding {part.token} is in {embedding_file(out, part.token)}")
    data(str(out))


@lora.command
def extract(
    tuned: Path, *, file: _LoraFile, base: str | None = None, all_weights: Switch = False
) -> None:
    """Extract a LoRA from a fine-tuned model and its base model, by singular values.

    Args:
        tuned: fine-tuned model: a checkpoint, a folder or a run
        base: model that it was fine-tuned from (default: the base model of the run)
        all_weights: store the changes of biases, norms and embeddings too, as differences:
            ComfyUI, AUTOMATIC1111 and Forge read them, diffusers does not
    """
    from pinxit.concepts.layer_errors import relative_error
    from pinxit.concepts.lora_tools import extract_lora

    with bars() as progress:
        concept, errors, others = extract_lora(
            tuned, file.limit(), base, progress, all_weights=all_weights
        )
    file.write(concept, errors)
    if others and not all_weights:
        share = relative_error([*others, *(replace(error, lost=0.0) for error in errors)])
        say(
            f"note: {len(others)} biases, norms and embeddings changed too; they are left out, "
            f"{share:.2%} of the whole change; --all-weights stores them"
        )
    data(str(file.out))


def _merge(references: "Sequence[ConceptReference]", file: _LoraFile, base: str | None) -> None:
    from pinxit.concepts.lora_tools import merge_loras

    with bars() as progress:
        concept, errors = merge_loras(references, file.limit(), base, progress)
    file.write(concept, errors)
    data(str(file.out))


def _references(loras: Sequence[str]) -> "list[ConceptReference]":
    from pinxit.concepts.read import ConceptReference

    if not loras:
        raise RequestError("there is no LoRA to merge", "give LoRA files or run folders")
    return [ConceptReference.parse(text) for text in loras]
