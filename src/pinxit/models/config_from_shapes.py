"""The config of a network, as far as it follows from the shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any, cast

from torch import Tensor

Weights = Mapping[str, Tensor]

_MAX_LAYERS = 256


def network_config(kind: str, weights: Weights) -> dict[str, Any]:
    """The config of a network whose tensors have diffusers' names: widths, depths and channels.

    `kind` is "unet", "mmdit", "autoencoder" or a CLIP text encoder.
    """
    kinds = {"unet": _unet, "mmdit": _mmdit, "autoencoder": _autoencoder}
    return kinds.get(kind, _clip)(weights)


def stated_config(rules: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The config values that a layout states by the names and shapes of tensors.

    A rule is a regular expression, whose group is a number to count, or without a group whether
    a tensor has such a name; or a tensor, a dimension and optionally a divisor: a number, a value
    of the config, or a tensor with that number of rows.
    """
    config: dict[str, Any] = {}
    for key, rule in rules.items():
        if isinstance(rule, str):
            has_group = re.compile(rule).groups > 0
            is_present = any(re.match(rule, name) for name in weights)
            config[key] = count_numbered(weights, rule) if has_group else is_present
            continue
        name, dimension, divisor = cast("tuple[str, int, int | str]", (*rule, 1)[:3])
        if isinstance(divisor, str):
            divisor = config[divisor] if divisor in config else len(weights[divisor])
        config[key] = weights[name].shape[dimension] // divisor
    return config


def attention_heads(config: Mapping[str, Any], head_width: int | None) -> dict[str, Any]:
    """The config's number of attention heads, for heads of equal width."""
    if head_width is None:
        return {}
    if "hidden_size" in config:
        return {"num_attention_heads": max(1, config["hidden_size"] // head_width)}
    return {"attention_head_dim": [width // head_width for width in config["block_out_channels"]]}


def count_numbered(names: Collection[str], numbered: str) -> int:
    """One more than the highest number that the pattern's first group matches in the names.

    Raises ValueError if it is too large for a real network.
    """
    matches = (re.match(numbered, name) for name in names)
    highest = max((int(match[1]) for match in matches if match), default=-1)
    if highest >= _MAX_LAYERS:
        raise ValueError(f"{numbered} up to {highest}")
    return highest + 1


def _unet(weights: Weights) -> dict[str, Any]:
    levels = range(count_numbered(weights, r"down_blocks\.(\d+)\."))
    depths = [
        count_numbered(
            weights, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\."
        )
        for level in levels
    ]
    block_prefixes = ["CrossAttn" if depth else "" for depth in depths]
    projection = next(name for name in weights if name.endswith("attentions.0.proj_in.weight"))
    text_key = next(name for name in weights if name.endswith("attn2.to_k.weight"))
    config = {
        "block_out_channels": _widths(weights, "down_blocks"),
        "layers_per_block": count_numbered(weights, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": [f"{prefix}DownBlock2D" for prefix in block_prefixes],
        "up_block_types": [f"{prefix}UpBlock2D" for prefix in reversed(block_prefixes)],
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "cross_attention_dim": weights[text_key].shape[1],
        "use_linear_projection": weights[projection].ndim == 2,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
    }
    added = weights.get("add_embedding.linear_1.weight")
    if added is not None:
        config["projection_class_embeddings_input_dim"] = added.shape[1]
    return config


def _mmdit(weights: Weights) -> dict[str, Any]:
    patches = weights["pos_embed.proj.weight"]
    blocks = range(count_numbered(weights, r"transformer_blocks\.(\d+)\."))
    context = weights["context_embedder.weight"]
    return {
        "num_layers": len(blocks),
        "num_attention_heads": patches.shape[0] // 64,
        "in_channels": patches.shape[1],
        "out_channels": weights["proj_out.weight"].shape[0] // patches.shape[2] ** 2,
        "caption_projection_dim": context.shape[0],
        "joint_attention_dim": context.shape[1],
        "pooled_projection_dim": weights["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "pos_embed_max_size": isqrt(weights["pos_embed.pos_embed"].shape[1]),
        "dual_attention_layers": [
            block for block in blocks if f"transformer_blocks.{block}.attn2.to_q.weight" in weights
        ],
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in weights else None,
    }


def _autoencoder(weights: Weights) -> dict[str, Any]:
    widths = _widths(weights, "encoder.down_blocks")
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": count_numbered(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }


def _clip(weights: Weights) -> dict[str, Any]:
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    projection = tensors.get("text_projection.weight")
    tokens, width = tensors["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_numbered(tensors, r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
    }


def _widths(weights: Weights, blocks: str) -> list[int]:
    """The number of output channels of each block."""
    levels = range(count_numbered(weights, rf"{re.escape(blocks)}\.(\d+)\."))
    return [weights[f"{blocks}.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
