"""Generates the tables in docs from the measurements in docs/figures.

A table is between `<!-- figures: NAME -->` and `<!-- end -->`; NAME is a function of this module.
`python -m lab.doc_tables` writes all tables, with `--check` it fails if one is out of date.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pinxit import registry
from pinxit.concepts.format import Format

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/results/pocket.md",
    "docs/results/learning.md",
    "docs/results/styles.md",
    "docs/results/security.md",
    "docs/results/reliability.md",
    "docs/results/performance.md",
    "docs/results/transfer.md",
    "docs/results/early-stopping.md",
)
BLOCK = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_figures(name: str) -> Any:
    """The content of a file in docs/figures."""
    return json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f}%"


def origin(name: str) -> str:
    """A sentence with command, commit and machine of a measurement."""
    figures = read_figures(name)
    machine = figures["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    return f"\nMeasured by `{figures['command']}` at commit {figures['commit']} on {where}.\n"


def painting() -> str:
    """Prompt accuracy of the first pocket, and of the current one in both worlds."""
    now = read_figures("pocket")["figures"]
    rows = [
        [shown["guidance"], which, who, *(percent(shown[which][q]) for q in QUESTIONS)]
        for three in zip(
            read_figures("pocket-first")["figures"]["painting"],
            now["painting of the first world"],
            now["painting"],
            strict=True,
        )
        for which in ("seen", "held out")
        for who, shown in zip(("first", "current, same", "current, own"), three, strict=True)
    ]
    return table(["guidance", "combinations", "pocket, prompts", *QUESTIONS], rows) + origin(
        "pocket"
    )


QUESTIONS = ("class", "colour", "background", "style", "joint")


def richer() -> str:
    """Prompt accuracy for richer prompts, and the accuracy of the eyes on renderings."""
    figures = read_figures("pocket")["figures"]["richer"]
    guidances = [name for name in figures if name != "rendered"]
    rows = [
        [kind, *(percent(figures[name][kind]) for name in (*guidances, "rendered"))]
        for kind in figures["rendered"]
    ]
    columns = [f"generated with guidance scale {name}" for name in guidances]
    return table(["prompt has", *columns, "recognized in renderings"], rows)


def sizes() -> str:
    """File size, VAE fidelity and time per image of the first pocket and the current one."""
    first, now = (_sizes(read_figures(name)["figures"]) for name in ("pocket-first", "pocket"))
    rows = [[what, first.get(what, ""), figure] for what, figure in now.items()]
    return table(["measure", "first pocket", "current"], rows)


def _sizes(figures: Any) -> dict[str, str]:
    rows = {f"size of {name}": f"{size:.2f} MB" for name, size in figures["megabytes"].items()}
    rows |= {f"VAE, {what}": f"{db:.1f} dB" for what, db in figures["psnr"].items()}
    return rows | {"one image, 25 steps": f"{figures['seconds a picture']:.2f} s"}


def eyes() -> str:
    """Accuracy of the eyes on images they were not trained on, through the VAE."""
    first, now = (read_figures(name)["figures"] for name in ("pocket-first", "pocket"))
    same = now["eyes on the first world"]
    rows = [
        [
            name,
            *(f"{of[name]:.3f}" if name in of else "" for of in (first["eyes"], same)),
            f"{v:.3f}",
        ]
        for name, v in now["eyes"].items()
    ]
    head = ["question", "first pocket", "current, first world", "current, own world"]
    return table(head, rows)


def trials() -> str:
    """Gain in joint accuracy per core hour for choices in the training of the U-Net."""
    figures: dict[str, Any] = read_figures("pocket-trials")["figures"]
    start = figures.pop("the fork")
    rows = [["start of all trials", "", *map(percent, start.values()), ""]]
    for name, after in figures.items():
        before, hours = 0 if "nothing" in name else start["joint"], after["core seconds"] / 3600
        gain = f"{100 * (after['joint'] - before) / hours:+.0f}"
        rows.append([name, after["steps"], *(percent(after[what]) for what in start), gain])
    head = ["choice", "steps", *start, "joint, points per hour"]
    return table(head, rows) + origin("pocket-trials")


def curve() -> str:
    """Prompt accuracy by the number of training samples, measured and extrapolated."""
    figures = read_figures("pocket-curve")["figures"]
    rows = [
        [f"{int(samples):,}", *map(percent, shares.values()), "measured"]
        for samples, shares in figures["measured"].items()
    ]
    more = zip(*(by.items() for by in figures["expected"].values()), strict=True)
    rows += [
        [f"{int(by[0][0]):,}", *(percent(share) for _, share in by), "expected"] for by in more
    ]
    head = ["samples", *figures["expected"], ""]
    return table(head, rows) + origin("pocket-curve")


def subjects() -> str:
    """Likeness and prompt accuracy of concepts trained from five images, over ten subjects."""
    figures = read_figures("subjects")["figures"]
    rows = [
        [
            method,
            *(interval(row["share"][scale]) for scale in ("likeness", "hidden")),
            percent(row["right"]["background"]),
            percent(row["background_of_base"]),
            f"{row['seconds_of_learning']:.0f} s",
        ]
        for method, row in figures.items()
        if method != "base"
    ]
    head = ["method", "likeness", "hidden parameters", "background correct", "of base model's"]
    head += ["training time"]
    return table(head, rows) + origin("subjects")


def real() -> str:
    """Concepts trained from real images: how often a generated image is nearest to them."""
    figures = read_figures("real-pictures")["figures"]
    rows = [
        [
            folder,
            method,
            *(percent(row["nearest"][by]) for by in ("embedding", "colours")),
            f"{row['colour_distance_of_base']['together']:.2f}",
        ]
        for folder, methods in figures.items()
        for method, row in methods.items()
        if isinstance(row, dict) and "colour_distance_of_base" in row
    ]
    head = ["images", "method", "nearest by embedding", "nearest by colours"]
    head += ["colour distance / base model's"]
    return table(head, rows) + origin("real-pictures")


def styles() -> str:
    """Held-out styles: similarity to the style, prompt accuracy, and leaks of training images."""
    rows = [
        [
            style,
            way.replace("-", " "),
            *(percent(round(row["caught"][scale], 2) + 0.0) for scale in ("colour", "gram")),
            *(percent(row["right"][asked]) for asked in ("style", "class", "background")),
            percent(row["leaked"]),
            f"{row['nearest']:.2f}",
            f"{row['seconds']:.0f} s" if row["seconds"] else "",
        ]
        for style, ways in read_figures("styles")["figures"].items()
        for way, row in ways.items()
    ]
    head = ["style", "generated by", "colours", "texture", "style recognized", "object correct"]
    head += ["place correct", "leaked", "nearest", "training time"]
    return table(head, rows) + origin("styles")


TRUTHS: dict[str, tuple[str, ...]] = {
    "nouns": ("likeness", "hidden"),
    "prior": ("likeness", "drift", "drift of the base", "diversity", "diversity of the base"),
    "words": ("likeness", "hidden", "norm", "colour", "background", "style", "obeyed"),
}


def nouns() -> str:
    """The effect of the class noun."""
    return _truths("nouns")


def prior() -> str:
    """The effect of class images."""
    return _truths("prior")


def words() -> str:
    """The effect of the number of vectors, and of a fixed embedding norm."""
    return _truths("words")


def _truths(group: str) -> str:
    """A row for each experiment of a group."""
    scales = TRUTHS[group]
    rows = [
        [name.replace("pictures", "images"), *(f"{row[scale]:.2f}" for scale in scales)]
        for name, row in read_figures("truths")["figures"][group].items()
    ]
    return table(["experiment", *scales], rows) + origin("truths")


def families() -> str:
    """All model families, from the docstrings of their plug-ins."""
    summaries = [
        registry.summary("families", name).rstrip(".") for name in registry.names("families")
    ]
    rows = [[name, text[0].upper() + text[1:]] for name, text in (s.split(": ") for s in summaries)]
    return table(["family", "networks"], rows)


def formats() -> str:
    """All file formats: content, file names, and programs that open them."""
    rows: list[list[object]] = []
    for name in registry.names("formats"):
        file_format: type[Format] = registry.load("formats", name)
        suffixes = " ".join(f"`{s}`" if s else "folder" for s in file_format.suffixes)
        contents = ", ".join(file_format.contents)
        rows.append([f"`{name}`", contents, suffixes, file_format.used_by])
    return table(["format", "contains", "written as", "opened by"], rows)


def interval(share: dict[str, float]) -> str:
    """A share with its 95% confidence interval."""
    return f"{percent(share['value'])} ({percent(share['low'])} to {percent(share['high'])})"


def hostile() -> str:
    """Results for malicious files and for damaged files."""
    figures = read_figures("security")["figures"]
    counts = ("code run", "crashes", "hangs", "refused", "read")
    names, seed = figures["hostile"]["names"], figures["fuzzed"]["seed"]
    rows: list[tuple[str, Any, str]] = [
        (f"malicious, with {names:,} names", figures["hostile"], "hostile files"),
        (f"randomly damaged, seed {seed}", figures["fuzzed"], "inputs"),
    ]
    table_rows = [
        [what, f"{counted[total]:,}", *(f"{counted[count]:,}" for count in counts)]
        for what, counted, total in rows
    ]
    return table(["files", "tried", *counts], table_rows) + origin("security")


def opening() -> str:
    """Time and memory to open a checkpoint of the size of Stable Diffusion 1.5."""
    figures = read_figures("opening")["figures"]
    rows = [
        [
            f"{layout}, {figures[f'{layout} GB']} GB",
            {"torch": "torch.load", "pinxit": "pinxit"}[who],
            *(f"{row[key]:.2f} s" for key in ("open", "open, processor", "used, processor")),
            f"{row['peak GB']:.2f} GB",
        ]
        for layout in ("zip", "legacy")
        for who, row in ((who, figures[f"{layout}, {who}"]) for who in ("torch", "pinxit"))
    ]
    head = ["file", "opened by", "time", "CPU time", "CPU time, all values read", "memory"]
    return table(head, rows) + origin("opening")


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


def reliability() -> str:
    """Results of kills, crashes, faults and damage."""
    figures = read_figures("reliability")["figures"]
    rows = [
        [
            what.format(**figures[part]),
            f"{figures[part][count]:,}",
            ", ".join(f"{figures[part][name]} {name}" for name in never),
        ]
        for part, lines in TRIED.items()
        if part in figures
        for what, count, never in lines
    ]
    return table(["event", "tried", "result"], rows) + origin("reliability")


def arithmetic() -> str:
    """The operations and memory that each method needs at least, counted."""
    rows = [
        [
            *base.split(),
            method,
            *(f"{row['by_kind'][kind] / 1e12:.2f}" for kind in KINDS),
            f"{row['operations'] / 1e12:.2f}",
            f"{row['plain'] / 1e12:.2f}",
            f"{row['trained'] / 1e6:.1f}",
            f"{2 * row['activations'] / 1e9:.2f}",
            f"{row['gigabytes']:.1f}",
        ]
        for base, figures in read_figures("arithmetic")["figures"].items()
        for method, row in figures["methods"].items()
    ]
    head = ["base model", "resolution", "method", *KINDS, "all", "plain loop"]
    head += ["trained, M", "activations, GB", "least memory, GB"]
    return table(head, rows) + origin("arithmetic")


KINDS = ("convolution", "linear", "attention")


def floor() -> str:
    """The shortest possible time of a step, by a machine's rate of matrix products."""
    rows = [
        [*base.split(), method, *(f"{row['operations'] / rate:.3g} s" for rate in RATES.values())]
        for base, figures in read_figures("arithmetic")["figures"].items()
        for method, row in figures["methods"].items()
    ]
    return table(["base model", "resolution", "method", *RATES], rows)


RATES = {"at 0.25 TFLOP/s": 0.25e12, "at 0.5 TFLOP/s": 0.5e12, "at 800 TFLOP/s": 800e12}


def speed() -> str:
    """Time and memory of pinxit and of the plain loop, and their ratios."""
    rows: list[list[object]] = []
    names = [name for name in SPEEDS if (ROOT / "docs" / "figures" / f"{name}.json").is_file()]
    for name in names:
        figures = read_figures(name)["figures"]
        for method, sides in figures["outcomes"].items():
            seconds, memory = (
                [f"{median(map(of, sides[side])):.3g}" for side in ("plain", "pinxit")]
                for of in (_seconds, _gigabytes)
            )
            ratios = figures["ratios"][method]
            spreads = [_spread(ratios[by]) for by in ("speed", "processor", "memory")]
            precision = figures["settings"]["precision"]
            shown = f"{figures['settings']['base']}, {precision}"
            rows.append([shown, method, *seconds, *memory, *spreads])
    head = ["base model, precision", "method", "plain, s per step", "pinxit, s", "plain, GB"]
    head += ["pinxit, GB", "speedup", "CPU time ratio", "memory ratio"]
    return table(head, rows) + "".join(map(origin, names)) if names else "Not measured yet.\n"


SPEEDS = ("speed", "speed-int8", "speed-pocket")


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def _seconds(outcome: dict[str, Any]) -> float:
    return fmean(outcome["steps"]) / outcome["concepts"]


def _gigabytes(outcome: dict[str, Any]) -> float:
    return outcome["device_gb"] or outcome["peak_gb"]


def unharmed() -> str:
    """Scores after the same number of steps by pinxit and by the plain loop."""
    rows = [
        [
            method,
            precision,
            scale,
            *(percent(row["scores"][side][scale]["mean"]) for side in (precision, "plain")),
            interval(apart),
            "yes" if apart["within noise"] else "no",
        ]
        for method, row in read_figures("learning-unharmed")["figures"]["methods"].items()
        for precision, scales in row["difference"].items()
        for scale, apart in scales.items()
    ]
    head = ["method", "precision", "scale", "pinxit", "plain loop", "difference", "within noise"]
    return table(head, rows) + origin("learning-unharmed")


def crops() -> str:
    """How much of a subject is inside crops."""
    figures = read_figures("crops")["figures"]["kept"]
    rows = [
        (name, *(f"{share:.1%}" for share in shares.values())) for name, shares in figures.items()
    ]
    head = ("share of the subject inside", *next(iter(figures.values())))
    return table(head, rows) + origin("crops")


def pictures() -> str:
    """Results for unusual and for damaged images."""
    figures = read_figures("pictures")["figures"]
    damaged = figures["damaged"]
    first = [f"{figures[what]} {what}" for what in ("used", "refused", "left out", "silent")]
    rows = [
        ("kinds of unusual images", f"{figures['kinds']}: {', '.join(first)}"),
        ("wrong results", len(figures["wrong"])),
        (
            "damaged files",
            f"{damaged['mutants']:,}: {damaged['refused']:,} refused, the others read",
        ),
        *((what, damaged[what]) for what in ("crashes", "hangs", "not named")),
        ("slowest", f"{damaged['slowest seconds']} s"),
        ("peak memory", f"{damaged['megabytes at most']} MB"),
    ]
    return table(("measure", "result"), rows) + origin("pictures")


def transfer() -> str:
    """Structure and style of transferred images, by control and `preserve`."""
    return _curves("words") + origin("transfer")


def learned() -> str:
    """The same for a trained style."""
    return _curves("learned")


def _curves(style: str) -> str:
    figures = read_figures("transfer")["figures"][style]["curves"]
    rows = [
        [what, keep, *_transfer_cells(point)]
        for what, curve in figures.items()
        if what not in ("photo", "true")
        for keep, point in curve.items()
    ]
    ends = {"photo": "original image", "true": "true rendering in the style"}
    rows += [[title, "", *_transfer_cells(figures[end])] for end, title in ends.items()]
    head = ["control, guidance scale", "preserve", "mask IoU", "keypoint error", "class", "facing"]
    head += ["style"]
    return table([*head, "probe", "colours", "Gram"], rows)


def _transfer_cells(point: dict[str, float]) -> list[str]:
    """Cells with measures of structure, then of style."""
    structure = [f"{point['iou']:.2f}", f"{point['points']:.3f}"]
    right = [percent(point[what]) for what in ("class", "facing")]
    return [*structure, *right, *(f"{point[by]:.2f}" for by in ("style", *GAINED))]


GAINED = ("probe", "colours", "gram")


def ahead() -> str:
    """The mask IoU of the default control compared with img2img, at the same style score."""
    rows = [
        [name, f"{one['style']:.2f}", *(f"{one[key]:.2f}" for key in ("iou", "default", "ahead"))]
        for name, style in (("in words", "words"), ("trained", "learned"))
        for one in read_figures("transfer")["figures"][style]["ahead"]
    ]
    head = ["style", "style score of img2img", "its mask IoU", "best IoU of the default"]
    head += ["difference"]
    return table(head, rows)


def seeds() -> str:
    """Similarity to the first image with the same seed and a style, or in a new pose."""
    figures = read_figures("transfer")["figures"]
    rows = [
        [
            "same-seed",
            keep,
            f"{figures['same seed'][f'iou {keep}']:.2f}",
            "mask IoU with the first image",
        ]
        for keep in ("0", "0.2", "0.5", "0.8")
    ]
    rows += [
        ["masactrl", keep, f"{figures['poses'][f'likeness {keep}']:.2f}", "likeness to the image"]
        for keep in ("0", "0.7", "0.9")
    ]
    return table(["control", "preserve", "value", "measure"], rows)


def _cell(grid: dict[str, float], step: int) -> str:
    return f"{grid[str(step)]:.3f}" if str(step) in grid else "-"


def stopping() -> str:
    """Scores by number of steps, and where early stopping happens."""
    figures = read_figures("stopping")["figures"]
    steps = sorted({int(step) for row in figures.values() for step in row["grid"]})
    grid = [
        [method, len(row["subjects"]), *(_cell(row["grid"], step) for step in steps)]
        for method, row in figures.items()
    ]
    stops = [
        [
            method,
            f"{row['peak']}: {row['grid'][str(row['peak'])]:.3f}",
            f"{', '.join(map(str, row['stops']))}: {row['stopped']} by early stopping",
            f"{row['of the peak']:.2f}",
            f"{row['best at the stop']:.3f}",
            percent(row["lost"]),
            f"{100 * row['cost']:.1f}%",
        ]
        for method, row in figures.items()
    ]
    head = ["method", "best step: score", "stopped at", "share of the best step's", "score there"]
    head += ["loss of score", "time for validation"]
    best = table(["score at step", "subjects", *map(str, steps)], grid)
    return best + "\n" + table(head, stops) + origin("stopping")


LEARNED = (
    painting,
    richer,
    sizes,
    eyes,
    trials,
    curve,
    subjects,
    real,
    styles,
    nouns,
    prior,
    words,
    stopping,
)
TRANSFERS = (transfer, learned, ahead, seeds)
FILES = (families, formats, hostile, opening, reliability, crops, pictures)
TIMES = (arithmetic, floor, speed, unharmed)
BLOCKS: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (*LEARNED, *TRANSFERS, *FILES, *TIMES)
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
