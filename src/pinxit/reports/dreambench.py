"""A folder of subjects to learn and to be judged by, laid out as DreamBench's is."""

import re
from collections.abc import Mapping
from pathlib import Path

from pinxit.errors import RecipeError, RunError
from pinxit.files.atomic_write import make_folder, mark_ours, must_be_ours, replace_text
from pinxit.options import read_toml
from pinxit.reports.comparison import KIND
from pinxit.runs.many import Many

# DreamBench's own list, among other things, and ours.
_THEIRS, _OURS = "prompts_and_classes.txt", "classes.toml"
_LINE = re.compile(r"([\w.-]+),([\w -]+)")


def begun(subjects: Path, out: Path, common: Mapping[str, object]) -> Many:
    """The subjects of a folder's folders, with runs to be in `out`, or those that were begun there.

    RunError if others were, or otherwise, or if `out` holds anything else.
    """
    import tomli_w

    must_be_ours(out, KIND, "pictures", "runs")
    nouns = class_nouns(subjects)
    names = sorted(p.name for p in subjects.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = [name for name in names if name not in nouns and "class_noun" not in common]
    if unknown:
        raise RecipeError(
            f"what {', '.join(unknown)} are is not known",
            f'write {subjects / _OURS} with lines such as {unknown[0]} = "toy", or give '
            "--class-noun toy if all are of one kind",
        )
    rows = [
        {"pictures": str((subjects / name).resolve()), "name": name}
        | ({"class_noun": nouns[name]} if name in nouns else {})
        for name in names
    ]
    mark_ours(out, KIND)
    make_folder(out / "pictures")
    replace_text(out / "subjects.toml", tomli_w.dumps({"subject": rows}))
    many = Many.of(out / "subjects.toml", common, None)
    if not (out / "runs").is_dir():
        many.begin(out / "runs")
    elif Many.open(out / "runs") != many:
        raise RunError(
            f"{out} was begun with other subjects or choices", "give another one with --out"
        )
    return many


def class_nouns(subjects: Path) -> dict[str, str]:
    """What each subject is a kind of, by its folder, as far as a file in the folder says."""
    if (subjects / _OURS).is_file():
        return {name: str(noun) for name, noun in read_toml(subjects / _OURS, "table").items()}
    if not (subjects / _THEIRS).is_file():
        return {}
    lines = (subjects / _THEIRS).read_text(encoding="utf-8").splitlines()
    found = (_LINE.fullmatch(line.strip()) for line in lines)
    return {line[1]: line[2] for line in found if line}
