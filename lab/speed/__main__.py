"""Compares pinxit with a plain training loop: both sides alternate, on one machine.

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
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from lab.speed import bases, report
from lab.speed.job import BATCHABLE, METHODS, SIDES, Job, Outcome

ROOT = Path(__file__).parents[2]
_SIZES = {"pocket": 64}  # other base models are trained at 256 pixels


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line arguments; None reads those of the process."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--base", default="pocket", help=f"base model: {', '.join(bases.NAMES)}, or a folder")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="training methods")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="sides to measure")
    add("--rounds", type=int, default=3, help="number of measurements of each side")
    add("--steps", type=int, default=8, help="training steps per round, without the first")
    add("--images", type=int, default=1, help="images generated per round, without the first")
    add("--sampling-steps", type=int, default=25, help="denoising steps of each image")
    add("--batch", type=int, default=1, help="batch size")
    add("--concepts", type=int, default=1, help="concepts that pinxit trains in one batch")
    add("--size", type=int, help="resolution; default: 256, for pocket 64")
    add("--noun", default="dog", help="class noun of the subject")
    add("--device", default="cpu", help="cpu or cuda")
    add("--precision", default="auto", help="precision of pinxit: auto, fp32, bf16 or int8")
    add("--plain-precision", choices=("fp32", "bf16"), help="default: fp32; mixed bf16 on a GPU")
    add("--json", type=Path, help="JSON file for all results; - for stdout")
    add("--work", type=Path, default=_cache(), help="folder for base models with random weights")
    return parser.parse_args(arguments)


def jobs(args: argparse.Namespace, base: Path, method: str) -> dict[str, Job]:
    """A method's job for each side."""
    count = args.images if method == "generation" else args.steps
    half = "bf16" if args.device.startswith("cuda") else "fp32"
    precision = {"plain": args.plain_precision or half, "pinxit": args.precision}
    return {
        side: Job(
            side=side,
            method=method,
            base=str(base),
            noun=args.noun,
            size=args.size or _SIZES.get(args.base, 256),
            steps=count + 1,
            batch=args.batch,
            concepts=args.concepts if side == "pinxit" and method in BATCHABLE else 1,
            sampling_steps=args.sampling_steps,
            device=args.device,
            precision=precision[side],
        )
        for side in args.sides
    }


def variables(cache: Path) -> dict[str, str]:
    """The environment variables of a job; fake class images must not reach the user's cache."""
    images = Path(str(files("pinxit"))) / "gallery" / "subject"
    return {"PINXIT_BENCH_PICTURES": str(images), "PINXIT_CACHE": str(cache)}


def run_in_process(job: Job, cache: Path, limit: float | None = None) -> Outcome | str:
    """Run a job in its own process of at most `limit` seconds; returns why if it failed."""
    start = time.perf_counter()
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "lab.speed.worker", json.dumps(asdict(job))],
            cwd=ROOT,
            env={**os.environ, **variables(cache)},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    duration = f"{time.perf_counter() - start:.0f} s"
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        why = f"failed after {duration}: {' '.join(lines[-2:])}"
        print(f"{job.method}, {job.side}: {why}", file=sys.stderr)
        return why
    outcome = Outcome(**json.loads(answer.stdout.splitlines()[-1]))
    print(
        f"{job.method}, {job.side}: {report.seconds(outcome):.3f} s per step ({duration})",
        file=sys.stderr,
        flush=True,
    )
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all jobs succeeded."""
    args = parse_args(arguments)
    place = bases.folder(args.base, args.work)
    shown = {"base": args.base, "size": args.size or _SIZES.get(args.base, 256)}
    settings = {**vars(args), **shown, "work": str(args.work), "json": str(args.json)}
    file = None if args.json is None or str(args.json) == "-" else args.json
    outcomes: report.Outcomes = {}
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        for method in args.methods:
            turns = jobs(args, place, method)
            for _ in range(args.rounds):
                for side, job in turns.items():
                    outcome = run_in_process(job, Path(cache))
                    if isinstance(outcome, str):
                        failed += 1
                        continue
                    outcomes.setdefault(method, {}).setdefault(side, []).append(outcome)
                    if file:  # after each job, so that an interrupt loses nothing
                        text = json.dumps(report.to_dict(outcomes, settings), indent=1)
                        file.write_text(text + "\n", encoding="utf-8")
    print(report.table(outcomes, settings))
    if args.json and not file:
        print(json.dumps(report.to_dict(outcomes, settings)))
    return min(failed, 1)


def _cache() -> Path:
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "pinxit" / "benchmarks"


if __name__ == "__main__":
    sys.exit(main())
