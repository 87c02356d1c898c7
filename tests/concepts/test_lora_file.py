"""Files of LoRAs as other programs write them, and files that nobody should write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit.adapters.adapter import Alias, Part
from pinxit.cli import main
from pinxit.concepts.concept import Concept, Provenance
from pinxit.concepts.format import CARRIED, Target
from pinxit.concepts.formats.diffusers import Diffusers
from pinxit.concepts.formats.diffusers_lora import DiffusersLora
from pinxit.concepts.formats.emb_params import EmbParams
from pinxit.concepts.formats.kohya import Kohya
from pinxit.concepts.formats.pinxit import Pinxit
from pinxit.concepts.formats.single_file import SingleFile
from pinxit.errors import ConceptError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model

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


def change(target: str, kind: str = "lora", **layers: dict[str, Tensor]) -> Part:
    tensors = {name: t for held in layers.values() for name, t in held.items()}
    return Part("lora", {"target": target, "kind": kind}, tensors)


def pivotal(token: str = "<toy>", xl: bool = False) -> Concept:
    """A word and changes of two networks; several ranks and alphas, and a convolution."""
    context = 2048 if xl else 768
    scales = {"mid_block.resnets.0.conv1.lora_magnitude_vector": torch.rand(8, generator=DRAW)}
    scales |= {f"{TO_K}.lora_magnitude_vector": torch.rand(320, generator=DRAW)}
    widths = {"text": 768, "text_2": 1280} if xl else {"text": 768}
    tables = {name: torch.randn(2, width, generator=DRAW) for name, width in widths.items()}
    conv = layer("mid_block.resnets.0.conv1", 8, 16, rank=2, alpha=0.1, side=3)
    parts = [
        Part("new-word", {"word": token, "stand_in": "a"}, tables),
        change("denoiser", "dora", a=layer(TO_K, 320, context), b=conv, c=scales),
        *[change(name, a=layer(PROJ, width, width, 3)) for name, width in widths.items()],
    ]
    recipe = 'base = "pocket"\n'
    known = Provenance(token, "toy", "lora", "pocket", "1f", 300, {"1.png": "ab"}, recipe)
    return Concept(tuple(parts), known)


def same(one: Concept, other: Concept) -> bool:
    assert [(p.kind, dict(p.settings)) for p in one.parts] == [
        (p.kind, dict(p.settings)) for p in other.parts
    ]
    pairs = list(zip(one.parts, other.parts, strict=True))
    assert all(a.tensors.keys() == b.tensors.keys() for a, b in pairs)
    tensors = [(a.tensors[name], b.tensors[name]) for a, b in pairs for name in a.tensors]
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in tensors)


WRITTEN = [(Kohya, ".safetensors"), (DiffusersLora, ".safetensors"), (DiffusersLora, "")]


@pytest.mark.parametrize(("layout", "ending"), WRITTEN)
@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_written_comes_back(
    layout: Any, ending: str, xl: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    concept = pivotal(xl=xl)
    for part in concept.parts:
        for name, tensor in dict(part.tensors).items():
            if not name.endswith("alpha"):
                part.tensors[name] = tensor.to(dtype)  # pyright: ignore[reportIndexIssue]
    out = tmp_path / f"toy{ending}"
    layout().write(concept, Target(out))
    again = Concept.load(out)
    assert same(again, concept)
    assert again.provenance == concept.provenance
    assert not same(again, pivotal(xl=xl))  # the control: other numbers
    # From there through the other layout, and the alias of DreamBooth's kind kept beside.
    parts = (Alias("<my toy>", "sks toy").part(), *again.parts[1:])
    other = Kohya() if layout is DiffusersLora else DiffusersLora()
    other.write(Concept(parts, again.provenance), Target(tmp_path / "there.safetensors"))
    assert same(Concept.load(tmp_path / "there.safetensors"), Concept(parts, again.provenance))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_products_come_back_from_kohya_alone(kind: str, tmp_path: Path) -> None:
    shapes = {
        "loha": {"hada_w1_a": (320, 4), "hada_w1_b": (4, 768), "hada_w2_a": (320, 4)}
        | {"hada_w2_b": (4, 768)},
        "lokr": {"lokr_w1": (16, 24), "lokr_w2_a": (20, 4), "lokr_w2_b": (4, 32)},
    }[kind]
    tensors = {f"{TO_K}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    tensors[f"{TO_K}.alpha"] = torch.tensor(2.0)
    part = change("denoiser", kind, a=tensors)
    concept = Concept((part,), Provenance.foreign("toy", {}))
    Kohya().write(concept, Target(out := tmp_path / "toy.safetensors"))
    assert same(Concept.load(out), concept)
    said = read_safetensors(out)[1]
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"  # by 24 x 32 or 768
    assert said["ss_network_module"] == "lycoris.kohya"
    assert json.loads(said["ss_network_args"])["algo"] == kind
    with pytest.raises(ConceptError, match=rf"kind {kind}, .*\nhint: .*--format kohya or pinxit"):
        DiffusersLora().write(concept, Target(tmp_path / "x.safetensors"))
    oft = change("denoiser", "oft", a={f"{TO_K}.oft_R.weight": torch.zeros(4, 6)})
    for layout in (Kohya(), DiffusersLora()):
        with pytest.raises(
            ConceptError, match=r"kind oft, .*\nhint: write it with --format pinxit"
        ):
            layout.write(Concept((oft,), concept.provenance), Target(tmp_path / "x.safetensors"))


def test_kohyas_metadata(tmp_path: Path) -> None:
    Kohya().write(pivotal(), Target(out := tmp_path / "my-toy.safetensors"))
    tensors, said = read_safetensors(out)
    assert said["ss_base_model_version"] == "sd_v1"  # what A1111's badge is made of
    assert said["ss_v2"] == "False"
    assert said["ss_output_name"] == "my-toy"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert (said["ss_steps"], said["ss_num_train_images"]) == ("300", "1")
    assert said["modelspec.trigger_phrase"] == "<toy>"
    assert json.loads(said["ss_network_args"]) == {"algo": "lora", "dora_wd": "True"}
    assert "bundle_emb.<toy>.string_to_param.*" in tensors
    Kohya().write(pivotal(xl=True), Target(out := tmp_path / "big.safetensors"))
    tensors, said = read_safetensors(out)
    assert said["ss_base_model_version"].startswith("sdxl_")
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    names = {name.split("_attn2")[0] for name in tensors if "attn2" in name}
    assert names == {"lora_unet_input_blocks_1_1_transformer_blocks_0"}
    assert {"bundle_emb.<toy>.clip_l", "bundle_emb.<toy>.clip_g"} <= tensors.keys()
    plain = Concept((change("denoiser", a=layer(TO_K, 320, 1024)),), Provenance.foreign("toy", {}))
    Kohya().write(plain, Target(out := tmp_path / "plain.safetensors"))
    said = read_safetensors(out)[1]
    assert (said["ss_v2"], said["ss_base_model_version"]) == ("True", "sd_v2")
    assert (said["ss_network_module"], said["ss_network_args"]) == ("networks.lora", "{}")
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2.0")


def saved(path: Path, tensors: dict[str, Tensor], said: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, said)
    return path


def only(concept: Concept) -> dict[str, Tensor]:
    (part,) = concept.parts
    return dict(part.tensors)


def test_others_words_are_kept(tmp_path: Path) -> None:
    said = {"ss_base_model_version": "sdxl_base_v1-0", "ss_steps": "900", "ss_seed": "7"}
    tensors = {f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}
    concept = Concept.load(
        saved(tmp_path / "theirs.safetensors", tensors, {**said, "format": "pt"})
    )
    assert (concept.token, concept.provenance.steps) == ("theirs", 900)
    assert concept.provenance.told == said
    Kohya().write(concept, Target(out := tmp_path / "back.safetensors"))
    back, told = read_safetensors(out)
    assert {name: told[name] for name in said} == said
    assert any(name.startswith("lora_unet_input_blocks_1_1_") for name in back)  # as it says: XL
    # Without our own description nothing is lost but where it is from.
    bare = Concept.load(saved(tmp_path / "bare.safetensors", back))
    assert torch.equal(only(bare)[f"{TO_K}.lora_A.weight"], A)
    # A file that someone merged others into is what it holds, whatever we once said of it.
    merged = back | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": A}
    merged |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": B}
    found = Concept.load(saved(tmp_path / "merged.safetensors", merged, {CARRIED: told[CARRIED]}))
    assert [part.settings["target"] for part in found.parts] == ["text", "denoiser"]


# A layer's name in kohya's files, and in its network.
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
unet_output_blocks_2_1_ff up_blocks.0.attentions.2.ff
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
    held = only(Concept.load(saved(tmp_path / "x.safetensors", tensors)))
    assert {key.removesuffix(".alpha") for key in held if "alpha" in key} == {name}


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
def test_names_that_diffusers_has_had(down: str, name: str, tmp_path: Path) -> None:
    up = down.replace("lora_A", "lora_B").replace(".down.", ".up.")
    found = Concept.load(saved(tmp_path / "x.safetensors", {down: A, up: B}))
    target = "text" if "text" in down else "denoiser"
    assert found.parts[0].settings == {"target": target, "kind": "lora"}
    assert torch.equal(only(found)[f"{name}.lora_A.weight"], A)
    assert torch.equal(only(found)[f"{name}.lora_B.weight"], B)
    assert float(only(found)[f"{name}.alpha"]) == 4.0


@pytest.mark.parametrize(
    ("alpha", "counted"),
    [
        (None, 4.0),
        (0.0, 4.0),
        (1.5, 1.5),
        (torch.tensor([3]), 3.0),
        (torch.tensor(0.5).half(), 0.5),
    ],
)
def test_alpha(alpha: Any, counted: float, tmp_path: Path) -> None:
    tensors = {f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}
    if alpha is not None:
        tensors[f"{UNDER}.alpha"] = torch.as_tensor(alpha)
    found = only(Concept.load(saved(tmp_path / "x.safetensors", tensors)))[f"{TO_K}.alpha"]
    assert (found.shape, found.dtype, float(found)) == ((), torch.float32, counted)


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ({"unet.r": 4, "unet.lora_alpha": 6}, 6.0),
        ({"unet.r": 4}, 8.0),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn2.to_k": 3, "to_q": 9}}, 3.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {f"^{TO_K}": 5}}, 5.0),
        ({"text_encoder.lora_alpha": 2}, 4.0),
    ],
)
def test_what_diffusers_files_tell_of_alpha(
    told: dict[str, Any], counted: float, tmp_path: Path
) -> None:
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    file = saved(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(told)})
    assert float(only(Concept.load(file))[f"{TO_K}.alpha"]) == counted


def test_a_pickle_and_a_folder_of_a_pivotal_run(tmp_path: Path) -> None:
    torch.save({f"{UNDER}.lora_down.weight": A, f"{UNDER}.lora_up.weight": B}, tmp_path / "x.pt")
    assert torch.equal(only(Concept.load(tmp_path / "x.pt"))[f"{TO_K}.lora_B.weight"], B)
    folder = tmp_path / "learned"
    folder.mkdir()
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    saved(folder / "pytorch_lora_weights.safetensors", tensors)
    saved(folder / "learned_emb.safetensors", {"clip_l": A[:2], "clip_g": torch.ones(2, 1280)})
    found = Concept.load(folder)
    assert [part.kind for part in found.parts] == ["new-word", "lora"]
    assert torch.equal(found.parts[0].tensors["text"], A[:2])
    assert set(found.parts[0].tensors) == {"text", "text_2"}


# Files that are wrong.


def kohyas(**changed: Tensor | None) -> dict[str, Tensor]:
    """A good layer but for some of its tensors, `_` for `.` in their names."""
    held: dict[str, Tensor | None] = {"lora_down_weight": A, "lora_up_weight": B, **changed}
    return {
        f"{UNDER}.{n.replace('_weight', '.weight')}": t for n, t in held.items() if t is not None
    }


NUMBER = torch.tensor
WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "no partner": (kohyas(lora_up_weight=None), "has lora_A.weight"),
    "other ranks": (kohyas(lora_up_weight=B[:, :3]), r"do not match: .*lora_B.weight \(320, 3\)"),
    "a row": (kohyas(lora_down_weight=A[0]), r"do not match: .*lora_A.weight \(768,\)"),
    "one number": (kohyas(lora_up_weight=NUMBER(1.0)), r"do not match: .*lora_B.weight \(\)"),
    "no rank": (kohyas(lora_down_weight=A[:0], lora_up_weight=B[:, :0]), "do not match"),
    "whole numbers": (kohyas(lora_down_weight=A.long()), "do not match"),
    "alpha is no number": (kohyas(alpha=NUMBER(float("nan"))), "an alpha of nan"),
    "infinite alpha": (kohyas(alpha=NUMBER(float("-inf"))), "an alpha of -inf"),
    "huge alpha": (kohyas(alpha=NUMBER(1e30)), r"an alpha of 1e\+30"),
    "two alphas": (kohyas(alpha=torch.ones(2)), r"do not match: alpha \(2,\)"),
    "other kinds": (kohyas(hada_w1_a=B), "has hada_w1_a, lora_A.weight, lora_B.weight"),
    "by what it takes in": (kohyas(dora_scale=A[:1]), r"scales for what it takes in, \(1, 768\)"),
    "few scales": (kohyas(dora_scale=torch.ones(7, 1)), "do not match"),
    "a lone scale": (kohyas(dora_scale=NUMBER(1.0)), "do not match"),
    "a wrong middle": (kohyas(lora_mid_weight=torch.ones(4, 9, 3, 3)), "has lora_A.weight, lora_B"),
    "a strange tensor": (kohyas(oft_blocks=A), "oft_blocks`, which is no layer's"),
    "strange beside": (kohyas() | {"epoch": A}, "`epoch`, which is no layer's"),
    "SD 3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.alpha": A}, "no U-Net and no CLIP has"),
    "a name to match for": ({f"lora_unet_{'to_q_' * 99}x.alpha": A}, "no U-Net and no CLIP has"),
    "a word of one number": (kohyas() | {"bundle_emb.x.clip_l": NUMBER(1.0)}, "no word's vectors"),
    "two words in one": (
        kohyas() | {"bundle_emb.x.clip_l": A, "bundle_emb.x.clip_g": A[:1]},
        "no word's vectors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_files_are_refused(what: str, tmp_path: Path) -> None:
    tensors, why = WRONG[what]
    file = saved(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ConceptError, match=rf"x\.safetensors.*{why}"):
        Concept.load(file)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("[1]", "is no table"),
        ("{", "is no table"),
        ("[" * 100_000, "is no table"),
        ('{"unet.lora_alpha": "x"}', "an alpha of nan"),
        ('{"unet.lora_alpha": NaN}', "an alpha of nan"),
        ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "an alpha of nan"),
    ],
)
def test_wrong_settings_are_refused(told: str, why: str, tmp_path: Path) -> None:
    tensors = {f"unet.{TO_K}.lora_A.weight": A, f"unet.{TO_K}.lora_B.weight": B}
    file = saved(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": told})
    with pytest.raises(ConceptError, match=rf"x\.safetensors.*{why}"):
        Concept.load(file)


def test_names_that_go_on_for_ever_take_no_time(tmp_path: Path) -> None:
    for key in (f"lora_unet_{'down_' * 100_000}.alpha", f"{'a.lora' * 100_000}.lora_A.weight"):
        file = saved(tmp_path / "x.safetensors", {key: A})
        with pytest.raises(ConceptError):
            Concept.load(file)


# What cannot be written, or not there.


def test_other_layouts_refuse_it(tmp_path: Path) -> None:
    concept = pivotal()
    for layout, ending in ((EmbParams(), ".safetensors"), (SingleFile(), ".safetensors")):
        with pytest.raises(ConceptError, match=r"\nhint: .*kohya"):
            layout.write(concept, Target(tmp_path / f"x{ending}"))
    with pytest.raises(ConceptError, match=r"\nhint: .*diffusers-lora"):
        Diffusers().write(concept, Target(tmp_path / "x"))
    with pytest.raises(ConceptError, match="bit for bit"):
        Kohya().write(concept, Target(tmp_path / "x.safetensors", numbers="fp16"))
    third = change("denoiser", a=layer("transformer_blocks.0.attn.to_q", 8, 8))
    with pytest.raises(ConceptError, match=r"no name for .*attn.to_q.*\nhint: .*diffusers-lora"):
        Kohya().write(Concept((third,), concept.provenance), Target(tmp_path / "x.safetensors"))
    words = (*concept.parts, Part("new-word", {"word": "b", "stand_in": "a"}, {"text": A}))
    with pytest.raises(ConceptError, match=r"2 words.*\nhint: .*kohya"):
        DiffusersLora().write(Concept(words, concept.provenance), Target(tmp_path / "x"))
    assert not list(tmp_path.iterdir())
    Pinxit().write(concept, Target(tmp_path / "x.safetensors"))
    assert same(Concept.load(tmp_path / "x.safetensors"), concept)


def test_sd3_in_diffusers_layout(tmp_path: Path) -> None:
    third = change("denoiser", a=layer("transformer_blocks.0.attn.to_q", 8, 8))
    concept = Concept((third,), Provenance.foreign("toy", {}))
    DiffusersLora().write(concept, Target(out := tmp_path / "toy.safetensors"))
    assert {name.split(".")[0] for name in read_safetensors(out)[0]} == {"transformer"}
    assert same(Concept.load(out), concept)


def test_a_lora_of_another_kind_of_base(opened: Callable[[str], Model], tmp_path: Path) -> None:
    Kohya().write(pivotal(xl=True), Target(tmp_path / "toy.safetensors"))
    changes = Concept(Concept.load(tmp_path / "toy.safetensors").parts[1:], pivotal().provenance)
    for family in ("nano", "stable-diffusion-1"):
        model = opened(family)
        with pytest.raises(ConceptError, match=rf"{model.name}.*\nhint: .*kind of base"):
            changes.adapters(model)


# The command line.


def test_what_inspect_says_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Kohya().write(pivotal(), Target(file := tmp_path / "toy.safetensors"))
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    for line in (
        "format      kohya: ",
        "adapter     dora beside 2 layers of `denoiser`, 4,984 weights, float32",
        "rank        2 to 4, alpha 0.1 to 2",
        "fits        Stable Diffusion 1.x",
        "adapter     lora beside 1 layers of `text`",
        "rank        3, alpha 2",
        "origin      lora, 300 steps, 1 pictures, base pocket",
        f"--concept {file}, or {file}:0.7 for less of it",
        "suspicious  nothing",
    ):
        assert line in said
    Kohya().write(pivotal(xl=True), Target(file))
    assert main(["inspect", str(file)]) == 0
    assert "fits        Stable Diffusion 1.x" not in capsys.readouterr().out
    theirs = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}", "ss_sd_model_name": "b"}
    saved(file, kohyas(alpha=NUMBER(1.0)), theirs)
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert "origin      ss_base_model_version sd_v1, ss_sd_model_name b\n" in said


@pytest.mark.parametrize(
    ("out", "name"), [("a.safetensors", "kohya"), ("b", "diffusers-lora"), ("c.safetensors", "")]
)
def test_convert(out: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pinxit().write(pivotal(), Target(file := tmp_path / "toy.safetensors"))
    chosen = [] if name else ["--format", "diffusers-lora"]
    assert main(["convert", str(file), str(tmp_path / out), *chosen]) == 0
    assert f"written as {name or 'diffusers-lora'}" in capsys.readouterr().err
    assert same(Concept.load(tmp_path / out), Concept.load(file))
