"""LoRAs of FLUX.1, Chroma and Z-Image in the names of other programs, with diffusers as reader."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LayerGroup, LoraConfig, LoraPart, LoraVariant
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import write_in_format
from pinxit.concepts.format import Target
from pinxit.concepts.formats.comfyui import Comfyui
from pinxit.concepts.formats.diffusers_lora import DiffusersLora
from pinxit.concepts.joined_lora import original_layers
from pinxit.concepts.layer_names import joined_layers
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.programs import outcomes
from pinxit.concepts.read import read_concept, recognize_format
from pinxit.errors import ConceptError
from pinxit.files.open_any import open_any
from pinxit.models.joined_layers import LayerTable
from pinxit.models.model import Model
from tests.oracle.original_layers import to_original

WIDTH = 3072  # diffusers' converters know only the full size
RANK = 2
# Outputs of the layers in units of WIDTH, by their names in the authors' code.
DOUBLE = {"img_attn.qkv": 3, "img_attn.proj": 1, "txt_attn.qkv": 3, "txt_attn.proj": 1}
DOUBLE |= {"img_mlp.0": 4, "txt_mlp.0": 4, "img_mod.lin": 6, "txt_mod.lin": 6}
SINGLE = {"linear1": 7, "linear2": 1, "modulation.lin": 3}
FLUX = {f"double_blocks.0.{name}": count for name, count in DOUBLE.items()}
FLUX |= {f"single_blocks.0.{name}": count for name, count in SINGLE.items()}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": 3,
    "double_blocks.0.processor.proj_lora1": 1,
    "double_blocks.0.processor.qkv_lora2": 3,
    "double_blocks.0.processor.proj_lora2": 1,
    "single_blocks.0.processor.qkv_lora": 3,
}


def factors(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down = torch.randn(RANK, WIDTH, generator=generator)
    return down, torch.randn(count * WIDTH, RANK, generator=generator)


def tensors_of(layers: dict[str, int], scheme: str) -> dict[str, Tensor]:
    generator, tensors = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, count in layers.items():
        down, up = factors(count, generator)
        if scheme == "kohya":
            path = "lora_unet_" + name.replace(".", "_")
            tensors |= {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}
            tensors[f"{path}.alpha"] = torch.tensor(4.0)
        elif scheme == "xlabs":
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
        else:
            path = f"diffusion_model.{name}"
            tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    return tensors


def change(down: Tensor, up: Tensor) -> Tensor:
    """What a layer's change makes of one input; whole changes would be large."""
    return up @ (down @ torch.linspace(-1, 1, WIDTH))


def lora_of(concept: Concept) -> LoraPart:
    (part,) = (part for part in concept.parts if isinstance(part, LoraPart))
    return part


def changes(concept: Concept) -> dict[str, Tensor]:
    """The change of each layer."""
    part = lora_of(concept)
    return {
        name: change(t["lora_A.weight"], t["lora_B.weight"]) * (float(t["alpha"]) / RANK)
        for name, t in part.layers.items()
    }


@pytest.mark.parametrize(
    ("scheme", "layers"), [("kohya", FLUX), ("comfyui", FLUX), ("xlabs", XLABS)]
)
def test_foreign_names_are_read_as_diffusers_reads_them(
    scheme: str, layers: dict[str, int], tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    tensors = tensors_of(layers, scheme)
    save_file(tensors, file)
    # diffusers reads the names of ComfyUI only as those of kohya.
    known = tensors_of(layers, "kohya") if scheme == "comfyui" else tensors
    if scheme == "comfyui":
        known = {name: tensor for name, tensor in known.items() if not name.endswith("alpha")}
    theirs: Any = diffusers.FluxPipeline.lora_state_dict(dict(known))
    expected = {
        name.removesuffix(".lora_A.weight").removeprefix("transformer."): change(
            down, theirs[name.replace("lora_A", "lora_B")]
        )
        for name, down in theirs.items()
        if name.endswith("lora_A.weight")
    }
    ours = changes(read_concept(file))
    assert ours.keys() == expected.keys()
    for name, output in ours.items():
        assert torch.allclose(output, expected[name], rtol=1e-4, atol=1e-3), name
    query, key = (f"transformer_blocks.0.attn.to_{letter}" for letter in "qk")
    assert not torch.allclose(ours[query], expected[key], rtol=1e-4, atol=1e-3)


def test_joined_layers_of_z_image(tmp_path: Path) -> None:
    down, up = factors(3, torch.Generator().manual_seed(0))
    file = tmp_path / "lora.safetensors"
    path = "lora_unet_layers_7_attention_qkv"
    save_file({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, file)
    ours = changes(read_concept(file))
    assert list(ours) == [f"layers.7.attention.to_{letter}" for letter in "qkv"]
    assert torch.allclose(torch.cat(list(ours.values())), change(down, up), rtol=1e-4, atol=1e-3)


def test_a_change_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lokr.safetensors"
    path = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{path}.lokr_w1": torch.ones(2, 2), f"{path}.lokr_w2": torch.ones(6, 2)}, file)
    with pytest.raises(ConceptError, match="cannot be divided"):
        read_concept(file)


def trained(model: Model, variant: LoraVariant, layers: LayerGroup = "attention") -> Concept:
    """A concept with an adapter whose weights are all random, of rank 2 and alpha 3."""
    adapter = LoraAdapter.of(model, "denoiser", LoraConfig(variant, 2, 3.0, layers), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return Concept((adapter.part(),), Provenance.from_metadata("toy", {}))


def tensors_in(concept: Concept) -> dict[str, Tensor]:
    return {f"{p.key}.{name}": tensor for p in concept.parts for name, tensor in p.tensors.items()}


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in ("kohya", "comfyui", "peft") for variant in ("lora", "dora")]
    + [("kohya", "loha"), ("kohya", "lokr"), ("diffusers-lora", "lora")],
)
@pytest.mark.parametrize("family", ["chroma", "flux-1", "z-image"])
def test_written_files_are_read_to_the_bit(
    family: str,
    name: str,
    variant: LoraVariant,
    opened: Callable[[str], Model],
    tmp_path: Path,
) -> None:
    concept = trained(opened(family), variant, "transformer")
    out = tmp_path / ("lora" if name == "peft" else "lora.safetensors")
    write_in_format(concept, Target(out), name)
    assert registry.name_of(type(recognize_format(open_any(out)))) == name
    again = tensors_in(read_concept(out))
    expected = tensors_in(concept)
    assert again.keys() == expected.keys()
    # A LoKr of two whole factors has no rank, and its alpha no effect.
    keys = {key for key in expected if variant != "lokr" or not key.endswith("alpha")}
    assert all(torch.equal(again[key], expected[key]) for key in keys)


def full_size(family: str) -> Concept:
    """A LoRA with the layers and outputs of the full size, of attention and single blocks."""
    chroma = {name: count for name, count in FLUX.items() if "mod" not in name}
    names = {
        "chroma": chroma,
        "flux-1": FLUX,
        "z-image": {f"layers.0.attention.{n}": c for n, c in Z_IMAGE.items()},
    }
    table = LayerTable(registry.load("families", family).facts.original_layers)
    layers: dict[str, dict[str, Tensor]] = {}
    width = 3840 if family == "z-image" else WIDTH
    generator = torch.Generator().manual_seed(0)
    for name in names[family]:
        for layer, outputs in table.parts(name):
            count = names[family][name] if len(table.parts(name)) == 1 else outputs
            down = torch.randn(RANK, width, generator=generator)
            up = torch.randn(count * width, RANK, generator=generator)
            alpha = torch.tensor(4.0)
            layers[layer] = {"lora_A.weight": down, "lora_B.weight": up, "alpha": alpha}
    return Concept((LoraPart("denoiser", "lora", layers),), Provenance.from_metadata("toy", {}))


Z_IMAGE = {"qkv": 3, "out": 1}


@pytest.mark.parametrize(
    ("family", "pipeline", "name"),
    [
        ("chroma", diffusers.ChromaPipeline, "kohya"),
        ("flux-1", diffusers.FluxPipeline, "kohya"),
        ("flux-1", diffusers.FluxPipeline, "diffusers-lora"),
        ("z-image", diffusers.ZImagePipeline, "diffusers-lora"),
    ],
)
def test_diffusers_reads_the_full_size_as_it_was_trained(
    family: str, pipeline: Any, name: str, tmp_path: Path
) -> None:
    concept, out = full_size(family), tmp_path / "lora.safetensors"
    write_in_format(concept, Target(out), name)
    theirs: Any = pipeline.lora_state_dict(load_file(out))
    scale = 2.0 if name == "diffusers-lora" else 1.0  # alpha is in the metadata
    width = 3840 if family == "z-image" else WIDTH
    probe = torch.linspace(-1, 1, width)
    for layer, tensors in lora_of(concept).layers.items():
        ours = tensors["lora_B.weight"] @ (tensors["lora_A.weight"] @ probe) * 2
        path = f"transformer.{layer}.lora"
        read = theirs[f"{path}_B.weight"] @ (theirs[f"{path}_A.weight"] @ probe) * scale
        assert torch.allclose(ours, read, rtol=1e-4, atol=1e-2), layer


def test_joined_layers_are_those_of_comfyui_and_kohya(tmp_path: Path) -> None:
    """The keys that both programs look for, and what their formula makes of them."""
    concept = full_size("flux-1")
    for name, prefix, up in (
        ("kohya", "lora_unet_", "lora_up.weight"),
        ("comfyui", "diffusion_model.", "lora_B.weight"),
    ):
        out = tmp_path / f"{name}.safetensors"
        write_in_format(concept, Target(out), name)
        written = load_file(out)
        layer = "single_blocks.0.linear1"
        path = prefix + (layer.replace(".", "_") if name == "kohya" else layer)
        assert written[f"{path}.{up}"].shape == (7 * WIDTH, 4 * RANK)
        assert float(written[f"{path}.alpha"]) == 16
        names = {key.removeprefix(prefix).split(".lora")[0].split(".alpha")[0] for key in written}
        spelled = {n.replace(".", "_") if name == "kohya" else n for n in FLUX}
        assert names == spelled


def read_by_comfyui(file: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that ComfyUI has after loading a LoRA, by the facts of its key map and formula.

    Each weight of the authors' code has two names; alpha is divided by the number of rows of the
    down factor; other keys are left out.
    """
    tensors, changed = load_file(file), dict(weights)
    used: set[str] = set()
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        for path, (down, up) in {
            f"diffusion_model.{layer}": ("lora_A.weight", "lora_B.weight"),
            f"lora_unet_{layer.replace('.', '_')}": ("lora_down.weight", "lora_up.weight"),
        }.items():
            if f"{path}.{up}" in tensors:
                a, b = tensors[f"{path}.{down}"], tensors[f"{path}.{up}"]
                alpha = float(tensors[f"{path}.alpha"]) if f"{path}.alpha" in tensors else len(a)
                changed[name] = weight + b @ a * (alpha / len(a))
                used |= {f"{path}.{end}" for end in (down, up, "alpha")}
    assert tensors.keys() <= used
    return changed


@pytest.mark.parametrize("family", ["chroma", "flux-1", "z-image"])
def test_comfyui_has_the_same_weights(
    family: str, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    """As the table of programs says; the control is a file without alphas."""
    model = opened(family)
    concept = trained(model, "lora", "transformer")
    table = LayerTable(model.facts.original_layers)

    def original() -> dict[str, Tensor]:
        state = model.networks["denoiser"].state_dict()
        weights = {n: t.detach().clone() for n, t in state.items() if n.endswith(".weight")}
        return to_original(table, weights)

    base = original()
    with applied(model, concept.adapters(model)):
        expected = original()
    for name in ("comfyui", "kohya"):
        assert outcomes(name, ".safetensors", concept)["ComfyUI"] == "exact"
        write_in_format(concept, Target(file := tmp_path / f"{name}.safetensors"), name)
        actual = read_by_comfyui(file, base)
        assert all(torch.allclose(actual[n], t, atol=1e-6) for n, t in expected.items())
    tensors = load_file(tmp_path / "kohya.safetensors")
    without = {n: t for n, t in tensors.items() if not n.endswith("alpha")}
    save_file(without, tmp_path / "without.safetensors")
    actual = read_by_comfyui(tmp_path / "without.safetensors", base)
    assert not all(torch.allclose(actual[n], t, atol=1e-6) for n, t in expected.items())


def test_what_cannot_be_joined_is_refused(opened: Callable[[str], Model], tmp_path: Path) -> None:
    concept = trained(opened("flux-1"), "lora")
    part = lora_of(concept)
    query = next(layer for layer in part.layers if layer.endswith("to_q"))
    layers = {**part.layers, query: {**part.layers[query], "alpha": torch.tensor(1.0)}}
    other = replace(concept, parts=(LoraPart("denoiser", "lora", layers),))
    with pytest.raises(ConceptError, match="different ranks or alphas"):
        Comfyui().write(other, Target(tmp_path / "lora.safetensors"))
    without = {name: tensors for name, tensors in part.layers.items() if name != query}
    other = replace(concept, parts=(LoraPart("denoiser", "lora", without),))
    Comfyui().write(other, Target(tmp_path / "lora.safetensors"))
    assert (
        tensors_in(read_concept(tmp_path / "lora.safetensors")).keys() == tensors_in(other).keys()
    )


def test_names_of_xlabs_are_written_and_read_to_the_bit(
    opened: Callable[[str], Model], tmp_path: Path
) -> None:
    """x-flux loads a block's layers with `load_state_dict`, all with the rank of the first one."""
    part = lora_of(trained(opened("flux-1"), "lora"))
    layers = {name: {**t, "alpha": torch.tensor(2.0)} for name, t in part.layers.items()}
    first = "transformer_blocks.0.attn."
    del layers[f"{first}to_add_out"], layers[f"{first}to_k"]
    low = layers[f"{first}to_out.0"]
    one = {"lora_A.weight": low["lora_A.weight"][:1], "lora_B.weight": low["lora_B.weight"][:, :1]}
    layers[f"{first}to_out.0"] = {**one, "alpha": torch.tensor(1.0)}
    provenance = Provenance.from_metadata("toy", {})
    concept = Concept((LoraPart("denoiser", "lora", layers),), provenance)
    write_in_format(concept, Target(out := tmp_path / "lora.safetensors"), "xlabs")
    assert registry.name_of(type(recognize_format(open_any(out)))) == "xlabs"
    again = tensors_in(read_concept(out))
    assert again.keys() == tensors_in(concept).keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors_in(concept).items())
    written = load_file(out)
    double, single = (
        {".".join(name.split(".")[3:-2]) for name in written if name.startswith(kind)}
        for kind in ("double_blocks.0.processor.", "single_blocks.0.processor.")
    )
    assert double == {"qkv_lora1", "proj_lora1", "qkv_lora2", "proj_lora2"}
    assert single == {"qkv_lora", "proj_lora"}
    downs = [tensor for name, tensor in written.items() if name.endswith("down.weight")]
    assert {len(down) for down in downs} == {6}
    assert len(written) == 2 * len(downs)
    theirs: Any = diffusers.FluxPipeline.lora_state_dict(dict(written))
    for layer, tensors in layers.items():
        path = f"transformer.{layer}.lora"
        read = theirs[f"{path}_B.weight"] @ theirs[f"{path}_A.weight"]
        assert torch.allclose(read, tensors["lora_B.weight"] @ tensors["lora_A.weight"], atol=1e-6)


def test_files_of_xlabs_keep_their_tensors(tmp_path: Path) -> None:
    tensors = tensors_of(XLABS, "xlabs")
    save_file(tensors, source := tmp_path / "lora.safetensors")
    write_in_format(read_concept(source), Target(out := tmp_path / "again.safetensors"), "xlabs")
    written = load_file(out)
    assert all(torch.equal(written.pop(name), tensor) for name, tensor in tensors.items())
    assert {name: bool(t.any()) for name, t in written.items()} == {
        f"single_blocks.0.processor.proj_lora.{end}.weight": False for end in ("down", "up")
    }


def test_xlabs_has_no_alpha_and_only_layers_of_attention(
    opened: Callable[[str], Model], tmp_path: Path
) -> None:
    concept = trained(opened("flux-1"), "lora")  # with an alpha that is not the rank
    write_in_format(concept, Target(out := tmp_path / "lora.safetensors"), "xlabs")
    assert not any("alpha" in name for name in load_file(out))
    for family, layer in (("flux-1", "ff"), ("z-image", "attention")):
        other = trained(opened(family), "lora", "transformer")
        with pytest.raises(ConceptError, match=rf"no name for the layer `\S*{layer}") as error:
            write_in_format(other, Target(tmp_path / "other.safetensors"), "xlabs")
        assert "--format diffusers-lora" in error.value.hint
    narrow = trained(opened("stable-diffusion-3"), "lora")
    layers = {n: t for n, t in lora_of(narrow).layers.items() if ".attn." in n}
    other = replace(narrow, parts=(LoraPart("denoiser", "lora", layers),))
    with pytest.raises(ConceptError, match=r"but FLUX\.1 has 3072"):
        write_in_format(other, Target(tmp_path / "other.safetensors"), "xlabs")


def test_a_file_with_another_change_is_not_accepted(
    opened: Callable[[str], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept, write = trained(opened("flux-1"), "lora"), Comfyui.write

    def without_alpha(self: Comfyui, concept: Concept, target: Target) -> None:
        write(self, concept, target)
        tensors = load_file(target.out)
        save_file({n: t for n, t in tensors.items() if not n.endswith("alpha")}, target.out)

    monkeypatch.setattr(Comfyui, "write", without_alpha)
    with pytest.raises(ConceptError, match="was written, but has another change of the layer"):
        write_in_format(concept, Target(tmp_path / "lora.safetensors"), "comfyui")


@pytest.mark.parametrize(
    ("family", "pipeline"), [("chroma", "Chroma"), ("flux-1", "Flux"), ("z-image", "ZImage")]
)
def test_diffusers_loads_what_is_written(
    family: str,
    pipeline: str,
    opened: Callable[[str], Model],
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = opened(family)
    concept = trained(model, "lora")
    DiffusersLora().write(concept, Target(tmp_path / "lora"))
    pipe = getattr(diffusers, f"{pipeline}Pipeline").from_pretrained(bases(family))
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    theirs = {name: weight.detach() for name, weight in pipe.transformer.named_parameters()}
    plain = {n: w.detach().clone() for n, w in model.networks["denoiser"].named_parameters()}
    with applied(model, read_concept(tmp_path / "lora").adapters(model)):
        network = model.networks["denoiser"]
        ours = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    changed = [name for name in ours if not torch.equal(ours[name], plain[name])]
    assert len(changed) == len(lora_of(concept).layers)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_kohya_layers_of_stable_diffusion_3(opened: Callable[[str], Model], tmp_path: Path) -> None:
    """Each change is that of diffusers' own conversion of a checkpoint with Stability's names."""
    from diffusers.loaders.single_file_utils import (
        convert_sd3_transformer_checkpoint_to_diffusers,
    )

    from tests.oracle.ldm_names import mmdit

    model = opened("stable-diffusion-3")
    state = model.networks["denoiser"].state_dict()
    layers = model.networks["denoiser"].config.num_layers
    original = {
        name.removeprefix("model.diffusion_model."): tensor
        for name, tensor in mmdit(state, layers).items()
    }
    generator = torch.Generator().manual_seed(0)
    tensors, changes = dict[str, Tensor](), {n: torch.zeros_like(t) for n, t in original.items()}
    for name, weight in original.items():
        if not name.startswith("joint_blocks") or weight.ndim != 2:
            continue
        down = torch.randn(RANK, weight.shape[1], generator=generator)
        up = torch.randn(len(weight), RANK, generator=generator)
        path = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        tensors |= {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}
        tensors[f"{path}.alpha"] = torch.tensor(float(RANK))
        changes[name] = up @ down
    save_file(tensors, tmp_path / "foreign.safetensors")
    expected = convert_sd3_transformer_checkpoint_to_diffusers(
        {f"model.diffusion_model.{name}": tensor for name, tensor in changes.items()}
    )
    concept = read_concept(tmp_path / "foreign.safetensors")
    read = lora_of(concept).layers
    trained_names = {n.removesuffix(".weight") for n, t in expected.items() if t.any()}
    assert read.keys() == trained_names
    for layer, values in read.items():
        change = values["lora_B.weight"] @ values["lora_A.weight"]
        assert torch.allclose(change, expected[f"{layer}.weight"], atol=1e-5), layer
    written = original_layers(lora_of(concept), LayerTable(model.facts.original_layers))
    assert {f"{name}.weight" for name in written} == {n for n, t in changes.items() if t.any()}
    for layer, values in written.items():
        scale = float(values["alpha"]) / len(values["lora_A.weight"])
        change = values["lora_B.weight"] @ values["lora_A.weight"] * scale
        assert torch.allclose(change, changes[f"{layer}.weight"], atol=1e-5), layer


def test_every_layer_of_full_size_blocks_has_a_name_of_kohya() -> None:
    with torch.device("meta"):
        network = diffusers.SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, dual_attention_layers=tuple(range(13))
        )
    table = LayerTable(registry.load("families", "stable-diffusion-3").facts.original_layers)
    names = [
        name
        for name, layer in network.named_modules()
        if name.startswith("transformer_blocks") and isinstance(layer, torch.nn.Linear)
    ]
    assert len(names) > 24 * 13
    for name in names:
        path = f"lora_unet_{(table.original(name) or '').replace('.', '_')}"
        assert name in dict(joined_layers(path)), name
