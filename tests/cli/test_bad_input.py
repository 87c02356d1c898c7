"""Bad input is one sentence with the value in it, a hint, exit status 2, and nothing written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from pinxit.cli import main


@dataclass(frozen=True)
class Place:
    """A working folder with good pictures, a recipe, a taken run, and a base."""

    here: Path
    base: Path

    def train(self, *extra: str, pictures: str = "pictures", method: str = "textual-inversion"):
        usual = {"--token": "<mytoy>", "--class-noun": "toy", "--base": str(self.base)}
        usual |= {"--steps": "1", "--out": "run"}
        typed = [word for flag in usual.items() if flag[0] not in extra for word in flag]
        return ["train", method, pictures, *typed, *extra]

    def recipe(self, line: str = "", knob: str = "", method: str = "textual-inversion"):
        lines = [f'pictures = "pictures"\nbase = "{self.base}"\ntoken = "<mytoy>"']
        lines += ['class_noun = "toy"', line, f'[method]\nname = "{method}"', knob]
        (self.here / "recipe.toml").write_text("\n".join(lines))
        return ["train", "--recipe", "recipe.toml", "--out", "run"]

    def generate(self, *extra: str):
        return ["generate", "a toy", "--base", str(self.base), *extra]


@pytest.fixture
def place(tmp_path: Path, nano: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "a.png").write_bytes(b"no picture")
    (tmp_path / "rubbish" / "b.mov").write_bytes(b"no picture")
    shutil.copytree(tmp_path / "rubbish", tmp_path / "mixed")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "mixed" / "c.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("dear diary")
    (tmp_path / "broken.toml").write_text("token = \n")
    (tmp_path / "file").write_text("a file")
    assert pictures.parent == tmp_path
    return Place(tmp_path, nano)


Case = tuple[str, Callable[[Place], list[str]], str, str]

# What is wrong; what is typed; the value that the message must have; what the hint must have.
CASES: list[Case] = [
    ("no folder", lambda p: p.train(pictures="nowhere"), "nowhere", "folder"),
    ("empty folder", lambda p: p.train(pictures="empty"), "empty", "put 3 to 12"),
    ("no picture readable", lambda p: p.train(pictures="rubbish"), "a.png", "take them out"),
    ("some unreadable", lambda p: p.train(pictures="mixed"), "1 of 2 files in mixed", "repair"),
    ("file for a folder", lambda p: p.train(pictures="file"), "file is no folder", "folder"),
    ("unknown base", lambda p: p.train("--base", "pokcet"), "pokcet", "did you mean pocket?"),
    ("folder is no base", lambda p: p.train("--base", "pictures"), "pictures", "families"),
    ("unknown method", lambda p: p.train(method="dreamboth"), "dreamboth", "mean dreambooth?"),
    ("unknown knob", lambda p: p.train("--vectrs", "2"), "--vectrs", "did you mean --vectors?"),
    ("knob out of range", lambda p: p.train("--vectors", "0"), "0", "vectors"),
    ("knob no number", lambda p: p.train("--vectors", "two"), "two", "--help"),
    ("knob no choice", lambda p: p.train("--kind", "stile"), "stile", "did you mean"),
    ("steps below one", lambda p: p.train("--steps", "0"), "0", "steps"),
    ("missing token", lambda _: ["train", "dreambooth", "pictures"], "--token", "--help"),
    ("token known", lambda p: p.train("--token", "dog"), "`dog`", "<mydog>"),
    ("token empty", lambda p: p.train("--token", ""), "token", ""),
    ("token of two words", lambda p: p.train("--token", "my toy"), "my toy", ""),
    ("noun unknown", lambda p: p.train("--class-noun", "tyo"), "`tyo`", "toy"),
    ("noun empty", lambda p: p.train("--class-noun", ""), "noun", ""),
    ("existing run", lambda p: p.train("--out", "taken"), "taken", "--out"),
    ("out is a file", lambda p: p.train("--out", "file"), "file", "--out"),
    ("no device", lambda p: p.train("--device", "cuda:0"), "cuda", "cpu"),
    ("unknown device", lambda p: p.train("--device", "gpu"), "gpu", "cpu"),
    ("unknown key", lambda p: p.recipe("stepz = 3"), "stepz", "did you mean steps?"),
    ("unknown knob in a recipe", lambda p: p.recipe(knob="vectrs = 3"), "vectrs", "vectors"),
    ("unknown method in a recipe", lambda p: p.recipe(method="lorra"), "lorra", "known"),
    ("wrong type in a recipe", lambda p: p.recipe('steps = "many"'), "many", "steps"),
    ("no recipe", lambda _: ["train", "--recipe", "no.toml"], "no.toml", "TOML"),
    ("recipe no TOML", lambda _: ["train", "--recipe", "broken.toml"], "broken.toml", "TOML"),
    ("folder for a recipe", lambda _: ["train", "--recipe", "taken"], "taken", "TOML"),
    ("no run to resume", lambda _: ["train", "--resume", "taken"], "taken", "recipe.toml"),
    ("no run at all", lambda _: ["train", "--resume", "nowhere"], "nowhere", "recipe.toml"),
    ("no method", lambda _: ["train"], "train", "dreambooth, lora, textual-inversion"),
    ("unknown command", lambda _: ["tarin"], "tarin", "did you mean train?"),
    ("unknown kind", lambda _: ["list", "metods"], "metods", "did you mean methods?"),
    ("no prompt", lambda _: ["generate"], "prompt", "--like"),
    ("unknown flag", lambda p: p.generate("--seeed", "1"), "--seeed", "did you mean --seed?"),
    ("no concept", lambda p: p.generate("--concept", "nowhere"), "nowhere", "run folder"),
    ("empty run", lambda p: p.generate("--concept", "empty"), "empty", "run folder"),
    ("concept a picture", lambda p: p.generate("--concept", "pictures/0.png"), "0.png", ""),
    ("no size", lambda p: p.generate("--size", "big"), "big", "96x64"),
    ("size zero", lambda p: p.generate("--size", "0"), "0", ""),
    ("size that cannot be", lambda p: p.generate("--size", "33"), "33x33", "32x32"),
    ("no scheduler", lambda p: p.generate("--scheduler", "eular"), "eular", "mean euler?"),
    ("no steps", lambda p: p.generate("--steps", "0"), "0", "steps"),
    ("no pictures", lambda p: p.generate("--count", "0"), "0", "count"),
    ("strength too high", lambda p: p.generate("--strength", "1.5"), "1.5", "strength"),
    ("no start picture", lambda p: p.generate("--init", "no.png"), "no.png", "picture file"),
    ("bad start picture", lambda p: p.generate("--init", "rubbish/a.png"), "a.png", ""),
    ("no request in it", lambda _: ["generate", "--like", "pictures/0.png"], "0.png", "PNG"),
    ("no picture to repeat", lambda _: ["generate", "--like", "no.png"], "no.png", "PNG"),
    ("folder is a file", lambda p: p.generate("--out", "file"), "file", "--out"),
]


@pytest.mark.parametrize(
    ("typed", "value", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    typed: Callable[[Place], list[str]],
    value: str,
    hint: str,
) -> None:
    words = typed(place)
    before = tree(place.here)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *opened, error, advice = said.err.splitlines()
    told = ("odd: 0.png: ", "odd: 1.png: ", "odd: 2.png: ", "3 pictures", "odd: all look alike")
    for line in opened:
        assert "nano: stable-diffusion-1" in line or line.startswith(told), said.err
    assert error.startswith("error: ")
    assert value in error
    assert advice.startswith("hint: ")
    assert hint in advice
    assert tree(place.here) == before


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
