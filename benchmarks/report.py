"""What was measured, as ratios between the sides, with their spread over the rounds."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, median

from benchmarks.job import Outcome

Found = dict[str, dict[str, list[Outcome]]]  # by method, by side, a round each

# Seconds a step that diffusers' own scripts took on a machine of this kind, issue 4: at the shapes
# of SD 1.5, 256x256 pixels, batch 1, two threads. The plain loop may be 10% slower at most.
SCRIPTS = {"textual-inversion": 11.0, "lora": 8.3, "dreambooth": 40.0}


def seconds(outcome: Outcome) -> float:
    """Of a step, by the clock: the mean over a round's steps."""
    return fmean(outcome.steps)


def processor(outcome: Outcome) -> float:
    """Of a step, as the processor counts them; what else runs on the machine hardly matters."""
    return fmean(outcome.processor)


def peak(outcome: Outcome) -> float:
    """Gigabytes at most, of the device's memory if it has its own."""
    return outcome.device_gb or outcome.peak_gb


def table(found: Found, settings: Mapping[str, object]) -> str:
    """Everything to look at."""
    head = (
        f"{'method':18} {'side':7} {'s a step':>9} {'(from, to)':>16} {'processor':>10} "
        f"{'first':>7} {'loading':>8} {'peak GB':>8} {'steps GB':>9} {'GFLOP/s fp32, bf16':>19}"
    )
    lines = [_machine(found, settings), "", head]
    for method, sides in found.items():
        lines += [_row(method, side, rounds) for side, rounds in sides.items()]
    ratios = [_ratios(method, sides) for method, sides in found.items() if len(sides) > 1]
    if ratios:
        lines += ["", "plain loop / pinxit, medians over rounds (least, most):", *ratios]
    known = [_known(method, sides) for method, sides in found.items() if "plain" in sides]
    if settings["base"] == "sd15" and settings["size"] == 256 and settings["device"] == "cpu":
        lines += ["", "plain loop against the scripts' times of issue 4:", *filter(None, known)]
    return "\n".join(lines)


def plain(found: Found, settings: Mapping[str, object]) -> dict[str, object]:
    """Everything as plain numbers: settings, every outcome, and the ratios."""
    return {
        "settings": dict(settings),
        "torch": version("torch"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "outcomes": {
            method: {side: [asdict(outcome) for outcome in rounds] for side, rounds in s.items()}
            for method, s in found.items()
        },
        "ratios": {
            method: {
                what: dict(zip(("median", "least", "most"), _ratio(sides, of), strict=True))
                for what, of in _COMPARED.items()
            }
            for method, sides in found.items()
            if len(sides) > 1
        },
    }


_COMPARED: dict[str, Callable[[Outcome], float]] = {
    "speed": seconds,
    "processor": processor,
    "memory": peak,
}


def _machine(found: Found, settings: Mapping[str, object]) -> str:
    every = [one for sides in found.values() for rounds in sides.values() for one in rounds]
    threads = sorted({one.threads for one in every})
    return (
        f"{settings['base']} at {settings['size']}x{settings['size']}, batch {settings['batch']}, "
        f"on {settings['device']}, threads {threads}, torch {version('torch')}"
    )


def _row(method: str, side: str, rounds: Sequence[Outcome]) -> str:
    each = [seconds(outcome) for outcome in rounds]

    def middle(of: Callable[[Outcome], float]) -> float:
        return median(map(of, rounds))

    rates = "%.0f, %.0f" % tuple(max(one.gflops[k] for one in rounds) for k in ("fp32", "bf16"))
    return (
        f"{method:18} {side:7} {median(each):9.3f} {f'({min(each):.3f}, {max(each):.3f})':>16} "
        f"{middle(processor):10.3f} {middle(lambda one: one.first):7.2f} "
        f"{middle(lambda one: one.loading):8.1f} {middle(peak):8.2f} "
        f"{middle(lambda one: one.steps_gb):9.2f} {rates:>19}"
    )


def _ratio(
    sides: Mapping[str, Sequence[Outcome]], of: Callable[[Outcome], float]
) -> tuple[float, float, float]:
    """Plain by pinxit, a pair of turns each: median, least and most."""
    pairs = zip(sides["plain"], sides["pinxit"], strict=False)
    ratios = [of(plain) / of(ours) for plain, ours in pairs]
    return median(ratios), min(ratios), max(ratios)


def _ratios(method: str, sides: Mapping[str, Sequence[Outcome]]) -> str:
    told = (
        f"{what} {middle:5.2f} ({least:.2f}, {most:.2f})"
        for what, of in _COMPARED.items()
        for middle, least, most in [_ratio(sides, of)]
    )
    return f"{method:18} " + "   ".join(told)


def _known(method: str, sides: Mapping[str, Sequence[Outcome]]) -> str | None:
    if method not in SCRIPTS:
        return None
    ours, theirs = median(map(seconds, sides["plain"])), SCRIPTS[method]
    return f"{method:18} {ours:.1f} s against {theirs:.1f} s: {ours / theirs - 1:+.0%}"
