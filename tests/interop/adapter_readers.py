"""What other programs do with adapter files, as facts of their readers.

Each reader is made anew from what the program's source says: the names of layers that it looks
for, the tensors that it needs, its formula, and what it does with other keys. The versions are
those in `pinxit/concepts/programs.toml`. A reader gives the new weight of each layer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Weights = dict[str, Tensor]


class RefusedError(Exception):
    """The program does not load the file."""


@dataclass(frozen=True)
class AdapterReader:
    """A program: the prefixes of its layers by network, its U-Net names, formulas and other keys.

    `sgm` are the families whose U-Net layers have Stability's names, `diffusers` those with the
    names of diffusers. `dora` is the formula for DoRA. `other_keys` is "ignored" or "refused".
    `needs` are tensors without which the program does not recognize a LoKr.
    """

    sgm: frozenset[str]
    diffusers: frozenset[str]
    kinds: frozenset[str]
    dora: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    other_keys: str = "ignored"
    whole_lokr_only: bool = False

    def new_weights(self, tensors: Tensors, weights: Weights, family: str) -> Weights:
        """The weights after the program has applied the file; only those that it changes."""
        names: dict[str, str] = {}
        for layer in weights:
            names |= dict.fromkeys(self._file_names(layer, family), layer)
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            path, _, tensor_name = key.partition(".")
            if path in names:
                groups.setdefault(names[path], {})[tensor_name] = tensor.float()
            elif self.other_keys == "refused":
                raise RefusedError(key)
        return {layer: self._applied(group, weights[layer]) for layer, group in groups.items()}

    def _file_names(self, layer: str, family: str) -> list[str]:
        network, _, name = layer.partition(":")
        if network == "denoiser":
            both = ([sgm_name(name)] if family in self.sgm else []) + (
                [name] if family in self.diffusers else []
            )
            return [f"lora_unet_{path.replace('.', '_')}" for path in both]
        prefix = {"sd1": {"text": "te"}, "xl": {"text": "te1", "text_2": "te2"}}[family][network]
        return [f"lora_{prefix}_text_model_{name.replace('.', '_')}"]

    def _applied(self, group: Tensors, weight: Tensor) -> Tensor:
        kind = kind_of(group)
        if kind not in self.kinds:
            raise RefusedError(kind)
        if kind == "lokr" and self.whole_lokr_only and not {"lokr_w1", "lokr_w2"} <= group.keys():
            raise RefusedError("a LoKr with low-rank factors is not recognized")
        change = DELTAS[kind](group, weight)
        if "dora_scale" in group:
            assert self.dora is not None
            return self.dora(weight, change, group["dora_scale"])
        return weight + change


def kind_of(group: Tensors) -> str:
    """The kind of a layer by the first of these tensors that it has."""
    kinds = {
        "dora_scale": "dora",
        "lora_up.weight": "lora",
        "hada_w1_a": "loha",
        "lokr_w1": "lokr",
        "lokr_w1_a": "lokr",
        "diff": "full",
        "w_norm": "norm",
    }
    return next(kind for name, kind in kinds.items() if name in group)


def _scale(group: Tensors, rank: int | None) -> float:
    """Alpha / rank; 1 without alpha, or where nothing has a rank."""
    return float(group["alpha"]) / rank if rank and "alpha" in group else 1.0


def _lora(group: Tensors, weight: Tensor) -> Tensor:
    up, down = group["lora_up.weight"], group["lora_down.weight"]
    change = up.flatten(1) @ down.flatten(1) * _scale(group, len(down))
    return change.reshape(weight.shape)


def _loha(group: Tensors, weight: Tensor) -> Tensor:
    one, two = (group[f"hada_w{i}_a"] @ group[f"hada_w{i}_b"] for i in (1, 2))
    return (one * two * _scale(group, len(group["hada_w1_b"]))).reshape(weight.shape)


def _lokr(group: Tensors, weight: Tensor) -> Tensor:
    rank = next((len(group[f"lokr_w{i}_b"]) for i in (2, 1) if f"lokr_w{i}_b" in group), None)
    one, two = (
        group[f"lokr_w{i}"]
        if f"lokr_w{i}" in group
        else group[f"lokr_w{i}_a"] @ group[f"lokr_w{i}_b"]
        for i in (1, 2)
    )
    if two.ndim == 4:
        one = one[:, :, None, None]
    return (torch.kron(one, two) * _scale(group, rank)).reshape(weight.shape)


def _full(group: Tensors, weight: Tensor) -> Tensor:
    return group["diff"].reshape(weight.shape)


DELTAS: dict[str, Callable[[Tensors, Tensor], Tensor]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "norm": lambda group, weight: group["w_norm"].reshape(weight.shape),
}


def dora_of_rows(weight: Tensor, change: Tensor, scale: Tensor) -> Tensor:
    """LyCORIS: norms of the changed rows."""
    changed = weight + change
    return changed * scale / _columned(changed.flatten(1).norm(dim=1), weight)


def dora_of_base_rows(weight: Tensor, change: Tensor, scale: Tensor) -> Tensor:
    """ComfyUI and Forge: norms of the rows of the base's weight, if the scale is a column."""
    return (weight + change) * scale / _columned(weight.flatten(1).norm(dim=1), weight)


def dora_of_columns(weight: Tensor, change: Tensor, scale: Tensor) -> Tensor:
    """AUTOMATIC1111 and InvokeAI: norms of the changed columns, whatever the shape of the scale."""
    changed = weight + change
    norms = changed.transpose(0, 1).flatten(1).norm(dim=1)
    return changed * scale / norms.reshape(1, -1, *[1] * (weight.ndim - 2))


def _columned(norms: Tensor, weight: Tensor) -> Tensor:
    return norms.reshape(-1, *[1] * (weight.ndim - 1))


_RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_name(layer: str) -> str:
    """Stability's name of a U-Net layer; its blocks have two residual layers (three going up)."""
    if layer in _ENDS:
        return _ENDS[layer]
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", layer):
        direction, block, kind, number, rest = match.groups()
        index = 3 * int(block) + int(number) + (direction == "down")
        place = f"{'input' if direction == 'down' else 'output'}_blocks.{index}"
        return f"{place}.0.{_RESIDUAL[rest]}" if kind == "resnets" else f"{place}.1.{rest}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", layer):
        kind, number, rest = match.groups()
        mid = f"middle_block.{2 * int(number)}.{_RESIDUAL.get(rest)}"
        return mid if kind == "resnets" else f"middle_block.1.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", layer):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op"
    match = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", layer)
    assert match, layer
    return f"output_blocks.{3 * int(match[1]) + 2}.2.conv"


_BOTH = frozenset({"sd1", "xl"})
_ALL = frozenset({"lora", "dora", "loha", "lokr", "full", "norm"})
READERS = {
    "ComfyUI": AdapterReader(_BOTH, _BOTH, _ALL, dora_of_base_rows),
    "AUTOMATIC1111": AdapterReader(_BOTH, _BOTH, _ALL, dora_of_columns),
    "Forge": AdapterReader(_BOTH, _BOTH, _ALL, dora_of_base_rows),
    "InvokeAI": AdapterReader(
        frozenset({"xl"}), _BOTH, _ALL, dora_of_columns, "refused", whole_lokr_only=True
    ),
    "sd-scripts": AdapterReader(frozenset({"xl"}), frozenset({"sd1"}), frozenset({"lora"})),
    "LyCORIS": AdapterReader(
        frozenset({"xl"}), frozenset({"sd1"}), _ALL, dora_of_rows, whole_lokr_only=True
    ),
}
