"""Which concepts are trained in one batch: a pure function of their recipes and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from pinxit.images.folder import TrainingImage, fingerprint
from pinxit.models.prompt import token_pattern
from pinxit.training.recipe import Recipe

# Images in one batch, by default. With 64, an image of pocket takes a third of the time that it
# takes alone, and hardly less than with 16 (docs/log.md). A step that does not fit into memory
# splits its batch itself.
_MAX_BATCH_IMAGES = 64


@dataclass(frozen=True)
class GroupMember:
    """A run to group: its folder, settled recipe and images, and whether it has begun already."""

    folder: Path
    recipe: Recipe
    images: tuple[TrainingImage, ...]
    batch_size: int
    exists: bool


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
    sharing = [
        member
        for member in members
        if member.recipe.method.independent_concepts and not _mentions_other_token(member, members)
    ]
    alone = [member for member in members if member not in sharing]
    batch_size = max((member.batch_size for member in sharing), default=1)
    max_concepts = max_concepts or max(1, _MAX_BATCH_IMAGES // batch_size)
    groups: list[list[GroupMember]] = []
    for exists in (True, False):
        similar = [member for member in sharing if member.exists == exists]
        similar.sort(key=lambda member: (fingerprint(member.images), member.recipe.token))
        count = ceil(len(similar) / max_concepts)
        groups += [_even_part(similar, count, index) for index in range(count)]
    reasons: list[str] = []
    if any(len(group) < len(sharing) for group in groups):
        reasons.append(f"at most {max_concepts} in one batch")
    if alone and not alone[0].recipe.method.independent_concepts:
        reasons.append(f"{alone[0].recipe.method.name} changes the whole base model")
    elif alone:
        reasons.append("subjects whose captions contain another subject's token train alone")
    groups += [[member] for member in alone]
    folders = tuple(tuple(member.folder for member in group) for group in groups)
    return BatchGroups(folders, "; ".join(reasons))


def _even_part(members: list[GroupMember], count: int, index: int) -> list[GroupMember]:
    """Part `index` of members split into `count` parts, whose sizes differ by at most one."""
    size, remainder = divmod(len(members), count)
    start = index * size + min(index, remainder)
    return members[start : start + size + (1 if index < remainder else 0)]


def _mentions_other_token(member: GroupMember, members: Sequence[GroupMember]) -> bool:
    """Whether a caption contains another run's token, whose embedding it would then use."""
    others = [token_pattern((other.recipe.token,)) for other in members if other is not member]
    captions = [image.caption or "" for image in member.images]
    return any(other.search(caption) for other in others for caption in captions)
