"""The benchmarks run, and count what is known; how fast anything is, no test says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.speed import report
from lab.speed.__main__ import main
from lab.speed.arithmetic import count_operations
from lab.speed.job import METHODS, SIDES, Job, Outcome
from lab.speed.worker import run_job


@pytest.mark.long
def test_both_sides_are_measured_and_compared(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One method by both sides on the nano base, one short round, each in its own process."""
    file = tmp_path / "results.json"
    options = ["--base", str(nano), "--json", str(file), "--methods", "lora"]
    assert main([*options, "--rounds", "1", "--steps", "2", "--size", "32"]) == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    for side in SIDES:
        (outcome,) = results["outcomes"]["lora"][side]
        assert len(outcome["steps"]) == 2
        assert outcome["peak_gb"] > 0.1  # a Python with torch is larger
    assert results["ratios"]["lora"]["speed"]["median"] > 0
    assert "\nlora" in capsys.readouterr().out


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
