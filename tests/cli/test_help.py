"""Help explains every knob, and answers before anything heavy is imported."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinxit import registry
from pinxit.cli import main

HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "safetensors", "pydantic"}


@pytest.mark.parametrize("typed", ["--help", "", "--version", "list methods", "train --help"])
def test_quick_answers_import_nothing_heavy(typed: str) -> None:
    code = (
        "import sys; from pinxit.cli import main\n"
        f"status = main({typed.split()!r})\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    began = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    print(f"`pinxit {typed}` took {time.perf_counter() - began:.2f} s")
    status, *modules = answer.stderr.split()
    assert status == "0"
    assert answer.stdout
    assert not HEAVY & set(modules)


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("pinxit")
    answer = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in ("train", "generate", "demo", "list"):
        assert re.search(rf"^│ {name} +\S", answer.stdout, re.MULTILINE)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_knob_and_every_recipe_key_is_explained(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pinxit.training.recipe import Recipe

    monkeypatch.setenv("COLUMNS", "300")
    assert main(["train", method, "--help"]) == 0
    shown = capsys.readouterr().out
    plugin = registry.load("methods", method)
    fields = {**Recipe.model_fields, **plugin.model_fields}
    del fields["method"]
    for name, field in fields.items():
        assert field.description, f"{name} of {method} has no description"
        flag = f"--{name.replace('_', '-')}"
        assert re.search(rf"{flag}\b.* {re.escape(field.description)}", shown), flag


def test_every_part_of_a_request_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    flags = "concept negative count seed steps guidance scheduler size init strength device"
    for flag in f"{flags} precision out like".split():
        assert re.search(rf"--{flag}\b.* \w{{3}}", shown), flag


def test_the_list_names_every_plug_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for kind in registry.KINDS:
        for name in registry.names(kind):
            assert re.search(rf"^  {name} +\S", shown, re.MULTILINE)
