"""Networks that score images are downloaded with consent only; one line says what is missing."""

from pathlib import Path

import pytest

from pinxit.cli import main
from pinxit.evaluation.networks import CLIP, DINO
from pinxit.models import hub


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache of the hub; what would be downloaded is recorded."""
    fetched: list[str] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asks the hub"))
    monkeypatch.setattr(hub, "fetch", fetched.append)
    monkeypatch.chdir(tmp_path)
    return fetched


def train(pictures: Path, base: Path, *more: str) -> int:
    words = ["train", "textual-inversion", str(pictures), "--token", "<mytoy>", "--steps", "1"]
    words += ["--class-noun", "toy", "--base", str(base), "--out", "run", "--batch-size", "1"]
    return main([*words, *more])


def test_training_names_the_models_that_it_would_download(
    pictures: Path, nano: Path, empty_cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pictures, nano) == 0
    printed = capsys.readouterr().err
    assert printed.count("previews are not scored") == 1
    assert f"{DINO} (87 MB), {CLIP} (605 MB)" in printed
    assert "pinxit doctor --fetch-judges" in printed
    assert not empty_cache


def test_download_is_consent(pictures: Path, nano: Path, empty_cache: list[str]) -> None:
    assert train(pictures, nano, "--download", "--preview-every", "0") == 0
    assert empty_cache == [DINO, CLIP]


def test_pocket_needs_no_download(pictures: Path, empty_cache: list[str]) -> None:
    typed = ["train", "textual-inversion", str(pictures), "--token", "<mytoy>", "--steps", "1"]
    typed += ["--class-noun", "toy", "--out", "run", "--preview-every", "0", "--download"]
    assert main(typed) == 0
    assert not empty_cache


def test_a_network_that_the_user_names_is_downloaded(empty_cache: list[str]) -> None:
    assert main(["evaluate", "no-run", "--dino-model", "owner/dino"]) == 2
    assert empty_cache == ["owner/dino"]


def test_missing_judges_are_an_error_before_the_base_model(
    pictures: Path, nano: Path, empty_cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pictures, nano, "--preview-every", "0") == 0
    for entry in ("run", f"--benchmark={pictures.parent}"):
        assert main(["evaluate", entry, "--base", "owner/large", "--out", "scores"]) == 2
        assert f"{DINO} (87 MB), {CLIP} (605 MB)" in capsys.readouterr().err
    assert not empty_cache
