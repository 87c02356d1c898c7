"""Many subjects taught on one base: in one batch where that is exact, else one after the other."""

import csv
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field

from pinxit.errors import PinxitError, RecipeError, RunError
from pinxit.files.atomic_write import must_be_regular, replace_text
from pinxit.images.folder import fingerprint
from pinxit.models.model import Model
from pinxit.models.prompt import file_name, pattern
from pinxit.options import Checked, read_toml
from pinxit.runs.folder import Failed, Told
from pinxit.runs.run import Run, learn_together
from pinxit.training.method import Kind
from pinxit.training.recipe import Recipe

_FILE = "many.toml"
# Pictures in one batch. A picture of 64 costs pocket a third of what one alone costs, and hardly
# less than one of 16 (docs/log.md); what does not fit into memory is cut by the step itself.
_PICTURES = 64


class Subject(Checked):
    """A subject of a table: its pictures, and what its recipe has for itself."""

    pictures: Path = Field(description="folder with its pictures, seen from the table's folder")
    name: str | None = Field(default=None, description="the name of its run's folder")
    token: str | None = Field(default=None, description="its word; else its name in <>")
    class_noun: str | None = Field(default=None, description="what it is a kind of")
    kind: Kind | None = Field(default=None, description="whether it is a thing or a style")

    def recipe(self, name: str, common: Mapping[str, object]) -> Recipe:
        """Its recipe: what all have in common, and its own."""
        own = self.model_dump(exclude_none=True, exclude={"name"})
        return Recipe.model_validate({"token": f"<{name}>", **common, **own})


class Many(Checked):
    """Subjects by name, each with its recipe, and how many at most share a batch."""

    together: int | None = Field(
        default=None,
        ge=1,
        description="most concepts in one batch; else as many as have 64 pictures",
    )
    subjects: dict[str, Recipe]

    @classmethod
    def of(cls, subjects: Path, common: Mapping[str, object], together: int | None) -> Self:
        """The subjects of a folder or a table; RecipeError if two have one name or one word."""
        recipes: dict[str, Recipe] = {}
        for row in read_subjects(subjects):
            name = file_name(row.name or row.token or row.pictures.name)
            if name in recipes:
                raise RecipeError(f"two subjects are called `{name}`", "give one another `name`")
            recipes[name] = row.recipe(name, common)
        words = [recipe.token.lower() for recipe in recipes.values()]
        twice = next((word for word in words if words.count(word) > 1), None)
        if twice:
            raise RecipeError(f"two subjects have the token `{twice}`", "give one another token")
        return cls(together=together, subjects=recipes)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Those that were begun in a folder; RunError if none were, or a name is no folder's."""
        if not (folder / _FILE).is_file():
            raise RunError(f"no subjects were begun in {folder}", f"such a folder has a {_FILE}")
        many = cls.model_validate(read_toml(folder / _FILE, "list of subjects"))
        wrong = next((name for name in many.subjects if name != file_name(name)), None)
        if wrong is not None:
            raise RunError(
                f"{folder / _FILE} has a subject named {wrong!r}, which cannot be a folder's name",
                f"rename it in {_FILE}: only letters, digits, _ and - are allowed",
            )
        return many

    def runs(self, folder: Path) -> dict[str, Run]:
        """Their runs in a folder, as they stand; RunError if one of them is a link."""
        must_be_regular(*(folder / name for name in self.subjects))
        return {
            name: Run.open(folder / name)
            if Run.begun(folder / name)
            else Run(folder / name, recipe)
            for name, recipe in self.subjects.items()
        }

    def begin(self, folder: Path) -> None:
        """Write a new folder that `open` reads; RunError if the folder is taken."""
        import tomli_w

        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(
                f"{folder} exists already",
                f"go on with it by pinxit train-many --resume {folder}, or give another --out",
            )
        folder.mkdir(parents=True, exist_ok=True)
        text = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        replace_text(folder / _FILE, text)


@dataclass(frozen=True)
class Grouped:
    """Who is learned with whom, and why not all are together if they are not."""

    groups: tuple[tuple[Run, ...], ...]
    why: str


def read_subjects(given: Path) -> list[Subject]:
    """The subjects of a folder's folders, or of a table in TOML or CSV; RecipeError if none."""
    if given.is_dir():
        inside = sorted(path for path in given.iterdir() if path.is_dir())
        rows = [{"pictures": path.name} for path in inside if not path.name.startswith(".")]
    elif given.suffix == ".csv" and given.is_file():
        lines = given.read_text(encoding="utf-8-sig").splitlines()
        table = csv.DictReader(lines, skipinitialspace=True)
        rows = [{key: cell for key, cell in row.items() if cell} for row in table]
    else:
        found = read_toml(given, "folder or table of subjects").get("subject")
        rows = found if isinstance(found, list) else []
    subjects = [Subject.model_validate(row) for row in rows]
    if not subjects:
        raise RecipeError(
            f"there is no subject in {given}",
            "give a folder of folders with pictures, or a table with [[subject]] or lines of CSV",
        )
    at = given if given.is_dir() else given.parent
    return [
        one.model_copy(update={"pictures": (at / one.pictures.expanduser()).resolve()})
        for one in subjects
    ]


def learn_many(
    model: Model, runs: Sequence[Run], together: int | None = None
) -> Generator[Grouped | tuple[Run, Told]]:
    """Begin or go on with runs, in one batch where they can share it; who fails is left out."""
    sound: list[Run] = []
    for run in runs:
        try:
            run.settle(model)
            sound.append(run)
        except PinxitError as error:
            yield run, Failed(error)
    grouped = _grouped(sound, together)
    yield grouped
    for group in grouped.groups:
        if not all(run.finished for run in group):
            yield from learn_together(model, group)


def _grouped(runs: Sequence[Run], together: int | None) -> Grouped:
    """Runs by their pictures' content, so that neither names nor order matter, in even groups.

    Runs that were begun stay together when they go on, and none has to wait for a new one.
    """
    sharing = [run for run in runs if run.recipe.method.apart and not _names_another(run, runs)]
    alone = [run for run in runs if run not in sharing]
    pictures = max((run.recipe.batch_size or 1 for run in sharing), default=1)
    most = together or max(1, _PICTURES // pictures)
    groups: list[tuple[Run, ...]] = []
    for begun in (True, False):
        some = [run for run in sharing if Run.begun(run.folder) == begun]
        some.sort(key=lambda run: (fingerprint(run.pictures), run.recipe.token))
        count = -(-len(some) // most)
        groups += [tuple(_share(some, count, at)) for at in range(count)]
    reasons: list[str] = []
    if any(len(group) < len(sharing) for group in groups):
        reasons.append(f"at most {most} in one batch")
    if alone and not alone[0].recipe.method.apart:
        reasons.append(f"{alone[0].recipe.method.name} changes the base for all samples of a batch")
    elif alone:
        reasons.append("captions that name another's word are learned alone")
    return Grouped((*groups, *((run,) for run in alone)), "; ".join(reasons))


def _share(runs: list[Run], count: int, at: int) -> list[Run]:
    """The so-many-th of `count` even parts of some runs."""
    small, more = divmod(len(runs), count)
    first = at * small + min(at, more)
    return runs[first : first + small + (at < more)]


def _names_another(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a caption has another's word, which it would then be taken for."""
    others = [pattern((other.recipe.token,)) for other in runs if other is not run]
    captions = [picture.caption or "" for picture in run.pictures]
    return any(other.search(caption) for other in others for caption in captions)
