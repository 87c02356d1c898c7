"""Text files as people and programs write them: byte order marks, TOML, tables with `;` or tabs."""

import csv
import io
import tomllib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from pathlib import Path

from pinxit.errors import FileError, RecipeError
from pinxit.files.untrusted import exists, open_untrusted, read_errors

MAX_TABLE_BYTES = 2**24
_DELIMITERS = ",;\t"
_WINDOWS = "cp1252"
# In every language that is written in cp1252, far fewer of the letters have accents.
_MAX_ACCENTS = 1 / 3


def read_text(path: Path, max_bytes: int = MAX_TABLE_BYTES) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, without the mark.

    Raises FileError if it is too large or in another encoding.
    """
    text, encoding = read_any_text(path, max_bytes)
    if encoding == _WINDOWS:
        raise FileError(
            f"{path} is not UTF-8 text",
            "save it as UTF-8; spreadsheet programs call this `CSV UTF-8`",
        )
    return text


def read_any_text(path: Path, max_bytes: int) -> tuple[str, str]:
    """The text of a file and its encoding: as `read_text`, or else that of Windows (cp1252).

    Raises FileError if it is too large, or if it is not text.
    """
    with open_untrusted(path) as file, read_errors(path):
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise FileError(f"{path.name} has over {max_bytes} bytes", "shorten it")
    encodings = ["utf-8-sig", _WINDOWS]
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif content.startswith(BOM_UTF8):
        encodings = ["utf-8-sig"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        accents = sum(not character.isascii() for character in text)
        other_script = encoding == _WINDOWS and accents > _MAX_ACCENTS * len(text)
        if "\0" not in text and not other_script:
            return text, encoding
    raise FileError(f"{path.name} is not UTF-8 text", "save it as UTF-8 text")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column, without empty cells; `,`, `;` or a tab divides cells.

    Raises FileError if it is not text, or if a row has more cells than the first line has names.
    """
    text = read_text(path)
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        lines = io.StringIO(text, newline=None)  # a cell in quotes may have several lines
        rows = list(csv.DictReader(lines, skipinitialspace=True, delimiter=delimiter))
    except csv.Error as error:
        raise FileError(f"{path} is not a CSV table: {error}", "save it as CSV again") from error
    for number, row in enumerate(rows, 2):
        if None in row:
            raise FileError(
                f"row {number} of {path} has more cells than the first line has columns",
                f'cells are divided by {delimiter!r} here: put a cell that contains it in "quotes"',
            )
    return [_cells(row) for row in rows]


def _cells(row: Mapping[str, str | Sequence[str] | None]) -> dict[str, str]:
    return {
        name.strip(): cell.strip() for name, cell in row.items() if isinstance(cell, str) and cell
    }


def read_toml(path: Path, what: str) -> dict[str, object]:
    """The values of a TOML file, which a message calls `what`; RecipeError if it is not TOML."""
    hint = f"give a TOML file{'; a run has its own, recipe.toml' if what == 'recipe' else ''}"
    if not exists(path):
        raise RecipeError(f"there is no {what} {path}", hint)
    try:
        return tomllib.loads(read_text(path))
    except FileError as error:
        raise RecipeError(f"{what}: {error.message}", hint) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"{what} {path} cannot be read: {error}",
            "correct the file: it must be TOML; settings of other programs do not open",
        ) from error
