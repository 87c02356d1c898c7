"""Run folders in object storage: copied in before they are used, and out at each checkpoint."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any

from pinxit.errors import RequestError, RunError, first_line
from pinxit.files.atomic_write import check_regular, make_folder
from pinxit.runs.file_names import CHECKPOINTS


class Store:
    """Copies files and run folders between `folder`, on this machine, and a URL of fsspec.

    The URL has what counts; only a local run with later checkpoints is not replaced. RequestError
    if the URL or its kind is not known.
    """

    def __init__(self, url: str, folder: Path) -> None:
        import fsspec

        try:
            files, self.root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise RequestError(
                f"--store {url} cannot be used: {first_line(error)}",
                "give a URL that fsspec knows, such as s3://bucket/runs (needs s3fs)",
            ) from error
        self.url = url
        self.folder = folder
        self._files: Any = files
        if "file" in files.protocol:
            self._files.auto_mkdir = True
        self._copied: dict[Path, tuple[int, int]] = {}

    def fetch(self, name: str) -> None:
        """Copy a file or run folder to this machine, unless the local run has later checkpoints."""
        with self._errors("read"):
            self._files.invalidate_cache()
            remote = {self._local(key): key for key in self._files.find(f"{self.root}/{name}")}
            local = self.folder / name
            check_regular(local)
            if not remote or _last_step(remote) < _last_step(local.rglob("*")):
                return
            if local.is_dir():
                rmtree(local)
            for file, key in remote.items():
                make_folder(file.parent)
                self._files.get_file(key, str(file))
                self._copied[file] = _version(file)

    def put(self, name: str) -> None:
        """Copy what has changed in a file or run folder to the store; checkpoints come first."""
        with self._errors("written"):
            local = self.folder / name
            files = [local] if local.is_file() else [f for f in local.rglob("[!.]*") if f.is_file()]
            for file in sorted(files, key=lambda file: file.parent.name != CHECKPOINTS):
                if self._copied.get(file) != _version(file):
                    key = f"{self.root}/{file.relative_to(self.folder).as_posix()}"
                    self._files.put_file(str(file), key)
                    self._copied[file] = _version(file)
            for key in self._files.find(f"{self.root}/{name}"):
                if self._local(key) not in files:
                    self._files.rm_file(key)

    @contextmanager
    def copied(self, names: Iterable[str]) -> Generator[None]:
        """Copy run folders in before the block, and out after it, however it ends."""
        names = list(names)
        for name in names:
            self.fetch(name)
        try:
            yield
        finally:
            for name in names:
                self.put(name)

    @contextmanager
    def _errors(self, verb: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.url} cannot be {verb}: {first_line(error)}",
                "check the address and your rights, then continue with the same command",
            ) from error

    def _local(self, key: str) -> Path:
        parts = PurePosixPath(key).relative_to(self.root).parts
        if ".." in parts:
            raise RunError(f"{self.url} has a file named {key!r}", "remove it")
        return self.folder.joinpath(*parts)


def _last_step(files: Iterable[Path]) -> int:
    """The step of the last checkpoint among files; -1 if there is none."""
    steps = [file.stem for file in files if file.parent.name == CHECKPOINTS]
    return max((int(step) for step in steps if step.isdecimal()), default=-1)


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
