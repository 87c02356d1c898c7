"""`pinxit doctor`: what it shows, and that it names problems."""

import json
from pathlib import Path

import pytest

from pinxit.cli import main
from pinxit.models import hub


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a hub that does not answer."""
    monkeypatch.setenv("PINXIT_CACHE", str(tmp_path / "pinxit"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    return tmp_path


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report(capsys: pytest.CaptureFixture[str], caches: Path) -> None:
    (caches / "pinxit").mkdir()
    (caches / "pinxit" / "image.png").write_bytes(bytes(200_000_000))
    facts = report(capsys)
    assert "CPU in " in str(facts["device"])
    assert "(0.2 GB)" in str(facts["caches"])
    assert "diffusers" in str(facts["packages"])
    assert facts["hub"] == "does not answer"


def test_problems_have_hints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinxit.cli.doctor._LITTLE_MEMORY", 10**18)
    monkeypatch.setattr("pinxit.cli.doctor._LITTLE_DISK", 10**18)
    monkeypatch.setattr("pinxit.cli.doctor._version", lambda _: "0.0.1")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().err
    for problem in ("the hub does not answer", "little memory", "free on the disk", "not scored"):
        assert problem in printed
    assert "torch is 0.0.1, and pinxit needs >=" in printed
    assert printed.count("hint: ") == printed.count("problem: ")


def test_folders_are_shown_without_the_name_of_the_account(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    monkeypatch.setenv("HOME", str(caches))
    assert str(caches) not in json.dumps(report(capsys))


def test_offline_mode_is_no_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    facts = report(capsys)
    assert facts["hub"] == "offline mode"
    assert "the hub" not in json.dumps(facts["problems"])


def test_judges_are_downloaded_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(hub, "fetch", fetched.append)
    assert main(["doctor", "--fetch-judges"]) == 0
    assert fetched == ["facebook/dino-vits16", "openai/clip-vit-base-patch32"]
