"""Generates the tables in docs from the measurements in docs/figures.

A table is between `<!-- figures: NAME -->` and `<!-- end -->`. Its columns are declared in
doc_tables.toml; its rows are read from the measurements, or made by a function of ROWS.
`python -m lab.doc_tables` writes all tables, with `--check` it fails if one is out of date.
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pinxit import registry
from pinxit.concepts.format import Format
from pinxit.concepts.programs import programs_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/results/pocket.md",
    "docs/results/learning.md",
    "docs/results/styles.md",
    "docs/results/security.md",
    "docs/results/reliability.md",
    "docs/results/performance.md",
    "docs/results/what-fits.md",
    "docs/results/transfer.md",
    "docs/results/early-stopping.md",
    "docs/results/interoperability.md",
    "docs/results/scale.md",
    "docs/guides/which-method.md",
    "docs/guides/several-gpus.md",
)
BLOCK = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]

DECLARED: dict[str, Any] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)


def read_figures(name: str) -> Any:
    """The results of a measurement, a file in docs/figures."""
    return _read(name)["figures"]


def _read(name: str) -> Any:
    return json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def origin(name: str) -> str:
    """A sentence with command, commit and machine of a measurement."""
    figures = _read(name)
    machine = figures["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    return f"\nMeasured by `{figures['command']}` at commit {figures['commit']} on {where}.\n"


def declared(name: str) -> str:
    """A table whose columns, and maybe rows, are declared in doc_tables.toml."""
    declaration = DECLARED[name]
    rows = (
        ROWS[name]() if name in ROWS else nested(declaration["rows"], declaration.get("required"))
    )
    columns: dict[str, str] = declaration["columns"]
    cells = [[cell.format_map(row) for cell in columns.values()] for row in rows]
    source = declaration.get("origin")
    return table(columns, cells) + (origin(source) if source else "")


def nested(path: str, required: str | None = None) -> Iterator[Row]:
    """Rows from nested tables: the path is MEASUREMENT/KEY/..., a KEY in braces means all keys.

    Each row has these keys under the names in braces. Rows without `required` are left out.
    """
    measurement, *keys = path.split("/")
    level: list[tuple[Row, Any]] = [({}, read_figures(measurement))]
    for key in keys:
        name = key.strip("{}")
        if name == key:
            level = [(row, values[key]) for row, values in level]
        else:
            level = [({**row, name: k}, x) for row, values in level for k, x in values.items()]
    for row, values in level:
        if not required or (isinstance(values, dict) and values.get(required)):
            yield {**values, **row}


def _painting() -> Iterator[Row]:
    """Prompt accuracy of the first pocket, and of the current one in both worlds."""
    now = read_figures("pocket")
    results = [read_figures("pocket-first")["painting"]]
    results += [now["painting of the first world"], now["painting"]]
    for three in zip(*results, strict=True):
        for which in ("seen", "held out"):
            for who, shown in zip(("first", "current, same", "current, own"), three, strict=True):
                yield {"guidance": shown["guidance"], "of": which, "who": who, "x": shown[which]}


def richer() -> str:
    """Prompt accuracy for richer prompts, and the accuracy of the eyes on renderings."""
    figures = read_figures("pocket")["richer"]
    guidances = [name for name in figures if name != "rendered"]
    rows = [
        [kind, *(f"{figures[name][kind]:.0%}" for name in (*guidances, "rendered"))]
        for kind in figures["rendered"]
    ]
    columns = [f"generated with guidance scale {name}" for name in guidances]
    return table(["prompt has", *columns, "recognized in renderings"], rows)


def _sizes() -> Iterator[Row]:
    """File size, VAE fidelity and time per image of the first pocket and the current one."""

    def measures(figures: Any) -> dict[str, str]:
        rows = {f"size of {name}": f"{size:.2f} MB" for name, size in figures["megabytes"].items()}
        rows |= {f"VAE, {what}": f"{db:.1f} dB" for what, db in figures["psnr"].items()}
        return rows | {"one image, 25 steps": f"{figures['seconds a picture']:.2f} s"}

    first, now = (measures(read_figures(name)) for name in ("pocket-first", "pocket"))
    for what, figure in now.items():
        yield {"what": what, "first": first.get(what, ""), "now": figure}


def _eyes() -> Iterator[Row]:
    """Accuracy of the eyes on images they were not trained on, through the VAE."""
    first, now = read_figures("pocket-first")["eyes"], read_figures("pocket")
    for name, own in now["eyes"].items():
        old = [f"{of[name]:.3f}" if name in of else "" for of in (first, now[_FIRST_WORLD])]
        yield {"question": name, "first": old[0], "same": old[1], "own": own}


_FIRST_WORLD = "eyes on the first world"


def trials() -> str:
    """Gain in joint accuracy per core hour for choices in the training of the U-Net."""
    figures = read_figures("pocket-trials")
    start = figures.pop("the fork")
    rows = [["start of all trials", "", *(f"{share:.0%}" for share in start.values()), ""]]
    for name, after in figures.items():
        before, hours = 0 if "nothing" in name else start["joint"], after["core seconds"] / 3600
        shares = [f"{after[what]:.0%}" for what in start]
        gain = f"{100 * (after['joint'] - before) / hours:+.0f}"
        rows.append([name, after["steps"], *shares, gain])
    head = ["choice", "steps", *start, "joint, points per hour"]
    return table(head, rows) + origin("pocket-trials")


def curve() -> str:
    """Prompt accuracy by the number of training samples, measured and extrapolated."""
    figures = read_figures("pocket-curve")
    expected = figures["expected"]
    rows = [(*row, "measured") for row in figures["measured"].items()]
    rows += [
        (samples, {name: by[samples] for name, by in expected.items()}, "expected")
        for samples in next(iter(expected.values()))
    ]
    cells = [
        [f"{int(samples):,}", *(f"{share:.0%}" for share in shares.values()), kind]
        for samples, shares, kind in rows
    ]
    return table(["samples", *expected, ""], cells) + origin("pocket-curve")


def _styles() -> Iterator[Row]:
    """Held-out styles: similarity to the style, prompt accuracy, and leaks of training images."""
    for row in nested("styles/{name}/{way}"):
        seconds = f"{row['seconds']:.0f} s" if row["seconds"] else ""
        style = row["right"].get("style")  # the vision encoder knows those with a pass of their own
        share = "" if style is None else f"{style:.0%}"
        yield {**row, "way": row["way"].replace("-", " "), "time": seconds, "style_share": share}


def _scale(kind: str, length: float | None = None) -> Iterator[Row]:
    """All methods on subjects or styles, with 95% intervals; of one length, or of all."""
    for row in nested(f"scale/{kind}/{{name}}"):
        if length in (None, row["length"]):
            shares = {name: _interval(row[name]) for name in _SHARES if name in row}
            yield {**row, "shares": shares}


def _lengths(kind: str) -> Iterator[Row]:
    """Each method with half of, all and twice its default steps, on the same subjects or styles."""
    methods: dict[str, list[Row]] = {}
    for row in nested(f"scale/{kind}/{{name}}"):
        methods.setdefault(row["method"], []).append(row)
    for method, rows in methods.items():
        if len(rows) == _NUM_LENGTHS:
            rows.sort(key=lambda row: row["length"])
            names = [name for name in _SHARES if name in rows[0]]
            values = {name: [row[name]["value"] for row in rows] for name in names}
            shares = {
                name: ", ".join(f"{share:z.0%}" for share in row) for name, row in values.items()
            }
            seconds = ", ".join(f"{row['seconds']['value']:.0f}" for row in rows)
            yield {"method": method, "shares": shares, "seconds": seconds}


_NUM_LENGTHS = 3
_SHARES = ("fidelity", "among ten", "prompt following", "drift", "diversity", "leaks")


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['value']:z.0%} ({share['low']:z.0%} to {share['high']:z.0%})"


def _truths(group: str) -> Iterator[Row]:
    """The effects of the class noun, of class images and of the number of vectors."""
    for row in nested(f"truths/{group}/{{name}}"):
        yield {**row, "name": row["name"].replace("pictures", "images")}


def _families() -> Iterator[Row]:
    """All model families, from the docstrings of their plug-ins."""
    for name in registry.names("families"):
        title, text = registry.summary("families", name).rstrip(".").split(": ")
        yield {"title": title, "text": text[0].upper() + text[1:]}


def _formats() -> Iterator[Row]:
    """All file formats: content, file names, and programs that open them."""
    for name in registry.names("formats"):
        file_format: type[Format] = registry.load("formats", name)
        suffixes = " ".join(f"`{s}`" if s else "folder" for s in file_format.suffixes)
        contents = ", ".join(file_format.contents)
        yield {"name": name, "has": contents, "as": suffixes, "by": file_format.used_by}


def interoperability() -> str:
    """What each program does with each kind of file, from the table that tests hold."""
    programs = list(programs_table()["versions"])
    notes: dict[str, int] = {}
    rows: list[list[str]] = []
    for name, kinds in programs_table().items():
        for kind, results in kinds.items() if name not in ("versions", "usage") else ():
            cells = [_outcome(results.get(program, "no"), notes) for program in programs]
            rows.append([f"`{name}`, {kind}", *cells])
    lines = [f"{number}. {note[0].upper()}{note[1:]}." for note, number in notes.items()]
    return table(["file", *programs], rows) + "\n" + "\n".join(lines) + "\n"


def versions() -> str:
    """The version of each program whose reader the tests have."""
    return table(["program", "version"], programs_table()["versions"].items())


def _outcome(result: str, notes: dict[str, int]) -> str:
    """A result in one word, with the number of its note."""
    word = result.partition(" ")[0].rstrip(":,")
    word = word if word in ("exact", "close", "wrong", "no", "not") else "no"
    plain = result in (word, "not tried")
    return result if plain else f"{word} ({notes.setdefault(result, len(notes) + 1)})"


def _hostile() -> Iterator[Row]:
    """Results for malicious files and for damaged files."""
    figures = read_figures("security")
    hostile, fuzzed = figures["hostile"], figures["fuzzed"]
    what = f"malicious, with {hostile['names']:,} names"
    yield {"what": what, "tried": hostile["hostile files"], **hostile}
    what = f"randomly damaged, seed {fuzzed['seed']}"
    yield {"what": what, "tried": fuzzed["inputs"], **fuzzed}


def _opening() -> Iterator[Row]:
    """Time and memory to open a checkpoint of the size of Stable Diffusion 1.5."""
    figures = read_figures("opening")
    for layout in ("zip", "legacy"):
        for who, title in (("torch", "torch.load"), ("pinxit", "pinxit")):
            file = f"{layout}, {figures[f'{layout} GB']} GB"
            yield {"file": file, "title": title, "x": figures[f"{layout}, {who}"]}


_NEVER = ("lost", "differing", "silent restarts")
# For each part: what was tried, the figure that counts it, and the figures that must be 0.
TRIED: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "kills": (("kills of processes, in {runs} runs", "kills", _NEVER),),
    "stops": (("interrupts, after each of {steps} steps", "stops", ("differing",)),),
    "crashes": (("disk states, at {calls} calls of saves", "states", ("lost",)),),
    "runs": (("power cuts, then resumed to the end", "crashes", _NEVER),),
    "faults": (
        ("errors in a system call of a save", "errors", ("unreported", "lost")),
        ("incomplete writes", "short write", ("lost",)),
        ("full disks during a run, then freed", "full disks", ("differing",)),
    ),
    "flips": (
        ("flipped bits in file headers", "in what it says of itself", ("unseen",)),
        ("flipped bits in other parts", "in the rest", ("unseen",)),
        ("truncated files", "cut off", ("unseen",)),
        ("intact files read in between", "cut off", ("false alarms",)),
    ),
    "numbers": (("values that are not finite", "stages", ("differing", "saved broken")),),
}


def _reliability() -> Iterator[Row]:
    """Results of kills, crashes, faults and damage."""
    figures = read_figures("reliability")
    for part, lines in TRIED.items():
        for what, count, never in lines if part in figures else ():
            results = ", ".join(f"{figures[part][name]} {name}" for name in never)
            what = what.format(**figures[part])
            yield {"what": what, "tried": figures[part][count], "result": results}


def _operations() -> Iterator[Row]:
    """The operations and memory that each method needs at least, counted."""
    for base, figures in read_figures("arithmetic").items():
        name, size = base.split()
        for method, row in figures["methods"].items():
            kinds = {kind: count / 1e12 for kind, count in row["by_kind"].items()}
            scaled = {"all": row["operations"] / 1e12, "plain": row["plain"] / 1e12}
            scaled |= {"trained": row["trained"] / 1e6, "states": 2 * row["activations"] / 1e9}
            times = {name: row["operations"] / rate for name, rate in RATES.items()}
            yield (
                {**row, **scaled, "base": name, "size": size, "method": method}
                | kinds
                | {"times": times}
            )


RATES = {"at 0.25 TFLOP/s": 0.25e12, "at 0.5 TFLOP/s": 0.5e12, "at 800 TFLOP/s": 800e12}
SPEEDS = ("speed", "speed-int8", "speed-pocket")


def _speed() -> Iterator[Row]:
    """Time and memory of pinxit and of the plain loop, and their ratios."""
    for name in filter(_is_measured, SPEEDS):
        figures = read_figures(name)
        settings = figures["settings"]
        for method, sides in figures["outcomes"].items():
            row = {
                side: {"s": median(map(_seconds, outcomes)), "GB": median(map(_memory, outcomes))}
                for side, outcomes in sides.items()
            }
            base = f"{settings['base']}, {settings['precision']}"
            yield {"base": base, "method": method, **row, "ratios": figures["ratios"][method]}


def _is_measured(name: str) -> bool:
    return (ROOT / "docs" / "figures" / f"{name}.json").is_file()


def _seconds(outcome: dict[str, Any]) -> float:
    return fmean(outcome["steps"]) / outcome["concepts"]


def _memory(outcome: dict[str, Any]) -> float:
    return outcome["device_gb"] or outcome["peak_gb"]


def speed() -> str:
    """The table of times, with the origin of each measurement that exists."""
    names = list(filter(_is_measured, SPEEDS))
    return declared("speed") + "".join(map(origin, names)) if names else "Not measured yet.\n"


def _unharmed() -> Iterator[Row]:
    """Scores after the same number of steps by pinxit and by the plain loop."""
    for method, row in read_figures("learning-unharmed")["methods"].items():
        for precision, scales in row["difference"].items():
            for scale, apart in scales.items():
                ours, plain = (row["scores"][of][scale]["mean"] for of in (precision, "plain"))
                within = "yes" if apart["within noise"] else "no"
                about = {"method": method, "precision": precision, "scale": scale, "in": within}
                yield {**about, "ours": ours, "plain": plain, "apart": apart}


def crops() -> str:
    """How much of a subject is inside crops."""
    figures = read_figures("crops")["kept"]
    rows = [
        (name, *(f"{share:.1%}" for share in shares.values())) for name, shares in figures.items()
    ]
    head = ("share of the subject inside", *next(iter(figures.values())))
    return table(head, rows) + origin("crops")


def _pictures() -> Iterator[Row]:
    """Results for unusual and for damaged images."""
    figures = read_figures("pictures")
    damaged = figures["damaged"]
    first = [f"{figures[what]} {what}" for what in ("used", "refused", "left out", "silent")]
    rows = {
        "kinds of unusual images": f"{figures['kinds']}: {', '.join(first)}",
        "wrong results": len(figures["wrong"]),
        "damaged files": "{mutants:,}: {refused:,} refused, the others read".format(**damaged),
        **{what: damaged[what] for what in ("crashes", "hangs", "not named")},
        "slowest": f"{damaged['slowest seconds']} s",
        "peak memory": f"{damaged['megabytes at most']} MB",
    }
    return ({"measure": measure, "result": result} for measure, result in rows.items())


def _curves(style: str) -> Iterator[Row]:
    """Structure and style of transferred images, by control and `preserve`."""
    curves: dict[str, Any] = read_figures("transfer")[style]["curves"]
    ends = {"original image": curves.pop("photo")}
    ends["true rendering in the style"] = curves.pop("true")
    for what, points in curves.items():
        for keep, point in points.items():
            yield {"what": what, "keep": keep, **point}
    yield from ({"what": title, "keep": "", **point} for title, point in ends.items())


def _ahead() -> Iterator[Row]:
    """The mask IoU of the default control compared with img2img, at the same style score."""
    names = {"words": "in words", "lora": "LoRA", "textual-inversion": "textual inversion"}
    for style, name in names.items():
        yield from ({"name": name, **one} for one in read_figures("transfer")[style]["ahead"])


def _seeds() -> Iterator[Row]:
    """Similarity to the first image with the same seed and a style, or in a new pose."""
    figures = read_figures("transfer")
    for control, keeps, values, measure in (
        (
            "same-seed",
            ("0", "0.2", "0.5", "0.8"),
            "same seed: iou",
            "mask IoU with the first image",
        ),
        ("masactrl", ("0", "0.7", "0.9"), "poses: likeness", "likeness to the image"),
    ):
        part, _, scale = values.partition(": ")
        for keep in keeps:
            value = figures[part][f"{scale} {keep}"]
            yield {"control": control, "keep": keep, "value": value, "measure": measure}


def stopping() -> str:
    """Scores by number of steps, and where early stopping happens."""
    figures = read_figures("stopping")
    steps = sorted({int(step) for row in figures.values() for step in row["grid"]})
    grid = [
        [method, len(row["subjects"]), *(_score(row["grid"], step) for step in steps)]
        for method, row in figures.items()
    ]
    best = table(["score at step", "subjects", *map(str, steps)], grid)
    return best + "\n" + declared("stopping")


def _score(grid: dict[str, float], step: int) -> str:
    return f"{grid[str(step)]:.3f}" if str(step) in grid else "-"


def _stops() -> Iterator[Row]:
    for row in nested("stopping/{method}"):
        peak, stops = row["grid"][str(row["peak"])], ", ".join(map(str, row["stops"]))
        yield {**row, "highest": peak, "at": stops}


ROWS: dict[str, Callable[[], Iterable[Row]]] = {
    "painting": _painting,
    "sizes": _sizes,
    "eyes": _eyes,
    "styles": _styles,
    "scale": partial(_scale, "subjects"),
    "scale-styles": partial(_scale, "styles"),
    "lengths": partial(_lengths, "first subjects"),
    "lengths-styles": partial(_lengths, "styles"),
    "which": partial(_scale, "subjects", 1),
    "which-style": partial(_scale, "styles", 1),
    "nouns": partial(_truths, "nouns"),
    "words": partial(_truths, "words"),
    "stopping": _stops,
    "transfer": partial(_curves, "words"),
    "transfer-lora": partial(_curves, "lora"),
    "transfer-word": partial(_curves, "textual-inversion"),
    "ahead": _ahead,
    "seeds": _seeds,
    "families": _families,
    "formats": _formats,
    "hostile": _hostile,
    "opening": _opening,
    "reliability": _reliability,
    "pictures": _pictures,
    "arithmetic": _operations,
    "floor": _operations,
    "speed": _speed,
    "unharmed": _unharmed,
}
# The columns of some tables depend on the measurement.
_FUNCTIONS = (richer, trials, curve, crops, stopping, speed, interoperability, versions)
BLOCKS: dict[str, Callable[[], str]] = {name: partial(declared, name) for name in DECLARED} | {
    function.__name__: function for function in _FUNCTIONS
}


def fill_blocks(text: str) -> str:
    """A page with all tables regenerated."""

    def block(match: re.Match[str]) -> str:
        try:
            return match[1] + BLOCKS[match[2]]() + match[3]
        except FileNotFoundError:
            return f"{match[1]}Not measured yet.\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> int:
    """Returns 1 if a page was checked and is out of date, 0 otherwise."""
    num_stale = 0
    for path in (ROOT / page for page in PAGES):
        before = path.read_text(encoding="utf-8")
        after = fill_blocks(before)
        if "--check" in sys.argv:
            num_stale += before != after
        elif before != after:
            path.write_text(after, encoding="utf-8")
    if num_stale:
        print(f"{num_stale} pages are out of date: run python -m lab.doc_tables", file=sys.stderr)
    return min(num_stale, 1)


if __name__ == "__main__":
    sys.exit(main())
