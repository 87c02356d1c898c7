# pyright: standard, reportPrivateImportUsage=false
"""peft layers: wrap a network's layer, set stored weights, merge them into the layer."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pinxit.adapters.lora_part import MAGNITUDE, LayerTensors, LoraVariant, factor_rank
from pinxit.models.kernels.quantize import dequantized_weight, weight_shape

LayerWeights = Mapping[str, nn.Parameter]

_ADAPTER_NAME = "default"  # peft's name for an adapter without a name


def module_paths(network: nn.Module) -> dict[str, str]:
    """Module paths by layer name; in some text encoders the path has an additional prefix."""
    return {path.removeprefix("text_model."): path for path, _ in network.named_modules()}


def base_layer(layer: nn.Module) -> Any:
    """The network's original layer, also if a peft layer wraps it."""
    wrapper: Any = layer
    return wrapper.get_base_layer() if hasattr(wrapper, "get_base_layer") else wrapper


def supports(layer: nn.Module, variant: LoraVariant) -> bool:
    """Whether the variant can be trained on the layer.

    OFT on convolutions larger than 1x1 is left out: in peft it changes the output before training.
    """
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and (variant != "oft" or layer.kernel_size == (1, 1))
    return isinstance(layer, nn.Linear)


def initial_weights(layer: Any, variant: LoraVariant, rank: int) -> LayerWeights:
    """New fp32 weights for a layer that change nothing yet, drawn from torch's global generator."""
    adapter = _peft_layer(_copy_with_weight(layer, dequantized_weight(layer)), variant, rank)
    return {
        name.replace(f".{_ADAPTER_NAME}", "").replace("vector.weight", "vector"): weight
        for name, weight in adapter.named_parameters()
        if not name.startswith("base_layer.")
    }


def adapted_layer(
    layer: nn.Module, variant: LoraVariant, weights: LayerTensors, alpha: float | None
) -> Any:
    """A peft layer with these weights around a layer; its change is scaled by alpha / rank.

    The weights are used without a copy, so that training updates them. The rank follows from
    their shapes.
    """
    rank = factor_rank(weights)
    size = rank or 1
    if variant == "oft":
        size = weight_shape(base_layer(layer))[1:].numel() // len(weights["oft_R.weight"])
    adapter = _peft_layer(layer, variant, size)
    for group in adapter.adapter_layer_names:
        slots = getattr(adapter, group)
        if isinstance(slots, nn.ParameterDict) and _ADAPTER_NAME in slots:
            del slots[_ADAPTER_NAME]
    for name, weight in weights.items():
        slots = getattr(adapter, name.partition(".")[0])
        if isinstance(slots, nn.ParameterDict):
            slots[_ADAPTER_NAME] = weight
        else:
            slots[_ADAPTER_NAME].weight = weight
    if variant != "oft":
        adapter.scaling[_ADAPTER_NAME] = 1.0 if rank is None or alpha is None else alpha / rank
    return adapter


def merge_weights(
    layer: Any, variant: LoraVariant, weights: LayerTensors, alpha: float | None
) -> tuple[Tensor, Tensor]:
    """The weight of a layer without and with the adapter's change, both in fp32."""
    layer_copy = _copy_with_weight(layer, dequantized_weight(layer))
    adapted_layer(layer_copy, variant, weights, alpha).merge()
    return dequantized_weight(layer), layer_copy.weight


def weights_fit(layer: Any, variant: LoraVariant, weights: LayerTensors) -> bool:
    """Whether complete weights have shapes that fit the layer, tried out with peft."""
    if variant == "oft":
        width = weight_shape(layer)[1:].numel()
        num_blocks, num_angles = weights["oft_R.weight"].shape
        size = width // num_blocks if num_blocks else 0
        return size * num_blocks == width and num_angles == size * (size - 1) // 2
    meta_layer = _copy_with_weight(layer, torch.empty(weight_shape(layer), device="meta"))
    on_meta = {name: nn.Parameter(weight.to("meta").float()) for name, weight in weights.items()}
    try:
        change = adapted_layer(meta_layer, variant, on_meta, None).get_delta_weight(_ADAPTER_NAME)
    except (RuntimeError, ValueError, IndexError):
        return False
    magnitude = weights.get(MAGNITUDE)
    if magnitude is not None and magnitude.numel() != len(change):
        return False
    return change.shape == meta_layer.weight.shape


def fitted(name: str, tensor: Tensor, layer: Any) -> Tensor:
    """A factor of a LoRA in the layer's number of dimensions: kernels may be stored as matrices."""
    ndim = layer.weight.ndim
    if name == MAGNITUDE or tensor.ndim == ndim or not name.startswith("lora_"):
        return tensor
    if ndim == 2:
        is_matrix = tensor.ndim == 4 and tensor.shape[2:].numel() == 1
        return tensor.flatten(1) if is_matrix else tensor
    kernel = layer.kernel_size if name == "lora_A.weight" else (1, 1)
    is_kernel = tensor.ndim == 2 and tensor.shape[1] % (kernel[0] * kernel[1]) == 0
    return tensor.reshape(len(tensor), -1, *kernel) if is_kernel else tensor


def from_stored(name: str, tensor: Tensor, layer: Any) -> nn.Parameter:
    """A stored weight as an fp32 parameter on the layer's device, in peft's shape."""
    if name == MAGNITUDE and layer.weight.ndim == 4:
        tensor = tensor.reshape(1, -1, 1, 1)
    return nn.Parameter(tensor.to(layer.weight.device, torch.float32))


def to_stored(name: str, weight: Tensor) -> Tensor:
    """A weight as it is stored in a file, on the CPU: the inverse of `from_stored`."""
    return (weight.flatten() if name == MAGNITUDE else weight).detach().cpu()


def _copy_with_weight(layer: Any, weight: Tensor) -> Any:
    """A copy of a layer with a copy of this weight in place of its own."""
    copied = weight.detach().clone(memory_format=torch.contiguous_format)
    scale = getattr(layer, "scale", None)  # shared: it is not that of the new weight
    weights = {id(layer.weight): nn.Parameter(copied, requires_grad=False), id(scale): scale}
    return copy.deepcopy(layer, weights)


def _peft_layer(layer: nn.Module, variant: LoraVariant, rank: int) -> Any:
    """A peft layer around a layer, with new weights that change nothing yet."""
    import peft
    from peft.tuners import loha, lokr, lora, oft

    base = base_layer(layer)
    tuner: Any = {"loha": loha, "lokr": lokr, "oft": oft}.get(variant, lora)
    config: Any = peft.LoraConfig(use_dora=variant == "dora")
    sizes = {"r": rank, "lora_alpha": rank}
    if variant in ("loha", "lokr"):
        config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[variant]()
        sizes = {"r": rank, "alpha": rank}
    elif variant == "oft":
        width = weight_shape(base)[1:].numel()
        block = max(size for size in range(1, min(rank, width) + 1) if width % size == 0)
        config, sizes = peft.OFTConfig(r=0, oft_block_size=block), {"r": 0}
    layer_type = tuner.Conv2d if isinstance(base, nn.Conv2d) else tuner.Linear
    adapter = layer_type(base, _ADAPTER_NAME, config=config, **sizes)
    # peft reads the shape from the original layer; the wrapped one may be another peft layer.
    adapter.base_layer = layer
    # In training mode some kinds use torch's global generator for dropout of whole layers.
    return adapter.eval()
