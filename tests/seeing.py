"""Little networks of the kinds that look at photographs, of random weights, in the hub's layout."""

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
    """The folder with a `dino`, `dinov2` or `clip` in it; the latter reads pocket's words."""
    torch.manual_seed(0)
    seen = {**_SMALL, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        words = json.loads((MERGES.parent / "vocab.json").read_text())
        marks = {"bos_token_id": words[START], "eos_token_id": words[END]}
        text = {**_SMALL, **marks, "vocab_size": len(words), "max_position_embeddings": 12}
        settings = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=16)
        made: Any = transformers.CLIPModel(settings)
        shutil.copy(MERGES, folder)
    elif kind == "dinov2":
        made = transformers.Dinov2Model(transformers.Dinov2Config(**seen))
    else:
        made = transformers.ViTModel(transformers.ViTConfig(**seen), add_pooling_layer=False)
    made.save_pretrained(folder)
    return folder
