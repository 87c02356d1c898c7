# pyright: standard, reportPrivateImportUsage=false
"""Bases on the Hugging Face hub: only the files that are needed, and none that is code."""

import re
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pinxit.errors import ModelError, did_you_mean
from pinxit.models.source import NETWORKS, PARTS, weight_files

# Told how far a task is: what it is, and how much is done of how much.
Report = Callable[[str, int, int], None]
# Who is told of downloads: a base, a judge's eyes or a control may need one, far from the screen.
_TOLD: ContextVar[Report | None] = ContextVar("told", default=None)

_ID = re.compile(r"[\w.-]+/[\w.-]+(/.+\.(safetensors|ckpt))?")
_SETTINGS = re.compile(r"[^/]*(?<!\.index)\.json|(merges|rare_words)\.txt|spiece\.model")
_MEGABYTE = 10**6
# Where the bases are that people mean: some have moved, and names are long.
_KNOWN = (
    "pocket",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-3.5-medium",
)


def looks_like_id(base: str) -> bool:
    """Whether a name may be that of a model on the hub, or of one file there."""
    return _ID.fullmatch(base) is not None and ".." not in base


@contextmanager
def telling(report: Report) -> Generator[None]:
    """Downloads inside are told of, with how far they are in MB."""
    before = _TOLD.set(report)
    try:
        yield
    finally:
        _TOLD.reset(before)


def fetch(base: str) -> Path:
    """The folder or file of a base on the hub, from the cache as far as it is there.

    ModelError says what to do if there is no such base, or no network, or no leave to have it.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    owner, name, *file = base.split("/", 2)
    repo = f"{owner}/{name}"
    try:
        sizes, offline = _listed(repo)
        wanted = [path for path in file if path in sizes] if file else _wanted(sizes)
        if not wanted:
            raise _no_base(base, sizes)
        bar: Any = _bar(f"downloading {base} (MB)", _missing(repo, sizes, wanted))
        # One after another: when one of several fails, the library closes the others' connection.
        folder = Path(
            snapshot_download(
                repo, allow_patterns=wanted, local_files_only=offline, tqdm_class=bar, max_workers=1
            )
        )
    except errors.GatedRepoError as trouble:
        raise _not_allowed(repo) from trouble
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as trouble:
        raise ModelError(
            f"there is no base `{base}`: no folder or file here, and no model on the hub that "
            "you may see",
            f"{did_you_mean(base, _KNOWN)}; a private one needs your token: hf auth login",
        ) from trouble
    except (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError) as trouble:
        raise ModelError(
            f"`{base}` is not on this machine as a whole, and the hub cannot be reached",
            "connect to the network once, or give a folder or a file that is here",
        ) from trouble
    except (errors.HTTPError, OSError) as trouble:
        raise ModelError(
            f"the download of `{base}` broke off: {(str(trouble).splitlines() or [''])[0]}",
            "type the command again: it goes on where it stopped",
        ) from trouble
    return folder.joinpath(*file)


def _listed(repo: str) -> tuple[dict[str, int], bool]:
    """The files of a model with their sizes, and whether they are only those once listed."""
    from huggingface_hub import HfApi, errors, get_cached_repo_tree

    try:
        entries = HfApi().list_repo_tree(repo, recursive=True)
        return {entry.path: getattr(entry, "size", 0) for entry in entries}, False
    except errors.RepositoryNotFoundError:
        raise
    except (errors.HTTPError, OSError):  # no network, or asked to do without
        return {entry.path: entry.size for entry in get_cached_repo_tree(repo)}, True


def _wanted(names: Collection[str]) -> list[str]:
    """The files of a base in diffusers' layout that are opened; none if it is not one."""
    if "model_index.json" not in names:
        # An autoencoder alone has its files in no folder.
        wanted = ["config.json", *weight_files(names)]
        return wanted if wanted[1:] and wanted[0] in names else []
    wanted = ["model_index.json"]
    for part in PARTS:
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        files = [name for name in inside if _SETTINGS.fullmatch(name)]
        files += weight_files(inside) if part in NETWORKS else []
        wanted += [f"{part}/{name}" for name in files]
    return wanted


def _missing(repo: str, sizes: dict[str, int], wanted: list[str]) -> int:
    """How many bytes are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return sum(
        sizes[name] for name in wanted if not isinstance(try_to_load_from_cache(repo, name), str)
    )


def _bar(task: str, total: int) -> type:
    """The library's bar, which draws nothing and tells us."""
    from huggingface_hub.utils import tqdm

    report = _TOLD.get()

    class Told(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            transfers = str(named.get("name")).endswith("transfer")
            self.counts = named.get("unit") == "B" and not transfers
            self.done = 0
            super().__init__(*given, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if report and self.counts and total:
                report(task, min(self.done, total) // _MEGABYTE, max(1, total // _MEGABYTE))

    return Told


def _no_base(base: str, names: Collection[str]) -> ModelError:
    single = [name for name in names if re.fullmatch(r"[^/]+\.(safetensors|ckpt)", name)]
    owner, name, *_ = base.split("/")
    return ModelError(
        f"`{base}` is on the hub, and no base in diffusers' layout",
        f"give one of its files: {owner}/{name}/{single[0]}"
        if single
        else "take a model whose page lists model_index.json, or a checkpoint file",
    )


def _not_allowed(repo: str) -> ModelError:
    from huggingface_hub import get_token

    first = "" if get_token() else "make a token in your settings there, set it: hf auth login; "
    return ModelError(
        f"`{repo}` is only for those who accepted its licence",
        f"{first}accept it at https://huggingface.co/{repo}, then type the command again",
    )
