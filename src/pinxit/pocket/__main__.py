"""Training pocket: `python -m pinxit.pocket train --work DIR`, then `package`, then `measure`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pinxit.pocket import (
    autoencoder,
    card,
    data,
    eyes_training,
    measure,
    package,
    painter,
    text_training,
)

SHARDS, VIEW_SHARDS = data.TRAIN_SHARDS, 8
STYLE_SHARDS = {data.NAMED_STYLE_SEED: 16, data.DRAWN_STYLE_SEED: 4}
ROUND_TRIPS = {1: 6, 3: 3, **dict.fromkeys(STYLE_SHARDS, 2)}  # shards by their seed
DECODER_STEPS, PAINTER_STEPS, SHARP_STEPS = 700, 17_500, 700


def stages(work: Path, seconds: float, device: str, size: str) -> Iterator[Iterator[str]]:
    """The parts of the training in their order; each goes on from what lies in `work`."""
    yield _rendered(work)
    whole = autoencoder.whole(work, device)
    yield autoencoder.train(whole, work, autoencoder.WHOLE, seconds)
    decoder = autoencoder.decoder(work, DECODER_STEPS, device)
    yield autoencoder.train(decoder, work, DECODER_STEPS, seconds)
    tokenizer = text_training.open_tokenizer(work)
    text_run = text_training.text_trainer(work, tokenizer, device)
    yield text_training.train_text(text_run, work, seconds)
    yield painter.train(painter.painting(work, PAINTER_STEPS, device, size), work, seconds)
    steps = DECODER_STEPS + SHARP_STEPS
    decoder, soften = autoencoder.decoder(work, steps, device), painter.softener(work, device, size)
    yield autoencoder.train(decoder, work, steps, seconds, soften)
    yield _sent_round(work, device)
    eyes_run = eyes_training.eyes_trainer(work, tokenizer, device)
    yield eyes_training.train_eyes(eyes_run, work, seconds)


def _rendered(work: Path) -> Iterator[str]:
    for seed, shards in {1: SHARDS, 2: 1, 3: VIEW_SHARDS, **STYLE_SHARDS}.items():
        for path in data.render_all(work / "shards", shards, seed):
            yield f"rendered {path.name}"


def _sent_round(work: Path, device: str) -> Iterator[str]:
    vae = autoencoder.trained(work, device)
    for seed, shards in ROUND_TRIPS.items():
        for number in range(shards):
            path = work / "shards" / f"shard-{seed}-{number:03d}.npz"
            eyes_training.make_round_trip(work, path, vae)
            yield f"round trip of {path.name}"


def train(work: Path, minutes: float, device: str, size: str) -> None:
    """Work for so many minutes at whatever is not done, in order; call again to go on."""
    begun = time.monotonic()
    for lines in stages(work, minutes * 60, device, size):
        for line in lines:
            print(f"{time.monotonic() - begun:6.0f} s  {line}", flush=True)
        if time.monotonic() - begun > minutes * 60:
            print("time is up; the same command goes on from here", flush=True)
            return
    print("everything is trained; next: package", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Train, package or measure pocket."""
    parser = argparse.ArgumentParser(prog="python -m pinxit.pocket", description=__doc__)
    parser.add_argument("what", choices=("train", "package", "measure"))
    parser.add_argument("--work", type=Path, default=Path("pocket-work"), help="work folder")
    parser.add_argument("--minutes", type=float, default=10, help="length of one chunk of training")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parser.add_argument("--device", default=str(accelerator or "cpu"))
    parser.add_argument("--size", choices=tuple(painter.SIZES), default="small", help="U-Net's")
    parser.add_argument("--into", type=Path, default=measure.folder(), help="packaged weights")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--pictures", type=int, default=128, help="pictures painted to measure")
    parser.add_argument("--photographs", type=Path, help="a folder of real pictures, for the PSNR")
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/pocket.png"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    if chosen.what == "train":
        chosen.work.mkdir(parents=True, exist_ok=True)
        train(chosen.work, chosen.minutes, chosen.device, chosen.size)
    elif chosen.what == "package":
        print(package.write(chosen.work, chosen.into, chosen.size))
    else:
        card.write(chosen.pictures, chosen.photographs, chosen.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
