"""What every format there is must keep to."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import Part
from pinxit.concepts.concept import Concept, Provenance, recognised
from pinxit.concepts.format import Format, Target
from pinxit.errors import ConceptError, FileError
from pinxit.files.open_any import opened

FORMATS: dict[str, Format] = {
    name: registry.load("formats", name)() for name in registry.names("formats")
}
# Layouts that two programs share: files are then known by the name that most people know.
SHARED = {("a1111", ".safetensors", 1), ("a1111", ".safetensors", 2), ("a1111", ".pt", 2)}
SHARED |= {("onetrainer", ".safetensors", 2)}
LONE = {"compvis"}  # holds one text tower's table


def word(towers: int = 1, dtype: torch.dtype = torch.float32, count: int = 3) -> Concept:
    draw = torch.Generator().manual_seed(towers)
    widths = {"text": 768, "text_2": 1280} if towers == 2 else {"text": 768}
    tables = {n: torch.randn(count, w, generator=draw).to(dtype) for n, w in widths.items()}
    provenance = Provenance.foreign("shifu", {"name": "shifu", "step": "10001"}, "some-base")
    return Concept((Part("new-word", {"word": "shifu", "stand_in": "a"}, tables),), provenance)


def cases() -> list[tuple[str, str, int]]:
    return [
        (name, ending, towers)
        for name, layout in FORMATS.items()
        for ending in layout.endings
        for towers in (1, 2)
        if "words" in layout.holds and (towers == 1 or name not in LONE)
    ]


def same(one: Concept, other: Concept) -> bool:
    assert [(part.kind, dict(part.settings)) for part in one.parts] == [
        (part.kind, dict(part.settings)) for part in other.parts
    ]
    pairs = list(zip(one.parts, other.parts, strict=True))
    assert all(a.tensors.keys() == b.tensors.keys() for a, b in pairs)
    return all(identical(a.tensors[name], b.tensors[name]) for a, b in pairs for name in a.tensors)


def identical(one: Tensor, other: Tensor) -> bool:
    """To the bit, which also holds for what is no number."""
    bits = one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.mark.parametrize(("name", "ending", "towers"), cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_word_comes_back_to_the_bit(
    name: str, ending: str, towers: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    concept, out = word(towers, dtype), tmp_path / f"shifu{ending}"
    concept.parts[0].tensors["text"][0, :3] = torch.tensor([torch.nan, -0.0, torch.inf])
    FORMATS[name].write(concept, Target(out))
    found = opened(out)
    knowing = [other for other, layout in FORMATS.items() if layout.recognises(found)]
    assert knowing == ["emb-params" if (name, ending, towers) in SHARED else name]
    again = recognised(found).read(found)
    assert same(again, concept)
    assert again.provenance == concept.provenance
    other = word(towers, dtype)
    assert not same(again, other)  # the control: one bit of difference is seen


@pytest.mark.parametrize(("name", "ending", "towers"), cases())
def test_it_is_known_though_its_name_lies(
    name: str, ending: str, towers: int, tmp_path: Path
) -> None:
    out = tmp_path / f"shifu{ending}"
    FORMATS[name].write(word(towers), Target(out))
    if out.is_dir() or (name, towers) == ("diffusers", 2):
        return  # a folder has no ending, and the second of two files is found by the first's name
    lying = out.rename(tmp_path / ("shifu.pt" if ending == ".safetensors" else "shifu.png"))
    assert same(Concept.load(lying), word(towers))


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if "networks" not in f.holds])
def test_what_it_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    tuned = Part("tuned-weights", {"network": "denoiser"}, {"conv_in.bias": torch.zeros(3)})
    both = Concept((*word().parts, tuned), word().provenance)
    out = tmp_path / f"out{FORMATS[name].endings[0]}"
    for target in (Target(out), Target(out, base="pocket"), Target(out, numbers="fp16")):
        concept = both if target.base is target.numbers else word()
        with pytest.raises(ConceptError):
            FORMATS[name].write(concept, target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if "words" not in f.holds])
def test_a_word_is_no_base(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="shifu is a word"):
        FORMATS[name].write(word(), Target(tmp_path / "out", base="pocket"))


def test_unknown_content_is_refused_by_its_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    strange = tmp_path / "strange.safetensors"
    save_file({"lora_unet.down": torch.zeros(2, 2), "x": torch.zeros(1)}, strange)
    with pytest.raises(ConceptError, match=r"strange.safetensors has no layout .* lora_unet.down"):
        Concept.load(strange)
    for content in (b"", b"PK", b"a text", b"\x80\x02}q\x00.", b"\0" * 100, b"\x89PNG\r\n\x1a\n"):
        strange.write_bytes(content)
        with pytest.raises((ConceptError, FileError), match=r"strange.safetensors"):
            Concept.load(strange)
    shutil.rmtree(tmp_path)
    with pytest.raises(ConceptError, match="is not there"):
        Concept.load(tmp_path)
