"""Lists of runs and concepts, and the request in an image."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pinxit.cli import main
from pinxit.cli.screen import labelled, table
from pinxit.models.model import Model
from pinxit.runs.run import train_run
from pinxit.training.recipe import Recipe


def picture(path: Path, **texts: str) -> str:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return str(path)


def test_runs_and_concepts_are_listed(
    model: Model,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"images": pictures, "token": "<my>", "class_noun": "toy", "base": model.name}
    recipe = Recipe.model_validate(
        {**options, "method": "textual-inversion", "steps": 2, "preview_every": 0}
    )
    run = train_run(model, recipe, tmp_path / "runs" / "one")
    assert main(["convert", "runs/one", "other.pt"]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    (row,) = capsys.readouterr().out.splitlines()
    assert row.split("\t") == [
        "runs/one",
        "<my>",
        "textual-inversion",
        "done",
        "2 of 2",
        model.name,
        "",
    ]
    assert main(["concepts"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["runs/one/concept.safetensors", "other.pt"]
    assert {row[1] for row in rows} >= {"<my>"}
    assert run.finished
    assert main(["runs", "nowhere"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err
    assert main(["runs", "pictures"]) == 0
    assert "no runs in pictures" in capsys.readouterr().err


def test_show_prints_how_an_image_was_generated(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.png"
    typed = ["generate", "a red dog", "--base", str(nano), "--steps", "1", "--seed", "7"]
    assert main([*typed, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert (rows["prompt"], rows["seed"], rows["steps"]) == ("a red dog", "7", "1")
    assert "denoising_strength" not in rows  # it has no effect without an image


def test_show_prints_lists_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = {"prompt": "<a>", "concepts": ["runs/a", "runs/b"], "init_image": "c.png"}
    request |= {"denoising_strength": 0.4}
    assert main(["show", picture(tmp_path / "a.png", pinxit=json.dumps(request))]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (rows["concepts"], rows["denoising_strength"]) == ("runs/a, runs/b", "0.4")


def test_show_reads_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a cat\nNegative prompt: blurred\nSteps: 20, Seed: 5"
    assert main(["show", picture(tmp_path / "a.png", parameters=text)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1)[-1] for line in lines] == [
        "a cat",
        "prompt: blurred",
        "20, Seed: 5",
    ]
    node = {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "model": ["4", 0]}}
    graph = json.dumps(
        {"3": node, "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat"}}}
    )
    assert main(["show", picture(tmp_path / "b.png", prompt=graph)]) == 0
    shown = capsys.readouterr().out
    assert "KSampler seed        5" in shown
    assert "CLIPTextEncode text  cat" in shown
    assert "model" not in shown
    assert main(["generate", "--from-png", str(tmp_path / "b.png")]) == 2
    assert f"pinxit show {tmp_path / 'b.png'}" in capsys.readouterr().err
    assert main(["show", picture(tmp_path / "c.png", prompt="[1]")]) == 2
    assert "does not say how it was generated" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "none.png")]) == 2


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_a_table_has_whole_words_in_every_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cells = (
        "runs/a-dog-with-a-long-name",
        "textual-inversion",
        "a note of several words",
        "\u5199" * 9,
    )
    table(("run", "method", "notes", "token"), [cells])
    words = capsys.readouterr().out.split()
    assert {word for cell in cells for word in cell.split()} <= set(words)


def test_a_text_beside_its_label_is_wrapped_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled("prompt", "one line for other programs", 10)
    assert capsys.readouterr().out == "prompt    one line for other programs\n"
    monkeypatch.setenv("COLUMNS", "21")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    labelled("prompt", "folders/with-a-long-name and words", 10)
    assert capsys.readouterr().out.split("\n") == [
        "prompt    folders/with-a-long-name",
        "          and words",
        "",
    ]
    labelled("prompt", "folders and words", 15)
    assert capsys.readouterr().out == "prompt\n  folders and words\n"
