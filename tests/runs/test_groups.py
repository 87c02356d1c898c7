"""Groups are planned from recipes and images alone."""

from pathlib import Path

from pinxit.images.folder import TrainingImage
from pinxit.runs.groups import BatchGroups, GroupMember, plan_groups
from pinxit.training.recipe import Recipe


def member(
    name: str, *, caption: str = "", exists: bool = False, batch_size: int = 2
) -> GroupMember:
    recipe = Recipe.model_validate(
        {"method": "textual-inversion", "images": name, "token": f"<{name}>", "class_noun": "toy"}
    )
    images = (TrainingImage(Path(name, "0.png"), caption, f"hash of {name}", 1.0, True),)
    return GroupMember.of(Path(name), recipe, images, batch_size, exists=exists)


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


def test_a_token_is_found_as_a_whole_word_in_any_case() -> None:
    members = [member("a"), member("b", caption="its own <B>"), member("c", caption="x<a>, <A> ")]
    assert names(plan_groups(members, None)) == [["b", "a"], ["c"]]
