# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""Writing pocket as other programs open it: a Stable Diffusion folder of half-precision files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pinxit.pocket import autoencoder, eyes_training, painter, text_training
from pinxit.pocket.tokenizer import POSITIONS, write_tokenizer
from pinxit.pocket.words import UNSEEN
from pinxit.pocket.world import CLASSES

RARE_WORDS = 4
SHARD = "12MB"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def halves(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A network's tensors in half precision, plainly laid out."""
    state = network.state_dict()
    return {
        prefix + n: (t.half() if t.is_floating_point() else t).contiguous().cpu()
        for n, t in state.items()
    }


def write(work: Path, folder: Path, size: str = "small") -> str:
    """Write what stands in the work folder, with the U-Net of a size, as a whole; its hash."""
    draft = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(draft, ignore_errors=True)
    tokenizer = text_training.open_tokenizer(work)
    text_encoder = text_training.trained_text(work, tokenizer)
    eyes = eyes_training.trained_eyes(work, tokenizer)
    vae = autoencoder.trained(work)
    unet = painter.painting(work, 1, size=size).averaged()
    assert isinstance(unet, UNet2DConditionModel)
    vae.register_to_config(scaling_factor=float((work / painter.SCALE).read_text()))
    vae.half().save_pretrained(draft / "vae")
    unet.half().save_pretrained(draft / "unet", max_shard_size=SHARD)
    DDIMScheduler(**painter.SCHEDULE, set_alpha_to_one=False, steps_offset=1).save_pretrained(
        draft / "scheduler"
    )
    write_tokenizer(draft / "tokenizer")
    # DreamBooth lets the user's word stand for one of these.
    rare_words = rare_tokens(text_encoder, tokenizer)[:RARE_WORDS]
    (draft / "tokenizer" / "rare_words.txt").write_text("\n".join(rare_words) + "\n")
    (draft / "text_encoder").mkdir()
    # With the prefix other programs know, and the type that lets diffusers load it as float32.
    config = json.loads(text_encoder.config.to_json_string(use_diff=False))
    config |= {"architectures": ["CLIPTextModel"], "dtype": "float32"}
    (draft / "text_encoder" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    text = halves(text_encoder, "text_model.")
    save_file(text, draft / "text_encoder" / "model.safetensors", {"format": "pt"})
    (draft / "eyes").mkdir()
    save_file(halves(eyes), draft / "eyes" / "eyes.safetensors", {"format": "pt"})
    index = INDEX | {"_diffusers_version": diffusers.__version__}
    (draft / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path in draft.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors' writer lets only the owner read
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return digest(folder)


@torch.no_grad()
def rare_tokens(text: CLIPTextModel, tokenizer: CLIPTokenizer) -> list[str]:
    """The nonce words that no caption had, those first that move the text encoder most.

    DreamBooth cannot hold on to what the encoder passes over, and it has learned to pass over words
    that captions had between others; some of the rest it passes over, too.
    """
    words = ("", *(f"{word} " for word in UNSEEN))
    prompts = [f"a photo of a {word}{noun}" for noun in CLASSES for word in words]
    given = tokenizer(prompts, padding="max_length", max_length=POSITIONS, return_tensors="pt")
    means = text(given.input_ids).last_hidden_state.mean(1).unflatten(0, (len(CLASSES), -1))
    moved = (means[:, 1:] - means[:, :1]).norm(dim=-1).mean(0)
    return [UNSEEN[at] for at in moved.argsort(descending=True).tolist()]


def digest(folder: Path) -> str:
    """SHA-256 over all weights of a model folder, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def halved(network: nn.Module) -> nn.Module:
    """The network as it will be after packaging: rounded to half precision, computed in float."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    return network
