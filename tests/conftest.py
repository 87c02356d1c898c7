"""The nano base: Stable Diffusion's layout with random weights, saved once for all tests."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from pinxit.model import Model, open_base

torch.set_num_threads(1)  # the nano base is too small to share out, and CI is busy

# What a nano tokenizer knows whole; anything else it spells letter by letter.
_GRAMMAR = ("a", "the", "of", "in", "on", "my", "one", "photo", "picture", "painting", "style")
_THINGS = ("dog", "cat", "toy", "beach", "grass", "red", "blue", "green", "cool", "clean", "small")
_RARE = ("sks", "zwx", "qvj")
WORDS = _GRAMMAR + _THINGS + _RARE


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete base that opens in a blink."""
    return save_nano(tmp_path_factory.mktemp("bases") / "nano")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep class pictures to themselves."""
    os.environ["PINXIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["PINXIT_CACHE"]


@pytest.fixture(scope="session")
def model(nano: Path) -> Model:
    """The nano base, open; whoever changes it must put it back, which is what adapters do."""
    return open_base(nano)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("crimson", "orange", "purple")):
        Image.new("RGB", (40 + number, 48), colour).save(folder / f"{number}.png")
    return folder


def save_nano(folder: Path, seed: int = 0, width: int = 32, picture: int = 32) -> Path:
    """A base like pocket in all but size: 16 latent channels, a short text, pooled text."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer(**_vocabulary(), model_max_length=32)
    torch.manual_seed(seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.7,
        sample_size=picture,
    )
    unet = UNet2DConditionModel(
        sample_size=picture // 8,
        in_channels=16,
        out_channels=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, object]:
    """A byte-pair vocabulary that knows WORDS whole and every other text by its letters."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[-2], pieces[-1])
            pieces[-2:] = ["".join(pair)]
            if pieces[-1] not in tokens:
                tokens.append(pieces[-1])
                merges.append(pair)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a base that a test may change."""
    return lambda base: Path(shutil.copytree(base, tmp_path / "copy"))
