"""What a worker without a job finds out for the pages: tokenizers, and the cost of trainings."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pinxit.errors import RunError
from pinxit.files.atomic_write import make_folder, remove, write_text
from pinxit.models.model import Model
from pinxit.models.open_base import Bases
from pinxit.studio.jobs import numbered_folders
from pinxit.studio.views import cost_text
from pinxit.studio.workspace import ROOM, TOKENIZER, Workspace
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, applied

_NUM_IMAGES = 8
_NOUN = "dog"  # every base model knows it


class Measuring:
    """A process that measures while a worker has no job, so that jobs never wait for it."""

    def __init__(self, workspace: Workspace, device: str) -> None:
        self.workspace, self.device = workspace, device
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs or there is nothing to find out."""
        if not self._runs and next(_unknown(self.workspace, self.device), None):
            command = [sys.executable, "-m", "pinxit.studio.measure"]
            arguments = [str(self.workspace.folder), self.device]
            self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it; what it was at is tried again later."""
        if self._process and self._runs:
            self._process.kill()
            self._process.wait()
            files = (self.workspace.folder / "bases").rglob("*")
            empty = [file for file in files if file.is_file() and not file.stat().st_size]
            remove(*sorted(empty, key=lambda file: file.stat().st_mtime_ns)[-1:])


def measure_next(workspace: Workspace, bases: Bases, device: str) -> bool:
    """Find out one thing that is not known yet; False if there is none.

    Each is tried once, even if it ends the process.
    """
    for base, method, file in _unknown(workspace, device):
        make_folder(file.parent)
        write_text(file, "")
        model = bases.open(base, device)
        if method:
            write_text(file, f"expected: {_expected_cost(model, base, method)}")
        else:
            _write_tokenizer(model, file)
        return True
    return False


def _unknown(workspace: Workspace, device: str) -> Iterator[tuple[str, str, Path]]:
    """Base models with a method whose cost is not known, or "" for the tokenizer, and the file.

    Base models other than pocket may be large: only when there are images to train on.
    """
    for base in workspace.known_bases():
        if base != "pocket" and not numbered_folders(workspace.folder / "images"):
            continue
        files = {"": workspace.base_folder(base) / TOKENIZER}
        for method in workspace.options["methods"]:
            files[method] = workspace.cost_file(base, method, device)
        yield from ((base, method, file) for method, file in files.items() if not file.exists())


def _write_tokenizer(model: Model, file: Path) -> None:
    """Copy the tokenizer of the first text encoder that shows its tokens."""
    for encoder in [*model.text_encoders.values()][:1]:
        write_text(file.with_name(ROOM), str(encoder.room))
        write_text(file, encoder.backend.to_str())


def _expected_cost(model: Model, base: str, method: str) -> str:
    """What a training with the default settings would take, as its memory plan predicts it."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(_NUM_IMAGES):
            color = (number, 0, 0)
            image = Image.new("RGB", (model.default_size, model.default_size), color)
            image.save(Path(name, f"{number}.png"))
        values = {"images": name, "token": "<cost>", "class_noun": _NOUN, "base": base}
        recipe = Recipe.model_validate({**values, "method": {"name": method}})
        images = recipe.read_images()
        plan = TrainingPlan.of(recipe, model, len(images))
        class_images = tuple(images) if plan.class_images.count else ()
        session = TrainingSession(model, [ConceptTrainer(model, plan, images, class_images)])
        try:
            with applied(model, session.changes):
                memory = session.plan_memory(session.next_batch(), session.conditioner())
        except RunError as error:  # it does not fit
            return error.message
    return cost_text(plan.steps, memory.seconds, memory.description(""))


def main() -> None:
    """Find out everything that is not known, of the workspace and device in the arguments."""
    folder, device = sys.argv[1:]
    workspace, bases = Workspace(Path(folder)), Bases()
    while measure_next(workspace, bases, device):
        pass


if __name__ == "__main__":
    main()
