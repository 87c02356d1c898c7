"""The functions for Python programs: options, images of all kinds, callbacks, progress, reprs."""

import pydoc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import pinxit
from pinxit.cli import notebook
from pinxit.models.model import Model
from pinxit.progress import Progress
from pinxit.runs.events import Finished, Preview
from pinxit.training.step_result import StepResult


def recipe(images: Any, **changes: Any) -> pinxit.Recipe:
    values = {
        "images": images,
        "token": "<toy>",
        "class_noun": "toy",
        "steps": 3,
        "preview_every": 0,
    }
    return pinxit.Recipe(**{"method": "textual-inversion", **values, **changes})


@pytest.fixture(scope="module")
def run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> pinxit.Run:
    folder = tmp_path_factory.mktemp("api")
    return pinxit.train(model, recipe([Image.new("RGB", (40, 48), "red")]), folder / "run")


def test_images_may_be_files_or_pil_images(pictures: Path, tmp_path: Path) -> None:
    files = sorted(pictures.iterdir())
    (pictures / "0.txt").write_text("a red thing")
    Image.new("L", (40, 48), "white").save(pictures / "0.mask.png")
    other = tmp_path / "other" / files[0].name
    other.parent.mkdir()
    Image.new("RGB", (50, 50), "green").save(other)
    pil = Image.new("RGB", (60, 60), "blue")
    chosen = recipe([*files[:2], str(other), pil])
    read = pinxit.read_images(chosen.images)
    sizes = {image.path.name: image.open().size for image in read}
    assert sizes == {"0.png": (40, 48), "1.png": (41, 48), "0-3.png": (50, 50), "004.png": (60, 60)}
    assert {image.path.name: image.caption for image in read if image.caption} == {
        "0.png": "a red thing"
    }
    assert [image.path.name for image in read if image.mask] == ["0.png"]
    # Equal images are stored once, and the stored recipe names their folder.
    assert recipe((*files[:2], other, pil)).images == chosen.images
    assert recipe([pil]).images != chosen.images
    with pytest.raises(pinxit.PinxitError, match="training image 2 is neither"):
        recipe([pil, tmp_path / "missing.png"])


@pytest.mark.long
def test_training_shows_progress_and_calls_back(
    model: Model, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[object] = []
    run = pinxit.train(model, recipe(pictures), tmp_path / "run", events.append)
    assert [event.number for event in events if isinstance(event, StepResult)] == [1, 2, 3]
    assert isinstance(events[-1], Finished)
    shown = capsys.readouterr().err
    assert "training: 3 of 3" in shown
    assert "trained <toy>" in shown
    assert pinxit.read_run(run.folder).is_done
    pinxit.train(model, recipe(pictures), tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.long
def test_a_callback_can_stop_a_run_and_resume_continues(
    model: Model, pictures: Path, tmp_path: Path, nano: Path
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepResult) and event.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pinxit.train(model, recipe(pictures), tmp_path / "run", stop)
    assert pinxit.read_run(tmp_path / "run").saved_step == 2
    events: list[object] = []
    resumed = pinxit.resume(tmp_path / "run", model, events.append, steps=4)
    assert [event.number for event in events if isinstance(event, StepResult)] == [3, 4]
    assert repr(resumed) == f"<Run {tmp_path / 'run'}: textual-inversion, <toy>, 4 of 4 steps>"
    # Without a model, that of the run is opened.
    assert pinxit.resume(tmp_path / "run", steps=5, quiet=True).recipe.base == str(nano)


def test_generate_takes_options_runs_and_a_callback(model: Model, run: pinxit.Run) -> None:
    events: list[object] = []
    (first,) = pinxit.generate(model, "a <toy>", run, events.append, steps=2, seed=5)
    assert first.request.steps == 2
    assert first.request.seed == 5
    assert events[-1] is first
    again = pinxit.generate(model, first.request, [run.folder], quiet=True, n=2)
    assert [image.request.seed for image in again] == [5, 6]
    assert again[0].image.tobytes() == first.image.tobytes()
    assert first._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(pinxit.PinxitError, match="no `step`"):
        pinxit.generate(model, "a toy", step=2)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "RGBA", "1"])
def test_pil_images_of_every_mode_are_stored(mode: str) -> None:
    image = Image.linear_gradient("L").convert(mode)
    folder = recipe([image]).images
    assert [one.open().size for one in pinxit.read_images(folder)] == [image.size]
    with pytest.raises(pinxit.PinxitError, match="complete PIL image"):
        recipe([image.convert("RGB").convert("HSV")])


def test_images_come_from_memory_and_are_saved_under_a_name(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    red = Image.new("RGB", (32, 32), "red")
    (first,) = pinxit.generate(model, "a toy", steps=2, init_image=red, quiet=True)
    first.save("new/first.png")
    stored = pinxit.GenerationRequest.from_png("new/first.png")
    assert stored.init_image is not None
    assert Image.open(stored.init_image).tobytes() == red.tobytes()
    control = {"name": "img2img", "image": red, "preserve": 0.4}
    (second,) = pinxit.generate(model, "a toy", steps=2, controls=[control], quiet=True)
    assert second.image.tobytes() == first.image.tobytes()  # a strength of 0.6 is the default
    with pytest.raises(pinxit.PinxitError, match=r"first.jpg is not a PNG.*\nhint: try first.png"):
        first.save("first.jpg")


@pytest.mark.long
def test_evaluate_returns_the_metrics(pictures: Path, tmp_path: Path) -> None:
    pocket = pinxit.open_base("pocket")
    run = pinxit.train(pocket, recipe(pictures, steps=1), tmp_path / "run", quiet=True)
    metrics = pinxit.evaluate([run], tmp_path / "out", steps=1, num_images=1, quiet=True)
    assert Path(str(metrics["report"])).is_file()
    assert metrics["groups"]
    with pytest.raises(pinxit.PinxitError, match="no `num_image`"):
        pinxit.evaluate([run], tmp_path / "other", pocket, num_image=1)


def test_convert_and_inspect(run: pinxit.Run, tmp_path: Path) -> None:
    out = pinxit.convert(run, tmp_path / "toy.pt")
    about = pinxit.inspect_file(out)
    assert about["format"].startswith("a1111")
    assert pinxit.inspect_file(run)["format"].startswith("pinxit")


def test_reprs_fit_a_line(model: Model, run: pinxit.Run) -> None:
    image = pinxit.generate(model, "a " * 200, steps=1, quiet=True)[0]
    (training_image,) = pinxit.read_images(run.recipe.images)
    things = [model, run, pinxit.read_run(run.folder), pinxit.read_concept(run.folder), image]
    for thing in things:
        folder = str(run.folder)
        text = repr(thing).replace(folder, "FOLDER").replace(model.name, "BASE")
        assert len(text) <= 100, text
        assert "\n" not in text
    assert repr(pinxit.GenerationRequest(prompt="x", seed=3)) == (
        "GenerationRequest(prompt='x', seed=3)"
    )
    assert training_image.sha256 not in repr(training_image)


def test_help_shows_the_names_of_all_options_first() -> None:
    text = pydoc.plain(pydoc.render_doc(pinxit.Recipe))
    assert "Recipe(*, method, images, token, class_noun, kind='object', base='pocket'," in text


def test_help_describes_functions_and_options() -> None:
    text = pydoc.render_doc(pinxit, renderer=pydoc.plaintext)
    for name in ("train(model", "resume(folder", "generate(model", "evaluate(concepts", "convert("):
        assert name in text
    assert "callback: collections.abc.Callable[['Event'], object]" in text
    assert all(len(line) < 500 for line in text.splitlines() if "callback:" in line)
    options = pydoc.render_doc(pinxit.Recipe, renderer=pydoc.plaintext)
    for name, field in pinxit.Recipe.model_fields.items():
        assert f"{name}: {field.description}"[:60] in options


class Display:
    """Stands in for IPython.display: the outputs by their number, as they are now."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], **_: object) -> SimpleNamespace:
        self.outputs.append(bundle)
        number = len(self.outputs) - 1
        return SimpleNamespace(update=lambda new, **_: self.outputs.__setitem__(number, new))


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    import IPython

    display = Display()
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr("IPython.display.display", display.display)
    return display


def test_a_notebook_shows_bars_and_previews(
    model: Model, pictures: Path, tmp_path: Path, display: Display
) -> None:
    previews: list[object] = []
    with_previews = recipe(pictures, preview_every=2, score_previews=False)

    def collect(event: object) -> None:
        previews.extend([event] if isinstance(event, Preview) else [])

    pinxit.train(model, with_previews, tmp_path / "run", collect)
    assert len(previews) == 2
    (bar,) = (out for out in display.outputs if "training" in out["text/plain"])
    assert "3 of 3" in bar["text/plain"]
    assert '<progress value="3" max="3">' in bar["text/html"]
    (preview,) = (out for out in display.outputs if "<img" in out["text/html"])
    assert preview["text/plain"] == "preview images of step 3"


def test_a_bar_is_not_updated_too_often(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now)
    bars = notebook.NotebookBars()
    shown: Callable[[], str] = lambda: display.outputs[0]["text/plain"]  # noqa: E731
    bars(Progress("work", 1, 9, "<b>"))
    assert "&lt;b&gt;" in display.outputs[0]["text/html"]
    bars(Progress("work", 2, 9))
    assert shown().startswith("work: 1 of 9")
    now += 1
    bars(Progress("work", 3, 9))
    assert shown() == "work: 3 of 9, 1 s, 2 s left "
    bars(Progress("work", 9, 9))
    assert shown().startswith("work: 9 of 9")


def test_evaluate_takes_one_concept_too(tmp_path: Path) -> None:
    with pytest.raises(pinxit.PinxitError, match="concept nosuch does not exist"):
        pinxit.evaluate("nosuch", tmp_path / "evaluation")


def test_arguments_of_wrong_types_are_one_sentence_with_a_hint(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run: Any = recipe(pictures)
    api: Any = pinxit
    wrong: list[tuple[str, Callable[..., object], tuple[object, ...]]] = [
        (r"`model` .* be Model\nhint: .*open_base", pinxit.generate, ("pocket", "a toy")),
        (r"`request` .* \['a'\]: .* or str\n", pinxit.generate, (model, ["a"])),
        (r"`concepts` .* \[3\]: .* or a list of them\n", pinxit.generate, (model, "a", [3])),
        ("`callback` .* be a function or None", pinxit.generate, (model, "a", (), 3)),
        ("`model` cannot be Recipe", pinxit.train, (run, model, tmp_path)),
        ("`callback` cannot be 3", pinxit.train, (model, run, tmp_path / "run", 3)),
        ("`model` .* or None\nhint: open a base", pinxit.resume, (tmp_path, "pocket")),
        ("`path` .* Path or str\nhint: .* are: path$", pinxit.read_concept, (3,)),
        ("`concepts` .* Concept or a list of them\nhint: read", model.to_pipeline, ("x",)),
        ("`images` .* a list of Image", pinxit.contact_sheet, ([3],)),
        ("there is no image", pinxit.contact_sheet, ([],)),
        ("`folder` cannot be", pinxit.read_images, ([],)),
        ("`precision` .* 'fp32' or 'fp16' or", pinxit.convert, ("a", "b", None, None, "x")),
        ("there is no concept", pinxit.merge_loras, ([], tmp_path / "out")),
        ("Recipe takes options by name only, and has 'lora'", pinxit.Recipe, ("lora",)),
        ("the list of training images is empty", recipe, ([],)),
        ("generate: missing .*'request'\nhint: the arg", lambda: api.generate(model), ()),
        ("merge_loras: .*'ranks'\nhint: .*rank", lambda: api.merge_loras("a", "b", ranks=2), ()),
        ("extract_lora: .*'rnak'", lambda: api.extract_lora("a", "b", rnak=2), ()),
    ]
    for message, function, arguments in wrong:
        with pytest.raises(pinxit.PinxitError, match=f"(?s)^{message}"):
            function(*arguments)
    assert list(tmp_path.iterdir()) == [pictures] * (pictures.parent == tmp_path)
