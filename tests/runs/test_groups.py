"""Groups are planned from recipes and images alone, and any executor can train them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.progress import Notice
from pinxit.runs.events import Event
from pinxit.runs.groups import BatchGroups, GroupMember, plan_groups
from pinxit.runs.many import train_many
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe


def member(
    name: str, *, caption: str = "", exists: bool = False, batch_size: int = 2
) -> GroupMember:
    recipe = Recipe.model_validate(
        {"method": "textual-inversion", "images": name, "token": f"<{name}>", "class_noun": "toy"}
    )
    images = (TrainingImage(Path(name, "0.png"), caption, f"hash of {name}", 1.0, True),)
    return GroupMember(Path(name), recipe, images, batch_size, exists)


def names(groups: BatchGroups) -> list[list[str]]:
    return [[folder.name for folder in group] for group in groups.groups]


def test_groups_do_not_depend_on_the_order() -> None:
    members = [member(name) for name in "dacb"]
    groups = plan_groups(members, 3)
    assert [len(group) for group in groups.groups] == [2, 2]
    assert groups == plan_groups(members[::-1], 3)
    assert groups.reason == "at most 3 in one batch"


def test_the_default_limit_is_64_images() -> None:
    assert len(plan_groups([member(str(n), batch_size=16) for n in range(8)], None).groups) == 2
    assert len(plan_groups([member(str(n), batch_size=8) for n in range(8)], None).groups) == 1


def test_existing_runs_and_captions_with_other_tokens_are_apart() -> None:
    members = [member("a", exists=True), member("b"), member("c", caption="a toy on <b>")]
    groups = plan_groups(members, None)
    assert names(groups) == [["a"], ["b"], ["c"]]
    assert "another subject's token" in groups.reason


class Recorder:
    """An executor that trains nothing and records its groups."""

    def __init__(self) -> None:
        self.groups: list[list[Run]] = []

    def train(self, group: Sequence[Run]) -> Iterator[tuple[Run, Event]]:
        self.groups.append(list(group))
        yield group[0], Notice("trained elsewhere")


@pytest.mark.parametrize("limit", [1, 2])
def test_an_executor_gets_each_group(
    limit: int, model: Model, pictures: Path, tmp_path: Path
) -> None:
    values = {"method": "textual-inversion", "images": pictures, "class_noun": "toy"}
    runs = [
        Run.create(tmp_path / name, Recipe.model_validate({**values, "token": f"<{name}>"}))
        for name in ("mine", "yours")
    ]
    recorder = Recorder()
    events = [item for item in train_many(model, runs, limit, recorder) if isinstance(item, tuple)]
    assert [len(group) for group in recorder.groups] == [limit] * (2 // limit)
    assert {event for _, event in events} == {Notice("trained elsewhere")}
    assert not any(run.folder.exists() for run in runs)
