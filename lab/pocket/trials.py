# pyright: standard, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPrivateImportUsage=false
"""Compares choices in the training of pocket's U-Net: joint accuracy gained per core hour.

`python -m lab.pocket.trials --work WORK --seconds 240` continues the same training state (or starts
from scratch) for the same CPU time on one thread in each experiment, and measures the images with
pocket's eyes. Experiments in WORK/trials.json are not run again. The last line is JSON.
"""

import argparse
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from pinxit.pocket import autoencoder, eyes_training, measure, painter, text_training
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes

LATER = 50_000  # steps of a schedule that holds its rate all through a experiment


@dataclass(frozen=True)
class Experiment:
    """One choice: changed constants of the painter, and where training starts."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    from_nothing: bool = False
    fresh_text: bool = False


EXPERIMENTS = (
    Experiment("as it is"),
    Experiment("batch of 16", {"BATCH": 16}),
    Experiment("batch of 64", {"BATCH": 64}),
    Experiment("no min-SNR weighting", {"MIN_SNR": 1e9}),
    Experiment("min-SNR 1", {"MIN_SNR": 1.0}),
    Experiment("no weight on the subject", {"SUBJECT_WEIGHT": 0.0}),
    Experiment("weight 3 on the subject", {"SUBJECT_WEIGHT": 3.0}),
    Experiment("fuller scenes no more often", {"FULLER": 0.0}),
    Experiment("fused attention", {"AttnProcessor": AttnProcessor2_0}),
    Experiment("from nothing, plain ground first", from_nothing=True),
    Experiment("from nothing, everything at once", {"GROUND_FIRST": 0}, from_nothing=True),
    Experiment("from nothing, text untaught", from_nothing=True, fresh_text=True),
)


def main() -> None:
    """Run the experiments that are not done yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fork", type=Path, help="training state of the U-Net to start from")
    parser.add_argument("--seconds", type=float, default=240, help="CPU time of an experiment")
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    results_file = args.work / "trials.json"
    results: dict[str, Any] = json.loads(results_file.read_text()) if results_file.exists() else {}
    trials = {experiment.name: partial(run, experiment, args) for experiment in EXPERIMENTS}
    for name, measured in ({"the fork": partial(at_first, args)} | trials).items():
        if name not in results:
            results[name] = measured()
            results_file.write_text(json.dumps(results, indent=1))
            print(name, results[name], flush=True)
    print(json.dumps(results))


def at_first(args: argparse.Namespace) -> dict[str, float]:
    """The accuracy before the experiments."""
    return accuracy(args.work, _state(args.fork, args.work, False), args)


def run(experiment: Experiment, args: argparse.Namespace) -> dict[str, float]:
    """Train for the given CPU time; returns accuracy and number of steps."""
    with patch.multiple(painter, **experiment.settings) if experiment.settings else nullcontext():
        state = _state(args.fork, args.work, experiment.from_nothing)
        steps, spent = _train(experiment, state, args)
        result = accuracy(args.work, state, args)
    return result | {"steps": steps, "core seconds": round(spent, 1)}


def _train(experiment: Experiment, state: Path, args: argparse.Namespace) -> tuple[int, float]:
    training = painter.Trainer(state, painter.build(), painter.RATE, LATER, 20, 0.98)
    tokenizer = text_training.open_tokenizer(args.work)
    text = text_training.trained_text(args.work, tokenizer)
    if experiment.fresh_text:
        text = text_training.build_text(tokenizer).requires_grad_(False)
    encoded = painter.encode(args.work, autoencoder.trained(args.work))
    first, begun = training.step, time.process_time()
    for _ in painter.learn(training, text, tokenizer, encoded, 1e9):
        if time.process_time() - begun > args.seconds:
            break
    training.save()
    return training.step - first, time.process_time() - begun


def _state(fork: Path | None, work: Path, from_nothing: bool) -> Path:
    path = work / "experiment.safetensors"
    path.unlink(missing_ok=True)
    if not from_nothing and fork is not None:
        shutil.copy(fork, path)
    return path


def accuracy(work: Path, state: Path, args: argparse.Namespace) -> dict[str, float]:
    """The prompt accuracy of a state's averaged weights: attributes, all four, two objects."""
    tokenizer = text_training.open_tokenizer(work)
    vae: AutoencoderKL = autoencoder.trained(work)
    vae.register_to_config(scaling_factor=float((work / painter.SCALE).read_text()))
    unet = painter.Trainer(state, painter.build(), 0.0, 1).averaged()
    eyes: Eyes = eyes_training.trained_eyes(work, tokenizer)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_training.trained_text(work, tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**painter.SCHEDULE, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    asked = measure.combinations(False, args.images)
    generated = measure.paint(pipe, [prompt(*a) for a in asked], 3.0, 15, 1000)
    right = measure.right(eyes, torch.cat([part for _, part in generated]), asked)
    joint = right.pop("joint")
    sides: list[float] = []
    for relation in ("left", "right"):
        scenes = measure.richer(relation, args.images // 2)
        parts = measure.paint(pipe, [measure.prompt_of(s) for s in scenes], 3.0, 15, 3000)
        images = torch.cat([part for _, part in parts])
        sides.append(measure.heard(eyes, images, scenes, measure.RICHER[relation]))
    accuracies = {
        "attributes": np.mean([*right.values()]),
        "joint": joint,
        "two things": np.mean(sides),
    }
    return {what: round(float(share), 4) for what, share in accuracies.items()}


if __name__ == "__main__":
    main()
