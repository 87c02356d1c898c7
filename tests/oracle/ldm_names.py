"""Original tensor names of networks, from their names in diffusers."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_MMDIT = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def unet(weights: Weights, layers: int) -> dict[str, Tensor]:
    """A U-Net with `layers` residual layers in each block."""
    return {
        f"model.diffusion_model.{_unet(name, layers, weights)}": weights[name] for name in weights
    }


def _unet(name: str, layers: int, weights: Weights) -> str:
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    mid = re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name)
    if mid:
        place = 1 if mid[1] == "attentions" else 2 * int(mid[2])
        return f"middle_block.{place}.{_residual(mid[3])}"
    if not match:
        return _replaced(name, _ENDS)
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = any(other.startswith(f"up_blocks.{block}.attentions") for other in weights)
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
    number = f"{'input' if side == 'down' else 'output'}_blocks.{first + index}"
    return f"{number}.{int(kind == 'attentions')}.{_residual(rest)}"


def autoencoder(
    weights: Weights, levels: int, prefix: str = "first_stage_model."
) -> dict[str, Tensor]:
    """An autoencoder, with attention layers as 1x1 convolutions."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", new)
        new = new.replace("upsamplers.0", "upsample").replace("resnets", "block")
        if "mid_block.attentions.0." in new:
            start, rest = new.split("mid_block.attentions.0.")
            new = f"{start}mid.attn_1.{_replaced(rest, _ATTENTION)}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[prefix + new] = tensor
    return renamed


def clip(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder under transformers' names."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    return {f"{prefix}text_model.{name}": tensor for name, tensor in bare.items()}


def open_clip(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """An OpenCLIP text encoder: query, key and value in one matrix, the projection transposed."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in bare.items():
        new = name.replace("encoder.layers.", "transformer.resblocks.")
        for old, original in (
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("final_ln_", "ln_final"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.token_embedding", "token_embedding"),
        ):
            new = new.replace(old, original)
        if new == "text_projection.weight":
            renamed[f"{prefix}text_projection"] = tensor.T
        elif part := re.fullmatch(r"(.*)self_attn\.q_proj\.(\w+)", new):
            qkv = [bare[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"{prefix}{part[1]}attn.in_proj_{part[2]}"] = torch.cat(qkv)
        elif "self_attn." not in new:
            renamed[prefix + new] = tensor
    return renamed


def mmdit(weights: Weights, layers: int) -> dict[str, Tensor]:
    """A multimodal diffusion transformer: one matrix for query, key, value; shift before scale."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)", name)
        start = f"joint_blocks.{block[1]}." if block else ""
        rest = block[2] if block else name
        swapped = name.startswith("norm_out") or rest.startswith("norm1_context")
        if swapped and start in ("", f"joint_blocks.{layers - 1}."):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        query = re.fullmatch(r"(attn2?)\.(to_q|add_q_proj)\.(\w+)", rest)
        if query:
            qkv = [weights[name.replace(query[2], query[2].replace("q", x))] for x in "qkv"]
            half = "x_block" if query[2] == "to_q" else "context_block"
            renamed[f"{start}{half}.{query[1]}.qkv.{query[3]}"] = torch.cat(qkv)
        elif not re.fullmatch(r"attn2?\.(to_[kv]|add_[kv]_proj)\.\w+", rest):
            renamed[start + _replaced(rest, _MMDIT)] = tensor
    return {f"model.diffusion_model.{name}": tensor for name, tensor in renamed.items()}


def _residual(name: str) -> str:
    return _replaced(name, _RESIDUAL)


def _replaced(name: str, name_map: Mapping[str, str]) -> str:
    for old, new in name_map.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name
