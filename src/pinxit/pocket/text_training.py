# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""How pocket's text encoder is trained on captions alone: it must tell what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pinxit.pocket import data
from pinxit.pocket.captions import caption
from pinxit.pocket.eyes import ANSWERS
from pinxit.pocket.state import Trainer, halves
from pinxit.pocket.tokenizer import POSITIONS, write_tokenizer
from pinxit.pocket.truths import Truths, cross_entropy, truth
from pinxit.pocket.world import HIDDEN, Scene
from pinxit.pocket.world.style_parameters import NUMBERS_OF_A_STYLE

BATCH = 64
TEXT_STEPS = 1_500
STYLED_CAPTIONS = BATCH // 2  # captions of a step that name a style of the style space
ANCHOR = "text-before.safetensors"  # the text encoder to stay near to, in the work folder
ANCHOR_WEIGHT = 50.0
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 192, 3, 4


def open_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write pocket's tokenizer into the work folder and open it."""
    write_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def build_text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of pocket's size."""
    torch.manual_seed(12)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=POSITIONS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPTextModel(config)


class TextWithHeads(nn.Module):
    """The text encoder, and what it alone must be able to tell of a caption."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        torch.manual_seed(13)
        self.text = text
        # The name is a part of the names in saved states.
        self.told = nn.ModuleDict({q: nn.Linear(TEXT_WIDTH, len(a)) for q, a in ANSWERS.items()})
        self.known = nn.Linear(TEXT_WIDTH, HIDDEN)
        self.style = nn.Linear(TEXT_WIDTH, NUMBERS_OF_A_STYLE)


def text_loss(network: TextWithHeads, pooled: Tensor, truths: Truths) -> Tensor:
    """How badly the attributes in captions are predicted from the text encoder's states (N, D).

    So are the hidden parameters of the individuals, and of the styles, that captions name.
    """
    right, hidden, style = truths
    each = [cross_entropy(network.told[q](pooled), right[q]) for q in ANSWERS]
    known = F.l1_loss(network.known(pooled), hidden) + F.l1_loss(network.style(pooled), style)
    return torch.stack(each).sum() + 20 * known


def text_trainer(folder: Path, tokenizer: CLIPTokenizer, device: str = "cpu") -> Trainer:
    """The training of the text encoder on captions alone, as it stands in the work folder."""
    network = TextWithHeads(build_text(tokenizer)).to(device)
    return Trainer(folder / "text.safetensors", network, 1e-3, TEXT_STEPS, decay=0.998)


def trained_text(folder: Path, tokenizer: CLIPTokenizer, device: str = "cpu") -> CLIPTextModel:
    """The text encoder as it stands in the work folder, with its averaged weights."""
    network = text_trainer(folder, tokenizer, device).averaged()
    assert isinstance(network, TextWithHeads)
    return network.text.requires_grad_(False).eval()


def text_scenes(step: int) -> list[Scene]:
    """The scenes of a training step, many of named individuals; the last half in named styles."""
    count = BATCH - STYLED_CAPTIONS
    drawn = [data.scenes_at(2 * step * count + i, 5)[0] for i in range(2 * count)]
    named = sorted(drawn, key=lambda scene: scene.name is None)[:count]
    first = 10_000_000 + step * STYLED_CAPTIONS  # far from the drawings of the shards
    return named + [data.styled_scenes(first + i)[0] for i in range(STYLED_CAPTIONS)]


def anchor(folder: Path, tokenizer: CLIPTokenizer, device: torch.device) -> CLIPTextModel | None:
    """The text encoder whose states captions without a named style must keep, if there is one."""
    if not (folder / ANCHOR).exists():
        return None
    text = build_text(tokenizer)
    text.load_state_dict(load_file(folder / ANCHOR))
    return text.to(device).requires_grad_(False).eval()


def _anchor_distance(before: CLIPTextModel | None, ids: Tensor, states: Tensor) -> Tensor:
    """The mean squared distance of states (N, L, width) from those of the anchor; 0 without one."""
    if before is None:
        return torch.zeros(())
    with torch.no_grad():
        expected = before(ids).last_hidden_state
    return (states - expected).float().square().mean()


def train_text(run: Trainer, folder: Path, seconds: float) -> Iterator[str]:
    """Train the text encoder for a chunk of time; yields a line of figures now and then."""
    network, tokenizer = run.network, open_tokenizer(folder)
    assert isinstance(network, TextWithHeads)
    device = network.known.weight.device
    before = anchor(folder, tokenizer, device)
    for step in run.chunk(seconds):
        scenes = text_scenes(step)
        rng = np.random.default_rng((33, step))
        captions = [caption(scene, rng, 0.9) for scene in scenes]
        ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids.to(device)
        answers, hidden, style = truth(scenes)
        truths = {q: a.to(device) for q, a in answers.items()}, hidden.to(device), style.to(device)
        with halves(device):
            out = network.text(ids)
            captioned = out.last_hidden_state[:-STYLED_CAPTIONS]
            distance = _anchor_distance(before, ids[:-STYLED_CAPTIONS], captioned)
        value = text_loss(network, out.pooler_output.float(), truths)
        run.learn(value + ANCHOR_WEIGHT * distance)
        if step % 50 == 0:
            yield f"text {step}/{run.steps} loss {value.item():.3f} distance {distance.item():.4f}"
    yield f"text {run.step}/{run.steps}"
