"""Weights under the names of single-file checkpoints, from their names in diffusers' layout.

Single files use the names of the authors' code (CompVis's latent diffusion, Stability's SGM,
OpenCLIP). The number of an original block follows from the number of residual layers of each
diffusers block, which follows from the names.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pinxit.errors import ConceptError
from pinxit.models.config_from_shapes import count_numbered


def _table(pairs: str) -> dict[str, str]:
    """Original names by diffusers names, from `diffusers=original` pairs."""
    return dict(pair.split("=") for pair in pairs.split())


_RESIDUAL = _table("""
    norm1=in_layers.0 conv1=in_layers.2 time_emb_proj=emb_layers.1
    norm2=out_layers.0 conv2=out_layers.3 conv_shortcut=skip_connection
""")
_DENOISER = _table("""
    time_embedding.linear_1=time_embed.0 time_embedding.linear_2=time_embed.2
    add_embedding.linear_1=label_emb.0.0 add_embedding.linear_2=label_emb.0.2
    conv_in=input_blocks.0.0 mid_block.attentions.0=middle_block.1
    conv_norm_out=out.0 conv_out=out.2
""")
_VAE_ENDS = _table("conv_in=conv_in conv_out=conv_out conv_norm_out=norm_out")
# The autoencoder's attention: its names in diffusers since 0.14, and before.
_ATTENTION = _table("""
    group_norm=norm to_q=q to_k=k to_v=v to_out.0=proj_out
    query=q key=k value=v proj_attn=proj_out
""")
_OPEN_CLIP = _table("""
    embeddings.token_embedding=token_embedding final_layer_norm=ln_final
    embeddings.position_embedding.weight=positional_embedding
    text_projection.weight=text_projection
""")
_OPEN_CLIP_LAYER = _table("""
    layer_norm1=ln_1 layer_norm2=ln_2 self_attn.out_proj=attn.out_proj
    mlp.fc1=mlp.c_fc mlp.fc2=mlp.c_proj
""")
_CONVOLUTIONS = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")


def original_unet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's weights under their original names."""
    up = _layer_counts(weights, "up_blocks")
    attends = [
        any(name.startswith(f"up_blocks.{block}.attentions.") for name in weights)
        for block in range(len(up))
    ]
    name_map = unet_name_map(_layer_counts(weights, "down_blocks"), up, attends)
    return {_original_name(name, name_map): tensor for name, tensor in weights.items()}


def unet_name_map(
    down: Sequence[int], up: Sequence[int], attends: Sequence[bool]
) -> dict[str, str]:
    """Original names by diffusers names of a U-Net's layers.

    `down` and `up` are the numbers of residual layers of each block, `attends` whether each up
    block has attention.
    """
    name_map = dict(_DENOISER)
    for number in (0, 1):
        name_map |= _with_prefixes(
            f"mid_block.resnets.{number}", f"middle_block.{2 * number}", _RESIDUAL
        )
    # The first input block is conv_in, and each downsampler is an input block.
    for block, end in enumerate(accumulate(layers + 1 for layers in down)):
        name_map |= _block(f"down_blocks.{block}", "input_blocks", end - down[block], down[block])
        name_map[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{end}.0.op"
    # An upsampler is in the last output block of its block, after the attention if there is one.
    for block, end in enumerate(accumulate(up)):
        name_map |= _block(f"up_blocks.{block}", "output_blocks", end - up[block], up[block])
        upsampler = f"output_blocks.{end - 1}.{2 if attends[block] else 1}.conv"
        name_map[f"up_blocks.{block}.upsamplers.0.conv"] = upsampler
    return name_map


def original_vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights under their original names, with attention as 1x1 convolutions."""
    name_map = _table("quant_conv=quant_conv post_quant_conv=post_quant_conv")
    for half, direction in (("encoder", "down"), ("decoder", "up")):
        name_map |= _with_prefixes(half, half, _VAE_ENDS)
        name_map |= _with_prefixes(
            f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _ATTENTION
        )
        for number in (0, 1):
            name_map |= _resnet(
                f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}"
            )
        counts = _layer_counts(weights, f"{half}.{direction}_blocks")
        for block, layers in enumerate(counts):
            level = block if direction == "down" else len(counts) - 1 - block
            ours, theirs = f"{half}.{direction}_blocks.{block}", f"{half}.{direction}.{level}"
            name_map[f"{ours}.{direction}samplers.0.conv"] = f"{theirs}.{direction}sample.conv"
            for layer in range(layers):
                name_map |= _resnet(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}")
    named = {_original_name(name, name_map): tensor for name, tensor in weights.items()}
    return {
        name: tensor[:, :, None, None]
        if name.endswith(_CONVOLUTIONS) and tensor.ndim == 2
        else tensor
        for name, tensor in named.items()
    }


def original_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under the names of OpenAI's CLIP in transformers."""
    return {
        f"transformer.text_model.{without_prefix(name)}": tensor for name, tensor in weights.items()
    }


def original_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under OpenCLIP's names, with query, key and value in one matrix."""
    name_map = dict(_OPEN_CLIP)
    named = {without_prefix(name): tensor for name, tensor in weights.items()}
    original: dict[str, Tensor] = {}
    for layer in range(count_numbered(named, r"encoder\.layers\.(\d+)\.")):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        name_map |= _with_prefixes(ours, theirs, _OPEN_CLIP_LAYER)
        for kind in ("weight", "bias"):
            qkv = [named.pop(f"{ours}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            original[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(qkv)
    for name, tensor in named.items():
        original_name = _original_name(name, name_map)
        original[original_name] = tensor.T if original_name == "text_projection" else tensor
    return {f"model.{name}": tensor for name, tensor in original.items()}


def without_prefix(name: str) -> str:
    """A text encoder weight's name without the prefix of some versions of transformers."""
    return name.removeprefix("text_model.")


def _block(ours: str, theirs: str, first: int, layers: int) -> dict[str, str]:
    """Original names of a U-Net block's residual layers and of the attention after each."""
    name_map: dict[str, str] = {}
    for layer in range(layers):
        name_map |= _with_prefixes(
            f"{ours}.resnets.{layer}", f"{theirs}.{first + layer}.0", _RESIDUAL
        )
        name_map[f"{ours}.attentions.{layer}"] = f"{theirs}.{first + layer}.1"
    return name_map


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    """Original names of a residual layer of the autoencoder."""
    return {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def _with_prefixes(ours: str, theirs: str, name_map: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{original}" for name, original in name_map.items()}


def _layer_counts(names: Collection[str], blocks: str) -> list[int]:
    """The number of residual layers of each block."""
    block_numbers = range(count_numbered(names, rf"{blocks}\.(\d+)\."))
    return [
        count_numbered(names, rf"{blocks}\.{block}\.resnets\.(\d+)\.") for block in block_numbers
    ]


def renamed(name: str, name_map: Mapping[str, str]) -> str | None:
    """The name with its longest prefix in the map replaced; None if it has no such prefix."""
    prefix = name
    while prefix and prefix not in name_map:
        prefix = prefix.rpartition(".")[0]
    return name_map[prefix] + name.removeprefix(prefix) if prefix else None


def _original_name(name: str, name_map: Mapping[str, str]) -> str:
    """The original name of a weight; ConceptError if the single-file layout has none."""
    original = renamed(name, name_map)
    if original:
        return original
    raise ConceptError(
        f"single-file checkpoints have no name for the weight `{name}`",
        "this base model cannot be written as a single file; write a folder in diffusers' layout",
    )
