"""The commands of the sweep, and a folder in which all of them work."""

import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from PIL import Image
from starlette.testclient import TestClient

from pinxit.cli import main
from pinxit.errors import PinxitError
from pinxit.reports.demo import DemoSettings
from pinxit.studio.app import create_app
from pinxit.studio.workspace import Workspace
from pinxit.training.recipe import Recipe
from tests.seeing import save_seeing

_SHORT = "--class-noun toy --base BASE --steps 2 --batch-size 1"
_TRAINING = f"{_SHORT} --preview-every 2 --save-every 1"
_JUDGES = "--dino-model dino --clip-model clip"
COMMANDS = {
    "train": f"train textual-inversion pictures --token '<x>' {_TRAINING} --out run2",
    "resume": "train --resume run --steps 3",
    "generate": "generate 'a <x>' --concept run --num-images 1 --steps 1 --out generated",
    "generate again": "generate --from-png image.png --out generated",
    "transfer": "transfer image.png 'a red toy' --control img2img --base BASE --steps 1 "
    "--out generated",
    "check": "check pictures",
    "inspect": "inspect run/concept.safetensors",
    "convert": "convert run/concept.safetensors converted/x.pt",
    "runs": "runs .",
    "concepts": "concepts .",
    "show": "show image.png",
    "tensorboard": "tensorboard run --out logs",
    "evaluate": f"evaluate run --prompts prompts.txt --num-images 1 --steps 1 {_JUDGES} "
    "--out report",
    "train-many": f"train-many textual-inversion subjects {_TRAINING} --out many2",
    "generate-many": "generate-many many 'a {}' --steps 1 --num-images 1 --out generated",
    "evaluate-many": f"evaluate-many many --prompts prompts.txt --num-images 1 --steps 1 {_JUDGES} "
    "--out report",
    "merge": "lora merge lora:0.5 lora/concept.safetensors --out converted/x.safetensors",
    "resize": "lora resize lora --rank 1 --out converted/x.safetensors",
    "fuse": "lora fuse lora --base BASE --out converted/model",
    "extract": "lora extract fused --base BASE --out converted/x.safetensors",
    "worker": "worker studio --device cpu --until-empty",
    "studio": "studio studio --api-token",
    "demo": "demo --out demo",
}
OUTPUTS = {
    "train": "run2",
    "generate": "generated",
    "generate again": "generated",
    "transfer": "generated",
    "convert": "converted",
    "tensorboard": "logs",
    "evaluate": "report",
    "train-many": "many2",
    "generate-many": "generated",
    "evaluate-many": "report",
    **dict.fromkeys(("merge", "resize", "fuse", "extract"), "converted"),
    "demo": "demo",
}
# Commands that take seconds are tried with fewer pairs.
SLOW_COMMANDS = {
    *("evaluate", "evaluate-many", "train-many", "generate-many", "demo"),
    *("worker", "studio", "fuse", "extract"),
}
WITHOUT_FILES = {"doctor", "list"}
_PAGES = ("/", "/library", "/train", "/generate", "/compare", "/files", "/queue", "/api/jobs")


@dataclass(frozen=True)
class Workplace:
    """A folder with images, runs and a studio, and the base model that they name."""

    folder: Path
    base: Path

    def run(self, command: str) -> int:
        """The exit status of a command in the current folder."""
        small = DemoSettings(str(self.base), 2, sampling_steps=1, num_images=1)
        with (
            patch("pinxit.reports.demo.DemoSettings", lambda **_: small),
            patch("pinxit.evaluation.judge.uses_pocket_vocabulary", lambda _: command == "demo"),
        ):
            status = main(shlex.split(COMMANDS[command].replace("BASE", str(self.base))))
        if command == "studio" and status == 0:
            open_pages(Path("studio"))
        return status


@contextmanager
def workplace(nano: Path) -> Iterator[Workplace]:
    """A workplace that every user of the machine may read."""
    with tempfile.TemporaryDirectory() as name:
        place = Workplace(Path(name) / "work", Path(name) / "nano")
        shutil.copytree(nano, place.base)
        place.folder.mkdir()
        with chdir(place.folder):
            _fill(place)
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield place


def _fill(place: Workplace) -> None:
    for number, colour in enumerate(("crimson", "orange")):
        for folder in map(Path, ("pictures", "subjects/ape", "subjects/bee")):
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + number, 48), colour).save(folder / f"{number}.png")
    Path("pictures/0.txt").write_text("a red toy")
    Path("prompts.txt").write_text("a {} on the beach\na red {}\n")
    for kind in ("dino", "clip"):
        Path(kind).mkdir()
        save_seeing(kind, Path(kind))
    image = "generate 'a toy' --base BASE --steps 1 --num-images 1 --out image.png"
    lora = f"train lora pictures --token '<y>' --rank 2 --preview-every 0 {_SHORT} --out lora"
    for words in (
        COMMANDS["train"].replace("run2", "run"),
        COMMANDS["train-many"].replace("many2", "many"),
        lora,
        image,
        COMMANDS["fuse"].replace("converted/model", "fused"),
    ):
        assert main(shlex.split(words.replace("BASE", str(place.base)))) == 0, words
    _fill_studio(place)


def _fill_studio(place: Workplace) -> None:
    """A studio with a training that has ended, and two jobs that wait."""
    workspace = Workspace(Path("studio"))
    workspace.create()
    recipe = Recipe.model_validate(
        {
            **{"method": "textual-inversion", "images": place.folder / "pictures"},
            **{"token": "<z>", "class_noun": "toy", "base": str(place.base)},
            **{"steps": 2, "batch_size": 1, "preview_every": 2},
        }
    ).model_dump(mode="json")
    training = workspace.queue.add("train", {"recipe": recipe})
    assert place.run("worker") == 0
    assert training.state == "done"
    request = {"prompt": "a <z>", "num_images": 1, "steps": 1, "base": str(place.base)}
    workspace.queue.add("generate", {"request": request, "concepts": [training.id]})
    workspace.queue.add("convert", {"concept": training.id, "format": "a1111"})


def open_pages(folder: Path) -> None:
    """Open the pages of a studio; an unexpected error on a page is raised here."""
    try:
        workspace = Workspace(folder)
        headers = {"authorization": f"Bearer {workspace.token_for('api')}"}
        application = create_app(workspace, 1)
    except PinxitError:
        return  # its folders cannot be used, which was said
    client = TestClient(application, "http://127.0.0.1:1", headers=headers)
    jobs = [f"/jobs/{job.name}" for job in sorted((folder / "queue").glob("*"))]
    images = [f"{job}/{part}" for job in jobs for part in ("images/0", "previews/2", "concept")]
    for page in (*_PAGES, *jobs, *images):
        assert client.get(page).text, page
