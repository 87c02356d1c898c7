"""The .yaml file by which AUTOMATIC1111 knows that a checkpoint of SD 1 or 2 predicts v.

It reads a file of the checkpoint's name as the complete settings of the model, under the names of
CompVis's code. Without it, v-prediction of SD 1 is not noticed there.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pinxit.models.source import Source

_CLIP = "ldm.modules.encoders.modules.Frozen{}CLIPEmbedder"


def a1111_config(source: Source) -> str | None:
    """The text of the file for a base model; None if the model needs none."""
    schedule = source.config("scheduler")
    if schedule.get("prediction_type") != "v_prediction" or source.has("text_encoder_2"):
        return None
    unet, vae = source.config("unet"), source.config("vae")
    is_openai = source.config("text_encoder").get("hidden_act", "quick_gelu") == "quick_gelu"
    layer = {} if is_openai else {"params": {"freeze": True, "layer": "penultimate"}}
    latents = unet.get("in_channels", 4)
    params = {
        "parameterization": "v",
        "linear_start": schedule.get("beta_start", 0.00085),
        "linear_end": schedule.get("beta_end", 0.012),
        "timesteps": schedule.get("num_train_timesteps", 1000),
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": latents,
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,  # a VAE with another factor has the difference in its weights
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet(unet),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": latents,
                "ddconfig": _autoencoder(vae, latents),
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {"target": _CLIP.format("" if is_openai else "Open"), **layer},
    }
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    return "\n".join(_lines({"model": model})) + "\n"


def _unet(config: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's settings; diffusers calls the numbers of heads `attention_head_dim`."""
    widths, heads = config["block_out_channels"], config.get("attention_head_dim", 8)
    if isinstance(heads, int):
        attention = {"num_heads": heads}
    else:
        attention = {"num_head_channels": widths[0] // max(1, heads[0])}
    kinds = enumerate(config["down_block_types"])
    return {
        "image_size": config["sample_size"],
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "model_channels": widths[0],
        "attention_resolutions": [2**depth for depth, kind in kinds if "CrossAttn" in kind],
        "num_res_blocks": config.get("layers_per_block", 2),
        "channel_mult": [width // widths[0] for width in widths],
        **attention,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "legacy": False,
    }


def _autoencoder(config: Mapping[str, Any], latents: int) -> dict[str, Any]:
    widths = config["block_out_channels"]
    return {
        "double_z": True,
        "z_channels": latents,
        "resolution": config.get("sample_size", 256),
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.get("layers_per_block", 2),
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested settings as YAML; JSON's numbers, texts and lists are YAML, too."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}"
