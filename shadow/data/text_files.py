"""A user's file of text: its kind, told by its content, and the documents in it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadow.errors import UserError

# how files begin that hold no text as it is, and what they are called
PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF-": "PDF",
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
BEGINS_JSON = re.compile(r'\s*(\[\s*)?\{\s*"')  # an object, or an array of them
SPACE = re.compile(r"[ \t\n\r]*")  # between JSON values


def read_documents(setting: str, file: str | None, column: str) -> list[str]:
    """The `column` of each JSON object in a file of them, one a line or in an array; or the whole of a plain
    text. The file's content says which; where its name ends as JSON does, it must be JSON."""
    such = f"with a {column!r} column"
    text = read_text(setting, file, such)
    ending = Path(str(file)).suffix.lower()
    if ending not in JSON_ENDINGS and not BEGINS_JSON.match(text) and not is_array(text):
        if ending in TABLES:
            raise UserError(
                f"{setting}={file!r} is named as a table, whose marks would be read as text: give JSON lines "
                f"{such}, or a plain text file"
            )
        return [text]
    rows = rows_in(text, f"{setting}={file!r}", f"{such}, or a plain text of another beginning")
    found = [row.get(column) if isinstance(row, dict) else None for row in rows]
    documents = [value for value in found if isinstance(value, str) and is_unicode(value)]
    if not documents or len(documents) < len(found):
        raise UserError(f"{setting}={file!r} must have a {column!r} column of text in each line or object")
    return documents


def read_text(setting: str, file: str | None, such: str) -> str:
    """The file's characters, without a byte-order mark, and each line ended by a line feed alone.

    such: what JSON lines must be, for sentences that refuse a file.
    """
    found = file_of(file)
    if found is None:
        raise UserError(f"{setting} must name a text file or a file of JSON lines {such}, got {file!r}")
    content = found.read_bytes()
    packed = next((name for begin, name in PACKED.items() if content.startswith(begin)), None)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cure = f": it is {packed}, unpack it first" if packed else f" ({error}): convert it"
        cure = ": it is UTF-16, convert it" if content.startswith(UTF_16) else cure
        raise UserError(f"{setting}={file!r} must be text in UTF-8{cure}") from error
    if packed or "\0" in text:
        what = f"is {packed}" if packed else "has NUL bytes, as no text has"
        raise UserError(f"{setting}={file!r} {what}: give a plain text, or JSON lines {such}")
    if not text.strip():
        raise UserError(f"{setting}={file!r} is empty: give text, or JSON lines {such}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_of(name: object) -> Path | None:
    """None: there is no such file, or there can be none."""
    if not isinstance(name, str):
        return None
    try:
        found = Path(name).expanduser()
        return found if found.is_file() else None
    except (OSError, RuntimeError):  # a name too long for a disk, the home of nobody
        return None


def check_rows(setting: str, file: Path) -> None:
    """Refuse a file, as of a task, that is no JSON objects."""
    rows = rows_in(read_text(setting, str(file), "of a task"), f"{setting}={str(file)!r}", "of a task")
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{setting}={str(file)!r} must have a JSON object in each line")


def rows_in(text: str, what: str, such: str) -> list[Any]:
    """The values of JSON lines or of an array; what, such: for the sentence that refuses another text."""
    try:
        rows = list(json_values(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} must be JSON lines or an array of objects {such}: {error}") from error
    return rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows


def json_values(text: str) -> Iterator[Any]:
    """The JSON values of a text, one behind the other, with white space between."""
    decoder, place = json.JSONDecoder(), 0
    while (place := SPACE.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        value, place = decoder.raw_decode(text, place)
        yield value


def is_array(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON may escape half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
