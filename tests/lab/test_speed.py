"""The benchmarks run, and count what is known; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.speed import report
from lab.speed.arithmetic import count_operations
from lab.speed.job import METHODS, SIDES, Job, Outcome
from lab.speed.worker import run_job

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One method by both sides on the nano base, one short round, each in its own process."""
    kept = tmp_path_factory.mktemp("benchmarks") / "found.json"
    asked = [sys.executable, "-m", "lab.speed", "--base", str(nano), "--json", str(kept)]
    asked += ["--rounds", "1", "--steps", "2", "--methods", "lora", "--size", "32"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(asked, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {**json.loads(kept.read_text(encoding="utf-8")), "table": ran.stdout}


@pytest.mark.long
def test_both_sides_are_measured_and_compared(found: dict[str, Any]) -> None:
    for side in SIDES:
        (outcome,) = found["outcomes"]["lora"][side]
        assert len(outcome["steps"]) == 2
        assert outcome["peak_gb"] > 0.1  # a Python with torch is larger
    assert found["ratios"]["lora"]["speed"]["median"] > 0
    assert "\nlora" in found["table"]


@pytest.mark.long
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_both_sides(
    nano: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, method: str, side: str
) -> None:
    monkeypatch.setenv("PINXIT_BENCH_PICTURES", str(pictures))
    job = Job(side, method, str(nano), "dog", 32, 3, 1, 1, 3, "cpu", "fp32")
    outcome = run_job(job)
    assert len(outcome.steps) == 2
    assert min(outcome.steps) > 0


def test_ratios_are_of_turns_side_by_side() -> None:
    def outcome(seconds: float, gigabytes: float, concepts: int = 1) -> Outcome:
        memory = (gigabytes, gigabytes, gigabytes, gigabytes, 0.0)
        rates = {"fp32": 1.0}
        return Outcome(
            concepts, 1.0, 9.0, (seconds, seconds), (seconds, seconds), *memory, 1, rates
        )

    sides = {
        "plain": [outcome(8, 6), outcome(16, 6), outcome(8, 6)],
        "pinxit": [outcome(2, 3), outcome(8, 3), outcome(8, 3, concepts=4)],
    }
    settings = {"base": "pocket", "size": 64, "device": "cpu", "batch": 1, "concepts": 1}
    ratios: Any = report.to_dict({"lora": sides}, settings)["ratios"]
    assert ratios["lora"]["speed"] == {"median": 4.0, "least": 2.0, "most": 4.0}
    assert ratios["lora"]["memory"]["median"] == 2.0


def test_operations_and_activations_are_those_of_a_layer_done_by_hand() -> None:
    """Two linear layers, one frozen: counts are 2 a multiply-add, and nobody keeps what it lost."""
    with torch.device("meta"):
        first, second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
    first.requires_grad_(False)
    layers = {"first": first, "second": second}
    count = count_operations(lambda: second(first(torch.empty(5, 8))), layers)
    assert count.forward == {"convolution": 0, "linear": 2 * 5 * (8 * 16 + 16 * 4), "attention": 0}
    assert count.backward["linear"] == 2 * 5 * 16 * 4  # the second's weights only
    assert count.activations == 5 * 16  # what went into the second
    first.requires_grad_(True)
    count = count_operations(lambda: second(first(torch.empty(5, 8))), layers)
    assert count.backward["linear"] == 2 * 5 * (2 * 16 * 4 + 8 * 16)
    assert count.activations == 5 * (8 + 16)


def test_attention_keeps_no_scores() -> None:
    def attended() -> torch.Tensor:
        q, k, v = (torch.empty(1, 2, length, 4).requires_grad_() for length in (6, 10, 10))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    count = count_operations(attended, {})
    assert count.forward["attention"] == 2 * 2 * (6 * 10 * 4) * 2
    assert count.backward["attention"] == 2 * count.forward["attention"]
    assert count.activations == 2 * 4 * (6 + 10 + 10 + 6)
