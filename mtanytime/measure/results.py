"""Summaries of tables of results: accuracy by method, and how much of the source's knowledge arrived."""

import pandas as pd

from mtanytime.measure.tables import as_numbers, require_columns, require_rows, require_unique

NAME = "results table"
SCRATCH, PROBE = "scratch", "probe"


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Summarize a table of results by method and network, in the table's order.

    Args:
        results: method, seed, accuracy (a fraction of 1)[, network][, train_seconds]; one row per run. A run that
            diverged has no accuracy.

    Returns:
        method, [network,] runs (with an accuracy), accuracy (mean), spread (standard deviation over runs, n - 1),
        [minutes (mean)] and share, the mean of `share_taken_over`.

    Raises:
        ValueError: as `share_taken_over`.
    """
    table = results.assign(share=share_taken_over(results))
    keys = ["method", *(["network"] if "network" in table else [])]
    by = {"by": keys, "sort": False, "dropna": False}
    runs = table.groupby(**by)
    columns = {"runs": runs["accuracy"].count(), "accuracy": runs["accuracy"].mean(), "spread": runs["accuracy"].std()}
    if "train_seconds" in table:
        columns["minutes"] = as_numbers(table, NAME, "train_seconds").groupby(**by)["train_seconds"].mean() / 60
    return pd.DataFrame(columns | {"share": runs["share"].mean()}).reset_index()


def share_taken_over(results: pd.DataFrame) -> pd.Series:
    """The share of the way from training from scratch to the source's linear probe that each run covers.

    (accuracy - scratch) / (probe - scratch), with the runs `scratch`, of the same network, and `probe` of the same
    seed. It is 0 for a target that learned nothing from its source, 1 for one that is as accurate as a logistic
    regression on the source's features, and more for a better one. NaN where one of the two runs is missing, for runs
    on the source's own network ("source"), and where the probe is no better than scratch.

    Args:
        results: method, seed, accuracy[, network]; one row per method, network and seed.

    Raises:
        ValueError: a missing column, accuracies that are not numbers, or several rows of one run.
    """
    require_columns(results, NAME, "method", "seed", "accuracy")
    table = as_numbers(results, NAME, "accuracy")
    require_rows(table["method"].notna(), table, NAME, "method", "a method in every row")
    networks = ["network"] if "network" in table else []
    require_unique(table, NAME, "method", *networks, "seed")
    require_unique(table[table["method"] == PROBE], NAME, "method", "seed")
    scratch = table[table["method"] == SCRATCH].set_index([*networks, "seed"])["accuracy"]
    probe = table[table["method"] == PROBE].set_index("seed")["accuracy"]
    keys = pd.MultiIndex.from_frame(table[[*networks, "seed"]]) if networks else pd.Index(table["seed"])
    low = scratch.reindex(keys).to_numpy()
    high = probe.reindex(table["seed"]).to_numpy()
    share = (table["accuracy"] - low) / (high - low)
    return share.where(high > low).rename("share")
