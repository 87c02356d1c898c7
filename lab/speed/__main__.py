"""Measures pinxit against the plain loop: both sides in turn, round after round, on one machine.

    python -m lab.speed --base sd15 --methods textual-inversion --rounds 2 --steps 4

Tables go to stdout, progress to stderr; --json keeps every number.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from lab.speed import bases, report
from lab.speed.job import METHODS, SIDES, TOGETHER, Job, Outcome

ROOT = Path(__file__).parents[2]
_SIZES = {"pocket": 64}  # all others are learned at 256 pixels, as the times in issue 4


def asked() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--base", default="pocket", help=f"{', '.join(bases.NAMES)}, or a folder")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which")
    add("--rounds", type=int, default=3, help="how often each side has its turn")
    add("--steps", type=int, default=8, help="of learning in a round, the first one apart")
    add("--pictures", type=int, default=1, help="painted in a round, a first one apart")
    add("--painting-steps", type=int, default=25, help="of each picture")
    add("--batch", type=int, default=1, help="pictures of the subject in a step")
    add("--concepts", type=int, default=1, help="that pinxit learns in one batch")
    add("--size", type=int, help="pixels of a side; 256, and of pocket 64")
    add("--noun", default="dog", help="the subject's class, in the base's words")
    add("--device", default="cpu", help="cpu or cuda")
    add("--precision", default="auto", help="of pinxit: fp32, bf16, or what it chooses itself")
    add("--plain-precision", choices=("fp32", "bf16"), help="fp32; on a GPU mixed bf16")
    add("--json", type=Path, help="a file for every number; - for stdout")
    add("--work", type=Path, default=_cache(), help="where bases of random weights are kept")
    return parser.parse_args()


def jobs(given: argparse.Namespace, base: Path, method: str) -> dict[str, Job]:
    """A method's job for each side that is asked for."""
    count = given.pictures if method == "generation" else given.steps
    half = "bf16" if given.device.startswith("cuda") else "fp32"
    precision = {"plain": given.plain_precision or half, "pinxit": given.precision}
    return {
        side: Job(
            side=side,
            method=method,
            base=str(base),
            noun=given.noun,
            size=given.size or _SIZES.get(given.base, 256),
            steps=count + 1,
            batch=given.batch,
            concepts=given.concepts if side == "pinxit" and method in TOGETHER else 1,
            painting=given.painting_steps,
            device=given.device,
            precision=precision[side],
        )
        for side in given.sides
    }


def done(job: Job, cache: Path) -> Outcome | None:
    """What a job took, in a process of its own; None if it failed."""
    own = {
        "PINXIT_BENCH_PICTURES": str(Path(str(files("pinxit"))) / "gallery" / "subject"),
        "PINXIT_CACHE": str(cache),  # class pictures that are none must not reach the user's own
    }
    began = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-m", "lab.speed.job", json.dumps(asdict(job))],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    took = f"{time.perf_counter() - began:.0f} s"
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        why = " ".join(lines[-2:])
        print(f"{job.method}, {job.side}: failed after {took}: {why}", file=sys.stderr)
        return None
    outcome = Outcome(**json.loads(answer.stdout.splitlines()[-1]))
    print(
        f"{job.method}, {job.side}: {report.seconds(outcome):.3f} s a step ({took})",
        file=sys.stderr,
        flush=True,
    )
    return outcome


def main() -> int:
    """0 if every job went well."""
    given = asked()
    place = bases.folder(given.base, given.work)
    shown = {"base": given.base, "size": given.size or _SIZES.get(given.base, 256)}
    settings = {**vars(given), **shown, "work": str(given.work), "json": str(given.json)}
    file = None if given.json is None or str(given.json) == "-" else given.json
    found: report.Found = {}
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        for method in given.methods:
            turns = jobs(given, place, method)
            for _ in range(given.rounds):
                for side, job in turns.items():
                    outcome = done(job, Path(cache))
                    failed += outcome is None
                    if outcome is None:
                        continue
                    found.setdefault(method, {}).setdefault(side, []).append(outcome)
                    if file:  # after every job: who stops it keeps what was measured
                        text = json.dumps(report.plain(found, settings), indent=1)
                        file.write_text(text + "\n", encoding="utf-8")
    print(report.table(found, settings))
    if given.json and not file:
        print(json.dumps(report.plain(found, settings)))
    return min(failed, 1)


def _cache() -> Path:
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "pinxit" / "benchmarks"


if __name__ == "__main__":
    sys.exit(main())
