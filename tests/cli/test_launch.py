"""`--gpus N` starts processes, says what is wrong with N, and ends all when one is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from pinxit.cli import launch, main
from pinxit.cli.opening import Opening


def typed(nano: Path, pictures: Path, *more: str) -> list[str]:
    words = ["train", "textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"]
    return [*words, "--base", str(nano), "--device", "cpu", "--preview-every", "0", *more]


@pytest.mark.parametrize("count", ["0", "-1", "9999"])
def test_an_impossible_number_of_gpus_is_an_error(
    nano: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    assert main(typed(nano, pictures, "--gpus", count, "--out", str(tmp_path / "run"))) == 2
    assert f"error: --gpus {count} is not possible: this machine has " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_starts_again_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(launch.StartRanks, match="2"), Opening("cpu", gpus=2).joined():
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with Opening("cpu").joined() as ranks:
        assert ranks.size == 1


def test_train_many_refuses_several_processes(
    nano: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["train-many", "textual-inversion", str(pictures.parent), "--class-noun", "toy"]
    assert main([*words, "--base", str(nano), "--out", str(tmp_path / "runs")]) == 2
    assert "train-many --engine" in capsys.readouterr().err


def test_all_processes_end_if_one_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_GRACE", 0.2)
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    codes = ("import time; time.sleep(100)", killed)
    processes = [subprocess.Popen([sys.executable, "-S", "-c", code]) for code in codes]
    assert launch._wait(processes) == 128 + 9
    assert "process 1 of 2 was killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.long
def test_two_processes_print_and_write_what_one_does(
    nano: Path, pictures: Path, tmp_path: Path
) -> None:
    for count in ("1", "2"):
        words = typed(nano, pictures, "--steps", "3", "--gpus", count, "--out", f"run{count}")
        answer = subprocess.run(
            [sys.executable, "-m", "pinxit", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout == f"run{count}/concept.safetensors\n"
        assert answer.stderr.count("generate with: --concept") == 1
    first, second = (sorted(path.name for path in (tmp_path / f"run{n}").iterdir()) for n in "12")
    assert first == second
