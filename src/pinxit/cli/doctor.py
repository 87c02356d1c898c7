"""`pinxit doctor`: what this machine has for pinxit, and what is wrong with it; for bug reports."""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from pinxit.cli.screen import Switch, bars, data, labelled, say
from pinxit.files.portable import with_tilde

_PACKAGES = (
    *("torch", "diffusers", "transformers", "peft"),
    *("huggingface-hub", "safetensors", "numpy", "pillow"),
)
_GB = 10**9
_LITTLE_DISK, _LITTLE_MEMORY = 5 * _GB, 2 * _GB
# Files of drivers: a GPU is there even if this torch cannot use it.
_DRIVERS = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/kfd": "an AMD GPU"}


@dataclass
class Report:
    """What was found: values by name, and a sentence with a hint for each problem."""

    facts: dict[str, object] = field(default_factory=dict[str, object])
    problems: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def problem(self, message: str, hint: str) -> None:
        """Add a problem."""
        self.problems.append({"message": message, "hint": hint})


def doctor(*, fetch_judges: Switch = False, json_: Switch = False) -> None:
    """Show versions, devices, memory, caches and the hub, and a hint for each problem.

    Args:
        fetch_judges: download the networks that score photographs (DINO and CLIP, 692 MB)
        json_: print JSON
    """
    if fetch_judges:
        from pinxit.evaluation.networks import CLIP, DINO, fetch_networks

        with bars():
            fetch_networks((DINO, CLIP))
    report = examine()
    if json_:
        data(json.dumps({**report.facts, "problems": report.problems}))
        return
    for name, value in report.facts.items():
        for number, line in enumerate(_lines(value)):
            labelled("" if number else name, line, 14)
    for problem in report.problems:
        say(f"problem: {problem['message']}", f"hint: {problem['hint']}")
    if not report.problems:
        say("no problems")


def examine() -> Report:
    """Everything that `pinxit doctor` shows. The hub is asked once, for 3 seconds at most."""
    report = Report()
    report.facts["pinxit"] = metadata.version("pinxit")
    report.facts["python"] = f"{platform.python_version()} on {platform.platform()}"
    report.facts["packages"] = {name: metadata.version(name) for name in _PACKAGES}
    _check_requirements(report)
    _examine_devices(report)
    _examine_caches(report)
    _examine_hub(report)
    return report


def _examine_devices(report: Report) -> None:
    import torch

    from pinxit.models.device import device_name, fast_precision, find_device, free_memory

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "no CUDA, no ROCm"
    report.facts["torch build"] = f"{build}; CPU threads: {torch.get_num_threads()}"
    device = find_device()
    count = torch.accelerator.device_count() if device.type != "cpu" else 0
    accelerators = [torch.device(device.type, index) for index in range(count)]
    memory = {one: free_memory(one) for one in (torch.device("cpu"), *accelerators)}
    report.facts["memory free"] = {device_name(one): _size(left) for one, left in memory.items()}
    large, small = (fast_precision(device, small=size) for size in (False, True))
    precision = large if small == large else f"{large} (pocket and other small ones in {small})"
    report.facts["device"] = f"{device_name(device)} in {precision}, unless --device is given"
    if memory[accelerators[0] if accelerators else device] < _LITTLE_MEMORY:
        report.problem(
            f"little memory is free on {device_name(device)}", "close other programs that use it"
        )
    for file, kind in _DRIVERS.items():
        if device.type == "cpu" and Path(file).exists():
            report.problem(
                f"this machine has {kind}, and this torch ({torch.__version__}) does not use it",
                "install the torch for it: https://pytorch.org/get-started/locally",
            )


def _examine_caches(report: Report) -> None:
    from pinxit.files.cache import bytes_in, cache_folder
    from pinxit.models.hub import cache_folder as hub_cache
    from pinxit.training.encoding_cache import encodings_folder

    encodings = encodings_folder()
    caches = {"pinxit": cache_folder(), "its encodings": encodings, "hub": hub_cache()}
    report.facts["caches"] = {
        name: f"{with_tilde(str(folder))} ({_size(bytes_in(folder))})"
        for name, folder in caches.items()
    }
    for folder in caches.values():
        parents = (parent for parent in (folder, *folder.parents) if parent.exists())
        place = next(parents, Path.cwd())
        free = shutil.disk_usage(place).free
        if not (place.is_dir() and os.access(place, os.W_OK)):
            variable = "HF_HOME" if folder == caches["hub"] else "PINXIT_CACHE"
            report.problem(
                f"nothing can be written to {with_tilde(str(folder))}",
                f"set the variable {variable} to a folder that you can write to",
            )
        if free < _LITTLE_DISK:
            report.problem(
                f"only {_size(free)} are free on the disk of {with_tilde(str(folder))}",
                "delete base models that you no longer use: hf cache prune",
            )


def _examine_hub(report: Report) -> None:
    from pinxit.evaluation.networks import CLIP, DINO, network_folder
    from pinxit.models import hub

    offline = hub.offline()
    answers = not offline and hub.reachable()
    report.facts["hub"] = "offline mode" if offline else "answers" if answers else "does not answer"
    missing = [name for name in (DINO, CLIP) if network_folder(name) is None]
    report.facts["judges"] = f"not here: {', '.join(missing)}" if missing else "DINO and CLIP"
    if not answers and not offline:
        report.problem(
            "the hub does not answer: only base models on this machine can be used",
            "check the network, or set HF_HUB_OFFLINE=1 if it is meant to be offline",
        )
    if missing:
        report.problem(
            "images of other base models than pocket are not scored: the networks are not here",
            "download them: pinxit doctor --fetch-judges",
        )


def _check_requirements(report: Report) -> None:
    """Versions that do not fit, and which optional extras are installed."""
    from packaging.requirements import Requirement

    extras: dict[str, list[str]] = {}
    for line in metadata.requires("pinxit") or ():
        requirement = Requirement(line)
        extra = line.rpartition("extra ==")[2].strip(" '\"") if "extra ==" in line else ""
        version = _version(requirement.name)
        fits = version is not None and version in requirement.specifier
        if extra:
            extras.setdefault(extra, []).extend([] if fits else [requirement.name])
        elif not fits:
            report.problem(
                f"{requirement.name} is {version or 'not installed'}, and pinxit needs "
                f"{requirement.specifier}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
    report.facts["extras"] = {
        name: f"lacks {', '.join(missing)}" if missing else "installed"
        for name, missing in extras.items()
        if name != "dev"
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _size(count: int) -> str:
    return f"{count / _GB:.1f} GB"


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (f"{name}: {text}" for name, text in value.items()) if value else ("none",)
    else:
        yield str(value)
