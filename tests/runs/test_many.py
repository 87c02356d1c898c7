"""Many concepts in one batch: each is what it would be alone, whatever happens to the others."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pinxit.adapters.adapter import applied
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.errors import PinxitError, RecipeError, RequestError, RunError
from pinxit.evaluation.judge import Judge, PromptRun
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.generation import image_cache
from pinxit.generation.image_cache import ImageCache
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images, sample_images
from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.model import Model, Placement
from pinxit.models.open_base import open_base
from pinxit.runs.events import RunFailure, SavedCheckpoint
from pinxit.runs.file_names import BASE_IMAGES
from pinxit.runs.groups import BatchGroups
from pinxit.runs.judging import generate_prompts
from pinxit.runs.many import RunGroup, read_subjects, train_many
from pinxit.runs.run import Run, train_run
from pinxit.training import train
from pinxit.training.concept_trainer import ConceptLoss, ConceptTrainer
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession
from tests.noisy_subjects import noisy_subjects
from tests.short_runs import concept_trainer

NAMES = ("ape", "bee", "cow")
SMALL = {"class_noun": "toy", "steps": 6, "batch_size": 2, "preview_every": 0}
WORD: dict[str, object] = {"name": "textual-inversion"}
# With convolutions, with a scale, and with class pictures beside the subject's.
LORA: dict[str, object] = {
    "name": "lora",
    "rank": 2,
    "alpha": 3.0,
    "layers": "all",
    "prior_pictures": 2,
}
PIVOTAL: dict[str, object] = {**LORA, "word": "new", "layers": "attention"}
HELD: dict[str, object] = {**WORD, "vectors": 2, "length": "held"}
_LATER = [
    pytest.param(HELD, id="held", marks=pytest.mark.long),
    pytest.param(LORA, id="lora", marks=pytest.mark.long),
    pytest.param(PIVOTAL, id="both", marks=pytest.mark.long),
]
METHODS = pytest.mark.parametrize("method", [pytest.param(WORD, id="word"), *_LATER])


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """A folder of three folders with two noisy images each."""
    return noisy_subjects(tmp_path / "subjects", NAMES, 2)


@pytest.fixture
def double(nano: Path, monkeypatch: pytest.MonkeyPatch):
    """The nano base in float64, and everything computed in it."""
    model: Any = open_base(nano)
    for network in model._all.values():
        network.double()
    model._vae.encoder.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    vectors = ClipEncoder.token_embeddings
    monkeypatch.setattr(ClipEncoder, "token_embeddings", lambda *given: vectors(*given).double())
    monkeypatch.setattr(Placement, "dtype", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(model, "offload", lambda *_: None)  # a network is loaded again in float32
    torch.set_default_dtype(torch.float64)
    yield model
    torch.set_default_dtype(torch.float32)


def recipes(subjects: Path, **changed: object) -> list[Recipe]:
    given = {"method": WORD, **SMALL, "checkpoint_every": 2, **changed}
    return list(RunGroup.from_table(subjects, given, None).subjects.values())


def trainers_of(model: Model, recipes: Sequence[Recipe]) -> list[ConceptTrainer]:
    return [concept_trainer(model, recipe) for recipe in recipes]


def trained_weights(model: Model, *together: ConceptTrainer) -> list[Tensor]:
    """The concepts' weights after all their steps, each in a row."""
    for _ in train.train(TrainingSession(model, together)):
        pass
    return [torch.cat([w.detach().flatten() for w in one.weights]) for one in together]


def largest_error(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = zip(tensors, others, strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


def clip_together(monkeypatch: pytest.MonkeyPatch, all_of_them: Sequence[ConceptTrainer]) -> None:
    """The mistake that keeps concepts from being alone: one norm for all their gradients."""
    weights = [weight for one in all_of_them for weight in one.weights]

    def clipped(self: ConceptTrainer, _loss: ConceptLoss) -> float:
        if self is not all_of_them[0]:
            return 0.0
        return float(nn.utils.clip_grad_norm_(weights, self.plan.recipe.max_grad_norm))

    monkeypatch.setattr(ConceptTrainer, "clip_gradients", clipped)
    monkeypatch.setattr(ConceptTrainer, "check_gradients", lambda *_: None)  # needs other norms


@pytest.mark.long
@METHODS
def test_training_together_equals_training_alone(
    double: Model, subjects: Path, method: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_recipes = recipes(subjects, method=method, batch_size=1, steps=20, clip=1e-4)
    alone = [trained_weights(double, one)[0] for one in trainers_of(double, all_recipes)]
    assert alone[0].dtype == torch.float64
    start = [
        torch.cat([w.flatten() for w in one.weights]) for one in trainers_of(double, all_recipes)
    ]
    assert largest_error(alone, start) > 1e-2
    assert largest_error(trained_weights(double, *trainers_of(double, all_recipes)), alone) <= 1e-10
    wrong = trainers_of(double, all_recipes)
    clip_together(monkeypatch, wrong)
    assert largest_error(trained_weights(double, *wrong), alone) > 1e-6


@pytest.mark.long
@METHODS
def test_images_of_joint_training_equal_those_trained_alone(
    model: Model, subjects: Path, method: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_recipes = recipes(subjects, method=method, batch_size=1, steps=50, clip=1e-4)

    def images_of(*together: ConceptTrainer) -> list[Any]:
        trained_weights(model, *together)
        images: list[Any] = []
        for one in together:
            with applied(model, one.adapters):
                asked = GenerationRequest(
                    prompt=f"a photo of {one.plan.recipe.token}", steps=10, count=2
                )
                images += [np.asarray(p.image, dtype=int) for p in generate_images(model, asked)]
        return images

    def largest_difference(one: list[Any], other: list[Any]) -> int:
        return max(int(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))

    alone = [image for one in trainers_of(model, all_recipes) for image in images_of(one)]
    assert largest_difference(images_of(*trainers_of(model, all_recipes)), alone) <= 2
    wrong = trainers_of(model, all_recipes)
    clip_together(monkeypatch, wrong)
    assert largest_difference(images_of(*wrong), alone) > 2


@METHODS
def test_a_concept_with_nan_does_not_change_the_others(
    model: Model, subjects: Path, method: object
) -> None:
    all_recipes = recipes(subjects, method=method, batch_size=1, steps=3)
    results = trained_weights(model, *trainers_of(model, all_recipes))
    together = trainers_of(model, all_recipes)
    with torch.no_grad():
        together[1].weights[0].fill_(torch.nan)
    ape, _, cow = trained_weights(model, *together)
    assert [trainer.steps_done for trainer in together] == [3, 0, 3]
    assert "diverged at step 1" in str(together[1].error)
    assert largest_error([ape, cow], [results[0], results[2]]) < 1e-4


@pytest.mark.long
@METHODS
def test_previews_show_the_concept_of_their_run(
    model: Model, subjects: Path, method: object, tmp_path: Path
) -> None:
    given = {"method": method, "steps": 2, "batch_size": 1, "preview_every": 2, "rate": 0.1}
    given["score"] = False
    runs = train_subjects(model, subjects, tmp_path / "out", **given)
    shown = [preview(run) for run in runs.values()]
    alone = [preview(train_run(model, r.recipe, tmp_path / n)) for n, r in runs.items()]
    for n, image in enumerate(shown):
        assert np.abs(image - alone[n]).max() <= 2
        assert np.abs(image - alone[n - 1]).max() > 2


def test_base_images_are_generated_once_for_each_class(
    model: Model, subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated: list[str] = []

    def counted(model: Model, request: GenerationRequest, concepts: Sequence[Concept]) -> Any:
        generated.append(request.prompt)
        return sample_images(model, request, concepts)

    def subject_judge(model: Model, recipe: Recipe, _: object, *, folder: Path) -> Judge:
        noun = recipe.class_noun
        prompts = (Prompt(f"a {noun}", f"a {noun}", f"a {noun}", 7),)
        generate_prompts(PromptRun(recipe, prompts, steps=1), model, None, ImageCache(folder))
        raise RequestError("there is no judge", "none is needed")

    monkeypatch.setattr(image_cache, "sample_images", counted)
    monkeypatch.setattr("pinxit.runs.run.subject_judge", subject_judge)
    table = subjects / "table.csv"
    table.write_text("images,class_noun\nape,toy\nbee,dog\ncow,toy\n")
    given = {"method": WORD, "steps": 2, "batch_size": 1, "preview_every": 2}
    runs = train_subjects(model, table, tmp_path / "out", **given)
    assert generated == ["a toy", "a dog"]
    files = [sorted((run.folder / BASE_IMAGES).iterdir()) for run in runs.values()]
    ape, bee, cow = (of_run[0] for of_run in files)
    assert (ape.name, ape.read_bytes()) == (cow.name, cow.read_bytes())
    assert ape.name != bee.name


def preview(run: Run) -> Any:
    return np.asarray(Image.open(run.folder / "previews" / "0000002.png"), dtype=int)


def tensors(folder: Path) -> dict[str, Tensor]:
    return dict(Run.open(folder).concept.parts[0].tensors)


def same(one: Path, other: Path) -> bool:
    mine, theirs = tensors(one), tensors(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


def train_subjects(model: Model, subjects: Path, out: Path, **changed: object) -> dict[str, Run]:
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL, **changed}, None)
    runs = many.runs(out)
    for _ in train_many(model, list(runs.values())):
        pass
    return runs


@pytest.mark.long
def test_each_subject_has_a_complete_run(model: Model, subjects: Path, tmp_path: Path) -> None:
    runs = train_subjects(model, subjects, tmp_path / "out")
    assert list(runs) == list(NAMES)
    for name, run in runs.items():
        alone = train_run(model, run.recipe, tmp_path / "alone" / name)
        assert alone.recipe == Run.open(run.folder).recipe == run.recipe
        mine, theirs = (
            sorted(path.relative_to(one.folder) for path in one.folder.rglob("*"))
            for one in (run, alone)
        )
        assert mine == theirs
        assert [step.number for step in run.state.steps] == [s.number for s in alone.state.steps]
        assert (
            largest_error(list(tensors(run.folder).values()), list(tensors(alone.folder).values()))
            < 1e-4
        )
        more = Run.open(run.folder, steps=8)
        assert [e.number for e in more.train(model) if isinstance(e, StepResult)] == [7, 8]


def test_results_do_not_depend_on_names_tokens_or_order(
    model: Model, subjects: Path, tmp_path: Path
) -> None:
    train_subjects(model, subjects, tmp_path / "one")
    for name, other in zip(NAMES, ("zebra", "yak", "auk"), strict=True):
        (subjects / name / "1.png").rename(subjects / name / "later.png")
        (subjects / name / "0.png").rename(subjects / name / "z.png")
        (subjects / name).rename(subjects / other)
    train_subjects(model, subjects, tmp_path / "other")
    assert same(tmp_path / "one" / "ape", tmp_path / "other" / "zebra")
    assert same(tmp_path / "one" / "bee", tmp_path / "other" / "yak")
    assert same(tmp_path / "one" / "cow", tmp_path / "other" / "auk")
    assert not same(tmp_path / "one" / "ape", tmp_path / "other" / "auk")


@pytest.mark.parametrize("stop", [1, 4])
def test_a_group_resumes_exactly(model: Model, subjects: Path, tmp_path: Path, stop: int) -> None:
    train_subjects(model, subjects, tmp_path / "whole", checkpoint_every=2)
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL, "checkpoint_every": 2}, None)
    runs = list(many.runs(tmp_path / "out").values())
    with closing(train_many(model, runs)) as events:
        for one in events:
            if isinstance(one, tuple) and isinstance(one[1], StepResult) and one[1].number == stop:
                break
    assert not model.placeholders
    again = many.runs(tmp_path / "out")
    steps = [one[1] for one in train_many(model, list(again.values())) if isinstance(one, tuple)]
    assert {step.number for step in steps if isinstance(step, StepResult)} == set(
        range(stop + 1, 7)
    )
    for name, run in again.items():
        assert same(run.folder, tmp_path / "whole" / name)
        assert [step.number for step in run.state.steps] == list(range(1, 7))


def test_a_run_that_is_ahead_after_a_crash_waits_for_the_others(
    model: Model, subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more step for one concept, as when killed between two of the checkpoints of a step."""
    train_subjects(model, subjects, tmp_path / "whole", checkpoint_every=2)
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL, "checkpoint_every": 2}, None)
    runs = list(many.runs(tmp_path / "out").values())
    save = Run.save

    def killed(self: Run, trainer: ConceptTrainer) -> None:
        if trainer.steps_done < 4 or self is runs[1]:
            save(self, trainer)

    with monkeypatch.context() as patch, closing(train_many(model, runs)) as events:
        patch.setattr(Run, "save", killed)
        for one in events:
            if isinstance(one, tuple) and isinstance(one[1], SavedCheckpoint) and one[1].step == 4:
                break
    again = many.runs(tmp_path / "out")
    steps = [(run, e) for run, e in train_many_events(model, list(again.values()))]
    ahead = [e.number for run, e in steps if run is again["bee"] and isinstance(e, StepResult)]
    behind = [e.number for run, e in steps if run is again["ape"] and isinstance(e, StepResult)]
    assert (ahead, behind) == ([5, 6], [3, 4, 5, 6])
    assert all(same(run.folder, tmp_path / "whole" / name) for name, run in again.items())


def train_many_events(model: Model, runs: Sequence[Run], together: int | None = None):
    return [one for one in train_many(model, runs, together) if isinstance(one, tuple)]


@pytest.mark.long
def test_a_subject_is_trained_after_repair_of_its_broken_image(
    model: Model, subjects: Path, tmp_path: Path
) -> None:
    train_subjects(model, subjects, tmp_path / "whole")
    good = (subjects / "bee" / "0.png").read_bytes()
    (subjects / "bee" / "0.png").write_bytes(b"no picture")
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL}, None)
    many.create(tmp_path / "out")
    runs = many.runs(tmp_path / "out")
    failed = [
        (run, event.error)
        for run, event in train_many_events(model, list(runs.values()))
        if isinstance(event, RunFailure)
    ]
    assert [run.folder.name for run, _ in failed] == ["bee"]
    assert "0.png" in failed[0][1].message
    assert [name for name, run in runs.items() if run.finished] == ["ape", "cow"]
    (subjects / "bee" / "0.png").write_bytes(good)
    assert RunGroup.open(tmp_path / "out") == many
    events = train_many_events(
        model, list(RunGroup.open(tmp_path / "out").runs(tmp_path / "out").values())
    )
    assert {run.folder.name for run, _ in events} == {"bee"}
    mine, theirs = (tensors(tmp_path / out / "bee")["text"] for out in ("out", "whole"))
    assert largest_error([mine], [theirs]) < 1e-4


def test_a_run_that_diverges_or_ends_does_not_change_the_others(
    model: Model, subjects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL, "checkpoint_every": 2}, None)
    short = many.subjects["ape"].model_copy(update={"steps": 3})
    runs = many.model_copy(update={"subjects": {**many.subjects, "ape": short}}).runs(table)
    clip, sizes = ConceptTrainer.clip_gradients, list[int]()

    def clipped(self: ConceptTrainer, loss: ConceptLoss) -> float:
        wrong = self.plan.recipe.token == "<bee>" and self.steps_done == 4
        return clip(self, ConceptLoss(torch.nan, loss.by_image) if wrong else loss)

    batches = TrainingSession.batches
    monkeypatch.setattr(ConceptTrainer, "clip_gradients", clipped)
    monkeypatch.setattr(ConceptTrainer, "check_gradients", lambda *_: None)  # needs other norms
    monkeypatch.setattr(
        TrainingSession,
        "batches",
        lambda self, step, some=(): sizes.append(len(some)) or batches(self, step, some),
    )
    events = train_many_events(model, list(runs.values()))
    # Then the one that went wrong has its second attempt, from its last checkpoint.
    assert (sizes[:6], set(sizes[6:])) == ([3, 3, 3, 2, 2, 1], {1})
    (failed,) = [(run, event.error) for run, event in events if isinstance(event, RunFailure)]
    assert failed[0] is runs["bee"]
    assert "diverged at step 5" in failed[1].message
    steps = {name: run.concept.provenance.steps for name, run in runs.items()}
    assert steps == {"ape": 3, "bee": 4, "cow": 6}
    monkeypatch.undo()
    (cow,) = trainers_of(model, [runs["cow"].recipe])
    trained_weights(model, cow)
    with cow.averaged_weights():
        assert largest_error([tensors(runs["cow"].folder)["text"]], cow.weights) < 1e-4


@pytest.mark.long
def test_groups_and_those_that_cannot_share(model: Model, subjects: Path, tmp_path: Path) -> None:
    def grouped(method: str, together: int | None) -> BatchGroups:
        given = {"method": method, **SMALL, "steps": 1}
        runs = RunGroup.from_table(subjects, given, None).runs(tmp_path / method / str(together))
        events = [one for one in train_many(model, list(runs.values()), together)]
        assert all(run.finished for run in runs.values())
        return next(one for one in events if isinstance(one, BatchGroups))

    assert [len(group) for group in grouped("textual-inversion", None).groups] == [3]
    groups = grouped("textual-inversion", 2)
    assert [len(group) for group in groups.groups] == [2, 1]
    assert groups.reason == "at most 2 in one batch"
    groups = grouped("dreambooth", 3)
    assert [len(group) for group in groups.groups] == [1, 1, 1]
    assert groups.reason == "dreambooth changes the whole base model"
    (subjects / "ape" / "0.txt").write_text("an ape beside <bee>")
    groups = grouped("textual-inversion", 3)
    assert [[folder.name for folder in group] for group in groups.groups][1] == ["ape"]
    assert "another subject's token" in groups.reason


TABLES = {
    "subjects.csv": "name,pictures,token,class_noun,kind\n"
    'one,subjects/ape,<a>,toy,\n,subjects/bee,"<b>",dog,style\n',
    "subjects.toml": '[[subject]]\nname = "one"\npictures = "subjects/ape"\ntoken = "<a>"\n'
    '[[subject]]\npictures = "subjects/bee"\ntoken = "<b>"\nclass_noun = "dog"\nkind = "style"\n',
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_subjects(table: str, subjects: Path) -> None:
    file = subjects.parent / table
    file.write_text(TABLES[table])
    many = RunGroup.from_table(file, {"method": WORD, **SMALL}, None)
    one, other = many.subjects["one"], many.subjects["b"]
    assert (one.images, one.token, one.class_noun, one.kind) == (
        subjects / "ape",
        "<a>",
        "toy",
        "object",
    )
    assert (other.token, other.class_noun, other.kind) == ("<b>", "dog", "style")


WRONG: dict[str, tuple[str, str]] = {
    "": ("there is no subject in", "folders"),
    "[[subject]]\ntoken = '<a>'": ("`images` is missing", "folder"),
    "[[subject]]\npictures = 'a'\nclas_noun = 'toy'": ("no `clas_noun`", "mean class_noun"),
    "[[subject]]\npictures = 'a'\n[[subject]]\npictures = 'b/a'": ("called `a`", "name"),
    "[[subject]]\npictures = 'a'\ntoken = '<B>'\n[[subject]]\npictures = 'b'": ("`<b>`", "token"),
}


@pytest.mark.parametrize("text", WRONG)
def test_an_invalid_table_of_subjects_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        RunGroup.from_table(tmp_path / "table.toml", {"method": WORD, **SMALL}, None)
    message, hint = WRONG[text]
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("deep.toml", b"a = " + b"[" * 5000 + b"]" * 5000),
        ("digits.toml", b"a = " + b"9" * 5000),
        ("latin.toml", "a = 'caf\xe9'".encode("latin-1")),
        ("number.toml", b"subject = [1]"),
        ("nul.toml", b"[[subject]]\nimages = 'a'\ntoken = \"a\\u0000b\""),
        ("latin.csv", "images\ncaf\xe9".encode("latin-1")),
        ("nul.csv", b"images\na\0b"),
        ("long.csv", b"images\n" + b"a" * 200_000),
        ("cells.csv", b"images\na,b,c"),
    ],
)
def test_a_table_that_cannot_be_read(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PinxitError) as caught:
        read_subjects(tmp_path / name)
    assert len(caught.value.message) < 1000


def test_a_folder_without_subjects_is_an_error(tmp_path: Path) -> None:
    for given in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RecipeError, match=given.name):
            read_subjects(given)
    with pytest.raises(RunError, match=r"many\.toml"):
        RunGroup.open(tmp_path)


@pytest.mark.long
def test_the_command_trains_and_resumes_many_subjects(
    nano: Path, subjects: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(subjects.parent)
    good = (subjects / "bee" / "0.png").read_bytes()
    (subjects / "bee" / "0.png").write_bytes(b"no picture")
    typed = ["train-many", "textual-inversion", "subjects", "--class-noun", "toy"]
    typed += ["--base", str(nano), "--steps", "2", "--preview-every", "0"]
    assert main(typed) == 2
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"runs/subjects/{name}/concept.safetensors" for name in ("ape", "cow")
    ]
    assert "bee is left out: 1 of 2 files in" in output.err
    assert "1 of 3 subjects were not trained: bee" in output.err
    assert "pinxit train-many --resume runs/subjects" in output.err
    assert "concepts per batch: 2\n" in output.err
    (subjects / "bee" / "0.png").write_bytes(good)
    assert main(typed) == 2  # the folder is taken
    assert "--resume runs/subjects" in capsys.readouterr().err
    assert main([*typed, "--seed", "1", "--resume", "runs/subjects"]) == 2
    assert "other subjects or options" in capsys.readouterr().err
    assert main([*typed, "--resume", "runs/subjects"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["train-many", "--resume", "runs/subjects"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["train-many"]) == 2
    assert "needs a method and subjects" in capsys.readouterr().err
    assert main(["generate", "<bee>", "--concept", "runs/subjects/bee", "--steps", "1"]) == 0


@pytest.mark.parametrize("name", ["../victim", "/victim", "..", "a/b", ""])
def test_a_subject_name_outside_the_folder_is_refused(
    name: str, subjects: Path, tmp_path: Path
) -> None:
    many = RunGroup.from_table(subjects, {"method": WORD, **SMALL}, None)
    bad = RunGroup(subjects={name: many.subjects["ape"]})
    bad.create(tmp_path / "runs")
    with pytest.raises(RunError, match="which is not a folder name"):
        RunGroup.open(tmp_path / "runs")


def test_a_run_that_is_a_link_is_refused(subjects: Path, tmp_path: Path) -> None:
    RunGroup.from_table(subjects, {"method": WORD, **SMALL}, None).create(tmp_path / "runs")
    (tmp_path / "runs" / "bee").symlink_to(subjects, target_is_directory=True)
    with pytest.raises(RunError, match="bee is a link"):
        RunGroup.open(tmp_path / "runs").runs(tmp_path / "runs")
