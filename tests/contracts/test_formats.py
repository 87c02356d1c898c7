"""Requirements that every format must meet."""

import shutil
from pathlib import Path

import pytest
import torch

from pinxit import registry
from pinxit.adapters.parts import EmbeddingPart, FullWeightsPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Format, Target
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept, recognize_format
from pinxit.errors import ConceptError, FileError
from pinxit.files.open_any import open_any
from tests.same_parts import same_parts

FORMATS: dict[str, Format] = {
    name: registry.load("formats", name)() for name in registry.names("formats")
}
# Two formats with equal files: such files are recognized as the more common one.
SHARED = {("a1111", ".safetensors", 1), ("a1111", ".safetensors", 2), ("a1111", ".pt", 2)}
SHARED |= {("onetrainer", ".safetensors", 2)}
LONE = {"compvis"}  # holds one text tower's table


def embedding(towers: int = 1, dtype: torch.dtype = torch.float32, count: int = 3) -> Concept:
    draw = torch.Generator().manual_seed(towers)
    widths = {"text": 768, "text_2": 1280} if towers == 2 else {"text": 768}
    tables = {n: torch.randn(count, w, generator=draw).to(dtype) for n, w in widths.items()}
    provenance = Provenance.from_metadata("shifu", {"name": "shifu", "step": "10001"}, "some-base")
    return Concept((EmbeddingPart("shifu", "a", tables),), provenance)


def cases() -> list[tuple[str, str, int]]:
    return [
        (name, ending, towers)
        for name, layout in FORMATS.items()
        for ending in layout.suffixes
        for towers in (1, 2)
        if "embeddings" in layout.contents and (towers == 1 or name not in LONE)
    ]


@pytest.mark.parametrize(("name", "ending", "towers"), cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_written_embedding_is_read_to_the_bit(
    name: str, ending: str, towers: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    concept, out = embedding(towers, dtype), tmp_path / f"shifu{ending}"
    concept.parts[0].tensors["text"][0, :3] = torch.tensor([torch.nan, -0.0, torch.inf])
    FORMATS[name].write(concept, Target(out))
    opened_file = open_any(out)
    layout = recognize_format(opened_file)
    expected = "emb-params" if (name, ending, towers) in SHARED else name
    assert registry.name_of(type(layout)) == expected
    again = layout.read(opened_file)
    assert same_parts(again, concept)
    # AUTOMATIC1111 takes all values of such a file for tensors, so it has no description.
    if (name, ending, towers) != ("a1111", ".pt", 2):
        assert again.provenance == concept.provenance
    other = embedding(towers, dtype)
    assert not same_parts(again, other)  # the control: one bit of difference is seen


@pytest.mark.parametrize(("name", "ending", "towers"), cases())
def test_recognition_ignores_the_suffix(
    name: str, ending: str, towers: int, tmp_path: Path
) -> None:
    out = tmp_path / f"shifu{ending}"
    FORMATS[name].write(embedding(towers), Target(out))
    if out.is_dir() or (name, towers) == ("diffusers", 2):
        return  # a folder has no suffix, and the second of two files is found by the first's name
    lying = out.rename(tmp_path / ("shifu.pt" if ending == ".safetensors" else "shifu.png"))
    assert same_parts(read_concept(lying), embedding(towers))


@pytest.mark.parametrize(
    "name", [n for n, f in FORMATS.items() if "full weights" not in f.contents]
)
def test_unsupported_concepts_are_refused(name: str, tmp_path: Path) -> None:
    tuned = FullWeightsPart("denoiser", {"conv_in.bias": torch.zeros(3)})
    both = Concept((*embedding().parts, tuned), embedding().provenance)
    out = tmp_path / f"out{FORMATS[name].suffixes[0]}"
    for target in (Target(out), Target(out, base="pocket"), Target(out, precision="fp16")):
        concept = both if target.base is target.precision else embedding()
        with pytest.raises(ConceptError):
            FORMATS[name].write(concept, target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if "embeddings" not in f.contents])
def test_an_embedding_is_not_a_base_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="shifu is an embedding"):
        FORMATS[name].write(embedding(), Target(tmp_path / "out", base="pocket"))


def test_errors_name_unknown_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    strange = tmp_path / "strange.safetensors"
    save_file({"lora_unet.down": torch.zeros(2, 2), "x": torch.zeros(1)}, strange)
    with pytest.raises(
        ConceptError, match=r"strange.safetensors has an unknown format.* lora_unet.down"
    ):
        read_concept(strange)
    for content in (b"", b"PK", b"a text", b"\x80\x02}q\x00.", b"\0" * 100, b"\x89PNG\r\n\x1a\n"):
        strange.write_bytes(content)
        with pytest.raises((ConceptError, FileError), match=r"strange.safetensors"):
            read_concept(strange)
    shutil.rmtree(tmp_path)
    with pytest.raises(ConceptError, match="does not exist"):
        read_concept(tmp_path)
