"""Read one file of rows: CSV, TSV, JSON lines, Parquet; every complaint names file, row and value."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from niwaki.errors import NiwakiError
from niwaki.task.tables import Table


def read_table(path: Path) -> Table:
    """Read one file by its type.

    Raises:
        NiwakiError: when the file cannot be opened, is empty, is not UTF-8, or is not what its name says.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise NiwakiError(
            f'"{path.suffix or path.name}" is not a file type that is read here',
            expected=" ".join(READERS),
            fix=f"save it as {path.with_suffix('.csv').name}, one row a line below a header line",
            place=str(path),
        )
    try:
        if path.stat().st_size == 0:
            raise NiwakiError("the file is empty", expected="rows of text and label", place=str(path))
        table = reader(path)
    except OSError as error:
        raise NiwakiError(f"the file cannot be read: {error.strerror or error}", place=str(path)) from error
    if table.num_rows == 0:
        raise NiwakiError(
            f"the file has no rows; its columns are {', '.join(table.columns) or 'none'}",
            expected="at least one row of text and label",
            place=str(path),
        )
    return table


def _decoded(path: Path) -> str:
    """Return the text of a UTF-8 file without its byte order mark."""
    data = path.read_bytes()
    mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if wide else "WINDOWS-1252"
        offset = mark + error.start
        line = data.count(b"\n", 0, offset) + 1
        fresh = f"utf8{path.suffix}"
        raise NiwakiError(
            f"byte 0x{data[offset]:02x} at offset {offset:,} (line {line}) is not UTF-8",
            expected="a file in UTF-8" + (f"; this one looks like {encoding}" if wide else ""),
            fix=f"iconv -f {encoding} -t UTF-8 {path.name} > {fresh} && mv {fresh} {path.name}",
            place=str(path),
        ) from None


def _of_records(source: str, header: list[str], records: list[list[Any]], lines: list[int]) -> Table:
    """Build a table from rows of equal length."""
    columns = dict(zip(header, (list(column) for column in zip(*records, strict=True)), strict=False))
    return Table(source, tuple(header), len(records), lambda name: columns[name], lines)


def _read_csv(path: Path) -> Table:
    """Read comma-separated values (RFC 4180); a header without commas may be split by semicolons or tabs."""
    text = _decoded(path)
    header = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    return _checked(path, *_records(path, text, delimiter))


def _read_tsv(path: Path) -> Table:
    """Read tab-separated values, quoted as in CSV or, as many published sets are, not at all.

    Read as quoted, a bare quote at the beginning of a text would swallow the lines up to the next one. So the
    quoted reading stands only if each record is one line, or if the other gives rows of unequal length.
    """
    text = _decoded(path)
    bare = _records(path, text, "\t", quoting=csv.QUOTE_NONE)
    try:
        quoted = _records(path, text, "\t")
    except NiwakiError:
        return _checked(path, *bare)
    one_line_each = len(quoted[0]) == len(bare[0])
    even = all(len(record) == len(bare[0][0]) for record in bare[0])
    return _checked(path, *(bare if even and not one_line_each else quoted))


def _records(
    path: Path, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> tuple[list[list[str]], list[int]]:
    """Return the records of a text, the header first, without blank lines, and the line each begins on."""
    records, lines, before = [], [], 0
    limit = csv.field_size_limit(2**31 - 1)
    lines_of_text = io.StringIO(text, newline="")
    reader = csv.reader(lines_of_text, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for record in reader:
            if record:
                records.append(record)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise NiwakiError(
            f"the record that begins here is not well quoted: {error}",
            expected='"..." around texts with separators, quotes or line breaks, and each quote inside as ""',
            fix="write the file with a CSV library, such as Python's csv.writer or pandas to_csv",
            place=f"{path}, row {len(records)} (line {before + 1})",
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records, lines


def _checked(path: Path, records: list[list[str]], lines: list[int]) -> Table:
    """Build the table after checking that the header is sound and each row is as long as it."""
    if not records:
        raise NiwakiError("the file holds blank lines only", expected="a header line and rows", place=str(path))
    header, rows = [name.strip() for name in records[0]], records[1:]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise NiwakiError(
            f'the header names "{doubled[0]}" more than once',
            expected="a name of its own for each column",
            place=f"{path}, line {lines[0]}",
        )
    for row, record in enumerate(rows):
        if len(record) != len(header):
            raise NiwakiError(
                f"{len(record)} fields: {_short(record)}",
                expected=f"{len(header)} as in the header: {', '.join(header)}",
                fix='put texts that hold the separator in double quotes: "good, but long",1',
                place=f"{path}, row {row + 1} (line {lines[row + 1]})",
            )
    return _of_records(str(path), header, rows, lines[1:])


def _read_json(path: Path) -> Table:
    """Read one object a line, or one list of objects."""
    text = _decoded(path)
    if text.lstrip().startswith("["):
        rows, lines = list(enumerate(_parsed(path, text, 1), 1)), None
    else:
        # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
        written = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows, lines = (
            [(number, _parsed(path, line, number)) for number, line in written],
            [n for n, _ in written],
        )
    for row, (number, value) in enumerate(rows, 1):
        if not isinstance(value, dict):
            raise NiwakiError(
                f"{_short(value)} is not an object",
                expected='one object a row: {"text": "...", "label": 1}',
                place=f"{path}, row {row}" + (f" (line {number})" if lines else ""),
            )
    columns = tuple(dict.fromkeys(name for _, value in rows for name in value))
    return Table(str(path), columns, len(rows), lambda name: [value.get(name) for _, value in rows], lines)


def _parsed(path: Path, text: str, line: int) -> Any:
    """Parse one JSON text that begins on this line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
        reason, where = str(error), f"line {line}"
        if isinstance(error, json.JSONDecodeError):
            reason, where = error.msg, f"line {line + error.lineno - 1}, column {error.colno}"
        raise NiwakiError(
            f"this is not JSON ({reason}): {_short(text.strip())}",
            expected='one object a line: {"text": "...", "label": 1}',
            place=f"{path}, {where}",
        ) from None


def _read_parquet(path: Path) -> Table:
    """Read a Parquet file by columns, with the names of classes that the `datasets` library left in it."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise NiwakiError(
            "the package pyarrow, which reads Parquet, is not installed",
            expected="the package, or the rows as CSV or JSON lines",
            fix='pip install "niwaki[data]"',
            place=str(path),
        ) from None
    try:
        schema = parquet.read_schema(path)
        num_rows = parquet.read_metadata(path).num_rows
    except pyarrow.ArrowInvalid as error:
        raise NiwakiError(
            f"this is not a Parquet file: {str(error).split('.')[0]}",
            expected="a whole Parquet file",
            place=str(path),
        ) from None

    def read(name: str) -> list[Any]:
        try:
            values: list[Any] = parquet.ParquetFile(path).read(columns=[name]).column(0).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise NiwakiError(f'column "{name}" cannot be read: {error}', place=str(path)) from None
        return values

    return Table(str(path), tuple(schema.names), num_rows, read, None, _hub_classes(schema.metadata or {}))


def _hub_classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that the `datasets` library writes into Parquet metadata."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: tuple(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _short(value: Any) -> str:
    """Return a value as one short line."""
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else text[:77] + "..."


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
