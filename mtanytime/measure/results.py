"""How much of the source's knowledge arrived, by a table of accuracies."""

import pandas as pd

from mtanytime.measure.tables import as_numbers, require_columns, require_rows, require_unique

NAME = "results table"
SCRATCH, PROBE = "scratch", "probe"


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
