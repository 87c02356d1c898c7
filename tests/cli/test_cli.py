"""The commands, from the command line to files, on the nano base model."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pinxit.cli import main, screen
from pinxit.generation.request import GenerationRequest
from pinxit.progress import Progress
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.train import StepResult

Pinxit = Callable[..., list[str]]


@pytest.fixture
def pinxit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a command in a new folder and returns the lines that it prints on stdout."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> list[str]:
        status = main(words)
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out.splitlines()

    return typed


def training(nano: Path, *extra: str, method: str = "textual-inversion") -> list[str]:
    words = ["--token", "<mytoy>", "--class-noun", "toy", "--base", str(nano)]
    return ["train", method, "pictures", *words, "--preview-every", "0", *extra]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth", "lora"])
def test_train_then_generate(pinxit: Pinxit, nano: Path, method: str) -> None:
    small = [] if method == "textual-inversion" else ["--class-images", "2"]
    trained = pinxit(*training(nano, "--steps", "2", "--out", "run", *small, method=method))
    assert trained == ["run/concept.safetensors"]
    prompt = "a photo of <mytoy> on the beach"
    generated = pinxit("generate", prompt, "--concept", "run", "--num-images", "2", "--steps", "2")
    assert generated == [
        "generated/0000-a-photo-of-mytoy-on-the-beach-0.png",
        "generated/0000-a-photo-of-mytoy-on-the-beach-1.png",
        "generated/0000-sheet.png",
    ]
    for path in generated:
        with Image.open(path) as image:
            assert image.format == "PNG"
    request = GenerationRequest.from_png(Path(generated[1]))
    assert (request.prompt, request.seed, request.num_images) == (prompt, 1, 1)
    assert request.base == str(nano)


def test_a_sheet_has_the_first_images_only(
    pinxit: Pinxit, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinxit.cli.generate._MAX_SHEET", 2)
    options = ("--base", str(nano), "--steps", "1", "--size", "64", "-n")
    two, three = (pinxit("generate", "a toy", *options, count)[-1] for count in "23")
    assert Path(two).read_bytes() == Path(three).read_bytes()


def test_an_image_is_generated_again_and_nothing_is_overwritten(pinxit: Pinxit, nano: Path) -> None:
    asked = [
        "--base",
        str(nano),
        "--num-images",
        "1",
        "--steps",
        "2",
        "--seed",
        "7",
        "--size",
        "40x24",
    ]
    (first,) = pinxit(
        "generate", "a red toy", *asked, "--negative-prompt", "blue", "--guidance-scale", "3"
    )
    (again,) = pinxit("generate", "--from-png", first)
    assert first != again
    with Image.open(first) as one, Image.open(again) as other:
        assert one.size == (40, 24)
        assert one.tobytes() == other.tobytes()
    (changed,) = pinxit("generate", "--from-png", first, "--seed", "8")
    with Image.open(first) as one, Image.open(changed) as other:
        assert one.tobytes() != other.tobytes()


@pytest.mark.usefixtures("pictures")
def test_a_concept_uses_the_vae_of_its_training(pinxit: Pinxit, nano: Path) -> None:
    pinxit(*training(nano, "--steps", "1", "--out", "run", "--vae", str(nano)))
    given = pinxit("generate", "<mytoy>", "--concept", "run", "--num-images", "1", "--steps", "1")
    assert GenerationRequest.from_png(Path(given[0])).vae == str(nano)


@pytest.mark.skipif(os.name == "nt", reason="needs pipes of POSIX")
@pytest.mark.parametrize("words", ["train --help", "list", "convert nothing out.pt"])
def test_a_closed_pipe_is_quiet_in_every_kind_of_output(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = "stderr" if words.startswith("convert") else "stdout"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    command = [sys.executable, "-m", "pinxit", *words.split()]
    ended = subprocess.run(command, check=False, **streams)
    os.close(writer)
    assert (ended.stdout or b"", ended.stderr or b"", ended.returncode) == (b"", b"", 141)


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="needs a shell that can close a stream")
def test_a_closed_stream_is_no_error(pictures: Path) -> None:
    command = f"{sys.executable} -m pinxit check {pictures}"
    closed = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, check=False)
    assert (closed.returncode, b"Traceback" in closed.stderr) == (0, False)
    assert subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], check=False).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="all names of files are Unicode there")
def test_a_folder_whose_name_is_not_utf_8(
    pictures: Path, nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures.rename(os.fsdecode(os.fsencode(pictures) + b"\xff"))
    words = ["--token", "<mytoy>", "--class-noun", "toy", "--base", str(nano)]
    assert main(["train", "textual-inversion", str(folder), *words]) == 2
    assert "not valid UTF-8" in capsys.readouterr().err


def test_a_prompt_of_letters_with_many_bytes_is_no_error(pinxit: Pinxit, nano: Path) -> None:
    typed = ["--base", str(nano), "--steps", "1", "--count", "1"]
    (file,) = pinxit("generate", "\U00020000" * 60, *typed)
    assert Path(file).is_file()


@pytest.mark.skipif(os.name == "nt", reason="there is no /dev/null")
def test_a_cache_folder_that_cannot_be_made(
    pictures: Path,
    nano: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    for name in ("PINXIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    words = ["--token", "<mytoy>", "--class-noun", "toy", "--base", str(nano), "--steps", "1"]
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "dreambooth", str(pictures), *words, *out]) == 2
    output = capsys.readouterr().err
    assert "the cache folder cannot be used: cannot write /dev/null" in output
    assert "hint: set the variable PINXIT_CACHE" in output


def test_an_initial_image(pinxit: Pinxit, nano: Path, pictures: Path) -> None:
    start = ["--init-image", str(pictures / "0.png"), "--denoising-strength", "0.5"]
    (path,) = pinxit("generate", "a toy", "--base", str(nano), "--num-images", "1", *start)
    assert GenerationRequest.from_png(Path(path)).denoising_strength == 0.5


@pytest.mark.usefixtures("pictures")
def test_the_recipe_of_a_run_makes_the_same_run(pinxit: Pinxit, nano: Path) -> None:
    pinxit(*training(nano, "--steps", "3", "--num-vectors", "2", "--seed", "5", "--out", "one"))
    pinxit("train", "--recipe", "one/recipe.toml", "--out", "two")
    assert losses("one") == losses("two")


@pytest.mark.usefixtures("pictures")
def test_the_folder_of_a_run_is_named_after_the_token(pinxit: Pinxit, nano: Path) -> None:
    assert pinxit(*training(nano, "--steps", "1")) == ["runs/mytoy/concept.safetensors"]


@pytest.mark.usefixtures("pictures")
def test_ctrl_c_saves_all_steps_and_resume_continues(
    pinxit: Pinxit,
    nano: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = training(nano, "--steps", "4", "--out", "whole")
    pinxit(*whole)
    log_step = Run.log_step

    def interrupted(self: Run, step: StepResult, trainer: ConceptTrainer) -> None:
        new = step.number > len(self.state.steps)
        log_step(self, step, trainer)
        if new and step.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_step", interrupted)
        assert main(training(nano, "--steps", "4", "--out", "run")) == 130
    output = capsys.readouterr().err
    assert "stopped at step 2 of 4; saved in run" in output
    assert "pinxit train --resume run" in output
    assert Path("run/concept.safetensors").is_file()
    assert pinxit("train", "--resume", "run") == ["run/concept.safetensors"]
    assert losses("run") == losses("whole")


@pytest.mark.usefixtures("pinxit")
def test_ctrl_c_while_generating(
    nano: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(screen._Log, "__call__", stop)  # pyright: ignore[reportPrivateUsage]
    assert main(["generate", "a toy", "--base", str(nano)]) == 130
    assert "stopped; no image was saved" in capsys.readouterr().err
    assert not Path("generated").exists()


def test_a_prompt_that_is_too_long_says_what_was_cut(
    nano: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "a red toy on the beach " * 6 + "the end of it"
    asked = ["--base", str(nano), "--num-images", "1", "--steps", "1"]
    assert main(["generate", words, *asked]) == 0
    output = capsys.readouterr().err
    assert "too long" in output
    assert "the end of it" in output


def test_bars_on_a_terminal_and_lines_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with screen.bars() as report:
        for done in range(1, 4):
            report(Progress("training", done, 3, "loss 0.1"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("training: 3 of 3")
    assert lines[-1].endswith("loss 0.1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with screen.bars() as report:
        report(Progress("generating", 2, 2))
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "is_terminal"), [("FORCE_COLOR", False), ("TERM", True)])
def test_a_log_file_and_a_dumb_terminal_have_plain_lines(
    name: str,
    is_terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setenv(name, "dumb")  # any other value of FORCE_COLOR would do
    with screen.bars() as report:
        report(Progress("generating", 2, 2))
    assert capsys.readouterr().err == "generating: 2 of 2\n"


def test_bars_inside_of_bars_are_the_same() -> None:
    with screen.bars() as report:
        with screen.bars() as inside:
            assert inside is report
        with screen.bars() as inside:
            assert inside is report
    with screen.bars() as other:
        assert other is not report


@pytest.mark.long
def test_data_stays_on_stdout_while_bars_run_on_a_terminal() -> None:
    code = (
        "from pinxit.cli import screen\n"
        "from pinxit.progress import Progress\n"
        "with screen.bars() as report:\n"
        "    report(Progress('generating', 1, 2)); screen.data('a.png')\n"
        "    report(Progress('generating', 2, 2))\n"
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
    assert "generating" in shown
    assert "2/2" in shown
    assert "a.png" not in shown


def test_control_characters_in_names_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "dreambooth\x1b[2J", "x"]) == 2
    output = capsys.readouterr().err
    assert "\x1b" not in output
    assert "`dreambooth?[2J`" in output


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "[/b]", "x\nerror: forged"])
def test_bars_show_names_as_they_are(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with screen.bars() as progress:
        progress(Progress(text, 1, 2, text))
    shown = capsys.readouterr().err
    assert "\x1b]" not in shown
    assert "\nerror" not in shown
    assert screen.printable(text).split()[0] in shown


def test_a_file_cannot_forge_lines_of_inspect(pinxit: Pinxit, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"<x>\nsuspicious  nothing": torch.full((1, 4), torch.nan)}, path)
    lines = [line for line in pinxit("inspect", str(path)) if line.startswith("suspicious")]
    assert len(lines) == 1
    assert "NaN" in lines[0]


def losses(run: str) -> list[object]:
    lines = Path(run, "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["losses"] for entry in entries if "losses" in entry]


def test_letters_that_the_output_cannot_encode_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = BytesIO()
    monkeypatch.setattr("sys.stderr", TextIOWrapper(output, "ascii"))
    (tmp_path / "\u5199").mkdir()
    assert main(["runs", str(tmp_path / "\u5199")]) == 0
    assert rb"\u5199" in output.getvalue()
