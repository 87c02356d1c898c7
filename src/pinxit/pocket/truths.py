# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""The truth about scenes as tensors, for the training of the text encoder and of the eyes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.pocket.eyes import ANSWERS, NONE, UNNAMED
from pinxit.pocket.world import Scene, style_parameters

Truths = tuple[dict[str, Tensor], Tensor, Tensor]  # answers, hidden parameters, style parameters


def truth(scenes: list[Scene]) -> Truths:
    """The right answers (N,) by question, -1 where none, the hidden (N, 15), the style (N, 23)."""
    answers = [answers_of(scene) for scene in scenes]
    index = {
        q: torch.tensor([ANSWERS[q].index(a[q]) if a[q] in ANSWERS[q] else -1 for a in answers])
        for q in ANSWERS
    }
    hidden = torch.from_numpy(np.stack([s.subject.hidden() for s in scenes]))
    style = torch.from_numpy(np.stack([style_parameters(s.style).vector() for s in scenes]))
    return index, hidden, style


def answers_of(scene: Scene) -> dict[str, str | None]:
    """The right answer to each question about a scene; of two things in a row the left is first."""
    first = (scene.subject.class_noun, scene.colour or UNNAMED)
    second, relation, facing = (NONE, NONE), NONE, scene.facing
    if scene.other is not None:
        second = (scene.other.subject.class_noun, scene.other.colour)
        relation = scene.other.relation
    if relation == "right":
        first, second, relation, facing = second, first, "left", None
    kind, shade = scene.worn or (NONE, NONE)
    return {
        "class": first[0],
        "colour": first[1],
        "background": scene.background,
        "style": scene.style,
        "facing": facing,
        "pattern": scene.pattern,
        "pose": scene.pose,
        "worn": kind,
        "worn colour": shade,
        "rug": scene.rug or NONE,
        "other": second[0],
        "other colour": second[1],
        "relation": relation,
    }


def cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy of those that have an answer, by the size of the batch."""
    return F.cross_entropy(logits, right, ignore_index=-1, reduction="sum") / len(right)
