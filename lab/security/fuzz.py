"""Damage valid files of every format and read them: no code may run, nothing may crash or hang.

Input n depends only on the seed and n. `python -m lab.security.fuzz --inputs N [--seconds S]`
prints figures as one line of JSON; inputs that cause a failure are saved in build/fuzz.
"""

import argparse
import io
import json
import pickletools
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from lab.security.doors import Door, doors
from lab.security.hostile import in_legacy, in_zip, named, routes, text, whole, zipped
from lab.security.watch import FOLDER, Watch
from pinxit import registry
from pinxit.errors import PinxitError
from pinxit.files.pickle.torch_file import read_torch_file
from pinxit.files.safetensors_file import read_safetensors

ROOT = Path(__file__).resolve().parents[2]
FAILURES = ROOT / "build" / "fuzz"
CHUNK = 100_000  # inputs per process
_EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_INSTRUCTIONS = (
    *routes("posix", "system"),
    *(b"(", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"b", b"R", b"Q", b"t", b"\x81", b"o", b"."),
    *(named("torch._utils", "_rebuild_tensor_v2"), named("torch", "HalfStorage"), text("0")),
    *(whole(-1), whole(2**63), whole(2**200), b"h\0", b"q\0", b"]", b"}", b")", b"N", b"\x88"),
)

_TEXTS = (
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"1.5",
        b"",
        b"\0",
        b"\r",
        b"\n",
    ),
    *(b'"', b'""', b"[]", b"{}", b"[" * 2000, b"{'a':" * 50, b'{"":' * 500, b"\\ud800", b"\xff"),
    *(
        b"../../x",
        b"/etc/passwd",
        b"__proto__",
        b"\xe2\x80\xa8",
        b"\x1b[31m",
        b"a" * 70_000,
        b"1e-400",
    ),
    *(
        b"${x}",
        b"{0.__class__}",
        b"%s",
        b"=cmd|x",
        b"0x10",
        b"1_000",
        b"-9223372036854775809",
        b"()",
    ),
)

Mutation = Callable[[random.Random, bytes], bytes]


def contents() -> list[object]:
    """The contents of the valid files."""
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
    """Valid PyTorch files in both layouts and two protocols."""
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
    """The pickles of the valid files, each as a list of its instructions."""
    split: list[list[bytes]] = []
    for value in contents():
        file = io.BytesIO()
        torch.save(value, file)
        raw = file.getvalue()
        start = raw.index(b"\x80\x02")
        starts = [position or 0 for _, _, position in pickletools.genops(raw[start:])]
        ends = [*starts[1:], starts[-1] + 1]
        split.append([raw[start + a : start + b] for a, b in zip(starts, ends, strict=True)])
    return split


def flip(rng: random.Random, raw: bytes) -> bytes:
    """Flip some bits."""
    flipped = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def extreme(rng: random.Random, raw: bytes) -> bytes:
    """Overwrite some bytes with an extreme number."""
    layout = rng.choice(("<H", "<I", "<Q"))
    position = rng.randrange(max(1, len(raw) - 8))
    value = rng.choice(_EXTREMES) & (1 << 8 * struct.calcsize(layout)) - 1
    return raw[:position] + struct.pack(layout, value) + raw[position + struct.calcsize(layout) :]


def cut(rng: random.Random, raw: bytes) -> bytes:
    """Cut off the end or remove a part."""
    a, b = sorted((rng.randrange(len(raw)), rng.randrange(len(raw))))
    return raw[:b] if rng.random() < 0.5 else raw[:a] + raw[b:]


def repeat(rng: random.Random, raw: bytes) -> bytes:
    """Insert a copy of a part at another position."""
    a, b = sorted((rng.randrange(len(raw)), rng.randrange(len(raw))))
    position = rng.randrange(len(raw))
    return raw[:position] + raw[a : min(b, a + 256)] + raw[position:]


def insert(rng: random.Random, raw: bytes) -> bytes:
    """Insert an instruction or random bytes, or overwrite with them."""
    position = rng.randrange(len(raw))
    insertion = (
        rng.choice(_INSTRUCTIONS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 9))
    )
    return raw[:position] + insertion + raw[position + rng.choice((0, len(insertion))) :]


def exchange(rng: random.Random, raw: bytes) -> bytes:
    """Replace a word, a number or a sign of a text by something unusual."""
    pieces = re.split(rb"(\w+|\s+)", raw)
    pieces[rng.randrange(len(pieces))] = rng.choice(_TEXTS)
    return b"".join(pieces)


BYTE_MUTATIONS: tuple[Mutation, ...] = (flip, flip, extreme, cut, repeat, insert)


def instructions(rng: random.Random, steps: list[bytes], other: list[bytes]) -> bytes:
    """A pickle with exchanged, repeated, deleted or replaced instructions."""
    steps = list(steps)
    for _ in range(rng.choice((1, 1, 2, 4))):
        position = rng.randrange(1, len(steps))
        match rng.randrange(6):
            case 0:
                steps.insert(position, rng.choice(_INSTRUCTIONS))
            case 1:
                steps[position] = rng.choice(_INSTRUCTIONS)
            case 2:
                del steps[position]
            case 3:
                steps[position] = rng.choice(other)
            case 4:
                a = rng.randrange(len(other))
                steps[position:position] = other[a : a + rng.randrange(1, 20)]
            case _:
                to = rng.randrange(1, len(steps))
                steps[position], steps[to] = steps[to], steps[position]
    return b"".join(steps)


@dataclass(frozen=True)
class Input:
    """The damaged bytes of a file, and what reads the file or, at a door, its folder."""

    raw: bytes
    read: Callable[[Path], Any]
    folder: Path | None = None
    name: str = "input"
    valid: bytes = b""


class Inputs:
    """Creates the input of each number."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.torch = torch_files()
        self.safe = safetensors_files()
        self.pickles = pickles()
        self.doors = list(doors().values())
        self.folders = [folder / f"door-{number}" for number in range(len(self.doors))]
        for door, place in zip(self.doors, self.folders, strict=True):
            write_files(door, place)
            with suppress(PinxitError):
                door.read(place)  # what it imports is imported before the watch begins
        for kind in registry.PLUGIN_KINDS:  # errors list the options of plug-ins
            for name in registry.names(kind):
                registry.load(kind, name)

    def create(self, number: int) -> Input:
        """The input with this number."""
        rng = random.Random(self.seed << 40 | number)
        kind = rng.random()
        if kind < 0.6:
            return self._at_a_door(rng)
        if kind < 0.75:
            pickle = instructions(rng, rng.choice(self.pickles), rng.choice(self.pickles))
            return Input(self._wrap(rng, pickle), read_torch_file)
        files, read = (self.torch, read_torch_file) if kind < 0.9 else (self.safe, read_safetensors)
        return Input(damaged(rng, rng.choice(files), BYTE_MUTATIONS), read)

    def _at_a_door(self, rng: random.Random) -> Input:
        index = rng.randrange(len(self.doors))
        door = self.doors[index]
        name = rng.choice(door.damaged)
        is_text = door.is_text or name.endswith((".json", ".toml", ".jsonl", ".yaml"))
        mutations = (*BYTE_MUTATIONS, *[exchange] * 12) if is_text else BYTE_MUTATIONS
        raw = damaged(rng, door.files[name], mutations)
        return Input(raw, door.read, self.folders[index], name, door.files[name])

    def _wrap(self, rng: random.Random, pickle: bytes) -> bytes:
        if rng.random() < 0.5:
            return in_legacy(pickle, bytes(96))
        if rng.random() < 0.5:
            return in_zip(pickle, bytes(96))
        storages = [(f"a/data/{n}", bytes(size), {}) for n, size in enumerate((96, 48, 8, 24))]
        return zipped([("a/data.pkl", pickle, {}), *storages, ("a/byteorder", b"little", {})])


def damaged(rng: random.Random, raw: bytes, mutations: Sequence[Mutation]) -> bytes:
    """A file after one to three mutations."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        raw = rng.choice(mutations)(rng, raw) or b"\0"
    return raw


def write_files(door: Door, folder: Path) -> None:
    """Write the valid files of a door."""
    for name, content in door.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def work(seed: int, first: int, count: int, until: float, folder: Path) -> dict[str, Any]:
    """Read some inputs in this process and count the outcomes."""
    warnings.simplefilter("ignore")
    inputs, counts = Inputs(seed, folder), Counter[str]()
    progress = folder / "progress"
    watch = Watch()
    for number in range(first, first + count):
        if number % 100 == 0:
            progress.write_text(str(number))
            if time.time() > until:
                break
        case = inputs.create(number)
        path = (case.folder or folder) / case.name
        (folder / "input").write_bytes(case.raw)  # what `campaign` saves after a crash
        path.write_bytes(case.raw)
        watch.folder = str(case.folder or "")
        outcome = watch.outcome(case.read, case.folder or path)
        counts["inputs"] += 1
        counts[outcome] += 1
        if case.folder:
            path.write_bytes(case.valid)
        if outcome not in ("read", "refused"):
            print(f"{number}: {outcome} at {path}", file=sys.stderr)
            save_failure(case.raw, number)
    return {**counts, "events": dict(watch.events)}


def save_failure(raw: bytes, number: int) -> None:
    """Save an input that caused a failure."""
    FAILURES.mkdir(parents=True, exist_ok=True)
    (FAILURES / str(number)).write_bytes(raw)


def campaign(seed: int, inputs: int, seconds: float) -> dict[str, Any]:
    """Read inputs in one process per chunk; a process that dies counts as a crash."""
    total, until = Counter[str](), time.time() + seconds
    start = time.time()
    for first in range(0, inputs, CHUNK):
        if time.time() > until:
            break
        count = min(CHUNK, inputs - first)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            options = ["--work", str(first), str(count), str(until), folder, "--seed", str(seed)]
            process = subprocess.run(
                [sys.executable, "-m", "lab.security.fuzz", *options],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if process.returncode:
                total["crash"] += 1
                total["inputs"] += int((Path(folder) / "progress").read_text()) - first
                save_failure((Path(folder) / "input").read_bytes(), first)
            else:
                result = json.loads(process.stdout.splitlines()[-1])
                print(result.pop("events") or "", file=sys.stderr, end="")
                total.update(result)
    return {
        "seed": seed,
        "inputs": total["inputs"],
        "code run": total["code run"],
        "crashes": total["crash"],
        "hangs": total["hang"],
        "refused": total["refused"],
        "read": total["read"],
        "seconds": round(time.time() - start),
    }


def main() -> None:
    """Print the figures, or with --work those of one chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=4)
    arguments = parser.parse_args()
    if arguments.work:
        first, count, until, folder = arguments.work
        figures = work(arguments.seed, int(first), int(count), float(until), Path(folder))
    else:
        figures = campaign(arguments.seed, arguments.inputs, arguments.seconds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
