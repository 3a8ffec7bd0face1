"""Checks that all tables of measurements share: columns, rows, numbers."""

import pandas as pd

from mtanytime.checks import Words, require


def require_columns(table: pd.DataFrame, name: str, *columns: str) -> None:
    """Raise ValueError unless the table `name` has these columns and at least one row."""
    has = ", ".join(map(str, table)) or "none"
    missing = [column for column in columns if column not in table]
    require(not missing, name, f"column{'s' * (len(missing) > 1)} {', '.join(missing)}", Words(f"columns {has}"))
    require(len(table) > 0, name, "at least one row", Words(f"none (columns: {has})"))


def as_numbers(table: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    """Return the table with these columns as numbers; missing values stay missing.

    Raises:
        ValueError: a value is not a number (names its column and the first such value).
    """
    numbers = {column: pd.to_numeric(table[column], errors="coerce") for column in columns}
    for column, values in numbers.items():
        text = table[column][values.isna() & table[column].notna()]
        require(text.empty, f"{name}, column {column}", "numbers", text.iloc[0] if len(text) else None)
    return table.assign(**numbers)


def require_rows(good: pd.Series, table: pd.DataFrame, name: str, column: str, expected: str, *keys: str) -> None:
    """Raise ValueError unless a condition on a column holds in every row; names the first other row by its keys."""
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
