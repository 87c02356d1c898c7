"""Puts the measured figures into docs: every block between two marks is made from docs/figures.

A block begins with `<!-- figures: NAME -->` and ends with `<!-- end -->`; NAME is a function here.
`python -m lab.doc_tables` writes, `--check` fails if something is not as it would write it.
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
    "docs/pocket.md",
    "docs/learning.md",
    "docs/styles.md",
    "docs/security.md",
    "docs/reliability.md",
    "docs/performance.md",
    "docs/transfer.md",
    "docs/stopping.md",
)
BLOCK = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kept(name: str) -> Any:
    """The figures a command left in docs/figures."""
    return json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers between 0 and 1 as they are, all others as given."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f}%"


def origin(name: str) -> str:
    """Where a figure comes from."""
    found = kept(name)
    machine = found["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    return f"\nMeasured by `{found['command']}` at commit {found['commit']} on {where}.\n"


def painting() -> str:
    """How often what is asked for is there: the first pocket, and the one of now in both worlds."""
    now = kept("pocket")["figures"]
    rows = [
        [shown["guidance"], which, who, *(percent(shown[which][q]) for q in QUESTIONS)]
        for three in zip(
            kept("pocket-first")["figures"]["painting"],
            now["painting of the first world"],
            now["painting"],
            strict=True,
        )
        for which in ("seen", "held out")
        for who, shown in zip(("the first", "now, the same", "now, its own"), three, strict=True)
    ]
    return table(["guidance", "combinations", "pocket, prompts", *QUESTIONS], rows) + origin(
        "pocket"
    )


QUESTIONS = ("class", "colour", "background", "style", "joint")


def richer() -> str:
    """How often what fuller prompts ask for is there, and how often the eyes see what is there."""
    found = kept("pocket")["figures"]["richer"]
    guidances = [name for name in found if name != "rendered"]
    rows = [
        [kind, *(percent(found[name][kind]) for name in (*guidances, "rendered"))]
        for kind in found["rendered"]
    ]
    painted = [f"painted at guidance {name}" for name in guidances]
    return table(["asked for", *painted, "seen in renderings"], rows)


def sizes() -> str:
    """Megabytes, fidelity of the autoencoder, seconds a picture; of the first pocket, and now."""
    first, now = (_sizes(kept(name)["figures"]) for name in ("pocket-first", "pocket"))
    rows = [[what, first.get(what, ""), figure] for what, figure in now.items()]
    return table(["what", "the first pocket", "now"], rows)


def _sizes(figures: Any) -> dict[str, str]:
    rows = {f"size of {name}": f"{size:.2f} MB" for name, size in figures["megabytes"].items()}
    rows |= {f"autoencoder, {what}": f"{db:.1f} dB" for what, db in figures["psnr"].items()}
    return rows | {"one picture, 25 steps": f"{figures['seconds a picture']:.2f} s"}


def eyes() -> str:
    """How well the eyes see, through the autoencoder, what they were never shown."""
    first, now = (kept(name)["figures"] for name in ("pocket-first", "pocket"))
    same = now["eyes on the first world"]
    rows = [
        [
            name,
            *(f"{of[name]:.3f}" if name in of else "" for of in (first["eyes"], same)),
            f"{v:.3f}",
        ]
        for name, v in now["eyes"].items()
    ]
    head = ["question", "the first pocket", "now, on the first's world", "now, on all of its own"]
    return table(head, rows)


def trials() -> str:
    """What choices in the U-Net's training are worth an hour of one core."""
    found: dict[str, Any] = kept("pocket-trials")["figures"]
    begun = found.pop("the fork")
    rows = [["where they begin", "", *map(percent, begun.values()), ""]]
    for name, after in found.items():
        before, hours = 0 if "nothing" in name else begun["joint"], after["core seconds"] / 3600
        gain = f"{100 * (after['joint'] - before) / hours:+.0f}"
        rows.append([name, after["steps"], *(percent(after[what]) for what in begun), gain])
    head = ["choice", "steps", *begun, "joint, points an hour"]
    return table(head, rows) + origin("pocket-trials")


def curve() -> str:
    """What is painted right by the samples seen, and what more of them may bring."""
    found = kept("pocket-curve")["figures"]
    rows = [
        [f"{int(samples):,}", *map(percent, shares.values()), "measured"]
        for samples, shares in found["measured"].items()
    ]
    more = zip(*(by.items() for by in found["expected"].values()), strict=True)
    rows += [
        [f"{int(by[0][0]):,}", *(percent(share) for _, share in by), "expected"] for by in more
    ]
    head = ["samples", *found["expected"], ""]
    return table(head, rows) + origin("pocket-curve")


def subjects() -> str:
    """What words learned from five pictures are worth, over ten subjects."""
    figures = kept("subjects")["figures"]
    rows = [
        [
            method,
            *(interval(found["share"][scale]) for scale in ("likeness", "hidden")),
            percent(found["right"]["background"]),
            percent(found["background_of_base"]),
            f"{found['seconds_of_learning']:.0f} s",
        ]
        for method, found in figures.items()
        if method != "base"
    ]
    head = ["method", "likeness", "hidden parameters", "background right", "of the base's", "time"]
    return table(head, rows) + origin("subjects")


def real() -> str:
    """What was learned from the founding tutorial's pictures."""
    figures = kept("real-pictures")["figures"]
    rows = [
        [
            folder,
            method,
            *(percent(found["nearest"][by]) for by in ("embedding", "colours")),
            f"{found['colour_distance_of_base']['together']:.2f}",
        ]
        for folder, methods in figures.items()
        for method, found in methods.items()
        if isinstance(found, dict) and "colour_distance_of_base" in found
    ]
    head = ["pictures", "method", "nearest by embedding", "by colours", "colour distance / base's"]
    return table(head, rows) + origin("real-pictures")


def styles() -> str:
    """How much of the held-out styles was caught, and what leaked."""
    rows = [
        [
            style,
            way.replace("-", " "),
            *(percent(round(found["caught"][scale], 2) + 0.0) for scale in ("colour", "gram")),
            *(percent(found["right"][asked]) for asked in ("style", "class", "background")),
            percent(found["leaked"]),
            f"{found['nearest']:.2f}",
            f"{found['seconds']:.0f} s" if found["seconds"] else "",
        ]
        for style, ways in kept("styles")["figures"].items()
        for way, found in ways.items()
    ]
    head = ["style", "painted by", "colours", "manner", "style seen", "thing right", "place right"]
    return table([*head, "leaked", "nearest", "learned in"], rows) + origin("styles")


TRUTHS: dict[str, tuple[str, ...]] = {
    "nouns": ("likeness", "hidden"),
    "prior": ("likeness", "drift", "drift of the base", "diversity", "diversity of the base"),
    "words": ("likeness", "hidden", "norm", "colour", "background", "style", "obeyed"),
}


def nouns() -> str:
    """What the class noun is worth."""
    return _truths("nouns")


def prior() -> str:
    """What class pictures are worth."""
    return _truths("prior")


def words() -> str:
    """What more vectors, and holding their length, are worth."""
    return _truths("words")


def _truths(group: str) -> str:
    """What a group of trials found, a row each."""
    scales = TRUTHS[group]
    rows = [
        [name, *(f"{found[scale]:.2f}" for scale in scales)]
        for name, found in kept("truths")["figures"][group].items()
    ]
    return table(["trial", *scales], rows) + origin("truths")


def families() -> str:
    """Every family there is, as its plug-in's first line has it."""
    told = [registry.summary("families", name).rstrip(".") for name in registry.names("families")]
    rows = [[name, what[0].upper() + what[1:]] for name, what in (one.split(": ") for one in told)]
    return table(["family", "what it is made of"], rows)


def formats() -> str:
    """Every format there is: what it holds, what its files are called, and who opens them."""
    rows: list[list[object]] = []
    for name in registry.names("formats"):
        layout: type[Format] = registry.load("formats", name)
        endings = " ".join(f"`{ending}`" if ending else "folder" for ending in layout.endings)
        rows.append([f"`{name}`", ", ".join(layout.holds), endings, layout.used_by])
    return table(["format", "holds", "written as", "opened by"], rows)


def interval(found: dict[str, float]) -> str:
    """A share with its 95% interval."""
    return f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"


def hostile() -> str:
    """What came of the files that are made to do harm, and of the damaged ones."""
    figures = kept("security")["figures"]
    counts = ("code run", "crashes", "hangs", "refused", "read")
    names, seed = figures["hostile"]["names"], figures["fuzzed"]["seed"]
    rows: list[tuple[str, Any, str]] = [
        (f"hostile, of {names:,} names", figures["hostile"], "hostile files"),
        (f"damaged at random, seed {seed}", figures["fuzzed"], "inputs"),
    ]
    table_rows = [
        [what, f"{found[total]:,}", *(f"{found[count]:,}" for count in counts)]
        for what, found, total in rows
    ]
    return table(["files", "tried", *counts], table_rows) + origin("security")


def opening() -> str:
    """Seconds and memory that a checkpoint of Stable Diffusion 1.5's size takes to open."""
    figures = kept("opening")["figures"]
    rows = [
        [
            f"{layout}, {figures[f'{layout} GB']} GB",
            {"torch": "torch.load", "pinxit": "pinxit"}[who],
            *(f"{found[key]:.2f} s" for key in ("open", "open, processor", "used, processor")),
            f"{found['peak GB']:.2f} GB",
        ]
        for layout in ("zip", "legacy")
        for who, found in ((who, figures[f"{layout}, {who}"]) for who in ("torch", "pinxit"))
    ]
    head = ["file", "opened by", "seconds", "of processor", "and every number read", "memory"]
    return table(head, rows) + origin("opening")


_NEVER = ("lost", "differing", "silent restarts")
# Of each part: what was tried, which figure counts it, and what must not be found.
TRIED: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "kills": (("kills of processes, in {runs} runs", "kills", _NEVER),),
    "stops": (("stops, after each of {steps} steps", "stops", ("differing",)),),
    "crashes": (("disk states, at {calls} calls of saves", "states", ("lost",)),),
    "runs": (("power cuts, then on to the end", "crashes", _NEVER),),
    "faults": (
        ("faults of a call of a save", "errors", ("unreported", "lost")),
        ("writes that are cut short", "short write", ("lost",)),
        ("disks that fill up in a run, then have space", "full disks", ("differing",)),
    ),
    "flips": (
        ("bits turned in what files say of themselves", "in what it says of itself", ("unseen",)),
        ("bits turned in the rest", "in the rest", ("unseen",)),
        ("files cut off", "cut off", ("unseen",)),
        ("good files read between", "cut off", ("false alarms",)),
    ),
    "numbers": (("numbers that are none", "stages", ("differing", "saved broken")),),
}


def reliability() -> str:
    """What came of kills, crashes, faults and damage."""
    figures = kept("reliability")["figures"]
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
    return table(["what", "tried", "found"], rows) + origin("reliability")


def arithmetic() -> str:
    """What each method cannot do without, counted."""
    rows = [
        [
            *base.split(),
            method,
            *(f"{found['by_kind'][kind] / 1e12:.2f}" for kind in KINDS),
            f"{found['operations'] / 1e12:.2f}",
            f"{found['plain'] / 1e12:.2f}",
            f"{found['trained'] / 1e6:.1f}",
            f"{2 * found['activations'] / 1e9:.2f}",
            f"{found['gigabytes']:.1f}",
        ]
        for base, figures in kept("arithmetic")["figures"].items()
        for method, found in figures["methods"].items()
    ]
    head = ["base", "pixels", "method", *KINDS, "all", "plain loop"]
    head += ["trained, M", "activations, GB", "least memory, GB"]
    return table(head, rows) + origin("arithmetic")


KINDS = ("convolution", "linear", "attention")


def floor() -> str:
    """The least time of a step, by the rate at which a machine multiplies matrices."""
    rows = [
        [*base.split(), method, *(f"{found['operations'] / rate:.3g} s" for rate in RATES.values())]
        for base, figures in kept("arithmetic")["figures"].items()
        for method, found in figures["methods"].items()
    ]
    return table(["base", "pixels", "method", *RATES], rows)


RATES = {"at 0.25 TFLOP/s": 0.25e12, "at 0.5 TFLOP/s": 0.5e12, "at 800 TFLOP/s": 800e12}


def speed() -> str:
    """Seconds, memory and ratios of every measurement against the plain loop that was kept."""
    rows: list[list[object]] = []
    names = [name for name in SPEEDS if (ROOT / "docs" / "figures" / f"{name}.json").is_file()]
    for name in names:
        figures = kept(name)["figures"]
        for method, sides in figures["outcomes"].items():
            seconds, memory = (
                [f"{median(map(of, sides[side])):.3g}" for side in ("plain", "pinxit")]
                for of in (_seconds, _gigabytes)
            )
            ratios = figures["ratios"][method]
            told = [_spread(ratios[by]) for by in ("speed", "processor", "memory")]
            precision = figures["settings"]["precision"]
            shown = f"{figures['settings']['base']}, {precision}"
            rows.append([shown, method, *seconds, *memory, *told])
    head = ["base, precision", "method", "plain, s a step", "pinxit, s", "plain, GB", "pinxit, GB"]
    head += ["faster", "less processor time", "less memory"]
    return table(head, rows) + "".join(map(origin, names)) if names else "Not measured yet.\n"


SPEEDS = ("speed", "speed-int8", "speed-pocket")


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def _seconds(outcome: dict[str, Any]) -> float:
    return fmean(outcome["steps"]) / outcome["concepts"]


def _gigabytes(outcome: dict[str, Any]) -> float:
    return outcome["device_gb"] or outcome["peak_gb"]


def unharmed() -> str:
    """Scores after equal steps by pinxit and by the plain loop."""
    rows = [
        [
            method,
            precision,
            scale,
            *(percent(found["scores"][side][scale]["mean"]) for side in (precision, "plain")),
            interval(apart),
            "yes" if apart["within noise"] else "no",
        ]
        for method, found in kept("learning-unharmed")["figures"]["methods"].items()
        for precision, scales in found["difference"].items()
        for scale, apart in scales.items()
    ]
    head = ["method", "pinxit in", "scale", "pinxit", "plain loop", "difference", "within noise"]
    return table(head, rows) + origin("learning-unharmed")


def crops() -> str:
    """How much of a subject is kept by crops."""
    found = kept("crops")["figures"]["kept"]
    rows = [
        (name, *(f"{share:.1%}" for share in shares.values())) for name, shares in found.items()
    ]
    head = ("subject kept: it is", *next(iter(found.values())))
    return table(head, rows) + origin("crops")


def pictures() -> str:
    """What became of odd pictures and of damaged ones."""
    found = kept("pictures")["figures"]
    damaged = found["damaged"]
    first = [f"{found[what]} {what}" for what in ("used", "refused", "left out", "silent")]
    rows = [
        ("kinds of odd pictures", f"{found['kinds']}: {', '.join(first)}"),
        ("judged wrongly", len(found["wrong"])),
        ("damaged files", f"{damaged['mutants']:,}: {damaged['refused']:,} refused, rest read"),
        *((what, damaged[what]) for what in ("crashes", "hangs", "not named")),
        ("slowest", f"{damaged['slowest seconds']} s"),
        ("most memory", f"{damaged['megabytes at most']} MB"),
    ]
    return table(("what", "figure"), rows) + origin("pictures")


def transfer() -> str:
    """What is kept of a picture, and gained of a style, over each control's slider."""
    return _curves("words") + origin("transfer")


def learned() -> str:
    """The same for a style that had to be learned."""
    return _curves("learned")


def _curves(style: str) -> str:
    found = kept("transfer")["figures"][style]["curves"]
    rows = [
        [what, keep, *_transferred(point)]
        for what, curve in found.items()
        if what not in ("photo", "true")
        for keep, point in curve.items()
    ]
    ends = {"photo": "the picture itself", "true": "what it truly looks like"}
    rows += [[title, "", *_transferred(found[end])] for end, title in ends.items()]
    head = ["control, guidance", "keep", "mask IoU", "points off", "class", "facing", "style"]
    return table([*head, "probe", "colours", "Gram"], rows)


def _transferred(point: dict[str, float]) -> list[str]:
    """Structure, then style."""
    structure = [f"{point['iou']:.2f}", f"{point['points']:.3f}"]
    right = [percent(point[what]) for what in ("class", "facing")]
    return [*structure, *right, *(f"{point[by]:.2f}" for by in ("style", *GAINED))]


GAINED = ("probe", "colours", "gram")


def ahead() -> str:
    """How much more of the mask the default keeps than img2img."""
    rows = [
        [name, f"{one['style']:.2f}", *(f"{one[key]:.2f}" for key in ("iou", "default", "ahead"))]
        for name, style in (("words", "words"), ("learned", "learned"))
        for one in kept("transfer")["figures"][style]["ahead"]
    ]
    head = ["style is", "gained by img2img", "its mask IoU", "the default's best", "more"]
    return table(head, rows)


def seeds() -> str:
    """What stays of a painted picture when its seed is painted with a style, and new poses."""
    found = kept("transfer")["figures"]
    rows = [
        ["same-seed", keep, f"{found['same seed'][f'iou {keep}']:.2f}", "mask IoU with the first"]
        for keep in ("0", "0.2", "0.5", "0.8")
    ]
    rows += [
        ["masactrl", keep, f"{found['poses'][f'likeness {keep}']:.2f}", "likeness to the picture"]
        for keep in ("0", "0.7", "0.9")
    ]
    return table(["control", "keep", "figure", "which is"], rows)


def _cell(grid: dict[str, float], step: int) -> str:
    return f"{grid[str(step)]:.3f}" if str(step) in grid else "-"


def stopping() -> str:
    """Where a grid of budgets peaks, and where stopping comes."""
    found = kept("stopping")["figures"]
    steps = sorted({int(step) for figures in found.values() for step in figures["grid"]})
    grid = [
        [method, len(figures["subjects"]), *(_cell(figures["grid"], step) for step in steps)]
        for method, figures in found.items()
    ]
    stops = [
        [
            method,
            f"{figures['peak']}: {figures['grid'][str(figures['peak'])]:.3f}",
            f"{', '.join(map(str, figures['stops']))}: {figures['stopped']} of themselves",
            f"{figures['of the peak']:.2f}",
            f"{figures['best at the stop']:.3f}",
            percent(figures["lost"]),
            f"{100 * figures['cost']:.1f}%",
        ]
        for method, figures in found.items()
    ]
    head = ["method", "peak", "stops after", "of the peak's steps", "best there", "lost", "looking"]
    best = table(["best after", "subjects", *map(str, steps)], grid)
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


def filled(text: str) -> str:
    """A page with every block made anew."""

    def made(found: re.Match[str]) -> str:
        try:
            return found[1] + BLOCKS[found[2]]() + found[3]
        except FileNotFoundError:
            return f"{found[1]}Not measured yet.\n{found[3]}"

    return BLOCK.sub(made, text)


def main() -> int:
    """0, or 1 if a page was to be checked and is not up to date."""
    stale = 0
    for path in (ROOT / page for page in PAGES):
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if "--check" in sys.argv:
            stale += before != after
        elif before != after:
            path.write_text(after, encoding="utf-8")
    if stale:
        print(f"{stale} pages are not what lab/doc_tables.py writes: run it", file=sys.stderr)
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
