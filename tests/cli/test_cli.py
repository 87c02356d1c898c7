"""The commands, from typing to files, on the nano base."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pinxit.cli import main, screen
from pinxit.cli.paint import Request
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import Learner
from pinxit.training.train import Step

Pinxit = Callable[..., list[str]]


@pytest.fixture
def pinxit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Type a command that works, in a folder of its own; the lines it prints."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> list[str]:
        status = main(words)
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out.splitlines()

    return typed


def training(nano: Path, *extra: str, method: str = "textual-inversion") -> list[str]:
    words = ["--token", "<mytoy>", "--class-noun", "toy", "--base", str(nano)]
    return ["train", method, "pictures", *words, "--preview-every", "0", *extra]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth", "lora"])
def test_learn_then_paint(pinxit: Pinxit, nano: Path, method: str) -> None:
    small = [] if method == "textual-inversion" else ["--prior-pictures", "2"]
    learned = pinxit(*training(nano, "--steps", "2", "--out", "run", *small, method=method))
    assert learned == ["run/concept.safetensors"]
    prompt = "a photo of <mytoy> on the beach"
    painted = pinxit("generate", prompt, "--concept", "run", "--count", "2", "--steps", "2")
    assert painted == [
        "painted/0000-a-photo-of-mytoy-on-the-beach-0.png",
        "painted/0000-a-photo-of-mytoy-on-the-beach-1.png",
        "painted/0000-sheet.png",
    ]
    for path in painted:
        with Image.open(path) as image:
            assert image.format == "PNG"
    request = Request.from_png(Path(painted[1]))
    assert (request.prompt, request.seed, request.count) == (prompt, 1, 1)
    assert request.base == str(nano)


def test_a_picture_is_painted_again_and_nothing_is_written_over(pinxit: Pinxit, nano: Path) -> None:
    asked = ["--base", str(nano), "--count", "1", "--steps", "2", "--seed", "7", "--size", "40x24"]
    (first,) = pinxit("generate", "a red toy", *asked, "--negative", "blue", "--guidance", "3")
    (again,) = pinxit("generate", "--like", first)
    assert first != again
    with Image.open(first) as one, Image.open(again) as other:
        assert one.size == (40, 24)
        assert one.tobytes() == other.tobytes()
    (changed,) = pinxit("generate", "--like", first, "--seed", "8")
    with Image.open(first) as one, Image.open(changed) as other:
        assert one.tobytes() != other.tobytes()


@pytest.mark.usefixtures("pictures")
def test_a_concept_brings_its_autoencoder_along(pinxit: Pinxit, nano: Path) -> None:
    pinxit(*training(nano, "--steps", "1", "--out", "run", "--vae", str(nano)))
    given = pinxit("generate", "<mytoy>", "--concept", "run", "--count", "1", "--steps", "1")
    assert Request.from_png(Path(given[0])).vae == str(nano)


def test_a_reader_that_has_seen_enough_is_no_trouble() -> None:
    code = "import sys; from pinxit.cli import main; sys.exit(main(['list']))"
    listing = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout
    listing.stdout.close()
    assert (listing.communicate()[1], listing.returncode) == (b"", 0)


def test_a_start_picture(pinxit: Pinxit, nano: Path, pictures: Path) -> None:
    start = ["--init", str(pictures / "0.png"), "--strength", "0.5"]
    (path,) = pinxit("generate", "a toy", "--base", str(nano), "--count", "1", *start)
    assert Request.from_png(Path(path)).strength == 0.5


@pytest.mark.usefixtures("pictures")
def test_a_run_keeps_its_recipe_which_makes_the_same_run(pinxit: Pinxit, nano: Path) -> None:
    pinxit(*training(nano, "--steps", "3", "--vectors", "2", "--seed", "5", "--out", "one"))
    pinxit("train", "--recipe", "one/recipe.toml", "--out", "two")
    assert losses("one") == losses("two")


@pytest.mark.usefixtures("pictures")
def test_the_folder_of_a_run_is_named_after_the_word(pinxit: Pinxit, nano: Path) -> None:
    assert pinxit(*training(nano, "--steps", "1")) == ["runs/mytoy/concept.safetensors"]


@pytest.mark.usefixtures("pictures")
def test_ctrl_c_keeps_what_was_learned_and_resume_goes_on(
    pinxit: Pinxit,
    nano: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = training(nano, "--steps", "4", "--out", "whole")
    pinxit(*whole)
    noted = Run.note

    def interrupted(self: Run, step: Step, learner: Learner) -> None:
        new = step.number > len(self.journal())
        noted(self, step, learner)
        if new and step.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "note", interrupted)
        assert main(training(nano, "--steps", "4", "--out", "run")) == 130
    said = capsys.readouterr().err
    assert "what was learned is saved in run" in said
    assert "pinxit train --resume run" in said
    assert Path("run/concept.safetensors").is_file()
    assert pinxit("train", "--resume", "run") == ["run/concept.safetensors"]
    assert losses("run") == losses("whole")


@pytest.mark.usefixtures("pinxit")
def test_ctrl_c_while_painting(
    nano: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(screen._Log, "__call__", stop)  # pyright: ignore[reportPrivateUsage]
    assert main(["generate", "a toy", "--base", str(nano)]) == 130
    assert "stopped; nothing is kept" in capsys.readouterr().err
    assert not Path("painted").exists()


def test_a_prompt_that_is_too_long_says_what_was_cut(
    nano: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "a red toy on the beach " * 6 + "the end of it"
    asked = ["--base", str(nano), "--count", "1", "--steps", "1"]
    assert main(["generate", words, *asked]) == 0
    said = capsys.readouterr().err
    assert "too long" in said
    assert "the end of it" in said


def test_bars_on_a_terminal_and_lines_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with screen.bars() as report:
        for done in range(1, 4):
            report("learning", done, 3, "loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("learning: 3 of 3")
    assert lines[-1].endswith("loss 0.1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with screen.bars() as report:
        report("painting", 2, 2)
    assert "2/2" in capsys.readouterr().err


def test_bars_inside_of_bars_are_the_same() -> None:
    with screen.bars() as report:
        with screen.bars() as inside:
            assert inside is report
        with screen.bars() as inside:
            assert inside is report
    with screen.bars() as other:
        assert other is not report


def test_data_stays_on_stdout_while_bars_run_on_a_terminal() -> None:
    code = (
        "from pinxit.cli import screen\n"
        "with screen.bars() as report:\n"
        "    report('painting', 1, 2); screen.data('a.png'); report('painting', 2, 2)\n"
    )
    ours, theirs = pty.openpty()
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
            check=True,
        )
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert answer.stdout == b"a.png\n"
    assert "painting" in shown
    assert "2/2" in shown
    assert "a.png" not in shown


def test_control_characters_in_names_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "dreambooth\x1b[2J", "x"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "`dreambooth?[2J`" in said


def losses(run: str) -> list[object]:
    lines = Path(run, "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["losses"] for entry in entries if "losses" in entry]
