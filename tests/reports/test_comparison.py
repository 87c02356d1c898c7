"""An evaluation, whole, on a base that knows nothing: figures, the page, going on, a benchmark."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pinxit.cli import evaluate as evaluate_command
from pinxit.cli import main
from pinxit.errors import RecipeError, RequestError, RunError
from pinxit.evaluation.confidence import Interval
from pinxit.evaluation.prompt_sets import prompt_set, suitable_set
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.progress import Progress
from pinxit.reports.comparison import evaluate
from pinxit.reports.dreambench import class_nouns, dreambench, write_comparison
from pinxit.reports.entrant import Entrant
from pinxit.reports.figures import REAL, EvaluationSettings
from pinxit.reports.pages import (
    GridColumn,
    LossPlot,
    PlotPoint,
    TradeoffPlot,
    interval_ends,
    interval_value,
    report_environment,
)
from pinxit.runs.many import RunGroup
from pinxit.runs.run import Run, train_run
from pinxit.training.recipe import Recipe
from tests.pages import must_be_well_formed
from tests.seeing import save_seeing

Evaluated = tuple[dict[str, Any], str, list[Progress]]
NOUN = "dog"


def teaching(pictures: Path, base: Path, method: object, token: str = "<my>") -> Recipe:
    choices = {"steps": 2, "batch_size": 1, "preview_every": 0, "base": str(base)}
    return Recipe.model_validate(
        {**choices, "method": method, "pictures": pictures, "token": token, "class_noun": NOUN}
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSettings:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("dino", "clip")}
    models = {f"{kind}_model": str(save_seeing(kind, folder)) for kind, folder in folders.items()}
    return EvaluationSettings(prompts="pocket-styles", num_images=2, steps=1, **models)


def coloured(folder: Path, *colours: str) -> Path:
    folder.mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (40, 40 + number), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two words of one subject, and one of another of its class."""
    where = tmp_path_factory.mktemp("taught")
    one = coloured(where / "one", "crimson", "orange", "purple")
    other = coloured(where / "other", "navy", "teal")
    model = open_base(nano)
    recipes = {
        "word": teaching(one, nano, "textual-inversion"),
        "small": teaching(one, nano, {"name": "lora", "prior_pictures": 0}),
        "another": teaching(other, nano, "textual-inversion", "<your>"),
    }
    for name, recipe in recipes.items():
        train_run(model, recipe, where / name)
    return [where / name for name in recipes]


@pytest.fixture(scope="module")
def evaluated(
    runs: list[Path],
    settings: EvaluationSettings,
    nano: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluated:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    events: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:  # a network with random weights
        patch.setattr("pinxit.evaluation.metric._apart", lambda *_: True)
        figures = evaluate(runs, out, opening(nano), events.append, settings)
    return figures, (out / "report.html").read_text(encoding="utf-8"), events


def opening(nano: Path) -> Callable[[Recipe], Model]:
    def opened(recipe: Recipe) -> Model:
        assert recipe.base == open_base(nano).name
        return open_base(nano)

    return opened


@pytest.mark.long
def test_every_run_has_every_figure_with_its_interval(
    evaluated: Evaluated,
) -> None:
    groups = json.loads(json.dumps(evaluated[0], allow_nan=False))["groups"]
    assert [set(group["runs"]) for group in groups] == [{"word", "small"}, {"another"}]
    names = {"likeness", "prompt", "best", "variety", "copies", "drift"}
    names |= {"raw dino", "raw clip-i", "raw clip-t"}
    for group in groups:
        assert group["pictures"] == 24
        for run in group["runs"].values():
            assert set(run["figures"]) == names
            assert all(f["low"] <= f["value"] <= f["high"] for f in run["figures"].values())
            assert run["said"]
        real, others, base = group["anchors"].values()
        assert real["likeness"]["value"] == pytest.approx(1)
        assert others["likeness"]["value"] == pytest.approx(0, abs=1e-6)  # the other dog's pictures
        assert base["prompt"]["value"] == pytest.approx(1)
    word, small = groups[0]["runs"].values()
    assert (word["figures"]["drift"]["value"], small["word"]) == (pytest.approx(0, abs=1e-6), None)
    assert word["word"]["relative_norm"] > 0
    assert small["figures"]["drift"]["value"] != 0


@pytest.mark.long
def test_metrics_are_kept_as_files_with_paired_differences(evaluated: Evaluated) -> None:
    out = Path(evaluated[0]["report"]).parent
    stored = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert stored["groups"] == json.loads(json.dumps(evaluated[0]["groups"]))
    assert stored["settings"]["seed"] == 0
    group = stored["groups"][0]
    (pair,) = group["differences"]
    assert (pair["first"], pair["second"]) == ("word", "small")
    values = [group["runs"][name]["by_prompt"]["prompt"] for name in ("word", "small")]
    assert len(values[0]) == len(group["prompts"]) == 12
    mean = sum(a - b for a, b in zip(*values, strict=True)) / 12
    assert pair["prompt"]["value"] == pytest.approx(mean)
    assert pair["prompt"]["low"] <= mean <= pair["prompt"]["high"]
    rows = list(csv.DictReader((out / "metrics.csv").open(encoding="utf-8")))
    (row,) = [r for r in rows if (r["entrant"], r["metric"]) == ("small", "likeness")]
    assert float(row["value"]) == group["runs"]["small"]["figures"]["likeness"]["value"]
    assert any(r["entrant"] == "word minus small" for r in rows)


@pytest.mark.long
def test_the_command_prints_a_row_for_each_concept(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate_command, "evaluate_concepts", lambda *_: evaluated[0])
    assert main(["evaluate", "runs/word"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["word", "dog"], ["small", "dog"], ["another", "dog"]]
    assert re.fullmatch(r"\d+% \(\d+ to \d+\)", rows[0][2])


@pytest.mark.long
def test_an_unknown_class_noun_is_an_error(runs: list[Path], nano: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not know the class noun `tyo`"):
        evaluate(
            runs, tmp_path / "out", opening(nano), lambda *_: None, None, {"class_noun": "tyo"}
        )


@pytest.mark.long
@pytest.mark.usefixtures("separating")
def test_seeds_are_averaged_and_foreign_images_take_part(
    runs: list[Path], settings: EvaluationSettings, nano: Path, tmp_path: Path
) -> None:
    recipe = Run.open(runs[0]).recipe
    again = train_run(open_base(nano), recipe.model_copy(update={"seed": 5}), tmp_path / "again")
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a {} on the beach\n\na red {}\n", encoding="utf-8")
    few = settings.model_copy(update={"prompts": str(prompts), "num_images": 1, "seed": 3})
    other = coloured(tmp_path / "other", "crimson", "orange")
    entries = [runs[0], again.folder, other]
    figures: Any = evaluate(entries, tmp_path / "out", opening(nano), lambda *_: None, few)
    (group,) = figures["groups"]
    assert group["prompts"] == ["a {} on the beach", "a red {}"]
    assert list(group["runs"]) == ["word", "again", "other"]
    (means,) = group["seed_means"].items()
    assert means[0] == "word, again"
    values = [group["runs"][name]["figures"]["prompt"]["value"] for name in ("word", "again")]
    assert means[1]["prompt"]["value"] == pytest.approx(sum(values) / 2)
    assert "drift" not in group["runs"]["other"]["figures"]
    assert group["runs"]["other"]["method"] == "another program"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "mean of word, again" in page
    must_be_well_formed(page)
    Image.new("RGB", (8, 8)).save(other / "3.png")
    with pytest.raises(RequestError, match="other has 3 images, and the prompts need 2"):
        evaluate([runs[0], other], tmp_path / "out", opening(nano), lambda *_: None, few)
    with pytest.raises(RequestError, match="does not say what its images show"):
        evaluate([other], tmp_path / "out", opening(nano), lambda *_: None, few)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.txt", "", "has no prompts"),
        ("mine.txt", "a dog", "`a dog` has {} 0 times instead of 1"),
        ("mine.txt", "a {} with {}", "has {} 2 times instead of 1"),
        ("mine.txt", "a {} with {token}", "has other braces than {}: `{token}`"),
        ("mine.txt", "a {} {0.__class__}", "has other braces"),
        ("mine.txt", "a {} with }", "has other braces"),
        ("mine.txt", None, "cannot be read"),
        ("mine.toml", None, "cannot be read"),
        ("mine.toml", "prompts = 5", "has no prompts"),
        ("mine.toml", "prompts = []", "has no prompts"),
        ("mine.toml", 'prompts = ["a dog"]', "{} 0 times"),
        ("mine.toml", "prompts = [" + "[" * 5000, "cannot be read"),
        ("mine.toml", 'manner = 5\nprompts = ["a dog"]', "`5` has {} 0 times instead of 2"),
        ("mine.toml", 'manner = "{}"\nprompts = ["a dog"]', "{} 1 times instead of 2"),
        ("mine.toml", 'manner = "{} as {}"\nprompts = ["a {x}"]', "has other braces"),
    ],
)
def test_a_prompt_file_is_checked(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=re.escape(message)):
        prompt_set(str(tmp_path / name), "dog")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompt_files_in_encodings_of_editors(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.txt").write_text("a röd {}\r\n\r\nthe {} in snow\r\n", encoding=encoding)
    prompts = prompt_set(str(tmp_path / "mine.txt"), "dog")
    assert [prompt.with_token("<a>") for prompt in prompts] == ["a röd <a>", "the <a> in snow"]


@pytest.mark.long
def test_the_page_is_complete_without_other_files(
    evaluated: Evaluated,
) -> None:
    page = evaluated[1]
    assert page.count("<img") == (3 + 24 * 3) + (2 + 24 * 2)
    assert page.count("<circle") == 5  # three runs, and the base of two subjects
    assert page.count("<polyline") == 6
    assert "others of the class" in page
    assert "<code>&lt;my&gt;</code>" in page
    assert not re.search(r"<script|<link|https?:|@import|{{|{%", page)
    assert ">nan" not in page
    must_be_well_formed(page)


@pytest.mark.long
def test_a_page_without_likeness_says_so(
    evaluated: Evaluated,
    runs: list[Path],
    settings: EvaluationSettings,
    nano: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pinxit.evaluation.metric._apart", lambda *_: False)
    out = Path(evaluated[0]["report"]).parent
    figures: Any = evaluate(runs, out, opening(nano), lambda *_: None, settings)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "dino cannot tell these training images from other images" in page
    assert "<circle" not in page
    for group in figures["groups"]:
        assert group["no_likeness"]
        for run in group["runs"].values():
            assert not {"likeness", "best"} & set(run["figures"])
    must_be_well_formed(page)


def test_shares_are_shown_from_0_to_100() -> None:
    assert interval_value(Interval(1.47, 1.2, 1.6), share=True) == "100%"
    assert interval_ends(Interval(0.1, -0.5, 1.6), share=True) == "0 to 100"
    assert interval_value(Interval(1.47, 1.2, 1.6), share=False) == "1.47"


def test_pages_escape_all_values() -> None:
    hostile = "\"><script>alert(1)</script>&'"
    columns = [GridColumn(hostile, hostile, [Image.new("RGB", (8, 8))])]
    template = """{% import "macros.html" as parts %}<p>{{ value }}</p>
    {{ parts.image_grid(columns, [value], 1) }}{{ parts.loss_plot(loss) }}
    {{ parts.tradeoff_plot(plot) }}"""
    interval = Interval(0.5, 0.4, 0.6)
    plot = TradeoffPlot([PlotPoint(hostile, 1, interval, interval)])
    loss = LossPlot(hostile, 1, (0.5, 0.4))
    page = (
        report_environment()
        .from_string(template)
        .render(value=hostile, columns=columns, loss=loss, plot=plot)
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 1 + (2 + 1 + 2 * 2) + 1 + 2
    must_be_well_formed(page)


@pytest.mark.long
@pytest.mark.usefixtures("separating")
def test_a_repeated_evaluation_generates_no_image_twice(
    evaluated: Evaluated,
    runs: list[Path],
    settings: EvaluationSettings,
    nano: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(evaluated[0]["report"]).parent
    # Generating now raises a TypeError.
    monkeypatch.setattr("pinxit.generation.image_cache.sample_images", None)
    again = evaluate(runs, out, opening(nano), lambda *_: None, settings)
    assert again == evaluated[0]
    more = settings.model_copy(update={"steps": 2})
    with pytest.raises(TypeError):
        evaluate(runs, out, opening(nano), lambda *_: None, more)


@pytest.mark.long
def test_the_progress_of_every_task_is_reported_to_its_end(evaluated: Evaluated) -> None:
    last = {event.task: (event.done, event.total) for event in evaluated[2]}
    assert len(last) == 2 + 2 + 2  # the class and its noun; each word; the noun with the small one
    assert all(done == total for done, total in last.values())


def test_a_folder_with_other_files_is_not_changed(
    settings: EvaluationSettings, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="was not made by pinxit evaluation"):
        evaluate([], tmp_path, open_base, lambda *_: None, settings)  # pyright: ignore[reportArgumentType]


def test_a_foreign_embedding_needs_images_and_a_class_noun(
    tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "word.safetensors"
    save_file({"emb_params": torch.ones(1, 32)}, file)
    with pytest.raises(RequestError, match="does not say what it was trained on"):
        Entrant.from_path(file, {})
    entrant = Entrant.from_path(file, {"pictures": pictures, "class_noun": "dog"})
    assert (entrant.title, len(entrant.images), entrant.losses) == ("word", 3, ())
    assert main(["evaluate"]) == 2
    assert "nothing to evaluate" in capfd.readouterr().err


def test_dreambench_s_own_list_says_what_subjects_are(tmp_path: Path) -> None:
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\nbear_plushie,stuffed animal\ndog2,dog\n\n'a {0} {1}, wet'\n"
    )
    assert class_nouns(tmp_path)["bear_plushie"] == "stuffed animal"
    assert class_nouns(tmp_path)["dog2"] == "dog"
    (tmp_path / "classes.toml").write_text('mine = "toy"\n')
    assert class_nouns(tmp_path) == {"mine": "toy"}


def test_a_benchmark_takes_all_options_from_a_recipe(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "subjects").mkdir()
    coloured(tmp_path / "subjects" / "rex", "crimson", "orange")
    (tmp_path / "subjects" / "classes.toml").write_text('rex = "dog"\n')
    recipe = 'images = "gone"\ntoken = "<x>"\nclass_noun = "cat"\nlr_schedule = "cosine"\n'
    (tmp_path / "r.toml").write_text(f'{recipe}steps = 9\n[method]\nname = "lora"\nrank = 3\n')
    groups: list[RunGroup] = []

    def stop(group: RunGroup, *_: object) -> None:
        groups.append(group)
        raise RunError("trained", "")

    monkeypatch.setattr(evaluate_command, "train_group", stop)
    typed = ["evaluate", "--benchmark", str(tmp_path / "subjects"), "--base", str(nano)]
    typed += ["--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")]
    assert main([*typed, "--training-steps", "4"]) == 2
    ((name, one),) = groups[0].subjects.items()
    assert (name, one.token, one.class_noun, one.steps) == ("rex", "<rex>", "dog", 4)
    assert (one.lr_schedule, one.base, one.method.name) == ("cosine", str(nano), "lora")
    assert one.method.model_dump()["rank"] == 3


def test_dreambench_has_30_subjects_of_15_classes() -> None:
    """Section 4.1 of arXiv:2208.12242: 21 objects and 9 live subjects."""
    classes = dreambench()["classes"]
    assert (len(classes), len(set(classes.values()))) == (30, 15)
    sets = [suitable_set(noun, style=False, pocket=False) for noun in classes.values()]
    assert (sets.count("objects"), sets.count("living")) == (21, 9)


def test_means_over_subjects_are_beside_published_ones(tmp_path: Path) -> None:
    def group(dino: float, real: float) -> dict[str, Any]:
        figures = {"raw dino": {"value": dino}, "raw clip-t": {"value": 0.3}}
        run = {"method": "dreambooth", "figures": figures}
        return {"base": "sd", "anchors": {REAL: {"raw dino": {"value": real}}}, "runs": {"x": run}}

    text = write_comparison({"groups": [group(0.6, 0.7), group(0.8, 0.9)]}, tmp_path)
    assert (tmp_path / "dreambench.md").read_text(encoding="utf-8") == text
    rows = [[c.strip() for c in line.strip("| ").split(" | ")] for line in text.splitlines()]
    cells = {row[0]: row[1:] for row in rows}
    paper = "dreambooth, Stable Diffusion (arXiv:2208.12242, table 1)"
    assert cells[paper] == ["30", "0.668", "0.803", "0.305"]
    ours = cells["**dreambooth, sd, measured here**"]
    assert ours == ["2", "0.700 (0.600 to 0.800)", "-", "0.300 (0.300 to 0.300)"]
    assert cells[f"**{REAL}, measured here**"][1].startswith("0.800")


@pytest.mark.long
def test_dreambench_s_protocol_from_end_to_end(
    settings: EvaluationSettings, nano: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """pocket's subjects under the names of two of DreamBench's, with small random networks."""
    for number, name in enumerate(("dog", "rc_car")):
        folder = tmp_path / "dataset" / name
        folder.mkdir(parents=True)
        for place, exhibit in enumerate(gallery.other_pictures(number, distractor=False)[:4]):
            exhibit.image(64).save(folder / f"{place:02}.jpg")
    networks = ["--dino", str(settings.dino_model), "--clip", str(settings.clip_model)]
    typed = ["evaluate", "--benchmark", str(tmp_path / "dataset"), "--protocol", "dreambench"]
    typed += ["--learning-steps", "1", "--steps", "1", "--base", str(nano), *networks, "--json"]
    assert main([*typed, "--out", str(tmp_path / "out")]) == 0
    shown = capfd.readouterr()
    groups = json.loads(shown.out.splitlines()[-1])["groups"]
    assert [group["class_noun"] for group in groups] == ["dog", "toy"]
    assert [group["pictures"] for group in groups] == [100, 100]
    assert "a dog wearing a red hat" in [p.format("dog") for p in groups[0]["prompts"]]
    assert "a toy floating on top of water" in [p.format("toy") for p in groups[1]["prompts"]]
    table = (tmp_path / "out" / "dreambench.md").read_text(encoding="utf-8")
    assert table in shown.err
    runs = [run for group in groups for run in group["runs"].values()]
    mean = sum(run["figures"]["raw dino"]["value"] for run in runs) / 2
    (line,) = [
        line for line in table.splitlines() if line.startswith("| **textual-inversion, nano,")
    ]
    assert f"| 2 | {mean:.3f} (" in line


@pytest.mark.parametrize("typed", [["--protocol", "dreambench"], ["--protocol", "dreambnch"]])
def test_a_protocol_needs_its_name_and_its_subjects(
    typed: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *typed]) == 2
    assert "dreambench" in capfd.readouterr().err


@pytest.mark.long
def test_a_benchmark_is_trained_evaluated_and_continued(
    settings: EvaluationSettings, nano: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subjects = tmp_path / "subjects"
    subjects.mkdir()
    coloured(subjects / "rex", "crimson", "orange")
    coloured(subjects / "lassie", "navy", "teal")
    sight = [
        "--dino",
        settings.dino_model,
        "--clip",
        settings.clip_model,
        "--steps",
        "1",
        "--count",
        "1",
    ]
    typed = ["evaluate", "--benchmark", str(subjects), "--learning-steps", "2", "--json", *sight]
    typed += ["--base", str(nano), "--out", str(tmp_path / "out"), "--prompts", "objects"]
    assert main(typed) == 2
    assert "no class noun for lassie, rex" in capfd.readouterr().err
    (subjects / "classes.toml").write_text('rex = "dog"\nlassie = "dog"\n')
    assert main(typed) == 0
    first = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [list(group["runs"]) for group in first["groups"]] == [["lassie"], ["rex"]]
    assert "Mean over subjects" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert main(typed) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == first
    assert main([*typed, "--method", "lora"]) == 2
    assert "other subjects or options" in capfd.readouterr().err
