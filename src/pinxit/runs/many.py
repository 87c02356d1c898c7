"""Many subjects trained on one base model: in one batch where the results stay the same."""

import csv
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Self

from pinxit.errors import PinxitError, RecipeError, RunError
from pinxit.files.atomic_write import check_regular, write_text
from pinxit.images.folder import fingerprint
from pinxit.models.model import Model
from pinxit.models.prompt import file_name, token_pattern
from pinxit.options import Option, Options, read_toml
from pinxit.runs.folder import AnyEvent, RunFailure
from pinxit.runs.run import Run, train_together
from pinxit.training.method import SubjectKind
from pinxit.training.recipe import Recipe

_FILE = "many.toml"
# Images in one batch, by default. With 64, an image of pocket takes a third of the time that it
# takes alone, and hardly less than with 16 (docs/log.md). A step that does not fit into memory
# splits its batch itself.
_MAX_BATCH_IMAGES = 64


class SubjectRow(Options):
    """A row of a subject table: the images, and options of this subject's recipe only."""

    images: Path = Option(
        help="folder with the subject's images, relative to the table's folder",
        aliases=("pictures", "instance_data_dir", "train_data_dir"),
    )
    name: str | None = Option(
        None, help="name of the run's folder", default_is="the token or the image folder's name"
    )
    token: str | None = Option(
        None, help="placeholder token", aliases=("placeholder_token",), default_is="<name>"
    )
    class_noun: str | None = Option(
        None, help="noun for the subject's class, such as toy", aliases=("class_name",)
    )
    kind: SubjectKind | None = Option(
        None, help="whether it is an object or a style", aliases=("learnable_property",)
    )

    def recipe(self, name: str, common: Mapping[str, object]) -> Recipe:
        """The subject's recipe; `common` has the options that all subjects share."""
        own = self.model_dump(exclude_none=True, exclude={"name"})
        return Recipe.model_validate({"token": f"<{name}>", **common, **own})


class RunGroup(Options):
    """The recipes of many subjects by name, and how many of them may share a batch."""

    max_concepts_per_batch: int | None = Option(
        None,
        ge=1,
        help="largest number of concepts trained in one batch",
        aliases=("together",),
        default_is="as many as make 64 images",
    )
    subjects: dict[str, Recipe]

    @classmethod
    def from_table(
        cls, subjects: Path, common: Mapping[str, object], max_concepts_per_batch: int | None
    ) -> Self:
        """The subjects of a folder or a table; RecipeError if two share a name or a token."""
        recipes: dict[str, Recipe] = {}
        for row in read_subjects(subjects):
            name = file_name(row.name or row.token or row.images.name)
            if name in recipes:
                raise RecipeError(
                    f"two subjects are called `{name}`", "give one of them another `name`"
                )
            recipes[name] = row.recipe(name, common)
        tokens = [recipe.token.lower() for recipe in recipes.values()]
        duplicate = next((token for token in tokens if tokens.count(token) > 1), None)
        if duplicate:
            raise RecipeError(
                f"two subjects have the token `{duplicate}`", "give one of them another `token`"
            )
        return cls(max_concepts_per_batch=max_concepts_per_batch, subjects=recipes)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The group of an existing folder; RunError if there is none, or a name is not valid."""
        if not (folder / _FILE).is_file():
            raise RunError(
                f"{folder} is not a folder of train-many", f"such a folder has a {_FILE}"
            )
        group = cls.model_validate(read_toml(folder / _FILE, "list of subjects"))
        invalid = next((name for name in group.subjects if name != file_name(name)), None)
        if invalid is not None:
            raise RunError(
                f"{folder / _FILE} has a subject named {invalid!r}, which is not a folder name",
                f"rename it in {_FILE}: only letters, digits, _ and - are allowed",
            )
        return group

    def runs(self, folder: Path) -> dict[str, Run]:
        """The runs in a folder by name, new or existing; RunError if one of them is a link."""
        check_regular(*(folder / name for name in self.subjects))
        return {
            name: Run.open(folder / name)
            if Run.exists(folder / name)
            else Run(folder / name, recipe)
            for name, recipe in self.subjects.items()
        }

    def create(self, folder: Path) -> None:
        """Write a new folder for `open`; RunError if the folder exists and is not empty."""
        import tomli_w

        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(
                f"{folder} exists already",
                f"continue with: pinxit train-many --resume {folder}, or choose another --out",
            )
        folder.mkdir(parents=True, exist_ok=True)
        text = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        write_text(folder / _FILE, text)


@dataclass(frozen=True)
class BatchGroups:
    """Which runs are trained in one batch, and the reason if they are not all in one."""

    groups: tuple[tuple[Run, ...], ...]
    reason: str


def read_subjects(path: Path) -> list[SubjectRow]:
    """The subjects of a folder of image folders, or of a TOML or CSV table.

    RecipeError if there are none.
    """
    if path.is_dir():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        rows = [{"images": folder.name} for folder in folders if not folder.name.startswith(".")]
    elif path.suffix == ".csv" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        table = csv.DictReader(lines, skipinitialspace=True)
        rows = [{key: cell for key, cell in row.items() if cell} for row in table]
    else:
        subject = read_toml(path, "folder or table of subjects").get("subject")
        rows = subject if isinstance(subject, list) else []
    subjects = [SubjectRow.model_validate(row) for row in rows]
    if not subjects:
        raise RecipeError(
            f"there is no subject in {path}",
            "give a folder of image folders, a TOML file with [[subject]] tables, or a CSV file",
        )
    folder = path if path.is_dir() else path.parent
    return [
        row.model_copy(update={"images": (folder / row.images.expanduser()).resolve()})
        for row in subjects
    ]


def train_many(
    model: Model, runs: Sequence[Run], max_concepts_per_batch: int | None = None
) -> Generator[BatchGroups | tuple[Run, AnyEvent]]:
    """Start or continue runs, in one batch where possible; a run that fails is left out."""
    valid: list[Run] = []
    for run in runs:
        try:
            run.settle_recipe(model)
            valid.append(run)
        except PinxitError as error:
            yield run, RunFailure(error)
    batches = _group_runs(valid, max_concepts_per_batch)
    yield batches
    for group in batches.groups:
        if not all(run.finished for run in group):
            yield from train_together(model, group)


def _group_runs(runs: Sequence[Run], max_concepts_per_batch: int | None) -> BatchGroups:
    """Groups of about the same size. Names and order do not matter: runs are sorted by content.

    Existing runs are not grouped with new ones: they share a batch again when they continue, and
    do not wait for a run that starts at step 1.
    """
    sharing = [
        run
        for run in runs
        if run.recipe.method.independent_concepts and not _mentions_other_token(run, runs)
    ]
    alone = [run for run in runs if run not in sharing]
    batch_size = max((run.plan.batch_size for run in sharing), default=1)
    max_concepts = max_concepts_per_batch or max(1, _MAX_BATCH_IMAGES // batch_size)
    groups: list[tuple[Run, ...]] = []
    for existing in (True, False):
        similar = [run for run in sharing if Run.exists(run.folder) == existing]
        similar.sort(key=lambda run: (fingerprint(run.images), run.recipe.token))
        count = ceil(len(similar) / max_concepts)
        groups += [tuple(_even_part(similar, count, index)) for index in range(count)]
    reasons: list[str] = []
    if any(len(group) < len(sharing) for group in groups):
        reasons.append(f"at most {max_concepts} in one batch")
    if alone and not alone[0].recipe.method.independent_concepts:
        reasons.append(f"{alone[0].recipe.method.name} changes the whole base model")
    elif alone:
        reasons.append("subjects whose captions contain another subject's token train alone")
    return BatchGroups((*groups, *((run,) for run in alone)), "; ".join(reasons))


def _even_part(runs: list[Run], count: int, index: int) -> list[Run]:
    """Part `index` of runs split into `count` parts, whose sizes differ by at most one."""
    size, remainder = divmod(len(runs), count)
    start = index * size + min(index, remainder)
    return runs[start : start + size + (1 if index < remainder else 0)]


def _mentions_other_token(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a caption contains another run's token, whose embedding it would then use."""
    others = [token_pattern((other.recipe.token,)) for other in runs if other is not run]
    captions = [image.caption or "" for image in run.images]
    return any(other.search(caption) for other in others for caption in captions)
