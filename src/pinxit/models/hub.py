# pyright: standard, reportPrivateImportUsage=false
"""Downloads from the Hugging Face hub: only the files that are needed, and no code."""

import re
import threading
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pinxit.errors import ModelError, did_you_mean
from pinxit.files.untrusted import exists, expanded
from pinxit.models.family import network_folders, part_folders
from pinxit.models.source import weight_files
from pinxit.progress import Progress, ProgressCallback

# A context variable, because many parts of the program start downloads: base models, metrics and
# controls.
_PROGRESS: ContextVar[ProgressCallback | None] = ContextVar("progress", default=None)

_ID = re.compile(r"[\w.-]+/[\w.-]+(/.+\.(safetensors|ckpt))?")
_CONFIG_FILES = re.compile(r"[^/]*(?<!\.index)\.json|(merges|rare_words)\.txt|spiece\.model")
_MEGABYTE = 10**6
# The hub must answer within so many seconds, and is asked again after so many.
_PATIENCE, _ASK_AGAIN = 3.0, 60.0
# By endpoint: when it was asked, and whether it is there.
_ANSWERS = dict[str, tuple[float, bool]]()
# Suggestions for mistyped ids; some of these models have moved.
_KNOWN = (
    "pocket",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-3.5-medium",
)


def looks_like_id(base: str) -> bool:
    """Whether a name can be the id of a model on the hub, or of one file of a model."""
    return _ID.fullmatch(base) is not None and ".." not in base


def check_consent(names: Iterable[str | None], origin: str, hint: str) -> None:
    """Raise ModelError if a model that a file names would be downloaded from the hub.

    `origin` is the file; `hint` says how to agree. Models in the cache were agreed to before.
    """
    for name in filter(None, names):
        if looks_like_id(name) and not exists(expanded(name)) and not _is_cached(name):
            raise ModelError(
                f"{origin} names the model `{name}`, which would be downloaded from the hub",
                hint.format(name=name),
            )


def _is_cached(base: str) -> bool:
    """Whether the file that a download begins with is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    repo, file = _repository(base)
    names = file or ["model_index.json", "config.json"]
    cached = (try_to_load_from_cache(repo, path) for path in names)
    return any(isinstance(path, str) for path in cached)


def _repository(base: str) -> tuple[str, list[str]]:
    """The repository that an id names, and its file if it names one; ModelError if it is no id."""
    if not looks_like_id(base):
        raise ModelError(
            f"there is no `{base}` on this machine, and it is no hub id", "hub ids are owner/name"
        )
    owner, name, *file = base.split("/", 2)
    return f"{owner}/{name}", file


def offline() -> bool:
    """Whether the library is in offline mode (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def cache_folder() -> Path:
    """The folder with the models that were downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def reachable() -> bool:
    """Whether the hub answers; one short try, and no other one for a minute."""
    from huggingface_hub import constants

    now, endpoint = time.monotonic(), constants.ENDPOINT
    asked, answer = _ANSWERS.get(endpoint, (now - _ASK_AGAIN, False))
    if now - asked >= _ASK_AGAIN:
        # In a thread, because looking up the address has no time limit.
        answers: list[bool] = []
        thread = threading.Thread(target=_ask, args=(endpoint, answers), daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        answer = any(answers)
        _ANSWERS[endpoint] = now, answer
    return answer


def _ask(endpoint: str, answers: list[bool]) -> None:
    from huggingface_hub import errors, get_session

    try:
        get_session().head(endpoint, timeout=_PATIENCE)
        answers.append(True)  # any status is an answer
    except (errors.HTTPError, OSError):  # also in offline mode
        answers.append(False)


def cached_network(repo: str) -> Path | None:
    """The folder of a network (config.json and weights) in the cache; the hub is not asked."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(repo, "config.json")
    except errors.HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if weight_files([path.name for path in folder.iterdir()]) else None


@contextmanager
def progress_to(report: ProgressCallback) -> Generator[None]:
    """Report the progress of downloads inside the context, in MB."""
    token = _PROGRESS.set(report)
    try:
        yield
    finally:
        _PROGRESS.reset(token)


def fetch(base: str) -> Path:
    """Download a model of the hub, or take it from the cache: the path of its folder or file.

    Raises ModelError if the model does not exist, the hub cannot be reached, or the user has no
    access.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    repo, file = _repository(base)
    try:
        sizes, offline = _file_sizes(repo)
        paths = [path for path in file if path in sizes] if file else _required_files(sizes)
        if not paths:
            raise _unsupported_model(base, sizes)
        bar: Any = _progress_bar(f"downloading {base} (MB)", _bytes_to_download(repo, sizes, paths))
        # One worker: if one of several downloads fails, the library closes the others' connection.
        folder = Path(
            snapshot_download(
                repo, allow_patterns=paths, local_files_only=offline, tqdm_class=bar, max_workers=1
            )
        )
    except errors.GatedRepoError as error:
        raise _no_access(repo) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"there is no model `{base}`: not a local folder or file, and not a model on the "
            "hub that you can access",
            f"{did_you_mean(base, _KNOWN)}; a private model needs your token: hf auth login",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError) as error:
        raise ModelError(
            f"`{base}` is not completely downloaded, and the hub cannot be reached",
            "check its spelling and connect to the network once, or give a local folder or file",
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise ModelError(
            f"the download of `{base}` failed: {(str(error).splitlines() or [''])[0]}",
            "run the command again: the download continues where it stopped",
        ) from error
    return folder.joinpath(*file)


def _file_sizes(repo: str) -> tuple[dict[str, int], bool]:
    """The files of a model with their sizes in bytes, and whether the list is from the cache."""
    from huggingface_hub import HfApi, errors, get_cached_repo_tree

    if reachable():
        try:
            entries = HfApi().list_repo_tree(repo, recursive=True)
            return {entry.path: getattr(entry, "size", 0) for entry in entries}, False
        except errors.RepositoryNotFoundError:
            raise
        except (errors.HTTPError, OSError):  # the network fails
            pass
    return {entry.path: entry.size for entry in get_cached_repo_tree(repo)}, True


def _required_files(names: Collection[str]) -> list[str]:
    """The files to download of a model in diffusers' layout; empty if it has another layout."""
    if "model_index.json" not in names:
        # A repository with an autoencoder only has its files at the top level.
        weights = weight_files(names)
        return ["config.json", *weights] if weights and "config.json" in names else []
    required = ["model_index.json"]
    for part in part_folders():
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        files = [name for name in inside if _CONFIG_FILES.fullmatch(name)]
        files += weight_files(inside) if part in network_folders() else []
        required += [f"{part}/{name}" for name in files]
    return required


def _bytes_to_download(repo: str, sizes: dict[str, int], paths: list[str]) -> int:
    """The total size of the files that are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return sum(
        sizes[path] for path in paths if not isinstance(try_to_load_from_cache(repo, path), str)
    )


def _progress_bar(task: str, total: int) -> type:
    """A progress bar class for the library that draws nothing and reports to `progress_to`."""
    from huggingface_hub.utils import tqdm

    report = _PROGRESS.get()

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            is_transfer = str(kwargs.get("name")).endswith("transfer")
            self.counts_bytes = kwargs.get("unit") == "B" and not is_transfer
            self.done = 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if report and self.counts_bytes and total:
                done = min(self.done, total) // _MEGABYTE
                report(Progress(task, done, max(1, total // _MEGABYTE)))

    return SilentBar


def _unsupported_model(base: str, names: Collection[str]) -> ModelError:
    checkpoints = [name for name in names if re.fullmatch(r"[^/]+\.(safetensors|ckpt)", name)]
    owner, name, *_ = base.split("/")
    return ModelError(
        f"`{base}` is not a base model in diffusers' layout",
        f"give one of its files: {owner}/{name}/{checkpoints[0]}"
        if checkpoints
        else "use a model whose file list has model_index.json, or a checkpoint file",
    )


def _no_access(repo: str) -> ModelError:
    from huggingface_hub import get_token

    login = "" if get_token() else "create a token in your hub settings, then hf auth login; "
    return ModelError(
        f"`{repo}` requires that you accept its license",
        f"{login}accept it at https://huggingface.co/{repo}, then run the command again",
    )
