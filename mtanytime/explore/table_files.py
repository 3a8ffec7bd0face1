"""From a file to a table: encodings, separators, decimal commas, lines that were cut off; and the maps of transfers.

Columns of names are read as text, exactly as it stands. What cannot be read without guessing is refused.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Collection
from os import PathLike
from pathlib import Path

import pandas as pd
from pandas.io.common import get_handle

from mtanytime.checks import Words, mismatch, require

SEPARATORS = (",", ";", "\t", "|")
NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")
NO_NUMBER = ["", " ", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
BYTES_UP_TO = 2**31
MAP_FORMAT = "mtanytime-map-1"  # what `transfer.TransferMap.save` writes
ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # byte-order marks


def read_csv(path: str | PathLike[str], name: str, text_columns: Collection[str]) -> pd.DataFrame:
    """Return the table in a CSV file, which may be compressed (.gz, .bz2, .xz, .zip).

    The separator is a comma, semicolon, tab or bar: the one that splits the header into most columns. Decimal commas
    are read where another character separates the columns. Comment lines (`#`) may come before the header; empty lines
    are skipped. A last line without a line end is a row that was being written if it has too few fields, or if the file
    belongs to a run: it is left out with a warning.

    Args:
        path: the file.
        name: what messages call the table.
        text_columns: columns of names, in which NA, 007 and True are text.

    Raises:
        ValueError: the file is empty, not text in UTF-8 (or UTF-16 with its mark), has two columns of one name, a line
            with too few or too many fields, or numbers with decimal points and with decimal commas.
        OSError: the file cannot be read.
    """
    lines = list(io.StringIO(_text(path, name), newline=""))  # str.splitlines would also split at U+2028
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    if first == len(lines):
        raise mismatch(name, "a CSV table", Words(f"an empty file, {path}"))
    try:
        told = re.fullmatch(r'"?sep=(.)"?\s*', lines[first])  # a line for spreadsheets
        first += bool(told)
        separator = told[1] if told else _separator(lines[first])
        reader = csv.reader(lines[first:], delimiter=separator)
        header = [column.strip() for column in next(reader, [])]
        first += reader.line_num
        repeated = [column for column in header if column and header.count(column) > 1]
        require(not repeated, name, "columns of different names", Words(f"several called {', '.join(repeated[:1])}"))
        header = [column or f"Unnamed: {i}" for i, column in enumerate(header)]
        body = _complete(lines[first:], separator, len(header), name, path, first + 1)
        if not body:
            return pd.DataFrame(columns=header)
        decimal = "." if separator == "," else _decimal(body, separator, header, name, text_columns)
        return pd.read_csv(
            io.StringIO("".join(body)),
            sep=separator,
            names=header,
            index_col=False,
            dtype={column: str for column in header if column in text_columns},
            na_values={column: NO_NUMBER for column in header if column not in text_columns},
            keep_default_na=False,
            decimal=decimal,
            low_memory=False,
        )
    except (csv.Error, pd.errors.ParserError) as error:
        raise _unreadable(name, path, str(error).strip().splitlines()[0]) from None


def read_map(path: str | PathLike[str], name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a transfer map in a JSON file as a trace with the one step 0, and a table of channel weights.

    Args:
        path: a file that `transfer.TransferMap.save` wrote.
        name: what messages call the table.

    Raises:
        ValueError: another or a damaged file.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(_text(path, name))
        require(content["format"] == MAP_FORMAT, "format", repr(MAP_FORMAT), content["format"])
        trace, channels = [], []
        for row in content["pairs"]:
            pair = {"step": 0, "source": row["source"], "target": row["target"]}
            require(isinstance(row["source"], str) and isinstance(row["target"], str), "pairs", "names of layers", row)
            trace.append({**pair, "weight": float(row["weight"])})
            channels += [{**pair, "channel": i, "weight": float(weight)} for i, weight in enumerate(row["channels"])]
        require(len(channels) > 0, "pairs", "at least one with channels", Words("none"))
        trace, channels = pd.DataFrame(trace), pd.DataFrame(channels)
        require(not trace.duplicated(["source", "target"]).any(), "pairs", "each pair once", Words("one of them twice"))
        return trace, channels
    except OSError:
        raise
    except Exception as error:  # other kinds of JSON fail in many ways
        raise mismatch(name, "a transfer map", Words(f"{path}, a foreign or damaged file ({error})")) from None


def _text(path: str | PathLike[str], name: str) -> str:
    """Return the text of a file, without its byte-order mark."""
    if Path(path).is_dir():
        raise mismatch(name, "a CSV table", Words(f"{path}, which is a folder"))
    try:
        with get_handle(path, "rb", compression="infer", is_text=False) as handles:
            data = handles.handle.read(BYTES_UP_TO + 1)
    except Exception as error:  # the libraries for compressed files raise many kinds, OSError too
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise _unreadable(name, path, str(error).strip().partition("\n")[0] or type(error).__name__) from None
    if len(data) > BYTES_UP_TO:  # a small compressed file may expand without end
        raise mismatch(name, f"a CSV table of at most {BYTES_UP_TO} bytes", Words(f"{path}, which is larger"))
    encoding = next((encoding for mark, encoding in ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        reason = f"line {line} is not text in {encoding.removesuffix('-sig').upper()}; save it in UTF-8"
        raise _unreadable(name, path, reason) from None
    if "\0" in text:
        raise _unreadable(name, path, "it holds zero bytes, so it is no text; save it as a CSV file in UTF-8")
    return text


def _unreadable(name: str, path: str | PathLike[str], reason: str) -> ValueError:
    return mismatch(name, "a CSV table", Words(f"{path}, which cannot be read: {reason}"))


def _separator(header: str) -> str:
    """Return the separator that splits a header into most columns."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator))))


def _complete(lines: list[str], separator: str, count: int, name: str, path: str | PathLike[str], at: int) -> list[str]:
    """Return the lines that are not empty, after checking that each row has `count` fields; the first is line `at`."""
    body: list[str] = []
    reader = csv.reader(lines, delimiter=separator)
    start = 0
    for row in reader:
        here = lines[start : reader.line_num]
        unfinished = reader.line_num == len(lines) and len(here) == 1 and not here[-1].endswith(("\n", "\r"))
        of_run = unfinished and Path(path).with_name("config.json").exists()
        if unfinished and (len(row) < count or of_run) and any(row):
            warnings.warn(f"{name}: the last line of {path} is cut off and left out", stacklevel=4)
        elif "".join(row).strip():
            fields = Words(f"{len(row)} in line {at + start} of {path}")
            require(len(row) == count, name, f"{count} fields per line, as in the header", fields)
            body += here
        start = reader.line_num
    return body


def _decimal(lines: list[str], separator: str, header: list[str], name: str, text_columns: Collection[str]) -> str:
    """Return the decimal mark, "," or ".", of the columns that hold only numbers."""
    examples: dict[str, str] = {}  # mark -> a number with it
    for column, cells in zip(header, zip(*csv.reader(lines, delimiter=separator), strict=True), strict=True):
        numbers = [cell for cell in cells if cell not in NO_NUMBER]
        if column not in text_columns and all(map(NUMBER.fullmatch, numbers)):
            examples |= {mark: number for number in numbers for mark in ",." if mark in number}
    both = Words(" and ".join(examples.values()))
    require(len(examples) < 2, name, "numbers with decimal points or with decimal commas", both)
    return next(iter(examples), ".")
