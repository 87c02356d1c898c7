"""The settings of a network, as far as the shapes of its tensors tell them."""

import re
from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

Weights = Mapping[str, Tensor]

_MOST = 256  # layers of anything


def settings(kind: str, weights: Weights) -> dict[str, Any]:
    """Widths, depths and channels of a network whose tensors have diffusers' names."""
    if kind == "unet":
        return _unet(weights)
    if kind == "mmdit":
        return _mmdit(weights)
    return _autoencoder(weights) if kind == "autoencoder" else _clip(weights)


def heads(told: Mapping[str, Any], head_width: int | None) -> dict[str, Any]:
    """How many attention heads there are, where all have the same width."""
    if head_width is None:
        return {}
    if "hidden_size" in told:
        return {"num_attention_heads": max(1, told["hidden_size"] // head_width)}
    return {"attention_head_dim": [width // head_width for width in told["block_out_channels"]]}


def count(names: Collection[str], numbered: str) -> int:
    """How many things are numbered in the names that begin so."""
    found = (re.match(numbered, name) for name in names)
    most = 1 + max((int(match[1]) for match in found if match), default=-1)
    if most > _MOST:
        raise ValueError(f"{numbered} up to {most}")
    return most


def _unet(weights: Weights) -> dict[str, Any]:
    levels = range(count(weights, r"down_blocks\.(\d+)\."))
    depths = [
        count(weights, rf"down_blocks\.{at}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for at in levels
    ]
    attend = [bool(depth) for depth in depths]
    entry = next(name for name in weights if name.endswith("attentions.0.proj_in.weight"))
    told = next(name for name in weights if name.endswith("attn2.to_k.weight"))
    adds = weights.get("add_embedding.linear_1.weight")
    return {
        "block_out_channels": _widths(weights, "down_blocks"),
        "layers_per_block": count(weights, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": [f"{'CrossAttn' * at}DownBlock2D" for at in attend],
        "up_block_types": [f"{'CrossAttn' * at}UpBlock2D" for at in reversed(attend)],
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "cross_attention_dim": weights[told].shape[1],
        "use_linear_projection": weights[entry].ndim == 2,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
        **({} if adds is None else {"projection_class_embeddings_input_dim": adds.shape[1]}),
    }


def _mmdit(weights: Weights) -> dict[str, Any]:
    entry = weights["pos_embed.proj.weight"]
    blocks = range(count(weights, r"transformer_blocks\.(\d+)\."))
    told = weights["context_embedder.weight"]
    return {
        "num_layers": len(blocks),
        "num_attention_heads": entry.shape[0] // 64,
        "in_channels": entry.shape[1],
        "out_channels": weights["proj_out.weight"].shape[0] // entry.shape[2] ** 2,
        "caption_projection_dim": told.shape[0],
        "joint_attention_dim": told.shape[1],
        "pooled_projection_dim": weights["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "pos_embed_max_size": isqrt(weights["pos_embed.pos_embed"].shape[1]),
        "dual_attention_layers": [
            at for at in blocks if f"transformer_blocks.{at}.attn2.to_q.weight" in weights
        ],
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in weights else None,
    }


def _autoencoder(weights: Weights) -> dict[str, Any]:
    widths = _widths(weights, "encoder.down_blocks")
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }


def _clip(weights: Weights) -> dict[str, Any]:
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    projection = bare.get("text_projection.weight")
    tokens, width = bare["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": bare["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(bare, r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": bare["embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
    }


def _widths(weights: Weights, blocks: str) -> list[int]:
    """How many channels each block of a network puts out."""
    levels = range(count(weights, rf"{re.escape(blocks)}\.(\d+)\."))
    return [weights[f"{blocks}.{at}.resnets.0.conv1.weight"].shape[0] for at in levels]
