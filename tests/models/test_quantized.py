"""Scales beside weights, in the spellings and shapes of the programs that write them."""

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
        (("x.weight_scale", "x.weight_scale_2"), "NVFP4"),
        (("x.qweight", "x.qzeros"), "GPTQ or AWQ"),
        (("x.weight_packed", "x.weight_scale"), "packed integer weights"),
        (("x.wscales",), "SVDQuant"),
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
