# pyright: standard, reportPrivateImportUsage=false, reportArgumentType=false
"""Training images and small random bases, drawn from fixed seeds and written once."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw

SIDE = 64
_COLOURS = ("crimson", "orange", "purple", "teal", "gold")
# Words with a token of their own; any other word becomes one token per letter.
_WORDS = ("a", "the", "of", "in", "my", "photo", "painting", "style", "toy", "red", "sks")
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def write_inputs(folder: Path) -> Path:
    """Write images and bases into `folder` if it does not exist yet, and return it.

    The folder is complete or absent: it is filled under another name and then renamed.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    _write_images(unfinished / "toy", seed=1, count=3, captions=False)
    _write_mask(unfinished / "toy" / "1.mask.png")
    _write_images(unfinished / "style", seed=2, count=2, captions=True)
    for number in (1, 2):
        _write_images(unfinished / "subjects" / f"toy{number}", number + 2, 2, captions=False)
    _write_stable_diffusion_xl(unfinished / "xl")
    _write_stable_diffusion_3(unfinished / "sd3")
    return unfinished.replace(folder)


def _write_images(folder: Path, seed: int, count: int, *, captions: bool) -> None:
    """Noisy images of a disc and a bar; the last one is wider than high."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(1, count + 1):
        width = SIDE + 16 * (number == count)
        image = Image.new("RGB", (width, SIDE), _COLOURS[(seed + number) % len(_COLOURS)])
        left, top = (int(value) for value in random.integers(4, 20, 2))
        draw = ImageDraw.Draw(image)
        draw.ellipse((left, top, left + 32, top + 32), fill=_COLOURS[seed % len(_COLOURS)])
        draw.rectangle((left + 8, top + 12, left + 44, top + 20), fill="white")
        noise = random.integers(-12, 13, (SIDE, width, 3))
        pixels = np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text("a photo of a toy\n", encoding="utf-8")


def _write_mask(path: Path) -> None:
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).ellipse((4, 4, 56, 56), fill=255)
    mask.save(path)


def _write_stable_diffusion_xl(folder: Path) -> None:
    torch.manual_seed(7)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad_token="!")
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    parts = {
        "text_encoder": _text_encoder(tokenizer, 16, 0),
        "tokenizer": tokenizer,
        "text_encoder_2": _text_encoder(tokenizer_2, 24, 12),
        "tokenizer_2": tokenizer_2,
        "vae": _autoencoder(4, scaling_factor=0.2),
        "unet": unet,
        "scheduler": diffusers.EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
    }
    diffusers.StableDiffusionXLPipeline(**parts).save_pretrained(folder)


def _write_stable_diffusion_3(folder: Path) -> None:
    """Write a base without T5, which is optional."""
    torch.manual_seed(8)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad_token="!")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=10 + 12,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = _autoencoder(16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False)
    parts: Mapping[str, Any] = {
        "text_encoder": _text_encoder(tokenizer, 16, 10),
        "tokenizer": tokenizer,
        "text_encoder_2": _text_encoder(tokenizer_2, 24, 12),
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": None,
        "tokenizer_3": None,
        "vae": vae,
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(folder)


def _autoencoder(channels: int, **settings: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **settings,
    )


def _text_encoder(tokenizer: Any, width: int, projection: int) -> Any:
    """A CLIP text model; with a text projection if `projection` is not 0."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def _tokenizer(**settings: Any) -> Any:
    """A byte-pair tokenizer whose merges build each of the words from its end."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        end = f"{word[-1]}</w>"
        for letter in reversed(word[:-1]):
            merges[letter, end] = None
            end = letter + end
    tokens += ["".join(pair) for pair in merges] + list(_SPECIAL)
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=list(merges), model_max_length=77, **settings
    )
