"""Captions of images: text files next to them, tables of the whole folder, or file names."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pinxit.errors import FileError
from pinxit.files.text import read_any_text, read_table, read_text

CAPTION_SUFFIXES = (".txt", ".caption", ".json")
# Suffixes of files that may be captions for other programs; they are named if they are not read.
_TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
TEXT_SUFFIXES = frozenset(
    {*CAPTION_SUFFIXES, *_TABLE_SUFFIXES, ".tags", ".tag", ".captions", ".cap", ".yaml", ".yml"}
)
# Tables of the image folders of Hugging Face, and their columns with captions.
_TABLES = ("metadata.jsonl", "metadata.csv")
_COLUMNS = ("text", "caption", "prompt", "tags")
_MAX_CAPTION_BYTES = 2**16
_A1111_NAME = re.compile(r"\d+-\d+(?:-(?P<caption>.*))?", re.DOTALL)


def with_dot(extension: str | None) -> str | None:
    """The suffix of caption files as it is compared, also for one that is typed without a dot."""
    return extension and f".{extension.lower().removeprefix('.')}"


@dataclass
class FolderCaptions:
    """The captions of a folder's images; `unread` are text files that are no caption, and why.

    With an `extension`, only files with this suffix are captions.
    """

    files: Mapping[str, Path]
    tables: Mapping[str, str]
    extension: str | None = None
    unread: dict[Path, str] = field(default_factory=dict[Path, str])

    @classmethod
    def of(
        cls, paths: Sequence[Path], images: Iterable[Path], extension: str | None = None
    ) -> "FolderCaptions":
        """The captions among the files of a folder."""
        present = [path for path in paths if path.is_file()]
        files = {_key(path.name): path for path in present} | {path.name: path for path in present}
        captions = cls(files, {}, extension)
        texts = {path for path in files.values() if path.suffix.lower() in TEXT_SUFFIXES}
        read = {path for image in images for path in captions.files_of(image)[:1]}
        captions.unread = dict.fromkeys(sorted(texts - read), "text that is no image's caption")
        captions.unread |= {  # folders, pipes and broken links
            path: "not read: it is not a regular file"
            for path in paths
            if path not in present and path.suffix.lower() in TEXT_SUFFIXES
        }
        tables = {} if extension else dict(captions._read_tables())
        captions.tables = {_key(name): caption for name, caption in tables.items()} | tables
        return captions

    def files_of(self, image: Path) -> list[Path]:
        """The caption files of an image; the first is its caption."""
        suffixes = (self.extension,) if self.extension else CAPTION_SUFFIXES
        names = [f"{image.stem}{suffix}" for suffix in suffixes]
        names += [f"{image.name}{suffix}" for suffix in suffixes]
        files = (self.files.get(name) or self.files.get(_key(name)) for name in names)
        return list(dict.fromkeys(path for path in files if path))

    def caption(self, image: Path) -> tuple[str | None, tuple[str, ...]]:
        """An image's caption, and notes about it; FileError if its file cannot be read."""
        notes: list[str] = []
        files = self.files_of(image)
        for file in files[:1]:
            text, encoding = read_any_text(file, _MAX_CAPTION_BYTES)
            if encoding == "cp1252":
                notes.append(f"{file.name} is not UTF-8: it was read as Windows text (cp1252)")
            notes += [f"{other.name} is not read: {file.name} is" for other in files[1:]]
            text = _json_caption(text, file) if file.suffix.lower() == ".json" else text
            return " ".join(text.split()) or None, tuple(notes)
        text = self.tables.get(image.name) or self.tables.get(_key(image.name))
        text = text or _caption_in_name(image.stem)
        text = "" if self.extension else text
        return " ".join(text.split()) or None, ()

    def _read_tables(self) -> Iterator[tuple[str, str]]:
        """The captions in the folder's tables by file name."""
        for name in _TABLES:
            file = self.files.get(name)
            if file is None:
                continue
            try:
                rows = read_table(file) if name.endswith(".csv") else _json_lines(file)
                captions = dict(_captions_of_rows(rows))
            except FileError as error:
                self.unread[file] = error.message
                continue
            if captions:
                del self.unread[file]
                yield from captions.items()
            else:
                columns = ", ".join(_COLUMNS)
                self.unread[file] = f"not read: it has no file_name with one of {columns}"


def _key(name: str) -> str:
    """The same text for names that differ in case, or in how a system writes accents."""
    return unicodedata.normalize("NFC", name).lower()


def _captions_of_rows(rows: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        name, caption = row.get("file_name"), _first_text(row)
        if isinstance(name, str) and caption:
            yield Path(name).name, caption


def _json_lines(file: Path) -> list[Mapping[str, object]]:
    lines = [line for line in read_text(file).split("\n") if line.strip()]
    return [_json_object(line, f"line {n} of {file.name}") for n, line in enumerate(lines, 1)]


def _json_caption(text: str, file: Path) -> str:
    row = _json_object(text, file.name)
    if row.keys().isdisjoint(_COLUMNS):
        raise FileError(
            f"{file.name} has none of {', '.join(_COLUMNS)}", "rename the key, or remove the file"
        )
    return _first_text(row)


def _json_object(text: str, where: str) -> Mapping[str, object]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not JSON: {error}", "repair or remove it") from error
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _first_text(row: Mapping[str, object]) -> str:
    """The caption in a row: a text, or a list of tags; "" without one."""
    for column in _COLUMNS:
        value = row.get(column)
        if isinstance(value, list):
            items = cast("list[object]", value)
            value = ", ".join(str(item) for item in items if item is not None)
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _caption_in_name(stem: str) -> str:
    """The caption in a file name: as A1111 writes it (`00003-0-a red cloak`), or a sentence."""
    numbered = _A1111_NAME.fullmatch(stem)
    if numbered:
        return numbered["caption"] or ""
    # Names given by cameras and phones contain digits; a sentence has three words and no digits.
    is_sentence = len(stem.split()) >= 3 and not any(letter.isdigit() for letter in stem)
    return stem if is_sentence else ""
