# pyright: standard, reportPrivateImportUsage=false, reportArgumentType=false
"""Base models to measure: pocket, a folder, or known models with random weights."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from pinxit.pocket.tokenizer import vocabulary

NAMES = ("pocket", "sd15", "xl")

# Differences from the defaults of diffusers and transformers, which are those of SD 1.x.
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "xl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_CLIP = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
_FIRST = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_SECOND = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "pad_token_id": 0,
}
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def networks(name: str) -> tuple[str, ...]:
    """The parts of a base model that have weights."""
    second = ("text_encoder_2",) if name == "xl" else ()
    return ("unet", "vae", "text_encoder", *second)


def build(name: str, part: str) -> nn.Module:
    """A part of a known base model with random weights, on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if part == "unet":
        return UNet2DConditionModel(**_UNETS[name])
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**_CLIP, **_FIRST))
    if part == "text_encoder_2":
        return CLIPTextModelWithProjection(CLIPTextConfig(**{**_CLIP, **_SECOND}))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if name == "xl" else 0.18215,
    )


def folder(base: str, work: Path) -> Path:
    """The folder of a base; one of random weights is written when it is first asked for."""
    if base == "pocket":
        return Path(str(files("pinxit"))) / "pocket" / "weights"
    if base not in NAMES:
        return Path(base)
    place = work / base
    if not place.is_dir():
        draft = work / f".{base}"
        shutil.rmtree(draft, ignore_errors=True)
        _write(base, draft)
        draft.rename(place)
    return place


def _write(name: str, place: Path) -> None:
    """Write a whole base in fp32, one network after the other so that memory holds only one."""
    import torch
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    for part in networks(name):
        network: Any = build(name, part)
        network.save_pretrained(place / part)
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    if name == "xl":
        index["_class_name"] = "StableDiffusionXLPipeline"
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    for key in (key for key in index if key.startswith("tokenizer")):
        _write_tokenizer(place / key)
    DDIMScheduler(**_NOISE).save_pretrained(place / "scheduler")
    (place / "model_index.json").write_text(json.dumps(index, indent=2))


def _write_tokenizer(place: Path) -> None:
    """Write CLIP's tokenizer, with the two vocabulary files that other programs read."""
    layout = Path(str(files("pinxit.models"))) / "layouts" / "clip" / "merges.txt"
    lines = layout.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    place.mkdir(parents=True)
    shutil.copy(layout, place)
    tokens = json.dumps(vocabulary([(first, second) for first, second in pairs]))
    (place / "vocab.json").write_text(tokens, encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    settings |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    settings |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
