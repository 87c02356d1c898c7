"""Rename the tensors of checkpoints that other programs wrote to the names of CompVis's code."""

import re
from collections.abc import Mapping

from torch import Tensor

# Wrappers of torch: data parallel training puts its name before every tensor, torch.compile before
# those of what it compiles.
_PARALLEL, _COMPILED = "module.", "_orig_mod."
# What quanto puts behind the name of a weight in 8 bits.
_QUANTO = "._data"
# CLIP text encoders as transformers named their tensors before version 4.31.
_OLD_CLIP = re.compile(
    r"^((?:cond_stage_model|conditioner\.embedders\.\d+|text_encoders\.clip_[lg])\.transformer\.)"
    r"(embeddings|encoder|final_layer_norm)\."
)
_EMA_PREFIX, _DENOISER_PREFIX = "model_ema.diffusion_model", "model.diffusion_model."
# CompVis stores averaged weights under the same names without dots.
_EMA_PARTS = re.compile(
    r"(input_blocks|output_blocks)(\d{1,2})(\d)|(middle_block|time_embed|out(?=\d))(\d)"
    r"|(label_emb)(0)(\d)|(transformer_blocks)(\d{1,2}?)(?=attn|ff|norm)|(ffnet)(\d)"
    r"|(in_layers|out_layers|emb_layers|to_out)(\d)"
    r"|(?:skip_connection|proj_in|proj_out|attn[12]|norm[123]?|to_[qkv]|proj|op|conv|weight|bias)"
)


def usual_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under CompVis's names.

    Wrappers' prefixes are removed, old names of CLIP are replaced, and averaged (EMA) weights are
    the denoiser's if there are no others.
    """
    named = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    named = {name.removesuffix(_QUANTO): tensor for name, tensor in named.items()}
    if all(name.startswith(_PARALLEL) for name in named):
        named = {name.removeprefix(_PARALLEL): tensor for name, tensor in named.items()}
    named = {_OLD_CLIP.sub(r"\1text_model.\2.", name): tensor for name, tensor in named.items()}
    if not any(name.startswith(_DENOISER_PREFIX) for name in named):
        named = {_without_ema(name): tensor for name, tensor in named.items()}
    return named


def _without_ema(name: str) -> str:
    """The denoiser's name of an averaged weight; other names stay."""
    if not name.startswith(_EMA_PREFIX):
        return name
    joined = name.removeprefix(_EMA_PREFIX)
    if joined.startswith("."):
        return f"{_DENOISER_PREFIX}{joined[1:]}"
    parts: list[str] = []
    position = 0
    while position < len(joined):
        match = _EMA_PARTS.match(joined, position)
        if match is None:
            # A number between two names, such as that of a layer in `input_blocks.0.0`.
            parts.append(joined[position])
            position += 1
            continue
        groups = [group for group in match.groups() if group] or [match.group()]
        parts += ["ff", "net", groups[1]] if groups[0] == "ffnet" else groups
        position = match.end()
    return _DENOISER_PREFIX + ".".join(parts)
