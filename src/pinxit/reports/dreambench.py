"""A folder of subjects for a benchmark, in the layout of DreamBench."""

import re
from collections.abc import Mapping
from pathlib import Path

from pinxit.errors import RecipeError, RunError
from pinxit.files.atomic_write import check_claim, claim_folder, make_folder, write_text
from pinxit.options import read_toml
from pinxit.reports.comparison import KIND
from pinxit.runs.many import RunGroup

# Tables of class nouns: DreamBench's file, which has more than that, and pinxit's.
_DREAMBENCH_LIST, _CLASS_TABLE = "prompts_and_classes.txt", "classes.toml"
_LINE = re.compile(r"([\w.-]+),([\w -]+)")


def open_or_create(subjects: Path, out: Path, common: Mapping[str, object]) -> RunGroup:
    """The runs of a benchmark, one for each image folder in `subjects`; the runs are in `out`.

    `common` has the options that all runs share. RunError if `out` has a benchmark with other
    subjects or options, or other files; RecipeError if a class noun is missing.
    """
    import tomli_w

    check_claim(out, KIND, "pictures", "runs")
    nouns = class_nouns(subjects)
    names = sorted(p.name for p in subjects.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = [name for name in names if name not in nouns and "class_noun" not in common]
    if unknown:
        raise RecipeError(
            f"no class noun for {', '.join(unknown)}",
            f'write {subjects / _CLASS_TABLE} with lines such as {unknown[0]} = "toy", or give '
            "--class-noun toy if all subjects are of one class",
        )
    rows = [
        {"images": str((subjects / name).resolve()), "name": name}
        | ({"class_noun": nouns[name]} if name in nouns else {})
        for name in names
    ]
    claim_folder(out, KIND)
    make_folder(out / "pictures")
    write_text(out / "subjects.toml", tomli_w.dumps({"subject": rows}))
    group = RunGroup.from_table(out / "subjects.toml", common, None)
    if not (out / "runs").is_dir():
        group.create(out / "runs")
    elif RunGroup.open(out / "runs") != group:
        raise RunError(f"{out} has runs with other subjects or options", "choose another --out")
    return group


def class_nouns(subjects: Path) -> dict[str, str]:
    """The class noun of each subject by folder name, as far as a table in `subjects` has it."""
    class_table = subjects / _CLASS_TABLE
    if class_table.is_file():
        return {name: str(noun) for name, noun in read_toml(class_table, "table").items()}
    if not (subjects / _DREAMBENCH_LIST).is_file():
        return {}
    lines = (subjects / _DREAMBENCH_LIST).read_text(encoding="utf-8").splitlines()
    matches = (_LINE.fullmatch(line.strip()) for line in lines)
    return {match[1]: match[2] for match in matches if match}
