"""Many subjects trained on one base model: in one batch where the results stay the same."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from pinxit import registry
from pinxit.errors import PinxitError, RecipeError, RunError, typed
from pinxit.files.atomic_write import check_new, check_regular, make_folder, write_text
from pinxit.files.text import read_table, read_text, read_toml
from pinxit.files.untrusted import expanded
from pinxit.images.folder import release_pixels
from pinxit.models.model import Model
from pinxit.models.prompt import file_name
from pinxit.options import Option, Options
from pinxit.runs.events import Event, RunFailure
from pinxit.runs.groups import BatchGroups, GroupMember, plan_groups
from pinxit.runs.run import Run, train_together
from pinxit.training.method import SubjectKind
from pinxit.training.recipe import Recipe

SUBJECTS = "many.toml"  # the list of subjects


class SubjectRow(Options):
    """A row of a subject table: the images, and options of this subject's recipe only."""

    table_title: ClassVar[str] = "a row of the table of subjects"

    images: Path = Option(aliases=("pictures", "instance_data_dir", "train_data_dir"))
    """folder with the subject's images, relative to the table's folder"""
    name: str | None = Option(None, default_is="the token or the image folder's name")
    """name of the run's folder"""
    token: str | None = Option(None, aliases=("placeholder_token",), default_is="<name>")
    """placeholder token"""
    class_noun: str | None = Option(None, aliases=("class_name",))
    """noun for the subject's class, such as toy"""
    kind: SubjectKind | None = Option(None, aliases=("learnable_property",))
    """whether it is an object or a style"""

    def recipe(self, name: str, common: Mapping[str, object]) -> Recipe:
        """The subject's recipe; `common` has the options that all subjects share."""
        own = self.model_dump(exclude_none=True, exclude={"name"})
        return Recipe.model_validate({"token": f"<{name}>", **common, **own})


class RunGroup(Options):
    """The recipes of many subjects by name, and how many of them may share a batch."""

    max_concepts_per_batch: int | None = Option(
        None, ge=1, aliases=("together",), default_is="as many as make 64 images"
    )
    """largest number of concepts trained in one batch"""
    subjects: dict[str, Recipe]

    @classmethod
    def from_table(
        cls, subjects: Path, common: Mapping[str, object], max_concepts_per_batch: int | None
    ) -> Self:
        """The subjects of a folder or a table; RecipeError if two share a name or a token."""
        recipes: dict[str, Recipe] = {}
        common = {**common, "method": registry.from_table("methods", common["method"])}
        for row in read_subjects(subjects):
            name = file_name(row.name or row.token or row.images.name)
            if name in recipes:
                raise RecipeError(
                    f"two subjects are called `{name}`", "give one of them another `name`"
                )
            recipes[name] = row.recipe(name, common)
        tokens = Counter(recipe.token.lower() for recipe in recipes.values())
        token, count = tokens.most_common(1)[0]
        if count > 1:
            raise RecipeError(
                f"two subjects have the token `{token}`", "give one of them another `token`"
            )
        return cls(max_concepts_per_batch=max_concepts_per_batch, subjects=recipes)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The group of an existing folder; RunError if there is none, or a name is not valid."""
        if not (folder / SUBJECTS).is_file():
            raise RunError(
                f"{folder} is not a folder of train-many", f"such a folder has a {SUBJECTS}"
            )
        group = cls.model_validate(read_toml(folder / SUBJECTS, "list of subjects"))
        invalid = next((name for name in group.subjects if name != file_name(name)), None)
        if invalid is not None:
            raise RunError(
                f"{folder / SUBJECTS} has a subject named {invalid!r}, which is not a folder name",
                f"rename it in {SUBJECTS}: only letters, digits, _ and - are allowed",
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
        check_new(folder, f"continue with: pinxit train-many --resume {typed(folder)}")
        make_folder(folder)
        write_text(folder / SUBJECTS, self._to_toml())

    def is_in(self, folder: Path) -> bool:
        """Whether a folder is already that of this group; RunError if it is that of another."""
        if not (folder / SUBJECTS).is_file():
            return False
        if read_text(folder / SUBJECTS) != self._to_toml():  # equal texts need not be parsed
            self.check_in(folder)
        return True

    def check_in(self, folder: Path) -> None:
        """RunError unless a folder was started with the same subjects and options."""
        if self != RunGroup.open(folder):
            raise RunError(
                f"{folder} was started with other subjects or options",
                f"continue with those: pinxit train-many --resume {typed(folder)}",
            )

    def _to_toml(self) -> str:
        import tomli_w

        texts = [tomli_w.dumps(self.model_dump(exclude={"subjects"}, exclude_none=True))]
        for name, recipe in self.subjects.items():  # one by one: there may be very many
            values = recipe.model_dump(mode="json", exclude_none=True)
            texts.append(tomli_w.dumps({"subjects": {name: values}}))
        return "".join(texts)


def read_subjects(path: Path) -> list[SubjectRow]:
    """The subjects of a folder of image folders, or of a TOML or CSV table.

    RecipeError if there are none.
    """
    if path.is_dir():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        rows = [{"images": folder.name} for folder in folders if not folder.name.startswith(".")]
    elif path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        rows = read_table(path)
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
        row.model_copy(update={"images": (folder / expanded(row.images)).resolve()})
        for row in subjects
    ]


def group_member(model: Model, run: Run) -> GroupMember:
    """Read the images of a run and choose its open options; a PinxitError if it cannot train."""
    run.settle_recipe(model)
    release_pixels(run.images)  # the memory of all runs together is not bounded
    exists = Run.exists(run.folder)
    return GroupMember.of(run.folder, run.recipe, run.images, run.plan.batch_size, exists=exists)


def train_many(
    model: Model, runs: Sequence[Run], max_concepts_per_batch: int | None = None
) -> Generator[BatchGroups | tuple[Run, Event]]:
    """Start or continue runs, in one batch where possible; a run that fails is left out."""
    members: list[GroupMember] = []
    for run in runs:
        try:
            members.append(group_member(model, run))
        except PinxitError as error:
            yield run, RunFailure(error)
    batches = plan_groups(members, max_concepts_per_batch)
    yield batches
    by_folder = {run.folder: run for run in runs}
    for folders in batches.groups:
        group = [by_folder[folder] for folder in folders]
        if not all(run.finished for run in group):
            yield from train_together(model, group)
