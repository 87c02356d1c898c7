"""LoRAs of FLUX.1 and Z-Image in the names of other programs, with diffusers as reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig, LoraPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.formats.diffusers_lora import DiffusersLora
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError
from pinxit.models.model import Model

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


def changes(concept: Concept) -> dict[str, Tensor]:
    """The change of each layer."""
    (part,) = (part for part in concept.parts if isinstance(part, LoraPart))
    return {
        name: change(t["lora_A.weight"], t["lora_B.weight"]) * (float(t["alpha"]) / RANK)
        for name, t in part.layers.items()
    }


@pytest.mark.parametrize(
    ("scheme", "layers"), [("kohya", FLUX), ("comfyui", FLUX), ("xlabs", XLABS)]
)
def test_names_of_other_programs_are_read_as_diffusers_reads_them(
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


@pytest.mark.parametrize(("family", "pipeline"), [("flux-1", "Flux"), ("z-image", "ZImage")])
def test_diffusers_loads_what_is_written(
    family: str,
    pipeline: str,
    opened: Callable[[str], Model],
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = opened(family)
    adapter = LoraAdapter.of(model, "denoiser", LoraConfig("lora", 2, 3.0, "attention"), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    concept = Concept((adapter.part(),), Provenance.from_metadata("toy", {}))
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
    assert len(changed) == len(adapter.layers)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
