"""A data file as columns of texts: CSV, TSV or Parquet, plain or gzipped, in the encodings that are met. Reads it.

Encoding and delimiter are found from the bytes; every cell is a text without outer spaces, "" where nothing was given.
Refuses, with DataRefused, what is no table: an empty file, a workbook, bytes without letters, a header alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from aggregator.errors import AggregatorError

MOST_BYTES: Final = 2**30
LONGEST_CELL: Final = 2**28
DELIMITERS: Final = (",", ";", "\t", "|")
SNIFFED_ROWS: Final = 200
# What programs write where there is no value. "none" is not among them: it is an answer too.
NOTHING: Final = frozenset(("", "na", "n/a", "nan", "null", "<na>", "#n/a", "\\n", "nat"))
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
EXTRAS: Final = "pip install 'chorale[demo,train,aggregator]'"


class DataRefused(AggregatorError):
    """The file cannot be rehearsed as it is, or not as it was asked."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns in the file's order, all of `rows` cells. `notes`: what had to be put right on the way."""

    columns: dict[str, list[str]]
    rows: int
    notes: tuple[str, ...] = ()
    decimal_comma: bool = False

    def take(self, places: Iterable[int]) -> Table:
        """The rows at `places`."""
        chosen = list(places)
        columns = {name: [cells[i] for i in chosen] for name, cells in self.columns.items()}
        return Table(columns, len(chosen), self.notes, self.decimal_comma)


def read_table(path: Path, *, most_rows: int, rng: np.random.Generator) -> Table:
    """Read the file; of more than `most_rows` rows, so many drawn by `rng`. Raises DataRefused."""
    data = _bytes(path)
    if not data.strip():
        raise DataRefused(f"{path} is empty", "give a CSV or Parquet file whose first line names the columns")
    if data[:4] == b"PAR1":
        table = _of_parquet(data)
    elif data[:2] == b"PK" or data[:4] == b"\xd0\xcf\x11\xe0":
        raise DataRefused(f"{path} is a workbook or an archive", "save the sheet as CSV (UTF-8) and give that file")
    else:
        table = _of_text(path, *_decoded(path, data))
    if not table.rows:
        raise DataRefused(f"{path} has a header and no rows", "give a file with one row for each record")
    if table.rows > most_rows:
        places = np.sort(rng.choice(table.rows, most_rows, replace=False)).tolist()
        note = f"{most_rows:,} of {table.rows:,} rows were drawn at random (--max-rows)"
        table = table.take(places)
        table = Table(table.columns, table.rows, (*table.notes, note), table.decimal_comma)
    return table


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise DataRefused(f"there is no file {path}", "see that the path is right") from error
    except IsADirectoryError as error:
        raise DataRefused(f"{path} is a folder", "give one CSV or Parquet file") from error
    except (OSError, EOFError) as error:
        raise DataRefused(
            f"cannot read {path}: {error}", "see that the file is whole and that you may read it"
        ) from error
    if len(data) > MOST_BYTES:
        raise DataRefused(
            f"{path} holds more than {MOST_BYTES >> 30} GiB", "give a part of it: a rehearsal needs no more"
        )
    return data


def _decoded(path: Path, data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding."""
    if data[:2] in _UTF16:
        return data.decode("utf-16", "replace"), "utf-16"
    if b"\0" in data[:4096]:
        raise DataRefused(f"{path} is neither text nor Parquet", "give a CSV, TSV or Parquet file")
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        pass
    if _in_pairs(data):
        try:
            return data.decode("gb18030"), "gb18030"
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1"), "latin-1"


def _in_pairs(data: bytes) -> bool:
    """Chinese in GB encodings comes in pairs of bytes, most of them both high; an accented letter stands alone."""
    runs = [len(run) for run in _HIGH.findall(data)]
    return sum(size for size in runs if size >= 2) >= 0.8 * sum(runs)


def _of_text(path: Path, text: str, encoding: str) -> Table:
    csv.field_size_limit(LONGEST_CELL)
    delimiter = _delimiter(path, text)
    rows = _rows(text, delimiter)
    header = next(rows, None)
    if header is None:
        raise DataRefused(f"{path} is empty", "give a file whose first line names the columns")
    names, notes = _named(header)
    if encoding != "utf-8":
        notes.append(f"read as {encoding}")
    cells: list[list[str]] = [[] for _ in names]
    longer = shorter = 0
    for row in rows:
        longer += len(row) > len(names)
        shorter += len(row) < len(names)
        for place, column in enumerate(cells):
            column.append(_cell(row[place]) if place < len(row) else "")
    if longer or shorter:
        notes.append(f"{longer} rows had more cells than the header and {shorter} fewer: cut or filled with nothing")
    return Table(dict(zip(names, cells, strict=True)), len(cells[0]), tuple(notes), decimal_comma=delimiter == ";")


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Rows with anything in them."""
    return (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row)))


def _delimiter(path: Path, text: str) -> str:
    """The one that cuts the first rows into the same number of cells, and into the most."""
    if ".tsv" in path.suffixes:
        return "\t"
    head = text[: 1 << 18]

    def evenness(delimiter: str) -> tuple[float, int]:
        sizes = Counter(len(row) for row, _ in zip(_rows(head, delimiter), range(SNIFFED_ROWS), strict=False))
        cells, rows = sizes.most_common(1)[0] if sizes else (1, 0)
        return (round(rows / max(1, sum(sizes.values())), 1), cells) if cells > 1 else (0.0, 1)

    return max(DELIMITERS, key=evenness)


def _cell(text: str) -> str:
    text = text.strip()
    return "" if text.lower() in NOTHING else text


def _named(header: list[str]) -> tuple[list[str], list[str]]:
    """A name of its own for each column, and what was changed."""
    names, notes = list[str](), list[str]()
    for place, given in enumerate(header, 1):
        name = " ".join(given.split()) or f"column {place}"
        number = 2
        wanted = name
        while name in names:
            name, number = f"{wanted} ({number})", number + 1
        if name != given.strip():
            notes.append(f"column {place}, {given.strip()[:40]!r}, is called {name[:40]!r}")
        names.append(name)
    return names, notes


def _of_parquet(data: bytes) -> Table:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataRefused("Parquet needs pyarrow, which is not installed", EXTRAS) from error
    try:
        found = parquet.read_table(io.BytesIO(data))
    except (arrow.ArrowException, OSError) as error:
        raise DataRefused(f"the Parquet file is not readable: {error}", "write it again, or save it as CSV") from error
    names, notes = _named([str(name) for name in found.column_names])
    columns = {}
    for name, column in zip(names, found.columns, strict=True):
        if arrow.types.is_nested(column.type) or arrow.types.is_binary(column.type):
            notes.append(f"column {name!r} holds {column.type} and is left out")
        else:
            columns[name] = [_word(value) for value in column.to_pylist()]
    return Table(columns, found.num_rows, tuple(notes))


def _word(value: Any) -> str:
    """A Parquet value as a CSV would have written it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return _cell(str(value))
