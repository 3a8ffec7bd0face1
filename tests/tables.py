"""Small tables for the tests of explorers, whose numbers can be worked out by hand."""

import numpy as np
import pandas as pd

from mtanytime.anytime import Taxonomy

TREE = Taxonomy({"animal": ["cat", "dog"], "vehicle": ["car"]}, ("cat", "dog", "car"))


def trace(
    sources: tuple[str, ...] = ("layer1", "layer2"),
    targets: tuple[str, ...] = ("t1", "t2", "t3"),
    steps: tuple[int, ...] = (0, 100, 200),
    slices: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return a trace whose weights are all different and grow with the step; the last pair ends strongest."""
    rows = [
        {"step": step, "source": source, "target": target, "weight_std": 0.1} | ({"slice": part} if part else {})
        for step in steps
        for part in slices or ("",)
        for source in sources
        for target in targets
    ]
    table = pd.DataFrame(rows)
    pairs = len(table) // len(steps)
    return table.assign(weight=[0.5 + (1 + k % pairs) * (1 + k // pairs) / pairs for k in range(len(table))])


def channels(trace: pd.DataFrame, count: int = 4) -> pd.DataFrame:
    """Return channel weights, uniform at the first step and growing with the channel's number at the last."""
    pairs = trace[["source", "target"]].drop_duplicates()
    sums = count * (count + 1) / 2
    rows = [
        {"step": step, "source": pair.source, "target": pair.target, "channel": channel, "weight": weight}
        for step, weights in (
            (trace["step"].min(), [1 / count] * count),
            (trace["step"].max(), [(c + 1) / sums for c in range(count)]),
        )
        for pair in pairs.itertuples()
        for channel, weight in enumerate(weights)
    ]
    return pd.DataFrame(rows)


def arrived(trace: pd.DataFrame, steps: tuple[int, ...] = (50, 200)) -> pd.DataFrame:
    """Return R² of a trace's pairs at some steps: from -0.3 for the first pair up to at most 1."""
    keys = [name for name in ("source", "target", "slice") if name in trace]
    pairs = trace[keys].drop_duplicates()
    tables = []
    for k, step in enumerate(steps):
        r2 = np.linspace(-0.3, (k + 1) / len(steps), len(pairs))
        tables.append(pairs.assign(step=step, r2=r2)[["step", *keys, "r2"]])
    return pd.concat(tables, ignore_index=True)


def curve(seeds: int = 3) -> pd.DataFrame:
    """Return two models of four exits: costs of 1, 4, 9, 16 M and 1.5 times that; accuracies 0.01 apart by seed."""
    rows = [
        {
            "model": model,
            "exit": exit,
            "macs": int(1e6 * exit**2 * factor),
            "params": int(1e4 * exit * factor),
            "latency_ms": 2 * exit * factor,
            "accuracy": 0.5 + 0.1 * exit - 0.05 * (factor - 1) + 0.01 * (seed - 1),
            "seed": seed,
        }
        for model, factor in (("sliced", 1), ("msdnet", 1.5))
        for exit in range(1, 5)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def strip(curve: pd.DataFrame, count: int = 3) -> tuple[np.ndarray, pd.DataFrame]:
    """Return grey images, and answers that are correct from exit 3 on."""
    images = np.stack([np.full((3, 8, 8), 40 * i, np.uint8) for i in range(count)])
    exits = curve[["model", "exit"]].drop_duplicates()
    rows = [
        {"image": i, "model": row.model, "exit": row.exit, "right": row.exit > 2}
        | {"answer": f"class {i if row.exit > 2 else 9}", "coarse": f"group {i}"}
        for row in exits.itertuples()
        for i in range(count)
    ]
    return images, pd.DataFrame(rows)


def pictures(count: int = 2) -> tuple[np.ndarray, tuple[str, ...], list[int]]:
    """Return grey images, the classes of `TREE`, and labels: the first image is a cat, all others are cars."""
    images = np.stack([np.full((3, 16, 16), 50 * i % 256, np.uint8) for i in range(count)])
    return images, TREE.classes, [0] + [2] * (count - 1)
