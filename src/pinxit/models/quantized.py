"""Weights that are stored with scales beside them: dequantized, or refused by name."""

import re
from collections.abc import Iterator, Mapping

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
    r"\.weight\._(shift|data\._data)$": "4-bit weights of quanto",
    r"\.weight_scale_2$": "4-bit weights (NVFP4)",
    r"\.(qweight|qzeros|g_idx)$": "weights of GPTQ or AWQ",
    r"\.(weight_packed|weight_zero_point|zero_point|weight_shape)$": "packed integer weights",
    r"\.(wscales|smooth_factor|proj_down)$": "4-bit weights of SVDQuant",
    r"\._?weight_qdata$": "weights of torchao",
    r"\.(B|B_24|B_meta)$": "4-bit weights of GPTQ in Marlin's order",
    r"\.(W_q|codebooks|weight_blocks)$": "weights of HQQ, AQLM or MXFP4",
}
# What ComfyUI's marks state about a layer: a format whose weights are values times a scale, and
# whether the weights were rotated before they were quantized.
_COMFY_FORMAT = re.compile(
    r'"format"\s*:\s*"(?!(?:float8_e4m3fn|float8_e5m2|int8)(?:_(?:tensor|row|block)wise)?")([^"]*)'
    r'|"(convrot)"\s*:\s*true'
)
_MAX_MARK_BYTES = 10_000
_BLOCK = 128  # the usual size; the last block of a row or column may be smaller
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
        if weight in scales:
            raise ModelError(f"{where} has two scales for {weight}", _HINT)
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


def check_scales(tensors: Mapping[str, Tensor], where: str, marks: str = "") -> None:
    """Raise ModelError for weights of 8 bits with a scale or an offset that cannot be applied.

    They would be wrong without it. Also for weights that are quantized in another way, as their
    names, their number format or ComfyUI's marks say; `marks` are those of the file's metadata.
    """
    if other := next(_other_formats(tensors, marks), None):
        raise ModelError(f"{where} has {other}, which pinxit does not read", _HINT)
    stems = {
        name.removesuffix("._data").removesuffix("weight")
        for name, tensor in tensors.items()
        if tensor.itemsize == 1 and tensor.dtype != torch.bool and tensor.ndim > 1
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


def _other_formats(tensors: Mapping[str, Tensor], marks: str) -> Iterator[str]:
    """What the weights are, and the name that says so, if they are not values times scales."""
    for pattern, what in _OTHERS.items():
        if name := next(filter(re.compile(pattern).search, tensors), None):
            yield f"{what} (`{name}`)"
    texts = {"_quantization_metadata": marks}
    for name, tensor in tensors.items():
        if "float4" in str(tensor.dtype):
            yield f"4-bit weights (`{name}`)"
        is_small = not tensor.is_meta and tensor.numel() < _MAX_MARK_BYTES
        if is_small and name.endswith("weight_format") and tensor.any():
            yield f"8-bit weights of bitsandbytes in the order of a GPU (`{name}`)"
        if is_small and name.endswith("comfy_quant") and tensor.dtype == torch.uint8:
            texts[name] = bytes(tensor.flatten().tolist()).decode(errors="replace")
    for name, text in texts.items():
        if match := _COMFY_FORMAT.search(text):
            yield f"weights in the format `{match[match.lastindex or 0]}` of ComfyUI (`{name}`)"


def _weight_of_scale(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """The suffix of a known scale, and the name of its weight; "" if it is none."""
    suffix = next((suffix for suffix in _SCALES if name.endswith(f".{suffix}")), "")
    stem = name.removesuffix(suffix)
    names = (f"{stem}weight", f"{stem}weight._data") if suffix else ()
    return suffix, next((weight for weight in names if weight in tensors), "")


def _scaled(weight: Tensor, scale: Tensor, factor: float, where: str, name: str) -> Tensor:
    """A weight times its scale: one for all, one a row, or one for each block of equal size."""
    dtype = torch.bfloat16 if weight.dtype in _FLOAT8 else torch.float32
    kind, shape = str(scale.dtype).removeprefix("torch."), tuple(scale.shape)
    is_number, scale = scale.is_floating_point(), scale.float() * factor
    if not is_number:  # bytes that are exponents
        raise ModelError(f"{where} has a scale of the number format {kind} for {name}", _HINT)
    if scale.numel() == 1:
        scale = scale.reshape(())
    elif scale.ndim == 1 and len(scale) == len(weight):
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    elif scale.ndim == weight.ndim and all(map(_block_size, weight.shape, shape)):
        for dim, (size, count) in enumerate(zip(weight.shape, shape, strict=True)):
            scale = scale.repeat_interleave(_block_size(size, count), dim).narrow(dim, 0, size)
    else:
        raise ModelError(
            f"{where} has a scale of shape {shape} for {name} of shape {tuple(weight.shape)}, "
            "which do not fit",
            _HINT,
        )
    return (weight.float() * scale).to(dtype)


def _block_size(size: int, count: int) -> int:
    """How many values share one of `count` scales: a power of 2, or all; 0 if none fits."""
    exact, rest = divmod(size, max(count, 1))
    if count == 1 or (not rest and exact and exact & (exact - 1) == 0):
        return exact
    return _BLOCK if -(-size // _BLOCK) == count else 0
