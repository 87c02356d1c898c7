"""Weights that are stored with scales beside them: dequantized, or refused by name."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pinxit.errors import ModelError

# The scale of `X.weight` under the names of ComfyUI, ModelOpt and vLLM, DeepSeek, torchao, quanto
# and bitsandbytes' int8.
_SCALES = (
    "scale_weight",
    "weight_scale",
    "weight_scale_inv",
    "weight.scale",
    "weight_scales",
    "weight._scale",
    "SCB",
)
# What activations are scaled with, and marks of the format: not needed for the weights.
_UNUSED = re.compile(
    r"(^|\.)(scale_input|input_scale|weight\.input_scale|output_scale|scaled_fp8|comfy_quant"
    r"|weight_format|activation_qtype|weight_qtype)$"
)
# Other formats, by a tensor that each of them has.
_OTHERS = {
    r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.": "4-bit weights of bitsandbytes",
    r"\.weight_scale_2$": "4-bit weights (NVFP4)",
    r"\.(qweight|qzeros|g_idx)$": "weights of GPTQ or AWQ",
    r"\.(weight_packed|weight_zero_point|zero_point|weight_shape)$": "packed integer weights",
    r"\.(wscales|smooth_factor|proj_down)$": "4-bit weights of SVDQuant",
}
_FLOAT8 = (
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)
# Parameters of networks that are called scales.
_OWN_SCALES = re.compile(r"norm\w*(\.\w+)*\.scale$|logit_scale$|scale_shift_table$")
_SCALE_NAME = re.compile(r"^[^.]*scal|scal[^.]*$", re.IGNORECASE)
_HINT = "use the checkpoint in fp32, fp16, bf16 or fp8"
# bitsandbytes' scale is the largest value of a row, which is stored as 127.
_FACTORS = {"SCB": 1 / 127}


def dequantized(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors without scales: each weight that has a scale is multiplied by it.

    8-bit floating-point weights become bf16, which is exact enough for their 3 bits of mantissa;
    integers become fp32. Raises ModelError, which names the format, if weights are quantized in
    another way, or if a scale has a shape that does not fit its weight.
    """
    check_scales(tensors, where)
    plain: dict[str, Tensor] = {}
    scales: dict[str, tuple[Tensor, float]] = {}
    for name, tensor in tensors.items():
        suffix, weight = _weight_of_scale(name, tensors)
        if weight:
            scales[weight] = (tensor, _FACTORS.get(suffix, 1.0))
        elif not _UNUSED.search(name):
            plain[name] = tensor
    for name, (scale, factor) in scales.items():
        plain[name.removesuffix("._data")] = _scaled(plain.pop(name), scale, factor, where, name)
    for name, tensor in plain.items():
        is_integer = not tensor.is_floating_point() and not tensor.is_complex()
        if name.endswith("weight") and tensor.ndim > 1 and is_integer:
            raise ModelError(
                f"{where} has quantized weights without a known scale: {name} is "
                f"{str(tensor.dtype).removeprefix('torch.')}",
                _HINT,
            )
    return plain


def check_scales(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ModelError for weights of 8 bits with a scale or an offset that cannot be applied.

    They would be wrong without it. Also for weights that are quantized in another way.
    """
    for pattern, what in _OTHERS.items():
        name = next(filter(re.compile(pattern).search, tensors), None)
        if name is not None:
            raise ModelError(f"{where} has {what} (`{name}`), which pinxit does not read", _HINT)
    stems = {
        name.removesuffix("._data").removesuffix("weight")
        for name, tensor in tensors.items()
        if tensor.itemsize == 1 and name.endswith((".weight", ".weight._data"))
    }
    for name in tensors if stems else ():
        starts = (name[: end + 1] for end, letter in enumerate(name) if letter == ".")
        is_weight = name.endswith((".weight", ".bias", ".weight._data"))
        is_unknown = _SCALE_NAME.search(name) or not (is_weight or stems.isdisjoint(starts))
        is_known = _weight_of_scale(name, tensors)[1] or _UNUSED.search(name)
        if is_unknown and not is_known and not _OWN_SCALES.search(name):
            raise ModelError(
                f"{where} has 8-bit weights with `{name}`, a scale or an offset of a kind that "
                "pinxit does not know",
                _HINT,
            )


def _weight_of_scale(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """The suffix of a known scale, and the name of its weight; "" if it is none."""
    suffix = next((suffix for suffix in _SCALES if name.endswith(f".{suffix}")), "")
    stem = name.removesuffix(suffix)
    names = (f"{stem}weight", f"{stem}weight._data") if suffix else ()
    return suffix, next((weight for weight in names if weight in tensors), "")


def _scaled(weight: Tensor, scale: Tensor, factor: float, where: str, name: str) -> Tensor:
    """A weight times its scale: one for all, one a row, or one for each block of equal size."""
    dtype = torch.bfloat16 if weight.dtype in _FLOAT8 else torch.float32
    scale = scale.float() * factor
    if scale.numel() == 1:
        scale = scale.reshape(())
    elif scale.ndim == 1 and len(scale) == len(weight):
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    elif scale.ndim == weight.ndim and all(
        size % count == 0 for size, count in zip(weight.shape, scale.shape, strict=True)
    ):
        for dim, (size, count) in enumerate(zip(weight.shape, scale.shape, strict=True)):
            scale = scale.repeat_interleave(size // count, dim) if count > 1 else scale
    else:
        raise ModelError(
            f"{where} has a scale of shape {tuple(scale.shape)} for {name} of shape "
            f"{tuple(weight.shape)}, which do not fit",
            _HINT,
        )
    return (weight.float() * scale).to(dtype)
