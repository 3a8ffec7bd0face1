"""The learned map and its rivals on the built-in task: every method runs in one loop, and resumes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from mtanytime.data.images import Task
from mtanytime.experiments import map_recipes as recipes
from mtanytime.experiments.runner import plan, run, write_results

SMALL = {"source_depth": "8", "source_epochs": "1", "steps": "2", "search_steps": "2", "trials": "4", "batch_size": "8"}
SMALL |= {"target_width": "4", "views": "4"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images in place of characters."""
    letters = Task(tiny.images(74, classes=37, size=32), tiny.images(37, classes=37, size=32, seed=1))
    digits = Task(tiny.images(50, classes=10, size=32, seed=2), tiny.images(20, classes=10, size=32, seed=3))
    monkeypatch.setattr(recipes, "letters_task", lambda per_class: letters)
    monkeypatch.setattr(recipes, "digits_task", lambda per_class, seed, held_back: digits)


def test_every_method(tmp_path: Path) -> None:
    """Each has a row with its seconds, the search's included; a second call reads the results."""
    results = run("baselines-builtin", tmp_path, changes=SMALL, progress=False)
    table = results.table
    assert list(table.columns) == ["method", "seed", "accuracy", "train_seconds"]
    assert table["method"].tolist() == list(recipes.METHODS)
    assert table["accuracy"].between(0, 1).all()
    maps = results.maps
    assert set(maps["method"]) == {*recipes.LEARNED, "search_then_train", "random_search"}
    assert dict(zip(maps["method"], maps["beta"], strict=True)) == {"l2t_not_later": 4.0} | dict.fromkeys(
        ("l2t", "search_then_train", "random_search"), 2.0
    )
    learned = maps[maps["method"] == "l2t_not_later"]
    rule = [(1, (2,)), (2, (2, 6, 13)), (3, (2, 6, 13, 20, 27))]  # no target layer is later than its source layer
    expected = [(f"layer{source}", f"features.{target}") for source, targets in rule for target in targets]
    assert [*zip(learned["source"], learned["target"], strict=True)] == expected
    again = run("baselines-builtin", tmp_path, changes=SMALL, progress=False)
    assert again.table.drop(columns="train_seconds").equals(table.drop(columns="train_seconds"))
    trained = table["method"] != "probe"
    assert again.table[trained]["train_seconds"].tolist() == table[trained]["train_seconds"].tolist()


def test_weights_of_a_searched_map(tmp_path: Path) -> None:
    """λ is equal for the best pairs, or each pair's probability of being one; both are of the same trials."""
    changes = SMALL | {"methods": "random_search,search_then_train"}
    equal, probable = (
        run("baselines-builtin", tmp_path / name, changes=changes | {"search_weights": name}, progress=False)
        for name in ("equal", "probability")
    )
    assert list(equal.trials.columns) == ["method", "seed", "trial", "loss", "pairs", "weights"]
    assert equal.trials.equals(probable.trials)
    write_results(equal, tmp_path / "equal.csv", "a command")
    read = pd.read_csv(tmp_path / "equal_trials.csv", comment="#", dtype={"weights": str})
    pd.testing.assert_frame_equal(read, equal.trials)
    assert equal.trials["method"].tolist() == 4 * ["random_search"] + 4 * ["search_then_train"]
    assert equal.trials["trial"].tolist() == 2 * [0, 1, 2, 3]
    searched, other = (table.maps[table.maps["method"] == "search_then_train"] for table in (equal, probable))
    tried = [equal.trials.loc[4:, column].str.split().explode() for column in ("pairs", "weights")]
    assert set(tried[0]) == set(searched["source"] + "→" + searched["target"])  # each in some trial
    assert set(tried[1]) == {"2.5"}  # fifteen pairs, six of them matched
    assert set(searched["weight"].round(9)) == {0, round(15 / 9, 9)}
    assert other["weight"].nunique() > 2
    assert other["weight"].mean() == pytest.approx(1)
    assert other["weight"].max() <= 15 / 9 + 1e-9
    with pytest.raises(ValueError, match=r"search_weights: expected one of \['equal', 'probability'\], got 'even'"):
        run("baselines-builtin", tmp_path / "none", changes=changes | {"search_weights": "even"}, progress=False)


def test_plan(tmp_path: Path) -> None:
    """A dry run lists every method, a search with the steps of its trials."""
    rows = list(plan("baselines-builtin", tmp_path, changes=SMALL))
    assert [row["part"] for row in rows] == ["source", *recipes.METHODS]
    trials, steps, search_steps = (int(SMALL[name]) for name in ("trials", "steps", "search_steps"))
    by_part = {row["part"]: row for row in rows}
    assert by_part["l2t"]["steps"] == steps
    for method in ("random_search", "search_then_train"):
        assert by_part[method]["steps"] == trials * search_steps + steps
        assert by_part[method]["seconds"] > 0 < by_part[method]["macs"]


def test_plan_of_rare_lookaheads(tmp_path: Path) -> None:
    """With a lookahead at every fourth of ten steps, three cost what all of L2T-ww's do, the others a plain matching's.

    Otherwise, the dry run would say that `meta_every` saves nothing. The meta-networks' own layers hardly count.
    """
    changes = SMALL | {"steps": "10", "methods": "l2t,matching_all"}
    every, rarely = (
        {row["part"]: row["macs"] for row in plan("baselines-builtin", tmp_path, changes=changes | {"meta_every": k})}
        for k in ("1", "4")
    )
    assert rarely["matching_all"] == every["matching_all"]
    expected = (3 * every["l2t"] + 7 * every["matching_all"]) / 10
    assert rarely["l2t"] == pytest.approx(expected, rel=0.01)
    assert rarely["l2t"] < 0.75 * every["l2t"]


def test_multiply_adds_in_the_notebook(root: Path, tmp_path: Path) -> None:
    """What notebook 02 says that a lookahead at every k-th step costs is what a dry run counts."""
    text = (root / "notebooks" / "02_learning_what_and_where.ipynb").read_text(encoding="utf-8")
    found = re.search(
        r"takes ([\d,]+) billion multiply-adds, .*=4` ([\d,]+) .*=8` ([\d,]+); .* takes ([\d,]+) \(", text
    )
    written = [int(number.replace(",", "")) for number in found.groups()]
    counted = []
    for every in ("1", "4", "8"):
        changes = {"methods": "l2t,matching_all", "meta_every": every}
        by_part = {row["part"]: row["macs"] for row in plan("baselines-builtin", tmp_path, changes=changes)}
        counted.append(by_part["l2t"] / 1e9)
    assert written == [round(macs) for macs in (*counted, by_part["matching_all"] / 1e9)]


def test_meta_every_is_the_trainers(tmp_path: Path) -> None:
    """The setting reaches the run: a lookahead at the first and the third of four steps."""
    run(
        "baselines-builtin",
        tmp_path,
        changes=SMALL | {"steps": "4", "methods": "l2t", "meta_every": "2"},
        progress=False,
    )
    log = pd.read_csv(tmp_path / "l2t-seed0" / "log.csv")
    assert log["outer_loss"].notna().tolist() == [True, False, True, False]


@pytest.mark.parametrize(("what", "where"), [(1, 0), (0, 1)])
def test_what_or_where_alone(what: int, where: int, tmp_path: Path) -> None:
    """What is not learned keeps the weights of plain matching."""
    changes = SMALL | {"steps": "3", "methods": "l2t_not_later", "learn_what": str(what), "learn_where": str(where)}
    run("baselines-builtin", tmp_path, changes=changes | {"meta_lr_l2t": "0.1"}, progress=False)
    place = tmp_path / "l2t_not_later-seed0"
    trace, channels = pd.read_csv(place / "trace.csv"), pd.read_csv(place / "channels.csv")
    last = trace[trace["step"] == trace["step"].max()]
    assert (last["weight"].std() > 0.01) == bool(where)
    by_pair = channels[channels["step"] == channels["step"].max()].groupby(["source", "target"])["weight"]
    assert (by_pair.std().max() > 1e-4) == bool(what)
    assert len(last) == len(by_pair) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_every": "0"}, "meta_every: expected a whole number >= 1, got 0"),
        ({"trials": "2"}, "trials: expected a whole number >= 3, got 2"),
        ({"trials": "0", "methods": "random_search"}, "trials: expected a whole number >= 1, got 0"),
        ({"search_steps": "0"}, "search_steps: expected a whole number >= 1, got 0"),
        ({"beta_search_then_train": "-1"}, "beta: expected a number > 0, got -1.0"),
    ],
)
def test_a_search_is_checked_before_anything_is_trained(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    """It comes last: a bad setting of it must not fail after the trainings of all other methods."""
    with pytest.raises(ValueError, match=message):
        run("baselines-builtin", tmp_path / "runs", changes=SMALL | changes, progress=False)
    assert not (tmp_path / "runs").exists()


def test_agreement_of_maps() -> None:
    """Pearson's correlation over the pairs of each two seeds, by numpy; seeds of other methods are not compared."""
    weights = {
        ("a", 0): [1.0, 2.0, 4.0],
        ("a", 1): [1.0, 3.0, 2.0],
        ("a", 5): [3.0, 2.0, 1.0],
        ("b", 0): [1.0, 1.0, 1.0],
    }
    rows = [
        {"method": method, "seed": seed, "source": "s", "target": f"t{i}", "weight": weight}
        for (method, seed), values in weights.items()
        for i, weight in enumerate(values)
    ]
    found = recipes.map_agreement(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert found[["method", "seed_a", "seed_b"]].to_numpy().tolist() == [["a", 0, 1], ["a", 0, 5], ["a", 1, 5]]
    for row in found.itertuples():
        expected = np.corrcoef(weights["a", row.seed_a], weights["a", row.seed_b])[0, 1]
        assert row.correlation == pytest.approx(expected)
