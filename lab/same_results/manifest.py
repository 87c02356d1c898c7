# pyright: standard
"""What a command wrote: losses, pixels and tensors as fingerprints, and how two sides differ."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

_IGNORED = (".lock",)
_LOG = ".jsonl"
# Bytes that differ each time: a log holds seconds, and torch.save writes the file's temporary name,
# which holds a process id, into the archive. Losses and tensors in them are compared.
_BYTES_VARY = (_LOG, ".pt")
_LOSS_KEYS = ("loss", "fixed")  # parts of keys, so that other names for a loss are found too
_OWN = "pinxit"  # what begins so in other programs' files is our own note there


class Result(TypedDict):
    """The files that one command wrote, by their path in its folder.

    `losses` are numbers as text, exact to the bit; `pixels` and `files` are SHA-256; `tensors`
    maps the name of each tensor to its type, shape and SHA-256.
    """

    foreign: bool
    losses: dict[str, list[str]]
    pixels: dict[str, str]
    tensors: dict[str, dict[str, str]]
    files: dict[str, str]


Manifest = Mapping[str, Result]


@dataclass(frozen=True)
class Difference:
    """What differs in the result of a command; a note is no failure."""

    command: str
    what: str
    text: str
    note: bool = False


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file under a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in _IGNORED
    }


def result(folder: Path, before: Mapping[str, str], *, foreign: bool) -> Result:
    """What is new or changed in a folder since `before`, its file hashes then."""
    after = file_hashes(folder)
    changed = [name for name, digest in after.items() if before.get(name) != digest]
    return Result(
        foreign=foreign,
        losses={name: losses(folder / name) for name in changed if name.endswith(_LOG)},
        pixels={name: pixels(folder / name) for name in changed if name.endswith(".png")},
        tensors={
            name: tensors(folder / name)
            for name in changed
            if name.endswith((".safetensors", ".pt"))
        },
        files={name: after[name] for name in changed if not name.endswith(_BYTES_VARY)},
    )


def losses(log: Path) -> list[str]:
    """Every loss in a log of JSON lines, in its order."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [
        repr(value)
        for entry in entries
        for key, value in entry.items()
        if any(part in key for part in _LOSS_KEYS)
    ]


def pixels(image: Path) -> str:
    """The SHA-256 of an image's mode, size and pixels."""
    with Image.open(image) as opened:
        header = f"{opened.mode} {opened.size} ".encode()
        return sha256(header + opened.tobytes()).hexdigest()


def tensors(file: Path) -> dict[str, str]:
    """Type, shape and SHA-256 of each tensor of a file, and other programs' values as text."""
    content: Any = (
        load_file(file)
        if file.suffix == ".safetensors"
        else torch.load(file, map_location="cpu", weights_only=True)
    )
    return dict(sorted(leaf for leaf in _leaves(content) if not leaf[0].startswith(_OWN)))


def differences(baseline: Manifest, current: Manifest) -> list[Difference]:
    """What differs between two manifests, failures and notes."""
    different: list[Difference] = []
    for command in sorted(baseline.keys() | current.keys()):
        if command not in baseline or command not in current:
            side = "current" if command in current else "baseline"
            different.append(Difference(command, "command", f"only in the {side} manifest"))
        else:
            different += _compare(command, baseline[command], current[command])
    return different


def _compare(command: str, old: Result, new: Result) -> Iterator[Difference]:
    yield from _compare_losses(command, old["losses"], new["losses"])
    yield from _compare_values(command, "pixels", old["pixels"], new["pixels"])
    old_tensors, new_tensors = _flat(old["tensors"]), _flat(new["tensors"])
    yield from _compare_values(
        command, "tensors", old_tensors, new_tensors, named=old["foreign"] or new["foreign"]
    )
    changed = [name for name in old["files"] if new["files"].get(name) != old["files"][name]]
    changed += [name for name in new["files"] if name not in old["files"]]
    for name in changed:
        yield Difference(command, "file", name, note=True)


def _compare_losses(
    command: str, old: Mapping[str, list[str]], new: Mapping[str, list[str]]
) -> Iterator[Difference]:
    """Traces are compared in the order of their files' names, which may change."""
    if len(old) != len(new):
        yield Difference(command, "losses", f"{len(old)} logs became {len(new)}")
        return
    for name, renamed in zip(sorted(old), sorted(new), strict=True):
        before, after = old[name], new[renamed]
        if len(before) != len(after):
            text = f"{renamed}: {len(before)} losses became {len(after)}"
            yield Difference(command, "losses", text)
        elif changed := [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]:
            first, second = changed[0]
            text = f"{renamed}: {len(changed)} of {len(before)}, first {first} became {second}"
            yield Difference(command, "losses", text)


def _compare_values(
    command: str, what: str, old: Mapping[str, str], new: Mapping[str, str], *, named: bool = False
) -> Iterator[Difference]:
    """Values are compared as a multiset; names too if `named`, else a changed name is a note."""
    missing = Counter(old.values()) - Counter(new.values())
    added = Counter(new.values()) - Counter(old.values())
    if missing or added:
        names = [name for name in old if new.get(name) != old[name]]
        names += [name for name in new if name not in old]
        text = f"{missing.total()} lost, {added.total()} new: {_few(names)}"
        yield Difference(command, what, text)
    elif old != new:
        names = [name for name in new if old.get(name) != new[name]]
        yield Difference(command, what, f"other names: {_few(names)}", note=not named)


def _flat(files: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{file} {name}": value for file, own in files.items() for name, value in own.items()}


def _few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The names and fingerprints of what nested tables and lists hold."""
    if isinstance(content, Tensor):
        data = content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, f"{content.dtype} {tuple(content.shape)} {sha256(data).hexdigest()}"
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{name}/{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _leaves(value, f"{name}/{number}")
    else:
        yield name, repr(content)
