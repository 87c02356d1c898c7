# pyright: standard, reportPrivateImportUsage=false
"""peft layers: wrap a network's layer, set stored weights, merge them into the layer."""

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pinxit.models.kernels.quantize import dequantized_weight

AdapterKind = Literal["lora", "dora", "loha", "lokr", "oft"]
ADAPTER_KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)
Tensors = Mapping[str, Tensor]
LayerWeights = Mapping[str, nn.Parameter]

_LORA = {"lora_A.weight", "lora_B.weight"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR_W1 = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_LOKR_W2 = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
_MAGNITUDE = "lora_magnitude_vector"
# The names of a layer's weights for each adapter kind: one of these sets.
WEIGHT_NAMES: dict[AdapterKind, list[set[str]]] = {
    "lora": [_LORA],
    "dora": [_LORA | {_MAGNITUDE}],
    "loha": [_LOHA, _LOHA | {"hada_t1", "hada_t2"}],
    "lokr": [first | second for first in _LOKR_W1 for second in _LOKR_W2],
    "oft": [{"oft_R.weight"}],
}
# The first dimension of any of these is the rank.
_RANK_FIRST = ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_ADAPTER_NAME = "default"  # peft's name for an adapter without a name


def module_paths(network: nn.Module) -> dict[str, str]:
    """Module paths by layer name; in some text encoders the path has an additional prefix."""
    return {path.removeprefix("text_model."): path for path, _ in network.named_modules()}


def base_layer(layer: nn.Module) -> Any:
    """The network's original layer, also if a peft layer wraps it."""
    wrapper: Any = layer
    return wrapper.get_base_layer() if hasattr(wrapper, "get_base_layer") else wrapper


def supports(layer: nn.Module, kind: AdapterKind) -> bool:
    """Whether the adapter kind can be trained on the layer.

    OFT on convolutions larger than 1x1 is left out: in peft it changes the output before training.
    """
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and (kind != "oft" or layer.kernel_size == (1, 1))
    return isinstance(layer, nn.Linear)


def initial_weights(layer: Any, kind: AdapterKind, rank: int) -> LayerWeights:
    """New fp32 weights for a layer that change nothing yet, drawn from torch's global generator."""
    adapter = _peft_layer(_copy_with_weight(layer, dequantized_weight(layer)), kind, rank)
    return {
        name.replace(f".{_ADAPTER_NAME}", "").replace("vector.weight", "vector"): weight
        for name, weight in adapter.named_parameters()
        if not name.startswith("base_layer.")
    }


def adapted_layer(
    layer: nn.Module, kind: AdapterKind, weights: Tensors, alpha: float | None
) -> Any:
    """A peft layer with these weights around a layer; its change is scaled by alpha / rank.

    The weights are used without a copy, so that training updates them. The rank follows from
    their shapes.
    """
    rank = next((weights[name].shape[0] for name in _RANK_FIRST if name in weights), None)
    size = rank or 1
    if kind == "oft":
        size = base_layer(layer).weight[0].numel() // len(weights["oft_R.weight"])
    adapter = _peft_layer(layer, kind, size)
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
    if kind != "oft":
        adapter.scaling[_ADAPTER_NAME] = 1.0 if rank is None or alpha is None else alpha / rank
    return adapter


def merge_weights(
    layer: Any, kind: AdapterKind, weights: Tensors, alpha: float | None
) -> tuple[Tensor, Tensor]:
    """The weight of a layer without and with the adapter's change, both in fp32."""
    layer_copy = _copy_with_weight(layer, dequantized_weight(layer))
    adapted_layer(layer_copy, kind, weights, alpha).merge()
    return dequantized_weight(layer), layer_copy.weight


def weights_fit(layer: Any, kind: AdapterKind, weights: Tensors) -> bool:
    """Whether the weights are complete and have shapes that fit the layer, tried out with peft."""
    if set(weights) not in WEIGHT_NAMES[kind]:
        return False
    if kind == "oft":
        width, (num_blocks, num_angles) = layer.weight[0].numel(), weights["oft_R.weight"].shape
        size = width // num_blocks if num_blocks else 0
        return size * num_blocks == width and num_angles == size * (size - 1) // 2
    meta_layer = _copy_with_weight(layer, layer.weight.to("meta"))
    on_meta = {name: nn.Parameter(weight.to("meta").float()) for name, weight in weights.items()}
    try:
        change = adapted_layer(meta_layer, kind, on_meta, None).get_delta_weight(_ADAPTER_NAME)
    except (RuntimeError, ValueError, IndexError):
        return False
    magnitude = weights.get(_MAGNITUDE)
    if magnitude is not None and magnitude.numel() != len(change):
        return False
    return change.shape == meta_layer.weight.shape


def from_stored(name: str, tensor: Tensor, layer: Any) -> nn.Parameter:
    """A stored weight as an fp32 parameter on the layer's device, in peft's shape."""
    if name == _MAGNITUDE and layer.weight.ndim == 4:
        tensor = tensor.reshape(1, -1, 1, 1)
    return nn.Parameter(tensor.to(layer.weight.device, torch.float32))


def to_stored(name: str, weight: Tensor) -> Tensor:
    """A weight as it is stored in a file, on the CPU: the inverse of `from_stored`."""
    return (weight.flatten() if name == _MAGNITUDE else weight).detach().cpu()


def split_name(name: str) -> tuple[str, str] | None:
    """Split a tensor name into layer name and weight name (or `alpha`); None if unknown."""
    match = _TENSOR_NAME.fullmatch(name)
    return match and (match[1], match[2])


_ALL_NAMES = {name for sets in WEIGHT_NAMES.values() for names in sets for name in names}
_TENSOR_NAME = re.compile(rf"(.+)\.(alpha|{'|'.join(map(re.escape, sorted(_ALL_NAMES)))})")


def _copy_with_weight(layer: Any, weight: Tensor) -> Any:
    """A copy of a layer with a copy of this weight in place of its own."""
    copied = weight.detach().clone(memory_format=torch.contiguous_format)
    return copy.deepcopy(layer, {id(layer.weight): nn.Parameter(copied, requires_grad=False)})


def _peft_layer(layer: nn.Module, kind: AdapterKind, rank: int) -> Any:
    """A peft layer around a layer, with new weights that change nothing yet."""
    import peft
    from peft.tuners import loha, lokr, lora, oft

    base = base_layer(layer)
    tuner: Any = {"loha": loha, "lokr": lokr, "oft": oft}.get(kind, lora)
    config: Any = peft.LoraConfig(use_dora=kind == "dora")
    sizes = {"r": rank, "lora_alpha": rank}
    if kind in ("loha", "lokr"):
        config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]()
        sizes = {"r": rank, "alpha": rank}
    elif kind == "oft":
        width = base.weight[0].numel()
        block = max(size for size in range(1, min(rank, width) + 1) if width % size == 0)
        config, sizes = peft.OFTConfig(r=0, oft_block_size=block), {"r": 0}
    layer_type = tuner.Conv2d if isinstance(base, nn.Conv2d) else tuner.Linear
    adapter = layer_type(base, _ADAPTER_NAME, config=config, **sizes)
    # peft reads the shape from the original layer; the wrapped one may be another peft layer.
    adapter.base_layer = layer
    # In training mode some kinds use torch's global generator for dropout of whole layers.
    return adapter.eval()
