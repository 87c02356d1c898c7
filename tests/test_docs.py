"""What the README says works: its commands are understood, its Python runs, its links lead on."""

import re
import shlex
from pathlib import Path

import pytest

from lab import doc_tables
from pinxit.cli import app, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(pinxit .+)$|`(pinxit .+?)`", README, re.MULTILINE)


@pytest.mark.parametrize("typed", [block or inline for block, inline in COMMANDS])
def test_every_command_in_the_readme_is_understood(typed: str) -> None:
    words = shlex.split(typed.partition("#")[0])[1:]
    if "--help" in words:
        return  # test_help.py
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_every_command_of_reliability_runs(
    nano: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures.rename("my-toy")
    begin = "train textual-inversion my-toy --token <t> --class-noun toy --out runs/toy --steps 1"
    assert main([*begin.split(), "--preview-every", "0", "--base", str(nano)]) == 0
    page = (ROOT / "docs" / "results" / "reliability.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pinxit (.+)$", page, re.MULTILINE)
    assert len(commands) >= 4
    for typed in commands:
        words = typed.partition("#")[0].replace("FOLDER", str(nano))
        assert main(shlex.split(re.sub(r"--steps \d+", "--steps 2", words))) == 0, typed


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("kind", ["families", "formats"])
def test_tables_of_plug_ins_are_what_the_plug_ins_say(kind: str) -> None:
    written = re.search(rf"<!-- figures: {kind} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert written
    assert written[1] == doc_tables.BLOCKS[kind](), "run python -m lab.doc_tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_readmes_python_runs(
    nano: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("PIL.Image.Image.show", lambda _: None)
    pictures.rename(tmp_path / "my-toy")
    code = code.replace('"pocket"', repr(str(nano)))
    code = code.replace(
        'class_noun="toy"', f'class_noun="toy", base={str(nano)!r}, steps=2, score_previews=False'
    )
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["results"]) == 1  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "runs" / "mytoy" / "concept.safetensors").is_file()
