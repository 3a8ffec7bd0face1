"""Checks that all tables of measurements share: columns, rows, numbers."""

import numpy as np
import pandas as pd

from mtanytime.checks import Words, require

BOOLEANS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def require_columns(table: pd.DataFrame, name: str, *columns: str, remedy: str = "") -> None:
    """Raise ValueError unless the table `name` has each of these columns once, and at least one row."""
    has = ", ".join(map(str, table)) or "none"
    missing = [column for column in columns if column not in table]
    expected = f"column{'s' * (len(missing) > 1)} {', '.join(missing)}"
    require(not missing, name, expected, Words(f"columns {has}"), remedy)
    repeated = table.columns[table.columns.duplicated()].tolist()
    require(
        not repeated, name, "columns of different names", Words(f"several called {', '.join(map(str, repeated[:1]))}")
    )
    require(len(table) > 0, name, "at least one row", Words(f"none (columns: {has})"))


def as_numbers(table: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    """Return the table with these columns as numbers; missing values stay missing.

    Raises:
        ValueError: a value is not a real number (names its column and the first such value); True is not a number.
    """
    numbers = {column: pd.to_numeric(table[column], errors="coerce") for column in columns}
    for column, values in numbers.items():
        cells = table[column]
        other = (
            cells.map(lambda cell: isinstance(cell, (bool, np.bool_, complex)))
            if cells.dtype.kind not in "iuf"
            else False
        )
        text = cells[(values.isna() & cells.notna()) | other]
        require(text.empty, f"{name}, column {column}", "numbers", text.iloc[0] if len(text) else None)
    plain = {  # where a column may hold <NA>, comparisons would give <NA>, which counts as true
        column: values.astype("float64") if values.isna().any() else values for column, values in numbers.items()
    }
    return table.assign(**plain)


def as_booleans(table: pd.DataFrame, name: str, column: str) -> pd.Series:
    """Return a column of True, False, None from booleans, the numbers 1 and 0, or text such as "True", "false", "1".

    Raises:
        ValueError: any other value.
    """
    cells = table[column]
    words = cells.astype(str).str.strip().str.lower()
    missing = cells.isna() | (words == "")
    require_rows(missing | words.isin(BOOLEANS), table, name, column, "True, False, 1 or 0")
    return pd.Series(
        [None if no else BOOLEANS[word] for no, word in zip(missing, words, strict=True)], table.index, object
    )


def require_whole(table: pd.DataFrame, name: str, column: str) -> pd.Series:
    """Return a column of numbers as integers; ValueError unless all are whole and below 2⁵³, where float64 is exact."""
    good = (table[column] % 1 == 0) & (table[column].abs() < 2**53)
    require_rows(good, table, name, column, "whole numbers")
    return table[column].astype("int64")


def require_rows(good: pd.Series, table: pd.DataFrame, name: str, column: str, expected: str, *keys: str) -> None:
    """Raise ValueError unless a condition on a column holds in every row; names the first other row by its keys."""
    good = good.fillna(False).astype(bool)  # <NA> is not good
    if not good.all():
        row = table[~good].iloc[0]
        place = f" in the row of {described(row, *keys)}" if keys else ""
        require(False, f"{name}, column {column}", expected, Words(f"{row[column]}{place}"))


def require_unique(table: pd.DataFrame, name: str, *keys: str, remedy: str = "") -> None:
    """Raise ValueError if two rows have the same keys: drawing or averaging them would hide both."""
    if (repeated := table.duplicated(list(keys))).any():
        rows = Words(f"several for {described(table[repeated].iloc[0], *keys)}")
        require(False, name, f"one row per {', '.join(keys)}", rows, remedy)


def described(row: pd.Series, *keys: str) -> str:
    """A row's keys in words: "model sliced, exit 1, seed 0"."""
    return ", ".join(f"{key} {row[key]}" for key in keys)
