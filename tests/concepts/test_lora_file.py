"""LoRA files of other programs, and invalid files."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import EmbeddingPart
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.formats.diffusers import Diffusers
from pinxit.concepts.formats.diffusers_lora import DiffusersLora
from pinxit.concepts.formats.emb_params import EmbParams
from pinxit.concepts.formats.kohya import Kohya
from pinxit.concepts.formats.pinxit import Pinxit
from pinxit.concepts.formats.single_file import SingleFile
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model
from tests.same_parts import same_parts

DRAW = torch.Generator().manual_seed(1)
A, B = torch.randn(4, 768, generator=DRAW), torch.randn(320, 4, generator=DRAW)
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNDER = f"lora_unet_{TO_K.replace('.', '_')}"
PROJ = "encoder.layers.0.self_attn.q_proj"


def layer(
    name: str, given: int, taken: int, rank: int = 4, alpha: float = 2.0, side: int = 0
) -> dict[str, Tensor]:
    """A plain LoRA of one layer, of a convolution if it has a side."""
    sides, ones = ([side, side], [1, 1]) if side else ([], [])
    return {
        f"{name}.lora_A.weight": torch.randn(rank, taken, *sides, generator=DRAW),
        f"{name}.lora_B.weight": torch.randn(given, rank, *ones, generator=DRAW),
        f"{name}.alpha": torch.tensor(alpha),
    }


def change(target: str, kind: str = "lora", **layers: dict[str, Tensor]) -> LoraPart:
    tensors: dict[str, Tensor] = {}
    for layer_tensors in layers.values():
        tensors |= layer_tensors
    return LoraPart.from_stored({"target": target, "kind": kind}, tensors)


def pivotal(token: str = "<toy>", xl: bool = False) -> Concept:
    """An embedding and LoRAs of several networks, with different ranks and alphas."""
    context = 2048 if xl else 768
    scales = {"mid_block.resnets.0.conv1.lora_magnitude_vector": torch.rand(8, generator=DRAW)}
    scales |= {f"{TO_K}.lora_magnitude_vector": torch.rand(320, generator=DRAW)}
    widths = {"text": 768, "text_2": 1280} if xl else {"text": 768}
    tables = {name: torch.randn(2, width, generator=DRAW) for name, width in widths.items()}
    conv = layer("mid_block.resnets.0.conv1", 8, 16, rank=2, alpha=0.1, side=3)
    parts = [
        EmbeddingPart(token, "a", tables),
        change("denoiser", "dora", a=layer(TO_K, 320, context), b=conv, c=scales),
        *[change(name, a=layer(PROJ, width, width, 3)) for name, width in widths.items()],
    ]
    recipe = 'base = "pocket"\n'
    known = Provenance(token, "toy", "lora", "pocket", "1f", 300, {"001": "ab"}, recipe)
    return Concept(tuple(parts), known)


WRITTEN = [(Kohya, ".safetensors"), (DiffusersLora, ".safetensors"), (DiffusersLora, "")]


@pytest.mark.parametrize(("layout", "ending"), WRITTEN)
@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_written_files_can_be_read(
    layout: Any, ending: str, xl: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    concept = pivotal(xl=xl)
    parts = [
        part.from_stored(
            part.settings,
            {n: t if n.endswith("alpha") else t.to(dtype) for n, t in part.tensors.items()},
        )
        for part in concept.parts
    ]
    concept = Concept(tuple(parts), concept.provenance)
    out = tmp_path / f"toy{ending}"
    layout().write(concept, Target(out))
    again = read_concept(out)
    assert same_parts(again, concept)
    assert again.provenance == concept.provenance
    assert not same_parts(again, pivotal(xl=xl))  # the control: other numbers
    # Then through the other format, with an alias as DreamBooth has it.
    parts = (AliasAdapter("<my toy>", "sks toy").part(), *again.parts[1:])
    other = Kohya() if layout is DiffusersLora else DiffusersLora()
    other.write(Concept(parts, again.provenance), Target(tmp_path / "there.safetensors"))
    assert same_parts(
        read_concept(tmp_path / "there.safetensors"), Concept(parts, again.provenance)
    )


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_only_kohya_stores_loha_and_lokr(kind: str, tmp_path: Path) -> None:
    shapes = {
        "loha": {"hada_w1_a": (320, 4), "hada_w1_b": (4, 768), "hada_w2_a": (320, 4)}
        | {"hada_w2_b": (4, 768)},
        "lokr": {"lokr_w1": (16, 24), "lokr_w2_a": (20, 4), "lokr_w2_b": (4, 32)},
    }[kind]
    tensors = {f"{TO_K}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    tensors[f"{TO_K}.alpha"] = torch.tensor(2.0)
    part = change("denoiser", kind, a=tensors)
    concept = Concept((part,), Provenance.from_metadata("toy", {}))
    Kohya().write(concept, Target(out := tmp_path / "toy.safetensors"))
    again = only_part_tensors(read_concept(out))
    if kind == "lokr":  # written as two whole factors, which every program reads
        low = tensors[f"{TO_K}.lokr_w2_a"] @ tensors[f"{TO_K}.lokr_w2_b"] / 2
        assert torch.equal(again[f"{TO_K}.lokr_w2"], low)
        assert torch.equal(again[f"{TO_K}.lokr_w1"], tensors[f"{TO_K}.lokr_w1"])
    else:
        assert same_parts(read_concept(out), concept)
    metadata = read_safetensors(out)[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"  # by 24 x 32 or 768
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"])["algo"] == kind
    with pytest.raises(
        ConceptError, match=rf"kind {kind}, .*\nhint: .*--format full-difference, kohya or pinxit"
    ):
        DiffusersLora().write(concept, Target(tmp_path / "x.safetensors"))
    oft = change("denoiser", "oft", a={f"{TO_K}.oft_R.weight": torch.zeros(4, 6)})
    for layout in (Kohya(), DiffusersLora()):
        with pytest.raises(
            ConceptError,
            match=r"kind oft, .*\nhint: write it with --format full-difference or pinxit",
        ):
            layout.write(Concept((oft,), concept.provenance), Target(tmp_path / "x.safetensors"))


def test_kohyas_metadata(tmp_path: Path) -> None:
    Kohya().write(pivotal(), Target(out := tmp_path / "my-toy.safetensors"))
    tensors, metadata = read_safetensors(out)
    assert metadata["ss_base_model_version"] == "sd_v1"  # what A1111's badge is made of
    content = out.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == sha256(data).hexdigest()
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_output_name"] == "my-toy"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert (metadata["ss_steps"], metadata["ss_num_train_images"]) == ("300", "1")
    assert metadata["modelspec.trigger_phrase"] == "<toy>"
    assert json.loads(metadata["ss_network_args"]) == {"algo": "lora", "dora_wd": "True"}
    assert "bundle_emb.<toy>.string_to_param.*" in tensors
    Kohya().write(pivotal(xl=True), Target(out := tmp_path / "big.safetensors"))
    tensors, metadata = read_safetensors(out)
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    names = {name.split("_attn2")[0] for name in tensors if "attn2" in name}
    assert names == {"lora_unet_input_blocks_1_1_transformer_blocks_0"}
    assert {"bundle_emb.<toy>.clip_l", "bundle_emb.<toy>.clip_g"} <= tensors.keys()
    plain = Concept(
        (change("denoiser", a=layer(TO_K, 320, 1024)),), Provenance.from_metadata("toy", {})
    )
    Kohya().write(plain, Target(out := tmp_path / "plain.safetensors"))
    metadata = read_safetensors(out)[1]
    assert (metadata["ss_v2"], metadata["ss_base_model_version"]) == ("True", "sd_v2")
    assert (metadata["ss_network_module"], metadata["ss_network_args"]) == ("networks.lora", "{}")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def only_part_tensors(concept: Concept) -> dict[str, Tensor]:
    (part,) = concept.parts
    return dict(part.tensors)


def test_metadata_of_other_programs_is_kept(tmp_path: Path) -> None:
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "ss_steps": "900", "ss_seed": "7"}
    tensors = {f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}
    concept = read_concept(
        save(tmp_path / "theirs.safetensors", tensors, {**metadata, "format": "pt"})
    )
    assert (concept.token, concept.provenance.steps) == ("theirs", 900)
    assert concept.provenance.metadata == metadata
    Kohya().write(concept, Target(out := tmp_path / "back.safetensors"))
    back, settings = read_safetensors(out)
    assert {name: settings[name] for name in metadata} == metadata
    assert any(name.startswith("lora_unet_input_blocks_1_1_") for name in back)  # as it says: XL
    # Without the description by pinxit only the provenance is lost.
    bare = read_concept(save(tmp_path / "bare.safetensors", back))
    assert torch.equal(only_part_tensors(bare)[f"{TO_K}.lora_A.weight"], A)
    # In a merged file the description no longer fits and is ignored.
    merged = back | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": A}
    merged |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": B}
    concept_read = read_concept(
        save(tmp_path / "merged.safetensors", merged, {PROVENANCE_KEY: settings[PROVENANCE_KEY]})
    )
    assert [part.settings["target"] for part in concept_read.parts] == ["text", "denoiser"]


# Layer names in kohya's files and in diffusers.
NAMES = re.findall(
    r"\S+",
    """
unet_input_blocks_4_1_transformer_blocks_1_attn1_to_out_0
down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0
unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj
mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj
unet_input_blocks_5_0_in_layers_2 down_blocks.1.resnets.1.conv1
unet_input_blocks_3_0_op down_blocks.0.downsamplers.0.conv
unet_middle_block_1_proj_in mid_block.attentions.0.proj_in
unet_middle_block_2_emb_layers_1 mid_block.resnets.1.time_emb_proj
unet_output_blocks_2_1_norm up_blocks.0.attentions.2.norm
unet_output_blocks_2_2_conv up_blocks.0.upsamplers.0.conv
unet_output_blocks_2_1_conv up_blocks.0.upsamplers.0.conv
unet_output_blocks_8_0_skip_connection up_blocks.2.resnets.2.conv_shortcut
unet_time_embed_2 time_embedding.linear_2
unet_label_emb_0_0 add_embedding.linear_1
unet_out_2 conv_out
unet_input_blocks_0_0 conv_in
unet_conv_in conv_in
unet_up_blocks_1_resnets_0_time_emb_proj up_blocks.1.resnets.0.time_emb_proj
te_text_model_encoder_layers_11_self_attn_out_proj encoder.layers.11.self_attn.out_proj
te2_text_projection text_projection
te1_encoder_layers_0_mlp_fc2 encoder.layers.0.mlp.fc2
""",
)


@pytest.mark.parametrize(("path", "name"), list(zip(NAMES[::2], NAMES[1::2], strict=True)))
def test_names_in_kohyas_files(path: str, name: str, tmp_path: Path) -> None:
    tensors = {f"lora_{path}.lora_down.weight": A, f"lora_{path}.lora_up.weight": B}
    tensors_or_none = only_part_tensors(read_concept(save(tmp_path / "x.safetensors", tensors)))
    assert {key.removesuffix(".alpha") for key in tensors_or_none if "alpha" in key} == {name}


TEXT = f"text_encoder.text_model.{PROJ}"
OUT = f"{TO_K[:-4]}to_out.0"


@pytest.mark.parametrize(
    ("down", "name"),
    [
        (f"unet.{TO_K}.lora_A.weight", TO_K),
        (f"unet.{TO_K}.lora.down.weight", TO_K),
        (f"unet.{TO_K[:-5]}.processor.to_k_lora.down.weight", TO_K),
        (f"{TO_K[:-5]}.processor.to_k_lora.down.weight", TO_K),
        (f"unet.{OUT[:-9]}.processor.to_out_lora.down.weight", OUT),
        (f"{TEXT}.lora_linear_layer.down.weight", PROJ),
        (f"{TEXT[:-7]}.to_q_lora.down.weight", PROJ),
        (f"{TEXT}.lora_A.default.weight", PROJ),
    ],
)
def test_naming_schemes_of_diffusers(down: str, name: str, tmp_path: Path) -> None:
    up = down.replace("lora_A", "lora_B").replace(".down.", ".up.")
    concept_read = read_concept(save(tmp_path / "x.safetensors", {down: A, up: B}))
    target = "text" if "text" in down else "denoiser"
    assert concept_read.parts[0].settings == {"target": target, "kind": "lora"}
    assert torch.equal(only_part_tensors(concept_read)[f"{name}.lora_A.weight"], A)
    assert torch.equal(only_part_tensors(concept_read)[f"{name}.lora_B.weight"], B)
    assert float(only_part_tensors(concept_read)[f"{name}.alpha"]) == 4.0


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (None, 4.0),
        (0.0, 4.0),
        (1.5, 1.5),
        (torch.tensor([3]), 3.0),
        (torch.tensor(0.5).half(), 0.5),
    ],
)
def test_alpha(alpha: Any, expected: float, tmp_path: Path) -> None:
    tensors = {f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}
    if alpha is not None:
        tensors[f"{UNDER}.alpha"] = torch.as_tensor(alpha)
    file = save(tmp_path / "x.safetensors", tensors)
    scale = only_part_tensors(read_concept(file))[f"{TO_K}.alpha"]
    assert (scale.shape, scale.dtype, float(scale)) == (
        (),
        torch.float32,
        expected,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"unet.r": 4, "unet.lora_alpha": 6}, 6.0),
        ({"unet.r": 4}, 8.0),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn2.to_k": 3, "to_q": 9}}, 3.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {f"^{TO_K}": 5}}, 5.0),
        ({"text_encoder.lora_alpha": 2}, 4.0),
    ],
)
def test_alpha_in_the_metadata_of_diffusers(
    settings: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    file = save(
        tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)}
    )
    assert float(only_part_tensors(read_concept(file))[f"{TO_K}.alpha"]) == expected


def test_a_pickle_and_a_folder_of_a_pivotal_run(tmp_path: Path) -> None:
    torch.save({f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}, tmp_path / "x.pt")
    assert torch.equal(
        only_part_tensors(read_concept(tmp_path / "x.pt"))[f"{TO_K}.lora_B.weight"], B
    )
    folder = tmp_path / "learned"
    folder.mkdir()
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    save(folder / "pytorch_lora_weights.safetensors", tensors)
    save(folder / "learned_emb.safetensors", {"clip_l": A[:2], "clip_g": torch.ones(2, 1280)})
    concept_read = read_concept(folder)
    assert [part.kind for part in concept_read.parts] == ["embedding", "lora"]
    assert torch.equal(concept_read.parts[0].tensors["text"], A[:2])
    assert set(concept_read.parts[0].tensors) == {"text", "text_2"}


# Invalid files.


def kohya_tensors(**changed: Tensor | None) -> dict[str, Tensor]:
    """A valid layer with some tensors replaced; keyword names have `_` for `.`."""
    tensors_or_none: dict[str, Tensor | None] = {
        "lora_down_weight": A,
        "lora_up_weight": B,
        **changed,
    }
    return {
        f"{UNDER}.{n.replace('_weight', '.weight')}": t
        for n, t in tensors_or_none.items()
        if t is not None
    }


NUMBER = torch.tensor
INVALID_FILES: dict[str, tuple[dict[str, Tensor], str]] = {
    "no partner": (kohya_tensors(lora_up_weight=None), "set of weights: lora_A.weight"),
    "other ranks": (
        kohya_tensors(lora_up_weight=B[:, :3]),
        r"do not match: .*lora_B.weight \(320, 3\)",
    ),
    "a row": (kohya_tensors(lora_down_weight=A[0]), r"do not match: .*lora_A.weight \(768,\)"),
    "one number": (
        kohya_tensors(lora_up_weight=NUMBER(1.0)),
        r"do not match: .*lora_B.weight \(\)",
    ),
    "no rank": (kohya_tensors(lora_down_weight=A[:0], lora_up_weight=B[:, :0]), "do not match"),
    "whole numbers": (kohya_tensors(lora_down_weight=A.long()), "as int64, not as floating point"),
    "alpha is no number": (kohya_tensors(alpha=NUMBER(float("nan"))), "an alpha of nan"),
    "infinite alpha": (kohya_tensors(alpha=NUMBER(float("-inf"))), "an alpha of -inf"),
    "huge alpha": (kohya_tensors(alpha=NUMBER(1e30)), r"an alpha of 1e\+30"),
    "two alphas": (kohya_tensors(alpha=torch.ones(2)), r"do not match: alpha \(2,\)"),
    "other kinds": (
        kohya_tensors(hada_w1_a=B),
        "has LoHa and LoRA in one layer",
    ),
    "by what it takes in": (
        kohya_tensors(dora_scale=A[:1]),
        r"magnitudes for its inputs, \(1, 768\)",
    ),
    "few scales": (kohya_tensors(dora_scale=torch.ones(7, 1)), "do not match"),
    "a lone scale": (kohya_tensors(dora_scale=NUMBER(1.0)), "do not match"),
    "a wrong middle": (
        kohya_tensors(lora_mid_weight=torch.ones(4, 9, 3, 3)),
        "set of weights: lora_A.weight, lora_B",
    ),
    "a strange tensor": (kohya_tensors(oft_blocks=A), "oft_blocks`: this is OFT"),
    "strange beside": (kohya_tensors() | {"epoch": A}, "`epoch`, which belongs to no layer"),
    "SD 3": (
        {"lora_unet_joint_blocks_0_x_block_attn_other.alpha": A},
        "opens has\nhint: .*Diffusion 3 with other layers",
    ),
    "a name to match for": ({f"lora_unet_{'to_q_' * 99}x.alpha": A}, "that pinxit opens has"),
    "a word of one number": (
        kohya_tensors() | {"bundle_emb.x.clip_l": NUMBER(1.0)},
        "no valid embedding",
    ),
    "two words in one": (
        kohya_tensors() | {"bundle_emb.x.clip_l": A, "bundle_emb.x.clip_g": A[:1]},
        "no valid embedding",
    ),
}


@pytest.mark.parametrize("name", INVALID_FILES)
def test_wrong_files_are_refused(name: str, tmp_path: Path) -> None:
    tensors, message = INVALID_FILES[name]
    file = save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ConceptError, match=rf"x\.safetensors.*{message}"):
        read_concept(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"unet.lora_alpha": "x"}', "an alpha of nan"),
        ('{"unet.lora_alpha": NaN}', "an alpha of nan"),
        ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "an alpha of nan"),
    ],
)
def test_wrong_settings_are_refused(settings: str, message: str, tmp_path: Path) -> None:
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    file = save(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": settings})
    with pytest.raises(ConceptError, match=rf"x\.safetensors.*{message}"):
        read_concept(file)


def test_very_long_names_are_refused_quickly(tmp_path: Path) -> None:
    for key in (f"lora_unet_{'down_' * 100_000}.alpha", f"{'a.lora' * 100_000}.lora_A.weight"):
        file = save(tmp_path / "x.safetensors", {key: A})
        with pytest.raises(ConceptError):
            read_concept(file)


# Concepts that a format cannot store.


def test_unsuitable_formats_refuse_it(tmp_path: Path) -> None:
    concept = pivotal()
    for layout, ending in ((EmbParams(), ".safetensors"), (SingleFile(), ".safetensors")):
        with pytest.raises(ConceptError, match=r"\nhint: .*kohya"):
            layout.write(concept, Target(tmp_path / f"x{ending}"))
    with pytest.raises(ConceptError, match=r"\nhint: .*diffusers-lora"):
        Diffusers().write(concept, Target(tmp_path / "x"))
    with pytest.raises(ConceptError, match="exact trained values"):
        Kohya().write(concept, Target(tmp_path / "x.safetensors", precision="fp16"))
    third = change("denoiser", a=layer("transformer_blocks.0.attn.to_q", 8, 8))
    with pytest.raises(ConceptError, match=r"no name for .*attn.to_q.*\nhint: .*diffusers-lora"):
        Kohya().write(Concept((third,), concept.provenance), Target(tmp_path / "x.safetensors"))
    words = (*concept.parts, EmbeddingPart("b", "a", {"text": A}))
    with pytest.raises(ConceptError, match=r"2 embeddings.*\nhint: .*kohya"):
        DiffusersLora().write(Concept(words, concept.provenance), Target(tmp_path / "x"))
    assert not list(tmp_path.iterdir())
    Pinxit().write(concept, Target(tmp_path / "x.safetensors"))
    assert same_parts(read_concept(tmp_path / "x.safetensors"), concept)


def test_sd3_in_diffusers_layout(tmp_path: Path) -> None:
    third = change("denoiser", a=layer("transformer_blocks.0.attn.to_q", 8, 8))
    concept = Concept((third,), Provenance.from_metadata("toy", {}))
    DiffusersLora().write(concept, Target(out := tmp_path / "toy.safetensors"))
    assert {name.split(".")[0] for name in read_safetensors(out)[0]} == {"transformer"}
    assert same_parts(read_concept(out), concept)


def test_a_lora_of_another_kind_of_base(opened: Callable[[str], Model], tmp_path: Path) -> None:
    Kohya().write(pivotal(xl=True), Target(tmp_path / "toy.safetensors"))
    changes = Concept(read_concept(tmp_path / "toy.safetensors").parts[1:], pivotal().provenance)
    for family in ("nano", "stable-diffusion-1"):
        model = opened(family)
        with pytest.raises(ConceptError, match=rf"{model.name}.*\nhint: .*kind of base"):
            changes.adapters(model)


# The command line.


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Kohya().write(pivotal(), Target(file := tmp_path / "toy.safetensors"))
    assert main(["inspect", str(file)]) == 0
    metadata = capsys.readouterr().out
    for line in (
        "format      kohya: ",
        "adapter     dora of 2 layers of `denoiser`, 4,984 weights, float32",
        "rank        2 to 4, alpha 0.1 to 2",
        "fits        Stable Diffusion 1.x",
        "adapter     lora of 1 layers of `text`",
        "rank        3, alpha 2",
        "origin      lora, 300 steps, 1 image, base model pocket",
        f"--concept {file}, or --concept {file}:0.7 for a lower strength",
        "suspicious  nothing",
    ):
        assert line in metadata
    Kohya().write(pivotal(xl=True), Target(file))
    assert main(["inspect", str(file)]) == 0
    assert "fits        Stable Diffusion 1.x" not in capsys.readouterr().out
    theirs = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}", "ss_sd_model_name": "b"}
    save(file, kohya_tensors(alpha=NUMBER(1.0)), theirs)
    assert main(["inspect", str(file)]) == 0
    metadata = capsys.readouterr().out
    assert "origin      ss_base_model_version sd_v1, ss_sd_model_name b\n" in metadata


@pytest.mark.parametrize(
    ("out", "name"), [("a.safetensors", "kohya"), ("b", "diffusers-lora"), ("c.safetensors", "")]
)
def test_convert(out: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pinxit().write(pivotal(), Target(file := tmp_path / "toy.safetensors"))
    chosen = [] if name else ["--format", "diffusers-lora"]
    assert main(["convert", str(file), str(tmp_path / out), *chosen]) == 0
    printed = capsys.readouterr().err
    assert f"written as {name or 'diffusers-lora'}" in printed
    assert "it fits pocket only" in printed
    assert "ComfyUI" not in printed  # which cannot open pocket
    assert same_parts(read_concept(tmp_path / out), read_concept(file))
