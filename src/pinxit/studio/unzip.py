"""Take the files out of an uploaded zip file, within limits: it may be a bomb or full of tricks."""

import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from pinxit.files.atomic_write import write_bytes

MAX_FILES, MAX_FILE_BYTES, MAX_BYTES = 500, 32 * 2**20, 512 * 2**20
# What damaged and encrypted zip files raise; OSError also for an error of the disk.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError),
    UnicodeDecodeError,  # of the name of a file
)


class ZipFileError(ValueError):
    """A zip file that is not taken apart, and why."""


def unzip(file: Path, folder: Path, prefix: str) -> None:
    """Write the files of a zip file into a folder, as `prefix-name` without their folders.

    Hidden files are left out. Raises ZipFileError, before anything is written, for too many
    files; and as soon as it is seen, for files that are too large, encrypted, links or zip files.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if _is_wanted(member)]
            if len(members) > MAX_FILES:
                raise ZipFileError(f"it has {len(members)} files: more than {MAX_FILES}")
            stems = Counter(_name(member).rpartition(".")[0].lower() for member in members)
            left = MAX_BYTES
            for number, member in enumerate(members):
                name = _name(member)
                content = _content(archive, member, min(left, MAX_FILE_BYTES))
                left -= len(content)
                folders = " ".join(PurePosixPath(member.filename).parent.parts)
                own = f"{folders} {name}" if stems[name.rpartition(".")[0].lower()] > 2 else name
                write_bytes(folder / f"{prefix}{number:04}-{own[-40:]}", [content])
    except _UNREADABLE as error:
        raise ZipFileError(f"it cannot be read: {error}") from error


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    parts = [part for part in PurePosixPath(member.filename).parts if part != ".."]
    if not member.filename:  # zipfile itself fails at it
        return False
    return not member.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename.replace("\\", "/").replace("\0", "")).name or "file"


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a member; what its header says about its size does not count."""
    name = _name(member)[:60]
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ZipFileError(f"{name} in it is a link")
    if name.lower().endswith(".zip"):
        raise ZipFileError(f"{name} in it is a zip file: take it apart first")
    with archive.open(member) as source:
        content = source.read(limit + 1)
    if len(content) > limit:
        raise ZipFileError(f"{name} in it is too large")
    return content
