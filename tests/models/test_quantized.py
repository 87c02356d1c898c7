"""Scales beside weights, in the spellings and shapes of the programs that write them."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit.errors import ModelError
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.quantized import dequantized

SHAPES = [(6, 4), (6, 4, 3, 3), (6, 4, 1, 1)]
GRAINS = ["tensor", "one", "row", "column of rows", "blocks"]


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 300


def scale_of(values: Tensor, grain: str, maximum: float) -> Tensor:
    rows = values.abs().flatten(1).amax(1) / maximum
    if grain == "tensor":
        return rows.max()
    if grain == "one":
        return rows.max().reshape(1)
    if grain == "row":
        return rows
    shape = [len(rows), *[1] * (values.ndim - 1)]
    if grain == "column of rows":
        return rows.reshape(shape)
    blocks = rows.reshape(3, 2).amax(1).reshape(3, *[1] * (values.ndim - 1))
    return blocks.repeat(1, 2, *[1] * (values.ndim - 2))


def spread(scale: Tensor, values: Tensor) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        return scale.reshape(-1, *[1] * (values.ndim - 1))
    for dim, size in enumerate(values.shape):
        if scale.shape[dim] > 1:
            scale = scale.repeat_interleave(size // scale.shape[dim], dim)
    return scale


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("weight_name", "scale_name"),
    [
        ("x.weight", "x.scale_weight"),
        ("x.weight", "x.weight_scale"),
        ("x.weight", "x.weight_scale_inv"),
        ("x.weight", "x.weight.scale"),
        ("x.weight._data", "x.weight._scale"),
    ],
)
def test_scales_are_applied(
    dtype: torch.dtype, grain: str, shape: tuple[int, ...], weight_name: str, scale_name: str
) -> None:
    values = weight(*shape)
    maximum = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = scale_of(values, grain, maximum)
    stored = values / spread(scale, values)
    stored = (stored.round() if dtype == torch.int8 else stored).to(dtype)
    marks = {"x.scale_input": torch.ones(()), "scaled_fp8": torch.zeros(0), "x.bias": values[0]}
    read = dequantized({weight_name: stored, scale_name: scale, **marks}, "it")
    assert read.keys() == {"x.weight", "x.bias"}
    error = (read["x.weight"].float() - values).norm() / values.norm()
    assert error < (0.02 if dtype == torch.int8 else 0.1)


def test_bitsandbytes_rows_of_eight_bits() -> None:
    values = weight(6, 4)
    rows = values.abs().amax(1)
    stored = (values / rows[:, None] * 127).round().to(torch.int8)
    read = dequantized({"x.weight": stored, "x.SCB": rows}, "it")
    assert (read["x.weight"] - values).norm() / values.norm() < 0.02


def test_weights_without_scales_stay_as_they_are() -> None:
    tensors = {
        "a.weight": weight(6, 4).to(torch.float8_e4m3fn),
        "a.norm.scale": weight(6, 4),
        "logit_scale": torch.ones(()),
        "position_ids": torch.arange(3).reshape(1, 3),
    }
    read = dequantized(tensors, "it")
    assert all(read[name] is tensor for name, tensor in tensors.items())
    assert read.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x.weight.absmax", "x.weight.quant_map"), "4-bit weights of bitsandbytes"),
        (("x.weight.quant_state.bitsandbytes__nf4",), "4-bit weights of bitsandbytes"),
        (("x.weight._data._data", "x.weight._scale"), "4-bit weights of quanto"),
        (("x.weight._scale", "x.weight._shift"), "4-bit weights of quanto"),
        (("x.weight_scale", "x.weight_scale_2"), "NVFP4"),
        (("x.qweight", "x.qzeros"), "GPTQ or AWQ"),
        (("x.weight_packed", "x.weight_scale"), "packed integer weights"),
        (("x.wscales",), "SVDQuant"),
        (("x.B", "x.s", "x.workspace"), "in Marlin's order"),
        (("x.B_24", "x.B_meta", "x.s"), "in Marlin's order"),
        (("x._weight_qdata", "x._weight_scale"), "torchao"),
        (("x.weight_qdata", "x.weight_scale"), "torchao"),
        (("x.W_q", "x.scale", "x.zero"), "HQQ, AQLM or MXFP4"),
        (("x.codes", "x.codebooks"), "HQQ, AQLM or MXFP4"),
        (("x.weight_blocks", "x.weight_scales"), "HQQ, AQLM or MXFP4"),
        ((), "without a known scale: x.weight is uint8"),
    ],
)
def test_other_formats_are_refused_by_name(names: tuple[str, ...], message: str) -> None:
    tensors = {"x.weight": torch.zeros(12, 2, dtype=torch.uint8)}
    with pytest.raises(ModelError, match=message):
        dequantized(tensors | dict.fromkeys(names, torch.ones(1)), "it")


def test_a_scale_that_does_not_fit() -> None:
    tensors = {"x.weight": weight(6, 4), "x.weight_scale": torch.ones(5)}
    with pytest.raises(ModelError, match=r"shape \(5,\) for x\.weight of shape \(6, 4\)"):
        dequantized(tensors, "it")


@pytest.mark.parametrize("size", [(192, 256), (130, 129), (384, 100)])
def test_the_last_blocks_of_a_weight_may_be_smaller(size: tuple[int, int]) -> None:
    values = weight(*size) * torch.linspace(1, 50, size[0])[:, None]
    rows, columns = (-(-side // 128) for side in size)
    scale = torch.rand(rows, columns) + torch.arange(rows)[:, None] + 0.1
    spread_out = scale.repeat_interleave(128, 0)[: size[0]].repeat_interleave(128, 1)[:, : size[1]]
    stored = (values / spread_out).to(torch.float8_e4m3fn)
    read = dequantized({"x.weight": stored, "x.weight_scale_inv": scale}, "it")["x.weight"]
    assert torch.equal(read, (stored.float() * spread_out).bfloat16())


def comfy(**layer: object) -> Tensor:
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


def scaled(values: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """A weight with one scale, and other tensors of the same layer."""
    layer = {"weight": values, "weight_scale": torch.ones(())} | others
    return {f"x.{name}": tensor for name, tensor in layer.items()}


MARKS = {
    "mxfp8": {"format": "mxfp8"},
    "hybrid_mxfp8": {"format": "hybrid_mxfp8"},
    "asym_w4a8_int8": {"format": "asym_w4a8_int8"},
    "convrot": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
    "": {"format": ""},
}


@pytest.mark.parametrize("title", MARKS)
def test_formats_of_comfyui_that_are_more_than_a_scale(title: str, tmp_path: Path) -> None:
    values = weight(6, 4).to(torch.int8)
    with pytest.raises(ModelError, match=f"the format `{title}` of ComfyUI"):
        dequantized(scaled(values, comfy_quant=comfy(**MARKS[title])), "it")
    stated = {"_quantization_metadata": json.dumps({"layers": {"x": MARKS[title]}})}
    save_file(scaled(values), tmp_path / "a.safetensors", stated)
    with pytest.raises(ModelError, match=f"the format `{title}` of ComfyUI"):
        CheckpointSource(tmp_path / "a.safetensors", "a")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2_rowwise", "int8_tensorwise"])
def test_formats_of_comfyui_that_are_a_scale(name: str) -> None:
    mark = comfy(format=name, full_precision_matrix_mult=True, convrot=False)
    assert dequantized(scaled(weight(6, 4), comfy_quant=mark), "it").keys() == {"x.weight"}


BYTES = torch.ones(6, 1, dtype=torch.uint8)
SCALES = {
    "exponents": ({"weight_scale": BYTES}, "number format uint8"),
    "an integer": ({"weight_scale": torch.ones((), dtype=torch.int32)}, "number format int32"),
    "two": ({"scale_weight": torch.ones(())}, "two scales for x.weight"),
    "an order for GPUs": ({"weight_format": BYTES[0]}, "in the order of a GPU"),
    "numbers of 4 bits": ({"other.weight": BYTES.view(torch.float4_e2m1fn_x2)}, "4-bit weights"),
}


@pytest.mark.parametrize("title", SCALES)
def test_scales_that_cannot_be_applied(title: str) -> None:
    others, message = SCALES[title]
    with pytest.raises(ModelError, match=message):
        dequantized(scaled(weight(6, 4).to(torch.float8_e4m3fn), **others), "it")


@pytest.mark.parametrize("name", ["attn.in_proj_weight", "text_projection", "class_embedding"])
def test_scales_of_weights_with_other_names(name: str) -> None:
    tensors = {name: weight(6, 4).to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(())}
    with pytest.raises(ModelError, match=f"8-bit weights with `{name}_scale`"):
        dequantized(tensors, "it")


UNKNOWN_SCALES = (
    "x.scale",
    "x.scales",
    "x.w_scale",
    "x.weight.scales",
    "x.weight.weight_scale",
    "x.weight_scaling",
    "x.weight_scale_reciprocal",
    "x.SCALE_WEIGHT",
    "x.weight_offset",
    "x.zero",
    "scales.x.weight",
    "weight_scales.x",
    "x_weight_scale",
)


@pytest.mark.parametrize("name", UNKNOWN_SCALES)
@pytest.mark.parametrize("known", [{}, {"x.weight_scale": torch.ones(())}], ids=["alone", "second"])
def test_unknown_scales_of_8_bit_weights_are_refused_by_name(
    name: str, known: dict[str, Tensor]
) -> None:
    eight_bits = {"x.weight": weight(6, 4).to(torch.float8_e4m3fn), "x.bias": torch.ones(6)}
    with pytest.raises(ModelError, match=re.escape(f"8-bit weights with `{name}`")):
        dequantized(eight_bits | known | {name: torch.ones(())}, "it")


def test_a_scale_outside_of_a_part_is_refused(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.x.weight": weight(6, 4).to(torch.float8_e4m3fn),
        "scales.x": torch.ones(()),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"8-bit weights with `scales\.x`"):
        CheckpointSource(tmp_path / "a.safetensors", "a")


@pytest.mark.parametrize(
    "name", ["norm.query_norm.scale", "norms.0.scale", "logit_scale", "scale_shift_table"]
)
def test_scales_of_the_network_itself_stay(name: str) -> None:
    tensors = {"x.weight": weight(6, 4).to(torch.float8_e4m3fn), name: torch.ones(4)}
    assert dequantized(tensors, "it").keys() == tensors.keys()
