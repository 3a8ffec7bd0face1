"""What a table shows, told by its columns."""

import pandas as pd

from mtanytime.checks import Words, require

# Kind -> its columns. A table is of the first kind that fits: channels and maps are traces with more columns.
KINDS = {
    "channels table": ("step", "source", "target", "channel", "weight"),
    "table of maps": ("method", "seed", "source", "target", "weight"),
    "trace": ("step", "source", "target", "weight"),
    "table of R²": ("step", "source", "target", "r2"),
    "curve": ("model", "exit", "macs", "accuracy"),
    "results table": ("method", "seed", "accuracy"),
    "log": ("step", "loss"),
}
SHOWN_BY = {
    "channels table": "TransferExplorer(trace, channels) and draw.channel_weights show it",
    "table of maps": "draw.heatmaps shows it",
    "trace": "TransferExplorer and draw.heatmap show it",
    "table of R²": "TransferExplorer(trace, arrived=…) and draw.arrived show it",
    "curve": "BudgetExplorer and draw.accuracy_by_budget show it",
    "results table": "draw.accuracy_by_method shows it",
    "log": "draw.learning_curves shows it",
}
SETTINGS = ("lr", "precision", "beta")  # columns of results and maps that tell several runs of a method and seed apart
OTHER_COSTS = ("latency_ms", "params")  # of a curve without multiply-adds


def kind_of(table: pd.DataFrame) -> str:
    """Return which of `KINDS` a table is; one that lacks columns is the trace or curve of which it has more columns.

    Raises:
        ValueError: the table has equally many columns of a trace and of a curve.
    """
    if kind := _whole_kind(table):
        return kind
    counts = {kind: sum(column in table for column in KINDS[kind]) for kind in ("trace", "curve")}
    kinds = ", ".join(f"a {kind} ({', '.join(columns)})" for kind, columns in KINDS.items())
    require(counts["trace"] != counts["curve"], "table", f"one of {kinds}", Words(f"columns {_columns(table)}"))
    return max(counts, key=counts.get)


def remedy_for(table: pd.DataFrame, name: str) -> str:
    """Return a hint on what shows a table that is of another kind than `name`; "" if there is none."""
    kind = _whole_kind(table)
    return "" if kind is None or kind == name else f"it is a {kind}: {SHOWN_BY[kind]}"


def measures(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return a log's columns of losses and of accuracies: those whose names end in `loss` or `accuracy`."""
    columns = {kind: [c for c in table if isinstance(c, str) and c.endswith(kind)] for kind in ("loss", "accuracy")}
    return {kind: names for kind, names in columns.items() if names}


def _whole_kind(table: pd.DataFrame) -> str | None:
    """Return the kind whose columns a table has, if any."""
    has = {str(column) for column in table}
    has |= {"macs"} if has.intersection(OTHER_COSTS) else set()
    has |= {"loss"} if measures(table) else set()
    return next((kind for kind, columns in KINDS.items() if has.issuperset(columns)), None)


def varied_settings(table: pd.DataFrame) -> list[str]:
    """Return the columns of settings of which a method in a table has several values."""
    methods = table.groupby("method")
    return [name for name in SETTINGS if name in table and methods[name].nunique(dropna=False).max() > 1]


def _columns(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table)) or "none"
