"""Help explains every option, and answers before anything heavy is imported."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pinxit import registry
from pinxit.cli import app, main

HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "safetensors", "pydantic"}


@pytest.fixture
def wide_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help on wide lines; the parser would keep the width of the first help in the process."""
    monkeypatch.setattr(app, "_console", Console(width=400))


@pytest.mark.parametrize("typed", ["--help", "", "--version", "list methods", "train --help"])
def test_quick_answers_import_nothing_heavy(typed: str) -> None:
    code = (
        "import sys; from pinxit.cli import main\n"
        f"status = main({typed.split()!r})\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    print(f"`pinxit {typed}` took {time.perf_counter() - start:.2f} s")
    status, *modules = answer.stderr.split()
    assert status == "0"
    assert answer.stdout
    assert not HEAVY & set(modules)


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("pinxit")
    answer = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in ("train", "generate", "demo", "list"):
        assert re.search(rf"^│ {name} +\S", answer.stdout, re.MULTILINE)


@pytest.mark.usefixtures("wide_help")
@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_option_of_a_recipe_and_a_method_is_explained(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pinxit.training.recipe import Recipe

    assert main(["train", method, "--help"]) == 0
    shown = capsys.readouterr().out
    plugin = registry.load("methods", method)
    fields = {**Recipe.model_fields, **plugin.model_fields}
    del fields["method"]
    for name, field in fields.items():
        assert field.description, f"{name} of {method} has no description"
        flag = f"--{name.replace('_', '-')}"
        (line,) = re.findall(rf"{flag}\b.* {re.escape(field.description)}.*", shown)
        assert re.search(r"\[default: .+\]|\[required\]", line), f"{flag} shows no default"


@pytest.mark.usefixtures("wide_help")
@pytest.mark.parametrize("command", ["generate", "transfer", "evaluate", "check"])
def test_every_flag_is_explained_and_shows_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    lines = re.findall(r"^│ +(?:[A-Z]+ )?(--[a-z-]+.*)│$", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) > 3
    for line in lines:
        assert re.search(r"  \w\S* \S+.*(\[default: .+\]|\[required\])", line), line


def test_help_shows_no_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--num-images" in shown
    for alias in ("--count", "--n ", "--like", "--cfg", "--negative "):
        assert alias not in shown


def test_python_m_pinxit_is_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pinxit", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"pinxit \d+\.\S+\n", answer.stdout)


def test_shell_completion_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "pinxit-completion"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash", "--output", str(script)]) == 0
    assert "train-many" in script.read_text()
    assert str(script) in capsys.readouterr().out


def test_a_shell_that_is_not_known_can_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SHELL", "BASH_VERSION", "ZSH_VERSION", "FISH_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")  # the parent process cannot be asked for
    assert main(["--install-completion"]) == 2
    assert "--shell bash" in capsys.readouterr().err


@pytest.mark.parametrize("width", [32, 40, 64, 65, 80, 120])
@pytest.mark.parametrize("words", [["train"], ["train", "lora"], ["generate"], ["evaluate"]])
def test_help_has_whole_flags_in_every_width(
    words: list[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []
    for columns in (200, width):
        monkeypatch.setattr(app, "_console", Console(width=columns))
        assert main([*words, "--help"]) == 0
        shown.append(capsys.readouterr().out)
    wide, narrow = shown
    assert max(map(len, narrow.splitlines())) <= width
    flags = set(re.findall(r"(?<= )--[a-z][\w-]+", wide))
    assert set(re.findall(r"--[a-z][\w-]+", narrow)) >= flags


def test_the_list_names_every_plug_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for kind in registry.PLUGIN_KINDS:
        for name in registry.names(kind):
            assert re.search(rf"^  {name} +\S", shown, re.MULTILINE)
