"""The benchmarks run, and count what is known; how fast anything is, no test says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.speed import bases, device, report
from lab.speed.__main__ import main, run_in_process
from lab.speed.arithmetic import count_operations
from lab.speed.job import METHODS, SIDES, Job, Outcome
from lab.speed.worker import run_job
from pinxit.models.open_base import open_base


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


def test_operations_and_activations_equal_a_hand_count() -> None:
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


@pytest.mark.long
def test_everything_for_a_gpu_runs_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "device.json"
    assert device.main(["--dry", "--peak", "1", "--json", str(file)]) == 0
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    assert list(parts) == [part.name for part in device.PARTS]
    one, eight = (parts[f"sd15 lora x{concepts} pinxit"] for concepts in (1, 8))
    assert one["predicted_gb"] > 0.1
    assert eight["tflop"] == pytest.approx(8 * one["tflop"])
    assert eight["images_per_second"] == pytest.approx(8 / eight["seconds"])
    assert one["mfu"] == pytest.approx(one["tflop"] / one["seconds"])
    assert f"\n{device.PARTS[0].name} " in capsys.readouterr().out


def test_a_part_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    """Here no time is left to write the base; every part has that as its reason."""
    arguments = ["--device", "cpu", "--seconds", "0", "--test-seconds", "0", "--bases", "sd15"]
    file, work = tmp_path / "device.json", tmp_path / "bases"
    assert device.main([*arguments, "--json", str(file), "--work", str(work)]) == 1
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    assert len(parts) == sum(part.base == "sd15" for part in device.PARTS) > 1
    assert all("TimeoutExpired" in one["error"] for one in parts.values())


def test_a_job_ends_at_its_time_limit(tmp_path: Path) -> None:
    job = Job("plain", "lora", "none", "dog", 32, 3, 1, 1, 3, "cpu", "fp32")
    assert run_in_process(job, tmp_path, limit=0.1) == "stopped after 0 s"


@pytest.mark.long
@pytest.mark.parametrize("name", ["sd15", "z-image"])
def test_bases_of_random_weights_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    narrow = {"block_out_channels": (32, 32, 32, 32)}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    monkeypatch.setitem(bases._UNETS["sd15"], "block_out_channels", (32, 32, 32, 32))
    monkeypatch.setitem(bases._UNETS["sd15"], "cross_attention_dim", 32)
    monkeypatch.setattr(bases, "AUTOENCODER", {**bases.AUTOENCODER, **narrow})
    monkeypatch.setattr(bases, "FIRST", {**bases.FIRST, **text, "num_attention_heads": 2})
    monkeypatch.setattr(bases, "QWEN", {**bases.QWEN, **text})
    small = {"dim": 64, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    axes = {"cap_feat_dim": 32, "axes_dims": [16, 8, 8]}
    monkeypatch.setattr(bases, "_Z_IMAGE", {**small, **axes})
    folder = bases.folder(name, tmp_path, half=True)
    model = open_base(folder, "cpu", "bf16")
    weights = [weight for weight in model.networks["denoiser"].parameters()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert all(weight.isfinite().all() for weight in weights)
    assert torch.get_default_dtype() == torch.float32
