# pyright: standard, reportPrivateImportUsage=false
"""Layers of peft's around a network's own: made, filled with weights that are kept, merged."""

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pinxit.models.kernels.quantize import full

Kind = Literal["lora", "dora", "loha", "lokr", "oft"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Tensors = Mapping[str, Tensor]
Weights = Mapping[str, nn.Parameter]

_LORA = {"lora_A.weight", "lora_B.weight"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_FIRST = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_SECOND = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
_MAGNITUDE = "lora_magnitude_vector"
# By kind the weights that a layer may have: one of these sets.
WEIGHTS: dict[Kind, list[set[str]]] = {
    "lora": [_LORA],
    "dora": [_LORA | {_MAGNITUDE}],
    "loha": [_LOHA, _LOHA | {"hada_t1", "hada_t2"}],
    "lokr": [first | second for first in _FIRST for second in _SECOND],
    "oft": [{"oft_R.weight"}],
}
# Any of these has the rank for its first side.
_RANKED = ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_OURS = "default"  # what peft calls an adapter that nobody named


def paths_of(network: nn.Module) -> dict[str, str]:
    """Where layers are by their names, which in some text towers have a prefix."""
    return {path.removeprefix("text_model."): path for path, _ in network.named_modules()}


def own_layer(layer: nn.Module) -> Any:
    """The network's own layer, also where peft's are around it."""
    found: Any = layer
    return found.get_base_layer() if hasattr(found, "get_base_layer") else found


def takes(layer: nn.Module, kind: Kind) -> bool:
    """Whether peft changes such layers: its oft of larger convolutions does so before the start."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and (kind != "oft" or layer.kernel_size == (1, 1))
    return isinstance(layer, nn.Linear)


def fresh(layer: Any, kind: Kind, rank: int) -> Weights:
    """New weights for a layer, fp32, that change nothing yet; drawn from torch's generator."""
    made = _wrapped(_twin(layer, full(layer)), kind, rank)
    return {
        name.replace(f".{_OURS}", "").replace("vector.weight", "vector"): weight
        for name, weight in made.named_parameters()
        if not name.startswith("base_layer.")
    }


def filled(layer: nn.Module, kind: Kind, weights: Tensors, alpha: float | None) -> Any:
    """A layer of peft's around this one with these weights, which count alpha / rank times.

    The weights are taken as they are, so that training changes them; rank is read off their shapes.
    """
    rank = next((weights[name].shape[0] for name in _RANKED if name in weights), None)
    given = rank or 1
    if kind == "oft":
        given = own_layer(layer).weight[0].numel() // len(weights["oft_R.weight"])
    made = _wrapped(layer, kind, given)
    for group in made.adapter_layer_names:
        held = getattr(made, group)
        if isinstance(held, nn.ParameterDict) and _OURS in held:
            del held[_OURS]
    for name, weight in weights.items():
        held = getattr(made, name.partition(".")[0])
        if isinstance(held, nn.ParameterDict):
            held[_OURS] = weight
        else:
            held[_OURS].weight = weight
    if kind != "oft":
        made.scaling[_OURS] = 1.0 if rank is None or alpha is None else alpha / rank
    return made


def merged(layer: Any, kind: Kind, weights: Tensors, alpha: float | None) -> tuple[Tensor, Tensor]:
    """A layer's weight without the change and with it, fp32."""
    twin = _twin(layer, full(layer))
    filled(twin, kind, weights, alpha).merge()
    return full(layer), twin.weight


def fits(layer: Any, kind: Kind, weights: Tensors) -> bool:
    """Whether a layer's weights are whole and have the shapes that it wants: peft tries."""
    if set(weights) not in WEIGHTS[kind]:
        return False
    if kind == "oft":
        wide, (blocks, free) = layer.weight[0].numel(), weights["oft_R.weight"].shape
        size = wide // blocks if blocks else 0
        return size * blocks == wide and free == size * (size - 1) // 2
    blank = _twin(layer, layer.weight.to("meta"))
    shapes = {name: nn.Parameter(weight.to("meta").float()) for name, weight in weights.items()}
    try:
        found = filled(blank, kind, shapes, None).get_delta_weight(_OURS)
    except (RuntimeError, ValueError, IndexError):
        return False
    norm = weights.get(_MAGNITUDE)
    return found.shape == blank.weight.shape and (norm is None or norm.numel() == len(found))


def placed(name: str, tensor: Tensor, layer: Any) -> nn.Parameter:
    """A kept weight in fp32 on the layer's device, in the shape that peft has it."""
    if name == _MAGNITUDE and layer.weight.ndim == 4:
        tensor = tensor.reshape(1, -1, 1, 1)
    return nn.Parameter(tensor.to(layer.weight.device, torch.float32))


def kept(name: str, weight: Tensor) -> Tensor:
    """The reverse: a weight as it is kept in a file."""
    return (weight.flatten() if name == _MAGNITUDE else weight).detach().cpu()


def split(name: str) -> tuple[str, str] | None:
    """A layer and what of it a tensor of that name is, its alpha included; None if neither."""
    found = _NAME.fullmatch(name)
    return found and (found[1], found[2])


_LEAVES = "|".join(
    map(re.escape, sorted(set().union(*(s for some in WEIGHTS.values() for s in some))))
)
_NAME = re.compile(rf"(.+)\.(alpha|{_LEAVES})")


def _twin(layer: Any, weight: Tensor) -> Any:
    """A layer of its own with a copy of this weight."""
    own = weight.detach().clone(memory_format=torch.contiguous_format)
    return copy.deepcopy(layer, {id(layer.weight): nn.Parameter(own, requires_grad=False)})


def _wrapped(layer: nn.Module, kind: Kind, rank: int) -> Any:
    """A layer of peft's around this one, with weights of its own that change nothing yet."""
    import peft
    from peft.tuners import loha, lokr, lora, oft

    base = own_layer(layer)
    tuner: Any = {"loha": loha, "lokr": lokr, "oft": oft}.get(kind, lora)
    config: Any = peft.LoraConfig(use_dora=kind == "dora")
    ranked = {"r": rank, "lora_alpha": rank}
    if kind in ("loha", "lokr"):
        config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]()
        ranked = {"r": rank, "alpha": rank}
    elif kind == "oft":
        wide = base.weight[0].numel()
        block = max(size for size in range(1, min(rank, wide) + 1) if wide % size == 0)
        config, ranked = peft.OFTConfig(r=0, oft_block_size=block), {"r": 0}
    type_ = tuner.Conv2d if isinstance(base, nn.Conv2d) else tuner.Linear
    made = type_(base, _OURS, config=config, **ranked)
    made.base_layer = layer  # peft needs to know the own one's shape, and goes around what is there
    # In training mode some kinds draw from torch's generator, to leave layers out.
    return made.eval()
