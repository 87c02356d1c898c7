# pyright: standard, reportPrivateImportUsage=false
"""Base class of FLUX.1 and of families with its transformer: latents packed to tokens."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.models.conditioning import Conditioning
from pinxit.models.latent_model import LatentModel
from pinxit.models.noise_schedule import Flow, TokenShift
from pinxit.models.source import Source

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_QKV = tuple(f"{_DOUBLE}.attn.to_{letter}" for letter in "qkv")
_ADDED_QKV = tuple(f"{_DOUBLE}.attn.add_{letter}_proj" for letter in "qkv")
_SINGLE_QKV = tuple(f"{_SINGLE}.attn.to_{letter}" for letter in "qkv")
# The names of XLabs, for attention only.
XLABS_LAYERS = {
    "double_blocks.{}.qkv_lora1": _QKV,
    "double_blocks.{}.proj_lora1": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.qkv_lora2": _ADDED_QKV,
    "double_blocks.{}.proj_lora2": (f"{_DOUBLE}.attn.to_add_out",),
    "single_blocks.{}.qkv": _SINGLE_QKV,
    "single_blocks.{}.proj": (f"{_SINGLE}.proj_out",),
}
# The layers of the authors' code, which ComfyUI and kohya use.
ORIGINAL_LAYERS = {
    "double_blocks.{}.img_attn.qkv": _QKV,
    "double_blocks.{}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.qkv": _ADDED_QKV,
    "double_blocks.{}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "single_blocks.{}.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp*4"),
    "single_blocks.{}.linear2": (f"{_SINGLE}.proj_out",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **XLABS_LAYERS,
}


class PackedModel(LatentModel):
    """A rectified-flow transformer whose tokens are squares of 2 x 2 latent positions."""

    # Image and text attend to each other in all blocks; in single blocks they are one sequence.
    layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.attn\.",
        "attention": r"\.attn\.",
        "transformer": r"^(single_)?transformer_blocks\.\d+\.",
        "all": r"^(single_)?transformer_blocks\.\d+\.",
        "int8": r"^(single_)?transformer_blocks\.(?!.*norm)",
        "queries-keys": r"^transformer_blocks\.\d+\.attn\.to_[qk]$",
        "keys-values": r"^transformer_blocks\.\d+\.attn\.to_[kv]$",
        "text-keys-values": r"\.add_[kv]_proj$",
    }
    packing: ClassVar[int] = 2
    patch_size = packing

    @classmethod
    def schedule_of(cls, source: Source) -> Flow:
        """The schedule of a base model, whose shift may depend on the number of tokens."""
        config = source.config("scheduler")
        shift = config.get("shift", 1.0)
        if config.get("use_dynamic_shifting", False):
            shift = TokenShift.from_config(config, cls.packing)
        return Flow(shift, even_steps=True)

    def _packed_prediction(
        self,
        network: Any,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        **inputs: Any,
    ) -> Tensor:
        """The transformer's prediction, of latents packed to tokens with their positions."""
        count, _, height, width = latents.shape
        rows, columns = height // self.packing, width // self.packing
        device = latents.device
        positions = torch.zeros(rows, columns, 3, device=device)
        positions[..., 1] = torch.arange(rows, device=device)[:, None]
        positions[..., 2] = torch.arange(columns, device=device)
        # Not in the latents' dtype: half precision rounds the timesteps.
        fractions = timesteps.to(device).float().expand(count) / Flow.steps
        tokens = network(
            F.pixel_unshuffle(latents, self.packing).flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.states,
            timestep=fractions,
            img_ids=positions.flatten(0, 1),
            txt_ids=positions.new_zeros(conditioning.states.shape[1], 3),
            return_dict=False,
            **inputs,
        )[0]
        patches = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(patches, self.packing)
