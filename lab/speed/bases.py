# pyright: standard, reportPrivateImportUsage=false, reportArgumentType=false
"""Base models to measure: pocket, a folder, or known models with random weights.

`python -m lab.speed.bases NAME FOLDER DEVICE` writes one in bf16.
"""

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from pinxit.pocket.tokenizer import vocabulary

NAMES = ("pocket", "sd15", "xl", "z-image")

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
_PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
    "z-image": "ZImagePipeline",
}
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
CLIP = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
FIRST = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
SECOND = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "pad_token_id": 0,
}
_Z_IMAGE: dict[str, Any] = {}  # the defaults of diffusers are its real size
# The text encoder reads each prompt once before training, so 4 of its 36 layers are enough here.
QWEN = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
NOISE = {
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
    return ("transformer" if name == "z-image" else "unet", "vae", "text_encoder", *second)


def build(name: str, part: str) -> nn.Module:
    """A part of a known base model with random weights, on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if name == "z-image":
        return _z_image(part)
    if part == "unet":
        return UNet2DConditionModel(**_UNETS[name])
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**CLIP, **FIRST))
    if part == "text_encoder_2":
        return CLIPTextModelWithProjection(CLIPTextConfig(**{**CLIP, **SECOND}))
    scale = 0.13025 if name == "xl" else 0.18215
    return AutoencoderKL(**AUTOENCODER, latent_channels=4, scaling_factor=scale)


def _z_image(part: str) -> nn.Module:
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    if part == "vae":
        scales = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
        return AutoencoderKL(**AUTOENCODER, latent_channels=16, use_quant_conv=False, **scales)
    if part == "text_encoder":
        return Qwen3Model(Qwen3Config(**QWEN, vocab_size=len(language_tokenizer())))
    transformer = ZImageTransformer2DModel(**_Z_IMAGE)
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(token)  # diffusers leaves them uninitialized
    return transformer


def folder(base: str, work: Path, device: str = "cpu", *, half: bool = False) -> Path:
    """The folder of a base; one of random weights is written when it is first asked for.

    The weights are drawn on `device`, and stored in bf16 if `half`, else in fp32.
    """
    if base == "pocket":
        return Path(str(files("pinxit"))) / "pocket" / "weights"
    if base not in NAMES:
        return Path(base)
    written = place(base, work, half=half)
    if not written.is_dir():
        draft = work / f".{written.name}"
        shutil.rmtree(draft, ignore_errors=True)
        _write(base, draft, device, half=half)
        draft.rename(written)
    return written


def place(base: str, work: Path, *, half: bool = False) -> Path:
    """The folder that a base of random weights is written to."""
    return work / (f"{base}-bf16" if half else base)


def _write(name: str, place: Path, device: str, *, half: bool) -> None:
    """Write a whole base, one network after the other so that memory holds only one."""
    import torch
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    index: dict[str, Any] = {"_class_name": _PIPELINES[name]}
    for part in networks(name):
        torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
        try:
            with torch.device(device):
                network: Any = build(name, part)
        finally:
            torch.set_default_dtype(torch.float32)
        network.save_pretrained(place / part)
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        index[part] = [library, type(network).__name__]
    if name == "z-image":
        language_tokenizer().save_pretrained(place / "tokenizer")
        index["tokenizer"] = ["transformers", "Qwen2Tokenizer"]
        noise: Any = FlowMatchEulerDiscreteScheduler(shift=6.0)
    else:
        noise = DDIMScheduler(**NOISE)
        for part in [part for part in index if part.startswith("text_encoder")]:
            key = part.replace("text_encoder", "tokenizer")
            write_clip_tokenizer(place / key)
            index[key] = ["transformers", "CLIPTokenizer"]
    noise.save_pretrained(place / "scheduler")
    index["scheduler"] = ["diffusers", type(noise).__name__]
    if name == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (place / "model_index.json").write_text(json.dumps(index, indent=2))


def language_tokenizer() -> Any:
    """A tokenizer of bytes with the special tokens and the chat template of Qwen."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer: Any = Qwen2Tokenizer(vocab=letters, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return tokenizer


def write_clip_tokenizer(place: Path) -> None:
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


if __name__ == "__main__":
    name, work, device = sys.argv[1:]
    folder(name, Path(work).resolve(), device, half=True)
