"""Measures everything that needs a GPU in one run of ten minutes; bases have random weights.

    python -m lab.speed.device --json device.json

Each job has a time limit and a process of its own; the JSON file is written after every job. With
--dry the same jobs run on small bases on the CPU, in one process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.compiler import set_stance

from lab.speed import bases, report
from lab.speed.__main__ import ROOT, run_in_process, variables
from lab.speed.arithmetic import Count
from lab.speed.cached import operations
from lab.speed.job import Job, Outcome
from lab.speed.worker import run_job

# TFLOP/s of dense bf16 matrix products in the data sheets; the first name that fits counts, as
# whole words: an L40 is no L4.
PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
SIZES = {"sd15": 512, "xl": 1024, "z-image": 1024}
_FAMILIES = {"sd15": "stable-diffusion-1", "xl": "stable-diffusion-xl", "z-image": "z-image"}
_WRITING = 90  # seconds to write one base
_TESTS = "training_and_generation and bf16"  # the accelerator tests: every family and method


@dataclass(frozen=True)
class Part:
    """One measurement: at most `limit` seconds, `concepts` in one batch."""

    base: str
    method: str
    side: str
    concepts: int = 1
    limit: int = 60

    @property
    def name(self) -> str:
        """What is measured, for people."""
        return f"{self.base} {self.method} x{self.concepts} {self.side}"


# The most important parts come first, in case that time runs out.
PARTS = (
    Part("sd15", "lora", "cached"),
    Part("sd15", "lora", "pinxit"),
    Part("sd15", "lora", "pinxit", 8),
    Part("sd15", "lora", "plain"),
    Part("sd15", "generation", "pinxit"),
    Part("sd15", "generation", "plain"),
    Part("z-image", "lora", "cached"),
    Part("z-image", "lora", "pinxit"),
    Part("z-image", "generation", "pinxit", limit=80),
    Part("xl", "lora", "cached"),
    Part("xl", "lora", "pinxit"),
    Part("xl", "lora", "pinxit", 8, limit=80),
    Part("xl", "generation", "pinxit"),
    Part("sd15", "generation", "compiled", limit=90),
    Part("sd15", "generation", "graphs", limit=120),
    Part("sd15", "lora", "compiled", limit=120),
)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line arguments; None reads those of the process."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed.device", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--device", default="cuda", help="cuda or cpu")
    add("--bases", nargs="+", choices=SIZES, default=list(SIZES), help="base models")
    add("--steps", type=int, default=20, help="training steps, without the first")
    add("--seconds", type=float, default=570, help="time limit of the whole run")
    add("--test-seconds", type=float, default=90, help="time limit of the accelerator tests")
    add("--peak", type=float, help="TFLOP/s of the device in bf16; default: by its name")
    add("--json", type=Path, default=Path("device.json"), help="file for all results")
    add("--work", type=Path, default=Path("build/bases"), help="folder for the base models")
    add("--dry", action="store_true", help="small bases on the CPU, two steps, no tests")
    args = parser.parse_args(arguments)
    if args.dry:
        args.device, args.steps, args.test_seconds = "cpu", 2, 0.0
    return args


def peak_rate(name: str) -> float | None:
    """The TFLOP/s of a device in bf16; None if the table does not have it."""
    return next((rate for part, rate in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def row(part: Part, job: Job, outcome: Outcome, count: Count, peak: float | None) -> dict[str, Any]:
    """The figures of one part; a step of generation is an image.

    `tflop` are the necessary operations of the denoiser: the autoencoder, the text encoders and
    what gradient checkpointing computes again do not count. `mfu` is their rate divided by the
    device's peak, `of_product` divided by the rate of a large matrix product.
    """
    seconds = sum(outcome.steps) / len(outcome.steps)
    generation = part.method == "generation"
    forward = sum(count.forward.values())
    # Each denoising step predicts with the prompt and with the negative prompt.
    needed = 2 * job.sampling_steps * forward if generation else part.concepts * count.operations
    rate = needed / seconds / 1e12
    product = outcome.gflops["bf16" if job.precision == "bf16" else "fp32"] / 1e3
    return {
        "seconds": seconds,
        "images_per_second": job.batch * part.concepts / seconds,
        "tflop": needed / 1e12,
        "mfu": rate / peak if peak else None,
        "of_product": rate / product,
        "peak_gb": outcome.device_steps_gb or outcome.steps_gb or outcome.peak_gb,
        "predicted_gb": outcome.predicted_gb or None,
    }


def table(rows: dict[str, Any]) -> str:
    """A line for each part; `/ cached` and `/ plain` compare images a second with those loops."""
    lines = [
        f"{'part':30} {'s/step':>9} {'images/s':>9} {'/ cached':>8} {'/ plain':>8} {'TFLOP':>9} "
        f"{'MFU':>6} {'of product':>11} {'peak GB':>8} {'predicted':>10}"
    ]
    for name, one in rows.items():
        if "error" in one:
            lines.append(f"{name:30} {one['error'][-200:]}")
            continue
        cells = (
            f"{one['seconds']:9.4f} {one['images_per_second']:9.2f}",
            *(_cell(_speedup(name, side, rows), 8, ".2f") for side in ("cached", "plain")),
            f"{one['tflop']:9.4g}",
            _cell(one["mfu"], 6, ".1%"),
            f"{one['of_product']:11.1%} {one['peak_gb']:8.2f}",
            _cell(one["predicted_gb"], 10, ".2f"),
        )
        lines.append(f"{name:30} {' '.join(cells)}")
    return "\n".join(lines)


def _cell(value: float | None, width: int, style: str) -> str:
    return f"{'-' if value is None else format(value, style):>{width}}"


def _speedup(name: str, side: str, rows: dict[str, Any]) -> float | None:
    """Images a second of a part, divided by those of a plain loop; None if that has no result."""
    base, method, _, _ = name.split()
    other = rows.get(f"{base} {method} x1 {side}", {})
    if "seconds" not in other:
        return None
    return rows[name]["images_per_second"] / other["images_per_second"]


class Measurement:
    """One run: all parts, one after the other, until the time is over."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self._end = time.monotonic() + args.seconds
        cuda = args.device.startswith("cuda")
        self.name = torch.cuda.get_device_name() if cuda else args.device
        self.peak: float | None = args.peak or peak_rate(self.name)
        self.rows: dict[str, Any] = {}
        self.tests: dict[str, Any] | None = None

    def run(self) -> None:
        """Measure all parts; results are written after each."""

        @cache
        def counts(base: str) -> Count:
            return operations(self.folder(base), self.size(base))

        for part in (part for part in PARTS if part.base in self.args.bases):
            try:
                job = self._job(part)
                outcome = self._outcome(job, min(part.limit, self.left))
                if isinstance(outcome, str):
                    self.rows[part.name] = {"error": outcome}
                else:
                    figures = row(part, job, outcome, counts(part.base), self.peak)
                    self.rows[part.name] = {**figures, "outcome": asdict(outcome)}
            except Exception as error:  # one part must not end the others
                self.rows[part.name] = {"error": f"{type(error).__name__}: {error}"}
            self.save()
            print(table({part.name: self.rows[part.name]}).splitlines()[-1], file=sys.stderr)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return max(0.1, self._end - time.monotonic())

    def size(self, base: str) -> int:
        """The resolution of a base model."""
        return 32 if self.args.dry else SIZES[base]

    def folder(self, base: str) -> Path:
        """The folder of a base model, with random weights."""
        if self.args.dry:
            from tests.conftest import save_family

            place = self.work / base
            return place if place.is_dir() else save_family(_FAMILIES[base], place)
        place = bases.place(base, self.args.work, half=True)
        if not place.is_dir():  # in a process of its own, whose device memory is free afterwards
            limit = min(_WRITING, self.left)
            command = [sys.executable, "-m", "lab.speed.bases", base, str(self.args.work)]
            subprocess.run([*command, self.args.device], cwd=ROOT, check=True, timeout=limit)
        return place

    def _job(self, part: Part) -> Job:
        """The job of a part."""
        return Job(
            side=part.side,
            method=part.method,
            base=str(self.folder(part.base).resolve()),
            noun="dog",
            size=self.size(part.base),
            steps=1 + (2 if part.method == "generation" else self.args.steps),
            batch=1,
            concepts=part.concepts,
            sampling_steps=2 if self.args.dry else 25,
            device=self.args.device,
            precision="bf16" if self.args.device.startswith("cuda") else "fp32",
        )

    def _outcome(self, job: Job, limit: float) -> Outcome | str:
        if not self.args.dry:
            return run_in_process(job, self.work, limit)
        # Compiling takes a minute on a CPU.
        with patch.dict(os.environ, variables(self.work)), set_stance("force_eager"):
            return run_job(job)

    def run_tests(self) -> None:
        """Run the accelerator tests on this device; the last line of pytest is kept."""
        limit = min(self.args.test_seconds, self.left)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "accelerator", "-k", _TESTS]
        try:
            answer = subprocess.run(
                [*command, "-p", "no:cacheprovider", "tests/accelerator"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            self.tests = {"status": answer.returncode, "last_lines": lines[-20:]}
        except subprocess.TimeoutExpired as error:
            text = (error.stdout or b"").decode()
            why = f"stopped after {limit:.0f} s"
            self.tests = {"status": None, "last_lines": [*text.splitlines()[-20:], why]}
        self.save()

    def save(self) -> None:
        """Write everything that is known so far."""
        known = {
            "device": self.name,
            "peak_tflops": self.peak,
            "torch": report.version("torch"),
            "sizes": {base: self.size(base) for base in self.args.bases},
            "parts": self.rows,
            "accelerator_tests": self.tests,
        }
        self.args.json.parent.mkdir(parents=True, exist_ok=True)
        self.args.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every part was measured and the accelerator tests passed or were left out."""
    args = parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        measurement = Measurement(args, Path(work))
        measurement.run()
        if args.test_seconds:
            measurement.run_tests()
    print(f"{measurement.name}, peak {measurement.peak or 'unknown'} TFLOP/s in bf16")
    print(table(measurement.rows))
    failed = any("error" in one for one in measurement.rows.values())
    if measurement.tests:
        print("\n".join(measurement.tests["last_lines"]))
        failed = failed or measurement.tests["status"] != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
