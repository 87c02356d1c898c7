# pyright: standard, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPrivateImportUsage=false
"""What a choice in the training of pocket's U-Net is worth: joint accuracy gained per core-hour.

`python -m lab.pocket.trials --work WORK --seconds 240` lets every trial go on from one and the
same state (or from nothing) for the same processor time on one thread, and has the eyes look at
what it paints. Trials that are in WORK/trials.json are not done again. The last line is JSON.
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

from pinxit.pocket import autoencoder, eyes_training, measure, painter
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes

LATER = 50_000  # steps of a schedule that holds its rate all through a trial


@dataclass(frozen=True)
class Trial:
    """One choice: constants of the painter that differ, and where it starts."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    from_nothing: bool = False
    fresh_text: bool = False


TRIALS = (
    Trial("as it is"),
    Trial("batch of 16", {"BATCH": 16}),
    Trial("batch of 64", {"BATCH": 64}),
    Trial("no min-SNR weighting", {"MIN_SNR": 1e9}),
    Trial("min-SNR 1", {"MIN_SNR": 1.0}),
    Trial("no weight on the subject", {"SUBJECT_WEIGHT": 0.0}),
    Trial("weight 3 on the subject", {"SUBJECT_WEIGHT": 3.0}),
    Trial("fuller scenes no more often", {"FULLER": 0.0}),
    Trial("fused attention", {"AttnProcessor": AttnProcessor2_0}),
    Trial("from nothing, plain ground first", from_nothing=True),
    Trial("from nothing, everything at once", {"GROUND_FIRST": 0}, from_nothing=True),
    Trial("from nothing, text untaught", from_nothing=True, fresh_text=True),
)


def main() -> None:
    """Run the trials that are not yet done, and print them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fork", type=Path, help="a state of the U-Net to go on from")
    parser.add_argument("--seconds", type=float, default=240, help="processor time of a trial")
    parser.add_argument("--pictures", type=int, default=96)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    kept = chosen.work / "trials.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    trials = {trial.name: partial(run, trial, chosen) for trial in TRIALS}
    for name, measured in ({"the fork": partial(at_first, chosen)} | trials).items():
        if name not in found:
            found[name] = measured()
            kept.write_text(json.dumps(found, indent=1))
            print(name, found[name], flush=True)
    print(json.dumps(found))


def at_first(chosen: argparse.Namespace) -> dict[str, float]:
    """Look at where the trials begin."""
    return seen_by(chosen.work, _state(chosen.fork, chosen.work, False), chosen)


def run(trial: Trial, chosen: argparse.Namespace) -> dict[str, float]:
    """Train for the time, look, and say how many steps it was."""
    with patch.multiple(painter, **trial.settings) if trial.settings else nullcontext():
        state = _state(chosen.fork, chosen.work, trial.from_nothing)
        steps, spent = _trained(trial, state, chosen)
        result = seen_by(chosen.work, state, chosen)
    return result | {"steps": steps, "core seconds": round(spent, 1)}


def _trained(trial: Trial, state: Path, chosen: argparse.Namespace) -> tuple[int, float]:
    training = painter.Trainer(state, painter.build(), painter.RATE, LATER, 20, 0.98)
    tokenizer = eyes_training.open_tokenizer(chosen.work)
    text = eyes_training.trained_text(chosen.work, tokenizer)
    if trial.fresh_text:
        text = eyes_training.build_text(tokenizer).requires_grad_(False)
    encoded = painter.encode(chosen.work, autoencoder.trained(chosen.work))
    first, begun = training.step, time.process_time()
    for _ in painter.learn(training, text, tokenizer, encoded, 1e9):
        if time.process_time() - begun > chosen.seconds:
            break
    training.save()
    return training.step - first, time.process_time() - begun


def _state(fork: Path | None, work: Path, from_nothing: bool) -> Path:
    path = work / "trial.safetensors"
    path.unlink(missing_ok=True)
    if not from_nothing and fork is not None:
        shutil.copy(fork, path)
    return path


def seen_by(work: Path, state: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Shares that a state's averaged weights paint right: attributes, all four, two things."""
    tokenizer = eyes_training.open_tokenizer(work)
    vae: AutoencoderKL = autoencoder.trained(work)
    vae.register_to_config(scaling_factor=float((work / painter.SCALE).read_text()))
    unet = painter.Trainer(state, painter.build(), 0.0, 1).averaged()
    eyes: Eyes = eyes_training.trained_eyes(work, tokenizer)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=eyes_training.trained_text(work, tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**painter.SCHEDULE, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    asked = measure.combinations(False, chosen.pictures)
    painted = measure.paint(pipe, [prompt(*a) for a in asked], 3.0, 15, 1000)
    right = measure.right(eyes, torch.cat([part for _, part in painted]), asked)
    joint = right.pop("joint")
    sides: list[float] = []
    for relation in ("left", "right"):
        scenes = measure.richer(relation, chosen.pictures // 2)
        parts = measure.paint(pipe, [measure.prompt_of(s) for s in scenes], 3.0, 15, 3000)
        images = torch.cat([part for _, part in parts])
        sides.append(measure.heard(eyes, images, scenes, measure.RICHER[relation]))
    found = {"attributes": np.mean([*right.values()]), "joint": joint, "two things": np.mean(sides)}
    return {what: round(float(share), 4) for what, share in found.items()}


if __name__ == "__main__":
    main()
