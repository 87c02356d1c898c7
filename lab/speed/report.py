"""Results as ratios between the sides, with the range over all rounds."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

from lab.speed.job import Outcome

FIGURES = Path(__file__).parents[2] / "docs" / "figures"

Outcomes = dict[str, dict[str, list[Outcome]]]  # by method and side, one for each round

# Seconds per step of diffusers' training scripts on a machine of this kind: SD 1.5, 256x256 pixels,
# batch size 1, two threads. The plain loop may be at most 10% slower.
SCRIPTS = {"textual-inversion": 11.0, "lora": 8.3, "dreambooth": 40.0}


def seconds(outcome: Outcome) -> float:
    """Wall time per step and concept: the mean over a round's steps."""
    return fmean(outcome.steps) / outcome.concepts


def processor(outcome: Outcome) -> float:
    """CPU time per step and concept, which hardly depends on other processes."""
    return fmean(outcome.processor) / outcome.concepts


def peak(outcome: Outcome) -> float:
    """Peak memory in gigabytes: of the device, if it has its own memory."""
    return outcome.device_gb or outcome.peak_gb


def table(outcomes: Outcomes, settings: Mapping[str, object]) -> str:
    """A table of all results; `needed` is the rate of a step's necessary operations.

    Next to it is the machine's highest rate: that of a large matrix product in each precision.
    """
    head = (
        f"{'method':18} {'side':7} {'s / step':>9} {'(from, to)':>16} {'processor':>10} "
        f"{'first':>7} {'loading':>8} {'peak GB':>8} {'steps GB':>9} "
        f"{'GFLOP/s fp32, bf16, fp16':>25} {'needed':>7}"
    )
    lines = [_machine(outcomes, settings), "", head]
    for method, sides in outcomes.items():
        need = _needed(method, settings)
        lines += [_row(method, side, rounds, need) for side, rounds in sides.items()]
    ratios = [_ratios(method, sides) for method, sides in outcomes.items() if len(sides) > 1]
    if ratios:
        lines += ["", "plain loop / pinxit, medians over rounds (least, most):", *ratios]
    known = [_known(method, sides) for method, sides in outcomes.items() if "plain" in sides]
    if settings["base"] == "sd15" and settings["size"] == 256 and settings["device"] == "cpu":
        lines += ["", "plain loop against diffusers' scripts:", *filter(None, known)]
    return "\n".join(lines)


def to_dict(outcomes: Outcomes, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings, outcomes and ratios as plain values, for JSON."""
    return {
        "settings": dict(settings),
        "torch": version("torch"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "outcomes": {
            method: {side: [asdict(outcome) for outcome in rounds] for side, rounds in s.items()}
            for method, s in outcomes.items()
        },
        "ratios": {
            method: {
                what: dict(zip(("median", "least", "most"), _ratio(sides, of), strict=True))
                for what, of in _COMPARED.items()
            }
            for method, sides in outcomes.items()
            if len(sides) > 1
        },
    }


_COMPARED: dict[str, Callable[[Outcome], float]] = {
    "speed": seconds,
    "processor": processor,
    "memory": peak,
}


def _machine(outcomes: Outcomes, settings: Mapping[str, object]) -> str:
    every = [one for sides in outcomes.values() for rounds in sides.values() for one in rounds]
    threads = sorted({one.threads for one in every})
    return (
        f"{settings['base']} at {settings['size']}x{settings['size']}, batch {settings['batch']}, "
        f"concepts {settings['concepts']}, on {settings['device']}, threads {threads}, "
        f"torch {version('torch')}"
    )


def _row(method: str, side: str, rounds: Sequence[Outcome], need: float) -> str:
    each = [seconds(outcome) for outcome in rounds]

    def middle(of: Callable[[Outcome], float]) -> float:
        return median(map(of, rounds))

    rates = ", ".join(f"{max(one.gflops[k] for one in rounds):.0f}" for k in rounds[0].gflops)
    return (
        f"{method:18} {side:7} {median(each):9.3f} {f'({min(each):.3f}, {max(each):.3f})':>16} "
        f"{middle(processor):10.3f} {middle(lambda one: one.first):7.2f} "
        f"{middle(lambda one: one.loading):8.1f} {middle(peak):8.2f} "
        f"{middle(lambda one: one.steps_gb):9.2f} {rates:>25} "
        + (f"{need / median(each) / 1e9:7.0f}" if need else "")
    )


def _needed(method: str, settings: Mapping[str, object]) -> float:
    """The necessary operations of a step, if they were counted; 0 otherwise."""
    batch, counts_file = settings["batch"], FIGURES / "arithmetic.json"
    counted = (
        json.loads(counts_file.read_text(encoding="utf-8"))["figures"]
        if counts_file.is_file()
        else {}
    )
    outcomes = counted.get(f"{settings['base']} {settings['size']}")
    if not outcomes or (method == "generation" and settings["sampling_steps"] != 25):
        return 0.0
    assert isinstance(batch, int)
    return outcomes["methods"][method]["operations"] * (1 if method == "generation" else batch)


def _ratio(
    sides: Mapping[str, Sequence[Outcome]], of: Callable[[Outcome], float]
) -> tuple[float, float, float]:
    """The ratio of plain loop to pinxit over all rounds: median, lowest and highest."""
    pairs = zip(sides["plain"], sides["pinxit"], strict=False)
    ratios = [of(plain) / of(ours) for plain, ours in pairs]
    return median(ratios), min(ratios), max(ratios)


def _ratios(method: str, sides: Mapping[str, Sequence[Outcome]]) -> str:
    columns = (
        f"{what} {middle:5.2f} ({least:.2f}, {most:.2f})"
        for what, of in _COMPARED.items()
        for middle, least, most in [_ratio(sides, of)]
    )
    return f"{method:18} " + "   ".join(columns)


def _known(method: str, sides: Mapping[str, Sequence[Outcome]]) -> str | None:
    if method not in SCRIPTS:
        return None
    ours, theirs = median(map(seconds, sides["plain"])), SCRIPTS[method]
    return f"{method:18} {ours:.1f} s against {theirs:.1f} s: {ours / theirs - 1:+.0%}"
