"""Captions of any text, in every kind of file and encoding, are read as they were written."""

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pinxit.files.text import read_table
from pinxit.images.folder import check_images, read_images

# The line ends are those that `str.splitlines` knows, of which people write only a few.
SPACES = st.sampled_from(["\n", "\r\n", "\t", " ", "\u2028", "\x85", "\x0b", "\x1c", "\xa0"])
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
CAPTIONS = st.lists(WORDS | SPACES, min_size=1, max_size=6).map("".join)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='/\\:*?"<>|'),
    min_size=1,
    max_size=8,
).filter(lambda name: name.strip().strip(".") == name)


def text_file(suffix: str, encoding: str) -> Callable[[Path, str, str], None]:
    def write(folder: Path, name: str, caption: str) -> None:
        stem = name.removesuffix(".png")
        (folder / f"{stem}{suffix}").write_bytes(caption.encode(encoding))

    return write


def json_file(folder: Path, name: str, caption: str) -> None:
    content = json.dumps({"caption": caption}, ensure_ascii=False)
    (folder / f"{name}.json").write_text(content, encoding="utf-8")


def json_lines(folder: Path, name: str, caption: str) -> None:
    rows = [{"file_name": name, "text": caption}, {"file_name": "other.png", "text": "x"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8", newline="")


def csv_file(delimiter: str, line_end: str) -> Callable[[Path, str, str], None]:
    def write(folder: Path, name: str, caption: str) -> None:
        text = io.StringIO()
        table = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
        table.writerows([("file_name", "text"), (name, caption), ("other.png", "x")])
        (folder / "metadata.csv").write_text(text.getvalue(), encoding="utf-8-sig", newline="")

    return write


WRITERS = {
    "txt": text_file(".txt", "utf-8"),
    "txt with a mark": text_file(".txt", "utf-8-sig"),
    "txt in UTF-16": text_file(".txt", "utf-16"),
    "caption": text_file(".caption", "utf-8"),
    "png.txt": text_file(".png.txt", "utf-8"),
    "json": json_file,
    "json lines": json_lines,
    "csv": csv_file(",", "\r\n"),
    "csv with semicolons": csv_file(";", "\n"),
    "csv with tabs": csv_file("\t", "\n"),
}


@pytest.mark.parametrize("kind", WRITERS)
@given(name=NAMES, caption=CAPTIONS)
@example(name="a", caption="a red\ndog")  # in a table: one cell of two lines
@example(name="a", caption="a red\u2028dog")  # no end of a line of JSON
@example(name="a", caption=" ")
def test_captions_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, caption: str
) -> None:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    WRITERS[kind](folder, f"{name}.png", caption)
    (image,) = read_images(folder)
    assert image.caption == (" ".join(caption.split()) or None) or _in_name(name, caption)


def _in_name(name: str, caption: str) -> bool:
    """A caption without a word counts as none, and the file's name may be one."""
    return not caption.strip() and len(name.split()) >= 3


@given(name=NAMES, caption=WORDS.filter(str.strip))
@example(name="\u00e9", caption="a dog")
def test_both_forms_of_accents_in_names_are_the_same_name(
    tmp_path_factory: pytest.TempPathFactory, name: str, caption: str
) -> None:
    """Some systems write é as one character, others as two."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8)).save(folder / f"{unicodedata.normalize('NFD', name)}.png")
    other = unicodedata.normalize("NFC", name)
    (folder / f"{other}.TXT").write_text(caption, encoding="utf-8")
    (image,) = read_images(folder)
    assert image.caption == " ".join(caption.split())


@given(
    rows=st.lists(st.tuples(WORDS, CAPTIONS), min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t"),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_tables_are_read_as_the_csv_module_writes_them(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    line_end: str,
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=line_end).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    table = [(row.get("a", ""), row.get("b", "")) for row in read_table(path)]
    lines = [tuple("\n".join(cell.strip().splitlines()) for cell in row) for row in rows]
    assert [tuple("\n".join(cell.splitlines()) for cell in row) for row in table] == lines


@given(st.binary(max_size=60), st.sampled_from(["a.txt", "a.json", "metadata.csv", "a.caption"]))
def test_any_bytes_are_a_caption_or_are_named(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / name).write_bytes(content)
    entries = list(check_images(folder))
    images = [entry.image for entry in entries if entry.image]
    has_caption = bool(images) and images[0].caption is not None
    is_named = any(entry.path.name == name or entry.rejected for entry in entries)
    assert has_caption or is_named or not content.decode(errors="ignore").strip()
