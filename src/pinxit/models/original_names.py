"""Names of a base's weights in a single file, from their names in diffusers' layout.

Single files keep the names of the authors' code (CompVis's latent diffusion, Stability's SGM,
OpenCLIP). Which of their numbered blocks a diffusers block becomes follows from how many residual
layers each block has, and that is read off the names.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pinxit.errors import ConceptError
from pinxit.models.config_from_shapes import count


def _table(pairs: str) -> dict[str, str]:
    """Theirs by ours, from `ours=theirs` pairs."""
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
_HALF = _table("conv_in=conv_in conv_out=conv_out conv_norm_out=norm_out")
# The autoencoder's attention, as diffusers names it since 0.14 and as it did before.
_ATTENTION = _table("""
    group_norm=norm to_q=q to_k=k to_v=v to_out.0=proj_out
    query=q key=k value=v proj_attn=proj_out
""")
_OPEN_CLIP = _table("""
    embeddings.token_embedding=token_embedding final_layer_norm=ln_final
    embeddings.position_embedding.weight=positional_embedding
    text_projection.weight=text_projection
""")
_LAYER = _table("""
    layer_norm1=ln_1 layer_norm2=ln_2 self_attn.out_proj=attn.out_proj
    mlp.fc1=mlp.c_fc mlp.fc2=mlp.c_proj
""")
_CONVOLVED = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")


def denoiser(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's weights as a single file names them."""
    up = _layers(weights, "up_blocks")
    attends = [
        any(name.startswith(f"up_blocks.{block}.attentions.") for name in weights)
        for block in range(len(up))
    ]
    places = denoiser_places(_layers(weights, "down_blocks"), up, attends)
    return {_place(name, places): tensor for name, tensor in weights.items()}


def denoiser_places(
    down: Sequence[int], up: Sequence[int], attends: Sequence[bool]
) -> dict[str, str]:
    """Where the parts of a U-Net go whose blocks have so many residual layers.

    `attends` says which of the upward blocks attend to the text.
    """
    places = dict(_DENOISER)
    for number in (0, 1):
        places |= _under(f"mid_block.resnets.{number}", f"middle_block.{2 * number}", _RESIDUAL)
    # Their input blocks begin with conv_in, and count each downsampler.
    for block, end in enumerate(accumulate(layers + 1 for layers in down)):
        places |= _block(f"down_blocks.{block}", "input_blocks", end - down[block], down[block])
        places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{end}.0.op"
    # An upsampler stands in the block's last output block, behind its attention if it has any.
    for block, end in enumerate(accumulate(up)):
        places |= _block(f"up_blocks.{block}", "output_blocks", end - up[block], up[block])
        upsampler = f"output_blocks.{end - 1}.{2 if attends[block] else 1}.conv"
        places[f"up_blocks.{block}.upsamplers.0.conv"] = upsampler
    return places


def autoencoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights as a single file names them; its attention is convolution there."""
    places = _table("quant_conv=quant_conv post_quant_conv=post_quant_conv")
    for half, way in (("encoder", "down"), ("decoder", "up")):
        places |= _under(half, half, _HALF)
        places |= _under(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _ATTENTION)
        for number in (0, 1):
            places |= _resnet(
                f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}"
            )
        counts = _layers(weights, f"{half}.{way}_blocks")
        for block, layers in enumerate(counts):
            level = block if way == "down" else len(counts) - 1 - block
            ours, theirs = f"{half}.{way}_blocks.{block}", f"{half}.{way}.{level}"
            places[f"{ours}.{way}samplers.0.conv"] = f"{theirs}.{way}sample.conv"
            for layer in range(layers):
                places |= _resnet(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}")
    named = {_place(name, places): tensor for name, tensor in weights.items()}
    return {
        name: tensor[:, :, None, None] if name.endswith(_CONVOLVED) and tensor.ndim == 2 else tensor
        for name, tensor in named.items()
    }


def clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under the names that OpenAI's have in transformers."""
    return {f"transformer.text_model.{bare(name)}": tensor for name, tensor in weights.items()}


def open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under OpenCLIP's names: query, key and value in one matrix."""
    places = dict(_OPEN_CLIP)
    named = {bare(name): tensor for name, tensor in weights.items()}
    found: dict[str, Tensor] = {}
    for layer in range(count(named, r"encoder\.layers\.(\d+)\.")):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        places |= _under(ours, theirs, _LAYER)
        for kind in ("weight", "bias"):
            three = [named.pop(f"{ours}.self_attn.{which}_proj.{kind}") for which in "qkv"]
            found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(three)
    for name, tensor in named.items():
        place = _place(name, places)
        found[place] = tensor.T if place == "text_projection" else tensor
    return {f"model.{name}": tensor for name, tensor in found.items()}


def bare(name: str) -> str:
    """A text encoder's weight without the prefix that only some releases of transformers write."""
    return name.removeprefix("text_model.")


def _block(ours: str, theirs: str, first: int, layers: int) -> dict[str, str]:
    """Where the residual layers of a block go, and the attention behind each."""
    places: dict[str, str] = {}
    for layer in range(layers):
        places |= _under(f"{ours}.resnets.{layer}", f"{theirs}.{first + layer}.0", _RESIDUAL)
        places[f"{ours}.attentions.{layer}"] = f"{theirs}.{first + layer}.1"
    return places


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    """A residual layer of the autoencoder, which has one name of its own."""
    return {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def _under(ours: str, theirs: str, places: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{place}" for name, place in places.items()}


def _layers(names: Collection[str], blocks: str) -> list[int]:
    """How many residual layers each block has."""
    every = range(count(names, rf"{blocks}\.(\d+)\."))
    return [count(names, rf"{blocks}\.{block}\.resnets\.(\d+)\.") for block in every]


def moved(name: str, places: Mapping[str, str]) -> str | None:
    """Where a name goes: the longest beginning of it that has a place decides."""
    beginning = name
    while beginning and beginning not in places:
        beginning = beginning.rpartition(".")[0]
    return places[beginning] + name.removeprefix(beginning) if beginning else None


def _place(name: str, places: Mapping[str, str]) -> str:
    """Where a weight goes."""
    place = moved(name, places)
    if place:
        return place
    raise ConceptError(
        f"a single file has no place for the weight `{name}`",
        "no single files are made for this kind of base: write a folder in diffusers' layout",
    )
