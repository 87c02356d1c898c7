"""The comparison with the first version's results, and that it reports what differs."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lab.same_results import compare
from lab.same_results.inputs import write_inputs
from lab.same_results.manifest import Difference, Manifest, Result, differences, file_hashes, result

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}


def test_equal_results_have_no_differences(tmp_path: Path) -> None:
    assert differences(manifest(tmp_path / "one"), manifest(tmp_path / "two")) == []


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("losses", lambda folder: log(folder, 0.1 + 0.2)),
        ("losses", lambda folder: (folder / "log.jsonl").unlink()),
        ("pixels", lambda folder: image(folder, (1, 2, 4))),
        ("pixels", lambda folder: (folder / "image.png").unlink()),
        ("tensors", lambda folder: weights(folder, a=WEIGHTS["a"].nextafter(torch.tensor(9.0)))),
        ("tensors", lambda folder: weights(folder, a=WEIGHTS["a"].reshape(3, 2))),
        ("tensors", lambda folder: weights(folder, b=torch.ones(3, dtype=torch.float16))),
        ("tensors", lambda folder: weights(folder, c=torch.ones(3))),
        ("tensors", lambda folder: torch.save({"step": 3}, folder / "word.pt")),
    ],
)
def test_a_change_is_reported(
    tmp_path: Path, what: str, change: Callable[[Path], object], foreign: bool
) -> None:
    reported = differences(
        manifest(tmp_path / "one", foreign=foreign),
        manifest(tmp_path / "two", change, foreign=foreign),
    )
    assert [one.what for one in reported if not one.note] == [what]
    assert reported[0].command == "train"


def test_tensor_names_count_in_foreign_formats_only(tmp_path: Path) -> None:
    def rename(folder: Path) -> None:
        save_file({"a": WEIGHTS["a"], "other": WEIGHTS["b"]}, folder / "weights.safetensors")

    for foreign in (False, True):
        old = manifest(tmp_path / f"old{foreign}", foreign=foreign)
        new = manifest(tmp_path / f"new{foreign}", rename, foreign=foreign)
        assert [one.note for one in differences(old, new) if one.what == "tensors"] == [not foreign]


def test_metadata_is_a_note(tmp_path: Path) -> None:
    def describe(folder: Path) -> None:
        save_file(WEIGHTS, folder / "weights.safetensors", {"title": "toy"})

    reported = differences(manifest(tmp_path / "one"), manifest(tmp_path / "two", describe))
    assert reported == [Difference("train", "file", "weights.safetensors", note=True)]


def test_a_missing_command_is_reported(tmp_path: Path) -> None:
    (reported,) = differences(manifest(tmp_path / "one"), {})
    assert (reported.what, reported.note) == ("command", False)


def test_only_what_a_command_changed_is_its_result(tmp_path: Path) -> None:
    image(tmp_path, (1, 2, 3))
    before = file_hashes(tmp_path)
    weights(tmp_path)
    assert list(result(tmp_path, before, foreign=False)["files"]) == ["weights.safetensors"]


def test_inputs_are_the_same_each_time(tmp_path: Path) -> None:
    one, two = (write_inputs(tmp_path / name) for name in ("one", "two"))
    assert file_hashes(one) == file_hashes(two)
    assert {path.name for path in one.iterdir()} == {"toy", "style", "subjects", "xl", "sd3"}


def test_the_exit_status_tells_whether_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = manifest(tmp_path / "one")
    new = copy.deepcopy(old)
    monkeypatch.setattr(compare, "baseline", lambda *_: old)
    monkeypatch.setattr(compare, "record", lambda *_: new)
    assert compare.main(["compare", "HEAD"]) == 0
    new["train"]["losses"]["log.jsonl"][0] = "[0.25]"
    assert compare.main(["compare", "HEAD"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.slow
def test_results_are_those_of_the_first_version() -> None:
    root = compare.ROOT
    known = ["git", "cat-file", "-e", f"{compare.FIRST_VERSION}^{{commit}}"]
    cloned = (root / ".git").exists() and shutil.which("git")
    if not cloned or subprocess.run(known, cwd=root, check=False).returncode:
        pytest.skip("the git history does not reach the first version here")
    reported = compare.compare(compare.FIRST_VERSION)
    assert not [one for one in reported if not one.note], compare.table(reported)


def manifest(
    folder: Path, change: Callable[[Path], object] = lambda _: None, *, foreign: bool = False
) -> dict[str, Result]:
    """The manifest of one command that wrote a log, an image and weights."""
    folder.mkdir()
    log(folder, 0.3)
    image(folder, (1, 2, 3))
    weights(folder)
    change(folder)
    files: Manifest = {"train": result(folder, {}, foreign=foreign)}
    return json.loads(json.dumps(files))


def log(folder: Path, loss: float) -> None:
    entries = [{"number": 1, "losses": [0.5]}, {"number": 2, "losses": [loss]}]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def image(folder: Path, colour: tuple[int, int, int]) -> None:
    Image.new("RGB", (4, 4), colour).save(folder / "image.png")


def weights(folder: Path, **changed: torch.Tensor) -> None:
    save_file({**WEIGHTS, **changed}, folder / "weights.safetensors")
