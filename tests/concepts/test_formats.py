"""Embedding files of other programs, and the commands that use them."""

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import EmbeddingPart, FullWeightsPart
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target, default_format
from pinxit.concepts.formats.a1111 import A1111
from pinxit.concepts.formats.emb_params import EmbParams
from pinxit.concepts.formats.pinxit import Pinxit
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance, read_metadata
from pinxit.concepts.read import read_concept, write_concept
from pinxit.errors import ConceptError, FileError, PinxitError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model

TABLE = torch.randn(3, 768, generator=torch.Generator().manual_seed(5))
SECOND = torch.randn(3, 1280, generator=torch.Generator().manual_seed(6))


def tables(concept: Concept) -> list[dict[str, Tensor]]:
    return [dict(part.tensors) for part in concept.parts]


def holds(concept: Concept, **expected: Tensor) -> bool:
    (embedding_tables,) = tables(concept)
    return embedding_tables.keys() == expected.keys() and all(
        torch.equal(embedding_tables[n], expected[n]) for n in expected
    )


# Files of other programs.


def a1111(**changed: object) -> dict[str, object]:
    metadata = {
        "name": "shifu",
        "step": 10001,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": None,
    }
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": TABLE}, **metadata, **changed}


@pytest.mark.parametrize("legacy", [False, True])
def test_a1111(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "my toy.pt"
    torch.save(a1111(), file, _use_new_zipfile_serialization=not legacy)
    concept = read_concept(file)
    assert holds(concept, text=TABLE)
    assert (concept.token, concept.provenance.steps) == ("my toy", 10001)
    assert concept.provenance.metadata == {
        "name": "shifu",
        "step": "10001",
        "sd_checkpoint": "7460a6fa",
    }
    A1111().write(concept, Target(back := tmp_path / "back.pt"))
    again = torch.load(back, weights_only=True)
    assert torch.equal(again.pop("string_to_param")["*"], TABLE)
    assert again.pop(PROVENANCE_KEY)
    assert again == {k: v for k, v in a1111().items() if k != "string_to_param"}


def test_compvis_with_several_placeholders(tmp_path: Path) -> None:
    file = tmp_path / "two.pt"
    table = {"*": nn.Parameter(TABLE), "toy": nn.Parameter(TABLE + 1)}
    ids = {"*": torch.tensor(265), "toy": torch.tensor(5988)}
    torch.save({"string_to_token": ids, "string_to_param": nn.ParameterDict(table)}, file)
    concept = read_concept(file)
    assert concept.tokens == ["two", "toy"]
    assert torch.equal(tables(concept)[1]["text"], TABLE + 1)
    with pytest.raises(
        ConceptError, match="two is not a single embedding: it has the parts two, toy"
    ):
        EmbParams().write(concept, Target(tmp_path / "x.safetensors"))
    Pinxit().write(concept, Target(tmp_path / "x.safetensors"))
    assert read_concept(tmp_path / "x.safetensors").tokens == ["two", "toy"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"emb_params": TABLE}, {"text": TABLE}),
        ({"clip_l": TABLE}, {"text": TABLE}),
        ({"clip_l": TABLE, "clip_g": SECOND}, {"text": TABLE, "text_2": SECOND}),
        ({"emp_params": TABLE}, {"text": TABLE}),
        (
            {"emp_params": TABLE, "emp_params_out": TABLE + 1},
            {"text": TABLE, "text.out": TABLE + 1},
        ),
        (
            {"clip_l": TABLE, "clip_g": SECOND, "clip_g_out": SECOND + 1},
            {"text": TABLE, "text_2": SECOND, "text_2.out": SECOND + 1},
        ),
        ({"<toy>": TABLE}, {"text": TABLE}),
        ({"<toy>": TABLE[0]}, {"text": TABLE[:1]}),
    ],
    ids=[
        "kohya",
        "pivotal-1",
        "xl",
        "onetrainer",
        "out",
        "out-xl",
        "diffusers",
        "custom-diffusion",
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
def test_files_of_other_programs(
    content: dict[str, Tensor], expected: dict[str, Tensor], ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"shifu{ending}"
    if ending == ".safetensors":
        save_file({name: table.contiguous() for name, table in content.items()}, file)
    else:
        torch.save(content, file)
    concept = read_concept(file)
    assert holds(concept, **expected)
    assert concept.tokens == ["<toy>" if "<toy>" in content else "shifu"]


def test_a_lone_tensor_and_the_second_encoders_file(tmp_path: Path) -> None:
    torch.save(TABLE, tmp_path / "shifu.bin")
    assert holds(read_concept(tmp_path / "shifu.bin"), text=TABLE)
    folder = tmp_path / "trained"
    folder.mkdir()
    save_file({"<toy>": TABLE}, folder / "learned_embeds.safetensors")
    save_file({"<toy>": SECOND}, folder / "learned_embeds_2.safetensors")
    assert holds(read_concept(folder), text=TABLE, text_2=SECOND)


def in_pixels(data: dict[str, object], height: int = 96) -> Image.Image:
    """An image of AUTOMATIC1111: low halves of bytes on the left, high halves on the right."""
    packed = np.frombuffer(zlib.compress(json.dumps(data).encode(), 9), np.uint8)
    width = len(packed) // (height * 3) + 1
    state, noise = 0, []
    for _ in range(height * width * 3):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state % 255 & 15)
    covered = np.array(noise, np.uint8).reshape(height, width, 3)
    halves = (np.resize(half, (height, width, 3)) for half in (packed & 15, packed >> 4))
    low, high = (half ^ covered ^ 0x50 for half in halves)
    gap = np.zeros((height, 1, 3), np.uint8)
    image = np.full((height, 40, 3), 77, np.uint8)
    return Image.fromarray(np.concatenate([low, gap, image, gap, high], 1))


@pytest.mark.parametrize("place", ["chunk", "pixels"])
def test_hidden_in_an_image(place: str, tmp_path: Path) -> None:
    data = a1111(string_to_param={"*": {"TORCHTENSOR": TABLE.tolist()}})
    info = PngInfo()
    if place == "chunk":
        info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(data).encode()).decode())
    image = in_pixels(data) if place == "pixels" else Image.new("RGB", (64, 64), "gold")
    image.save(tmp_path / "shared-by-a-friend.png", pnginfo=info)
    concept = read_concept(tmp_path / "shared-by-a-friend.png")
    assert holds(concept, text=TABLE)
    assert (concept.token, concept.nickname) == ("shifu", "shared-by-a-friend")


def test_images_with_no_or_invalid_hidden_data(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "black").save(file)
    with pytest.raises(ConceptError, match=r"picture.png is an image without an embedding"):
        read_concept(file)
    for text in ("!", base64.b64encode(b"[" * 100_000).decode()):
        info = PngInfo()
        info.add_text("sd-ti-embedding", text)
        Image.new("RGB", (64, 64)).save(file, pnginfo=info)
        with pytest.raises(ConceptError, match=r"cannot read image .*picture.png"):
            read_concept(file)


@pytest.mark.parametrize(
    "content",
    [
        {"emb_params": torch.zeros(0, 768)},
        {"emb_params": torch.zeros(2, 3, 4)},
        {"emb_params": torch.zeros(2, 768, dtype=torch.int64)},
        {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(3, 1280)},
    ],
)
def test_invalid_tables_are_refused(content: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(content, tmp_path / "odd.safetensors")
    with pytest.raises(
        ConceptError, match="contains no valid embedding: its tensors have the shapes"
    ):
        read_concept(tmp_path / "odd.safetensors")


WHOLE = Concept((EmbeddingPart("x", "a", {}),), Provenance.from_metadata("x", {})).description


@pytest.mark.parametrize(
    "description", ["{", "[]", "9", WHOLE.replace("stand_in", "other"), WHOLE.replace('"x"', "3")]
)
def test_a_damaged_description_is_refused(description: str, tmp_path: Path) -> None:
    for key, content in ((PROVENANCE_KEY, "emb_params"), ("pinxit", "0.text")):
        save_file({content: TABLE}, tmp_path / "odd.safetensors", {key: description})
        with pytest.raises(ConceptError, match=r"the description in .*odd.safetensors is damaged"):
            read_concept(tmp_path / "odd.safetensors")


def test_modelspec_metadata_of_written_files(tmp_path: Path) -> None:
    torch.save(a1111(), tmp_path / "shifu.pt")
    EmbParams().write(
        read_concept(tmp_path / "shifu.pt"), Target(out := tmp_path / "s.safetensors")
    )
    _, output = read_safetensors(out)
    assert output["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert output["modelspec.sai_model_spec"] == "1.0.1"
    assert (output["modelspec.title"], output["modelspec.trigger_phrase"]) == ("s", "shifu")


# Commands and generation.


@pytest.fixture
def run_pinxit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in its own folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> tuple[int, str, str]:
        status = main(words)
        output = capsys.readouterr()
        return status, output.out, output.err

    return typed


def save_embedding(file: Path, width: int, seed: int = 0, count: int = 2) -> Tensor:
    """Save an embedding in the format of kohya."""
    table = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    save_file({"emb_params": table}, file)
    return table


def test_prompts_can_use_file_names(model: Model, tmp_path: Path) -> None:
    width = model.text_encoders["text"].width
    one, two = (
        save_embedding(tmp_path / "shifu.pt", width),
        save_embedding(tmp_path / "hestia.pt", width, 1, 3),
    )
    concepts = [read_concept(tmp_path / f"{name}.pt") for name in ("shifu", "hestia")]
    with applied(model, [a for concept in concepts for a in concept.adapters(model)]):
        tokens = model.text_encoders["text"].tokenize(
            ["a Shifu in hestia style"], model.placeholders
        )
    assert tokens.embeddings is not None
    assert torch.equal(tokens.embeddings, torch.cat([one, two]))
    assert [row for row in tokens.embedding_rows.flatten().tolist() if row >= 0] == [0, 1, 2, 3, 4]


def test_a_file_name_is_an_alias_of_the_token(model: Model, tmp_path: Path) -> None:
    from pinxit.concepts.concept import combined_adapters

    width = model.text_encoders["text"].width
    save_file({"<toy>": torch.ones(2, width)}, tmp_path / "shifu.safetensors")
    known = read_concept(tmp_path / "shifu.safetensors")
    with applied(model, combined_adapters([known], model)):
        states = [model.condition([f"a {name} in snow"]).states for name in ("shifu", "<toy>")]
    assert torch.equal(*states)
    # The token of another file replaces the name of this file.
    save_embedding(tmp_path / "other.safetensors", width)
    other = Concept(
        (EmbeddingPart("Shifu", "a", {"text": torch.zeros(1, width)}),),
        Provenance.from_metadata("Shifu", {}),
    )
    with applied(model, combined_adapters([known, other], model)):
        assert model.placeholders.keys() == {"<toy>", "Shifu"}


def test_errors_state_both_widths(model: Model, tmp_path: Path) -> None:
    width = model.text_encoders["text"].width
    save_embedding(tmp_path / "shifu.pt", 768)
    with pytest.raises(
        ConceptError, match=rf"are 768 wide, but those of .* are {width} wide"
    ) as output:
        read_concept(tmp_path / "shifu.pt").adapters(model)
    assert output.value.hint == "it fits Stable Diffusion 1.x: choose such a base model with --base"
    save_file({"clip_l": TABLE, "clip_g": SECOND}, tmp_path / "xl.safetensors")
    with pytest.raises(
        ConceptError, match=r"text encoders text, text_2, but .* has text"
    ) as output:
        read_concept(tmp_path / "xl.safetensors").adapters(model)
    assert "Stable Diffusion XL" in output.value.hint


def test_generate_with_files(run_pinxit: Any, nano: Path, model: Model, tmp_path: Path) -> None:
    width = model.text_encoders["text"].width
    save_embedding(tmp_path / "shifu.pt", width)
    save_embedding(tmp_path / "hestia.safetensors", width, 1)
    words = ["--concept", "shifu.pt", "--concept", "hestia.safetensors"]
    asked = ["--base", str(nano), "--count", "1", "--steps", "2"]
    status, files, output = run_pinxit(
        "generate", "shifu on a beach, in hestia style", *words, *asked
    )
    assert (status, output.count("note:")) == (0, 0), output
    assert Image.open(files.strip()).size == (32, 32)
    status, _, output = run_pinxit("generate", "shifu on a beach", *words, *asked[2:])
    assert status == 2
    assert "those of pocket are" in output


def test_convert_by_suffix_and_by_format(run_pinxit: Any, tmp_path: Path) -> None:
    torch.save(a1111(), tmp_path / "shifu.pt")
    for out, extra, expected in (
        ("a.safetensors", [], {"emb_params"}),
        ("b.safetensors", ["--format", "onetrainer"], {"emp_params"}),
        ("folder/c.safetensors", ["--format", "diffusers"], {"shifu"}),
    ):
        status, printed, output = run_pinxit("convert", "shifu.pt", out, *extra)
        assert (status, printed) == (0, f"{out}\n"), output
        assert read_safetensors(tmp_path / out)[0].keys() == expected
    assert run_pinxit("convert", "folder/c.safetensors", "back.pt")[0] == 0
    assert holds(read_concept(tmp_path / "back.pt"), text=TABLE)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["none.pt", "x.pt"], "none.pt does not exist"),
        (["shifu.pt", "x.pt", "--format", "a111"], "did you mean a1111?"),
        (["shifu.pt", "x.txt", "--format", "a1111"], "use .pt or .safetensors"),
        (["shifu.pt", "shifu.pt"], "shifu.pt exists already"),
        (["shifu.pt", "x.safetensors", "--format", "single-file"], "shifu is an embedding"),
        (["shifu.pt", "x.pt", "--precision", "fp16"], "leave out --base and --precision"),
    ],
)
def test_convert_errors(typed: list[str], message: str, run_pinxit: Any, tmp_path: Path) -> None:
    torch.save(a1111(), tmp_path / "shifu.pt")
    status, _, output = run_pinxit("convert", *typed)
    assert (status, message in output) == (2, True), output
    assert [path.name for path in tmp_path.iterdir()] == ["shifu.pt"]


def test_inspect(run_pinxit: Any, nano: Path, tmp_path: Path) -> None:
    torch.save(a1111(), tmp_path / "shifu.pt")
    status, printed_text, output = run_pinxit("inspect", "shifu.pt", "--base", str(nano))
    assert status == 0, output
    for line in (
        "format      a1111: ",
        "embedding   3 x 768 for `text`, norm ",
        "fits        Stable Diffusion 1.x",
        "base model  embedding norms of ",
        "origin      name shifu, step 10001, sd_checkpoint 7460a6fa",
        "to use      write shifu in the prompt, with --concept shifu.pt",
        "suspicious  nothing",
    ):
        assert f"\n{line}" in f"\n{printed_text}"


def test_inspect_reports_problems(run_pinxit: Any, tmp_path: Path) -> None:
    table = TABLE.clone()
    table[0, 0] = torch.nan
    torch.save(a1111(string_to_param={"*": table}), tmp_path / "shifu.safetensors")
    _, printed_text, _ = run_pinxit("inspect", "shifu.safetensors")
    assert "suspicious  1 values of text are infinite or NaN" in printed_text
    assert "suspicious  shifu.safetensors is really a pickle file" in printed_text
    for scale, length in ((0.0, "0"), (1e6, "e+07")):
        save_file({"emb_params": TABLE * scale}, tmp_path / "odd.safetensors")
        _, printed_text, _ = run_pinxit("inspect", "odd.safetensors")
        assert "suspicious  text has vectors of norm" in printed_text
        assert length in printed_text


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch ran",)


def test_code_in_a_file_is_not_run(run_pinxit: Any, tmp_path: Path) -> None:
    torch.save(a1111(name=_Evil()), tmp_path / "shifu.pt")
    for typed in (["inspect", "shifu.pt"], ["convert", "shifu.pt", "x.pt"]):
        status, _, output = run_pinxit(*typed)
        assert status == 2
        assert "posix.system" in output
    with pytest.raises(FileError):
        read_concept(tmp_path / "shifu.pt")
    assert not (tmp_path / "ran").exists()


def test_full_weights_as_a_folder(
    run_pinxit: Any, nano: Path, model: Model, tmp_path: Path
) -> None:
    tuned = FullWeightsAdapter.of(model, "denoiser").part()
    concept = Concept((tuned,), Provenance.from_metadata("<mytoy>", {}, str(nano)))
    write_concept(concept, tmp_path / "concept.safetensors")
    assert run_pinxit("convert", "concept.safetensors", "folder")[0] == 0
    again = read_concept(tmp_path / "folder")
    assert all(torch.equal(again.parts[0].tensors[n], t) for n, t in tuned.tensors.items())
    _, printed_text, _ = run_pinxit("inspect", "folder")
    assert "network     denoiser, " in printed_text
    status, _, output = run_pinxit("convert", "concept.safetensors", "x.safetensors")
    assert (status, "have no name for the weight `add_embedding." in output) == (2, True)
    status, _, output = run_pinxit("convert", "concept.safetensors", "y", "--base", "pocket")
    assert (status, "is not the network that was trained" in output) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"concept.safetensors", "folder"}


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_a_model_folder_gets_no_files_behind_links(
    run_pinxit: Any, nano: Path, model: Model, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / ".out-new").mkdir()
    (tmp_path / ".out-new" / "mine").write_text("precious")
    base = copied(nano)
    tokenizer = base / "tokenizer"
    (tokenizer / "notes.txt").symlink_to(tmp_path / "key")
    (tokenizer / "loop").symlink_to(".")
    os.mkfifo(tokenizer / "pipe")
    os.mkfifo(tokenizer / "rare_words.txt")
    tuned = FullWeightsAdapter.of(model, "denoiser").part()
    concept = Concept((tuned,), Provenance.from_metadata("x", {}, str(base)))
    write_concept(concept, tmp_path / "c.safetensors")
    out = tmp_path / "out"
    assert run_pinxit("convert", "c.safetensors", "out", "--base", str(base))[0] == 0
    assert {path.name for path in (out / "tokenizer").iterdir()} <= {
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert [path.name for path in tmp_path.glob(".out-*")] == [".out-new"]
    assert (tmp_path / ".out-new" / "mine").read_text() == "precious"
    (tokenizer / "rare_words.txt").unlink()
    (tokenizer / "rare_words.txt").symlink_to(tmp_path / "key")
    status, _, output = run_pinxit("convert", "c.safetensors", "other", "--base", str(base))
    assert (status, "leads out of" in output) == (2, True)
    assert not list(tmp_path.glob(".other-*"))


def test_metadata_is_read_from_the_header_alone(tmp_path: Path) -> None:
    file = tmp_path / "concept.safetensors"
    provenance = replace(Provenance.from_metadata("x", {}), steps=7, scores={"best": 0.5})
    part = EmbeddingPart("x", "a", {"text": TABLE})
    write_concept(Concept((part,), provenance), file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(PinxitError, match="damaged"):
        read_concept(file)
    assert read_metadata(file) == provenance
    # The tensors themselves are not read.
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    file.write_bytes(header.ljust(len(content), b"\0"))
    assert read_metadata(file).scores == {"best": 0.5}
    EmbParams().write(Concept((part,), provenance), Target(tmp_path / "other.safetensors"))
    assert read_metadata(tmp_path / "other.safetensors").steps == 7
    save_file({"x": TABLE}, tmp_path / "foreign.safetensors")
    with pytest.raises(ConceptError, match="no description"):
        read_metadata(tmp_path / "foreign.safetensors")
    file.write_bytes(b"\x09" + b"\0" * 7 + b'{"a": 1')
    with pytest.raises(PinxitError, match="cannot be read"):
        read_metadata(file)


@pytest.mark.parametrize("recipe", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "9" * 5000, "a ="])
def test_a_recipe_that_cannot_be_read_has_no_values(recipe: str) -> None:
    about = Provenance.from_metadata("<mytoy>", {})
    assert replace(about, recipe=recipe).recipe_values == {}


@pytest.mark.parametrize("out", ["a.pt", "a.safetensors"])
def test_converted_files_contain_no_paths_and_file_names(
    out: str, run_pinxit: Any, tmp_path: Path
) -> None:
    about = Provenance(
        "<mytoy>",
        "toy",
        "textual-inversion",
        "/home/mallory/models/nano",
        "1234",
        5,
        {"mallory-at-the-beach.jpg": "5678"},
        'images = "/home/mallory/pics"\nbase = "~/models/nano"\n'
        'vae = "C:\\\\Users\\\\mallory\\\\vae"\n',
    )
    concept = Concept((EmbeddingPart("<mytoy>", "toy", {"text": TABLE}),), about)
    write_concept(concept, tmp_path / "concept.safetensors")
    assert run_pinxit("convert", "concept.safetensors", out)[0] == 0
    assert b"mallory" not in (tmp_path / out).read_bytes()
    again = read_concept(tmp_path / out).provenance
    assert (again.base, again.steps, list(again.images.values())) == ("nano", 5, ["5678"])
    assert again.recipe_values == {"images": "pics", "base": "nano", "vae": "vae"}


def test_full_weights_of_an_unknown_network_are_an_error(model: Model) -> None:
    concept = Concept((FullWeightsPart("../../evil", {}),), Provenance.from_metadata("x", {}))
    with pytest.raises(ConceptError, match="does not have"):
        concept.adapters(model)


def test_a_vector_that_is_no_table_is_described() -> None:
    part = EmbeddingPart("<mytoy>", "toy", {"text": torch.ones(5)})
    assert ("embedding", "5 for `text`") in part.describe()


def test_metadata_is_read_without_torch() -> None:
    code = "import pinxit.concepts.metadata, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_converted_twice_has_equal_bytes(tmp_path: Path) -> None:
    part = EmbeddingPart("x", "a", {"text": TABLE})
    concept = Concept((part,), Provenance.from_metadata("x", {}))
    files = [tmp_path / name for name in ("first.pt", "second.pt")]
    for file in files:
        A1111().write(concept, Target(file))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_default_format_follows_from_content_and_suffix() -> None:
    embedding = EmbeddingPart("x", "a", {"text": TABLE})
    lora = LoraPart("denoiser", "lora", {})
    weights = FullWeightsPart("denoiser", {})
    expected = {
        ".safetensors": ["emb-params", "kohya", "single-file"],
        ".pt": ["a1111", "kohya", "single-file"],
        "": ["diffusers", "diffusers-lora", "diffusers"],
    }
    for suffix, names in expected.items():
        for part, name in zip((embedding, lora, weights), names, strict=True):
            concept = Concept((part,), Provenance.from_metadata("x", {}))
            assert default_format(concept, suffix) == name


def test_hints_name_the_formats_that_can_store_a_concept(tmp_path: Path) -> None:
    concept = Concept((FullWeightsPart("denoiser", {}),), Provenance.from_metadata("x", {}))
    with pytest.raises(ConceptError, match=r"--format diffusers, pinxit or single-file"):
        EmbParams().write(concept, Target(tmp_path / "x.safetensors"))
