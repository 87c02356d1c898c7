"""The commands whose results are compared, in the syntax of the first version.

Where a default or a meaning has changed on purpose, they say what both versions do in the same way:
the rank of a LoRA, and a style without "in the style of".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command line of pinxit without the program's name.

    `{inputs}` stands for the folder of images and bases. `foreign` means that other programs read
    its files, so that the names of tensors are part of the result.
    """

    name: str
    line: str
    foreign: bool = False


_TOY = "{inputs}/toy --token <mytoy> --class-noun toy --seed 3"
_WORD = f"train textual-inversion {_TOY} --batch-size 2"
_QUIET = "--preview-every 0 --checkpoint-every 10"
_GENERATE = "generate 'a photo of a <mytoy>' --steps 6 --count 2"
_TRANSFER = "transfer {inputs}/toy/2.png 'a photo, <mystyle>' --concept run"


def _lora_kind(kind: str) -> Command:
    line = f"train lora {_TOY} --adapter {kind} --prior-pictures 0 --batch-size 1 --steps 5"
    return Command(f"lora kind {kind}", f"{line} {_QUIET} --out {kind}")


# The commands of one chain run one after another in a folder of their own; chains are independent.
# A run is stopped by its number of steps: a signal would arrive at another step each time.
CHAINS: dict[str, tuple[Command, ...]] = {
    "object": (
        Command(
            "textual-inversion object",
            f"{_WORD} --steps 20 --preview-every 20 --look-every 5 --stop 1e-12 --out run",
        ),
        Command("guidance 5", f"{_GENERATE} --concept run --out guidance-5"),
        Command("guidance 1", f"{_GENERATE} --concept run --guidance 1 --out guidance-1"),
        Command("a1111 pt", "convert run word.pt --format a1111", foreign=True),
        Command("a1111 safetensors", "convert run word.safetensors", foreign=True),
    ),
    "style": (
        Command(
            "textual-inversion style",
            "train textual-inversion {inputs}/style --token <mystyle> --class-noun painting "
            f"--kind style --batch-size 2 --steps 20 {_QUIET} --out run",
        ),
        Command("inversion", f"{_TRANSFER} --control inversion --steps 6 --out inversion"),
        Command("masactrl", f"{_TRANSFER} --control masactrl --steps 6 --out masactrl"),
    ),
    "resume": (
        Command("before a stop", f"{_WORD} --steps 12 {_QUIET} --flip --min-snr 5 --out run"),
        Command("after a stop", "train --resume run --steps 20"),
    ),
    "dreambooth": (
        Command(
            "dreambooth",
            f"train dreambooth {_TOY} --prior-pictures 2 --batch-size 2 --train-text-encoder "
            f"--steps 20 {_QUIET} --out run",
        ),
        Command(
            "negative prompt",
            f"{_GENERATE} --concept run --negative 'a red toy' --scheduler dpm++ --out images",
        ),
    ),
    "lora": (
        Command(
            "lora",
            f"train lora {_TOY} --prior-pictures 2 --rank 4 --batch-size 2 --steps 20 {_QUIET} "
            "--out run",
        ),
        Command(
            "img2img", f"{_GENERATE} --concept run:0.7 --init {{inputs}}/toy/1.png --out images"
        ),
        Command("kohya", "convert run lora.safetensors", foreign=True),
        Command("diffusers-lora", "convert run folder --format diffusers-lora", foreign=True),
    ),
    "kinds": tuple(_lora_kind(kind) for kind in ("dora", "loha", "lokr", "oft")),
    "many": (
        Command(
            "train-many",
            "train-many textual-inversion {inputs}/subjects --class-noun toy --batch-size 1 "
            f"--steps 10 {_QUIET} --out runs",
        ),
        Command("scheduler", "generate 'a red (toy:1.3)' --scheduler euler --steps 6 --out euler"),
    ),
    "other families": (
        Command(
            "xl textual-inversion",
            f"{_WORD} --base {{inputs}}/xl --steps 20 {_QUIET} --out word",
        ),
        Command(
            "xl lora",
            f"train lora {_TOY} --base {{inputs}}/xl --prior-pictures 0 --rank 4 --word new "
            f"--train-text-encoder --batch-size 1 --steps 20 {_QUIET} --out lora",
        ),
        Command("xl generate", f"{_GENERATE} --concept lora --out images"),
        Command("xl kohya", "convert lora lora.safetensors", foreign=True),
        Command(
            "sd3 textual-inversion",
            f"{_WORD} --base {{inputs}}/sd3 --steps 10 {_QUIET} --out sd3",
        ),
    ),
}
