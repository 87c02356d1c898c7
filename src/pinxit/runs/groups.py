"""Which concepts are trained in one batch: a pure function of their recipes and images."""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Self

import numpy as np

from pinxit.images.folder import TrainingImage, fingerprint
from pinxit.models.prompt import normal_form, token_pattern
from pinxit.training.recipe import Recipe

# Images in one batch, by default. With 64, an image of pocket takes a third of the time that it
# takes alone, and hardly less than with 16 (docs/log.md). A step that does not fit into memory
# splits its batch itself.
_MAX_BATCH_IMAGES = 64


@dataclass(frozen=True)
class GroupMember:
    """What decides the group of a run: small, since there may be many.

    `method` is the name of its method, `independent` whether that may share a batch, `fingerprint`
    that of the images; `exists` is whether the run has begun already.
    """

    folder: Path
    token: str
    method: str
    independent: bool
    batch_size: int
    fingerprint: str
    captions: tuple[str, ...]
    exists: bool

    @classmethod
    def of(
        cls,
        folder: Path,
        recipe: Recipe,
        images: tuple[TrainingImage, ...],
        batch_size: int,
        *,
        exists: bool,
    ) -> Self:
        """The member of a run with these images; `batch_size` is the chosen one."""
        token, method = recipe.token, recipe.method
        independent, content = method.independent_concepts, fingerprint(images)
        captions = tuple(image.caption for image in images if image.caption)
        return cls(folder, token, method.name, independent, batch_size, content, captions, exists)


@dataclass(frozen=True)
class BatchGroups:
    """The folders of the runs of each batch, and the reason if they are not all in one."""

    groups: tuple[tuple[Path, ...], ...]
    reason: str


def plan_groups(members: Sequence[GroupMember], max_concepts: int | None) -> BatchGroups:
    """Groups of about the same size. Names and order do not matter: runs are sorted by content.

    Existing runs are not grouped with new ones: they share a batch again when they continue, and
    do not wait for a run that starts at step 1.
    """
    tokens = Counter(member.token.lower() for member in members)
    lengths = {len(token) for token in tokens}
    sharing: list[GroupMember] = []
    alone: list[GroupMember] = []
    for member in members:
        shares = member.independent and not _mentions_other_token(member, tokens, lengths)
        (sharing if shares else alone).append(member)
    batch_size = max((member.batch_size for member in sharing), default=1)
    max_concepts = max_concepts or max(1, _MAX_BATCH_IMAGES // batch_size)
    groups: list[list[GroupMember]] = []
    for exists in (True, False):
        similar = [member for member in sharing if member.exists == exists]
        similar.sort(key=lambda member: (member.fingerprint, member.token))
        count = ceil(len(similar) / max_concepts)
        parts = np.array_split(np.arange(len(similar)), count) if similar else []
        groups += [[similar[index] for index in part] for part in parts]
    reasons: list[str] = []
    if any(len(group) < len(sharing) for group in groups):
        reasons.append(f"at most {max_concepts} in one batch")
    if alone and not alone[0].independent:
        reasons.append(f"{alone[0].method} changes the whole base model")
    elif alone:
        reasons.append("subjects whose captions contain another subject's token train alone")
    groups += [[member] for member in alone]
    folders = tuple(tuple(member.folder for member in group) for group in groups)
    return BatchGroups(folders, "; ".join(reasons))


def _mentions_other_token(
    member: GroupMember, tokens: Counter[str], lengths: AbstractSet[int]
) -> bool:
    """Whether a caption contains another run's token, whose embedding it would then use.

    `tokens` are those of all runs in lower case, with the number of runs that have them, and
    `lengths` the numbers of their letters.
    """
    own = member.token.lower()
    for caption in member.captions:
        caption = normal_form(caption)
        text = caption.lower()
        parts = {text[i : i + n] for n in lengths for i in range(len(text) - n + 1)}
        others = [one for one in parts if tokens[one] > (one == own)]
        if any(token_pattern((other,)).search(caption) for other in others):
            return True
    return False
