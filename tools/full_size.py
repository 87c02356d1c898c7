# pyright: standard, reportPrivateImportUsage=false, reportArgumentType=false
"""Real shapes, random weights: time and memory that a base of full size takes.

Makes a checkpoint with exactly the shapes of Stable Diffusion 1.5 or XL as a folder in half
precision (once, in the work folder), then teaches and paints with it as a user does, each command
in a process of its own. The last line on stdout is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from pinxit.pocket import gallery

# What differs from diffusers' and transformers' own defaults, which are those of 1.x.
_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768},
    "xl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_SECOND = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "pad_token_id": 0,
}
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make(family: str, folder: Path) -> None:
    """Write the checkpoint, one network after the other so that memory holds only one."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.set_default_dtype(torch.float16)
    clip = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    first = {**clip, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    first |= {"num_attention_heads": 12, "projection_dim": 768}
    CLIPTextModel(CLIPTextConfig(**first)).save_pretrained(folder / "text_encoder")
    if family == "xl":
        second = CLIPTextModelWithProjection(CLIPTextConfig(**{**clip, **_SECOND}))
        second.save_pretrained(folder / "text_encoder_2")
        del second
    for end in ("", "_2")[: 2 if family == "xl" else 1]:
        shutil.copytree(Path(str(files("pinxit"))) / "layouts" / "clip", folder / f"tokenizer{end}")
    widths = (128, 256, 512, 512)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if family == "xl" else 0.18215,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(**_UNETS[family]).save_pretrained(folder / "unet")
    DDIMScheduler(**_NOISE).save_pretrained(folder / "scheduler")


def watched(words: list[str]) -> dict[str, float]:
    """Run a command of pinxit; its seconds and its peak of resident memory in GB."""
    print(" ".join(words), file=sys.stderr, flush=True)
    began = time.perf_counter()
    pinxit = str(Path(sys.executable).with_name("pinxit"))
    process = subprocess.Popen([pinxit, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"it failed: pinxit {' '.join(words)}")
    return {"seconds": time.perf_counter() - began, "peak_gb": used.ru_maxrss * 1024 / 1e9}


def main() -> None:
    """Make the checkpoint if it is not there, and try each command on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=_UNETS, default="sd1", help="whose shapes")
    parser.add_argument("--methods", nargs="*", default=["textual-inversion"], help="which to try")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=3, help="of learning")
    parser.add_argument("--painting-steps", type=int, default=10, help="of painting")
    parser.add_argument("--prior", type=int, default=8, help="class pictures for DreamBooth")
    parser.add_argument("--precision", default="fp32", help="numbers to compute in")
    parser.add_argument("--work", type=Path, default=Path("build/full-size"), help="work folder")
    given = parser.parse_args()
    base = given.work / given.family
    if not base.is_dir():
        beside = given.work / f".{given.family}"
        shutil.rmtree(beside, ignore_errors=True)
        make(given.family, beside)
        beside.rename(base)
    common = ["--base", str(base), "--precision", given.precision]
    found: dict[str, object] = {"family": given.family, "size": given.size}
    for method in given.methods:
        run = given.work / f"{given.family}-{method}"
        shutil.rmtree(run, ignore_errors=True)
        knobs = ["--prior-pictures", str(given.prior)] if method == "dreambooth" else []
        words = ["train", method, str(gallery.folder() / "subject"), "--token", "<mytoy>"]
        words += ["--class-noun", "dog", "--steps", str(given.steps), "--batch-size", "1"]
        words += ["--size", str(given.size), "--preview-every", "0", "--out", str(run)]
        found[method] = watched([*words, *common, *knobs])
        steps = [json.loads(line) for line in (run / "journal.jsonl").open(encoding="utf-8")]
        found[f"{method}: seconds a step"] = [step["seconds"] for step in steps]
        shutil.rmtree(run)
    painted = given.work / "painted"
    words = ["generate", "a photo of a dog", "--count", "1", "--size", str(given.size)]
    words += ["--steps", str(given.painting_steps), "--out", str(painted)]
    found["painting"] = watched([*words, *common])
    shutil.rmtree(painted)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
