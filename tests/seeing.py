"""Small vision models with random weights, in the hub's layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

import pinxit
from pinxit.pocket.tokenizer import END, START

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
MERGES = Path(pinxit.__file__).parent / "pocket" / "weights" / "tokenizer" / "merges.txt"


def save_seeing(kind: str, folder: Path) -> Path:
    """Save a `dino`, `dinov2` or `clip` model; CLIP has pocket's vocabulary."""
    torch.manual_seed(0)
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        vocabulary = json.loads((MERGES.parent / "vocab.json").read_text())
        special_tokens = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
        text = {
            **_SMALL,
            **special_tokens,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 12,
        }
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model: Any = transformers.CLIPModel(config)
        shutil.copy(MERGES, folder)
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**vision))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**vision), add_pooling_layer=False)
    model.save_pretrained(folder)
    return folder
