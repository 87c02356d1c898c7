"""Valid files, damaged in every way, given to our readers: nothing may run, crash or hang.

Input n is a function of the seed and n alone. `python -m lab.security.fuzz --inputs N
[--seconds S]` prints figures as one line of JSON; inputs that found something stay in build/fuzz.
"""

import argparse
import io
import json
import pickletools
import random
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from lab.security.hostile import in_legacy, in_zip, named, routes, text, whole, zipped
from lab.security.watch import FOLDER, Watch
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.torch_file import read_pickled

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "fuzz"
CHUNK = 100_000  # inputs of one process
_EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_WORDS = (
    *routes("posix", "system"),
    *(b"(", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"b", b"R", b"Q", b"t", b"\x81", b"o", b"."),
    *(named("torch._utils", "_rebuild_tensor_v2"), named("torch", "HalfStorage"), text("0")),
    *(whole(-1), whole(2**63), whole(2**200), b"h\0", b"q\0", b"]", b"}", b")", b"N", b"\x88"),
)

Mutation = Callable[[random.Random, bytes], bytes]


def contents() -> list[object]:
    """What the valid files hold."""
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    shared = {"whole": base, "part": base[1:4, ::2], "half": base.half(), "flags": base > 0}
    parameters = nn.ParameterDict({"*": nn.Parameter(torch.randn(2, 4))})
    return [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": base}, "name": "x", "step": 1},
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters},
        {"state_dict": nn.Linear(3, 2).state_dict(), "epoch": 1, "lr": [1e-3, (0.9, 0.999)]},
        {"views": shared, 1: [None, True, b"raw", {2, 3}], "bf16": base.bfloat16()},
    ]


def torch_files() -> list[bytes]:
    """Valid files of torch's, in both layouts and several protocols."""
    files: list[bytes] = []
    for value in contents():
        for new in (True, False):
            for protocol in (2, 4):
                file = io.BytesIO()
                torch.save(
                    value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=new
                )
                files.append(file.getvalue())
    return files


def safetensors_files() -> list[bytes]:
    """Valid safetensors files."""
    first = {"emb_params": torch.randn(2, 8)}
    second = {
        "clip_l": torch.randn(1, 4).half(),
        "clip_g": torch.ones(1, 6),
        "none": torch.empty(0),
    }
    return [save(first), save(second, {"modelspec.title": "x"}), save({})]


def pickles() -> list[list[bytes]]:
    """The pickles of the valid files, each cut into its instructions."""
    found: list[list[bytes]] = []
    for value in contents():
        file = io.BytesIO()
        torch.save(value, file)
        raw = file.getvalue()
        start = raw.index(b"\x80\x02")
        places = [place or 0 for _, _, place in pickletools.genops(raw[start:])]
        ends = [*places[1:], places[-1] + 1]
        found.append([raw[start + a : start + b] for a, b in zip(places, ends, strict=True)])
    return found


def flip(draw: random.Random, raw: bytes) -> bytes:
    """Some bits the other way round."""
    changed = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8, 32))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def extreme(draw: random.Random, raw: bytes) -> bytes:
    """A number at a limit, somewhere."""
    form = draw.choice(("<H", "<I", "<Q"))
    at = draw.randrange(max(1, len(raw) - 8))
    value = draw.choice(_EXTREMES) & (1 << 8 * struct.calcsize(form)) - 1
    return raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form) :]


def cut(draw: random.Random, raw: bytes) -> bytes:
    """Cut off, or with a hole."""
    a, b = sorted((draw.randrange(len(raw)), draw.randrange(len(raw))))
    return raw[:b] if draw.random() < 0.5 else raw[:a] + raw[b:]


def again(draw: random.Random, raw: bytes) -> bytes:
    """A piece of it twice, at another place."""
    a, b = sorted((draw.randrange(len(raw)), draw.randrange(len(raw))))
    at = draw.randrange(len(raw))
    return raw[:at] + raw[a : min(b, a + 256)] + raw[at:]


def insert(draw: random.Random, raw: bytes) -> bytes:
    """An instruction or noise put in."""
    at = draw.randrange(len(raw))
    word = draw.choice(_WORDS) if draw.random() < 0.7 else draw.randbytes(draw.randrange(1, 9))
    return raw[:at] + word + raw[at + draw.choice((0, len(word))) :]


BYTES: tuple[Mutation, ...] = (flip, flip, extreme, cut, again, insert)


def instructions(draw: random.Random, steps: list[bytes], other: list[bytes]) -> bytes:
    """A pickle whose instructions are exchanged, repeated, left out or replaced."""
    steps = list(steps)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(1, len(steps))
        match draw.randrange(6):
            case 0:
                steps.insert(at, draw.choice(_WORDS))
            case 1:
                steps[at] = draw.choice(_WORDS)
            case 2:
                del steps[at]
            case 3:
                steps[at] = draw.choice(other)
            case 4:
                a = draw.randrange(len(other))
                steps[at:at] = other[a : a + draw.randrange(1, 20)]
            case _:
                to = draw.randrange(1, len(steps))
                steps[at], steps[to] = steps[to], steps[at]
    return b"".join(steps)


class Inputs:
    """The inputs by their number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.torch = torch_files()
        self.safe = safetensors_files()
        self.pickles = pickles()

    def of(self, number: int) -> tuple[bytes, Callable[[Path], Any]]:
        """One input, and the reader that it is for."""
        draw = random.Random(self.seed << 40 | number)
        kind = draw.random()
        if kind < 0.4:
            pickle = instructions(draw, draw.choice(self.pickles), draw.choice(self.pickles))
            return self._wrapped(draw, pickle), read_pickled
        files, read = (self.torch, read_pickled) if kind < 0.9 else (self.safe, read_safetensors)
        raw = draw.choice(files)
        for _ in range(draw.choice((1, 1, 2, 3))):
            raw = draw.choice(BYTES)(draw, raw) or b"\0"
        return raw, read

    def _wrapped(self, draw: random.Random, pickle: bytes) -> bytes:
        if draw.random() < 0.5:
            return in_legacy(pickle, bytes(96))
        if draw.random() < 0.5:
            return in_zip(pickle, bytes(96))
        stored = [(f"a/data/{n}", bytes(size), {}) for n, size in enumerate((96, 48, 8, 24))]
        return zipped([("a/data.pkl", pickle, {}), *stored, ("a/byteorder", b"little", {})])


def work(seed: int, first: int, count: int, until: float, folder: Path) -> dict[str, Any]:
    """Try some inputs in this process; how many came to what."""
    inputs, found = Inputs(seed), Counter[str]()
    path, progress = folder / "input", folder / "progress"
    warnings.simplefilter("ignore")
    watch = Watch()
    for number in range(first, first + count):
        if number % 100 == 0:
            progress.write_text(str(number))
            if time.time() > until:
                break
        raw, read = inputs.of(number)
        path.write_bytes(raw)
        outcome = watch.outcome(read, path)
        found["inputs"] += 1
        found[outcome] += 1
        if outcome not in ("read", "refused"):
            keep(raw, number)
    return {**found, "events": dict(watch.events)}


def keep(raw: bytes, number: int) -> None:
    """Leave an input that found something where it can be looked at."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / str(number)).write_bytes(raw)


def campaign(seed: int, inputs: int, seconds: float) -> dict[str, Any]:
    """Try inputs, a process for each chunk; a process that dies is a crash of its last input."""
    total, until = Counter[str](), time.time() + seconds
    began = time.time()
    for first in range(0, inputs, CHUNK):
        if time.time() > until:
            break
        count = min(CHUNK, inputs - first)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            given = ["--work", str(first), str(count), str(until), folder, "--seed", str(seed)]
            run = subprocess.run(
                [sys.executable, "-m", "lab.security.fuzz", *given],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if run.returncode:
                total["crash"] += 1
                total["inputs"] += int((Path(folder) / "progress").read_text()) - first
                keep((Path(folder) / "input").read_bytes(), first)
            else:
                answer = json.loads(run.stdout.splitlines()[-1])
                print(answer.pop("events") or "", file=sys.stderr, end="")
                total.update(answer)
    return {
        "seed": seed,
        "inputs": total["inputs"],
        "code run": total["code run"],
        "crashes": total["crash"],
        "hangs": total["hang"],
        "refused": total["refused"],
        "read": total["read"],
        "seconds": round(time.time() - began),
    }


def main() -> None:
    """Print the figures, or those of one process's share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=4)
    asked = parser.parse_args()
    if asked.work:
        first, count, until, folder = asked.work
        figures = work(asked.seed, int(first), int(count), float(until), Path(folder))
    else:
        figures = campaign(asked.seed, asked.inputs, asked.seconds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
