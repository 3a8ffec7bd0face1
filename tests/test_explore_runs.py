"""Several runs and tables in one explorer or page: names, numbers, differences, and what must not be mixed."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tables
from pictures import cells

from mtanytime.__main__ import main
from mtanytime.explore.export import export_csv
from mtanytime.explore.places import explored
from mtanytime.explore.runs import RunTables, run_names, runs_of, split_all
from mtanytime.explore.transfer import TransferExplorer


def seeds(steps: tuple[int, ...] = (0, 100, 200)) -> dict[str, pd.DataFrame]:
    """Return the traces of two runs, the second twice as strong."""
    first = tables.trace(steps=steps)
    return {"seed0": first, "seed1": first.assign(weight=2 * first["weight"])}


def written(folder: Path, **of: pd.DataFrame) -> Path:
    """Write a run's tables into its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name, table in of.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_names_of_runs_where_one_has_no_seed() -> None:
    """There, pandas makes the seeds floats; long ones must not become one name."""
    traces = [tables.trace(steps=(0,)).assign(seed=seed) for seed in (20240101, 20240102, np.nan)]
    names = list(split_all({"": RunTables(pd.concat(traces))}))
    assert names == ["seed 20240101", "seed 20240102", "seed nan"]


def test_differences_are_those_of_the_tables() -> None:
    """Run minus run, and the change since the first step, in kernel and static picture, by pandas alone."""
    runs = seeds()
    explorer = TransferExplorer(runs)
    assert (explorer.run, explorer.compare, explorer.content["steps"]) == ("seed0", "", [0, 100, 200])
    now, first = (runs["seed0"].query("step == @s")["weight"].to_numpy().reshape(2, 3) for s in (100, 0))
    explorer.step = 100
    np.testing.assert_allclose(explorer.values("seed1"), 2 * now)
    explorer.compare = "seed1"
    np.testing.assert_allclose(explorer.differences(), -now)
    picture = explorer.picture()
    np.testing.assert_allclose(cells(picture), -now)
    (mesh,) = picture.axes[0].collections
    assert mesh.get_clim() == (-now.max(), now.max())  # 0 has the middle colour, white
    assert "Λ" not in picture.alt
    assert picture.alt.startswith("Heat map of λ, seed0 − seed1, 2 source × 3")
    explorer.change = True
    np.testing.assert_allclose(explorer.differences(), -(now - first))
    explorer.compare = ""
    np.testing.assert_allclose(explorer.values(), now - first)
    np.testing.assert_allclose(cells(explorer.picture()), now - first)
    explorer.relative = True
    np.testing.assert_allclose(explorer.values().sum(), 0, atol=1e-12)  # shares sum to 1 at every step
    with pytest.raises(ValueError, match="compare: expected the name of a run to compare with, got ''"):
        explorer.differences()


def test_runs_of_other_steps_and_pairs() -> None:
    """Each run keeps its own steps; the slider has all of them, and a pair that a run lacks is not a number of it."""
    runs = {"a": tables.trace(steps=(0, 100)), "b": tables.trace(sources=("layer2", "layer3"), steps=(50,))}
    explorer = TransferExplorer(runs, {"a": tables.channels(runs["a"])})
    content = explorer.content
    assert content["steps"] == [0, 50, 100]
    assert [run["steps"] for run in content["runs"]] == [[0, 100], [50]]
    assert content["sources"] == ["layer1", "layer2", "layer3"]
    assert [run["missing"] for run in content["runs"]] == [[6, 7, 8], [0, 1, 2]]
    assert [run["channels"] is None for run in content["runs"]] == [False, True]
    json.dumps(content, allow_nan=False)
    explorer.step = 50
    np.testing.assert_allclose(explorer.values(), runs["a"].query("step == 0")["weight"].to_numpy().reshape(2, 3))
    explorer.compare = "b"
    assert explorer.differences().notna().to_numpy().tolist() == [[False] * 3, [True] * 3, [False] * 3]


def test_arrived_of_some_runs() -> None:
    """R² of one run is shown where it is asked for; beside a run without R², λ of both is."""
    runs = seeds()
    table = tables.arrived(runs["seed0"])
    explorer = TransferExplorer(runs, arrived={"seed0": table})
    explorer.quantity = "arrived"
    np.testing.assert_allclose(explorer.values().to_numpy().ravel(), table[table["step"] == 200]["r2"])
    explorer.compare = "seed1"
    np.testing.assert_allclose(explorer.differences().to_numpy().ravel(), -runs["seed0"]["weight"][-6:])
    explorer.quantity = "both"
    assert explorer.picture().alt.startswith("Heat map of λ")


@pytest.mark.parametrize(
    ("choice", "value", "message"),
    [
        ("run", "seed7", "run: expected one of 'seed0', 'seed1', got 'seed7'"),
        ("compare", "seed7", "compare: expected one of '', 'seed0', 'seed1', got 'seed7'"),
        ("pinned", [["layer1", "t9"]], "pinned, target layer: expected one of 't1', 't2', 't3', got 't9'"),
        ("pinned", [["layer1", "t1"]] * 9, "pinned: expected at most 8 pairs, got 9"),
    ],
)
def test_choices_that_are_not_offered(choice: str, value: object, message: str) -> None:
    """A run or pair that is not there is refused by name."""
    with pytest.raises(ValueError, match=message):
        setattr(TransferExplorer(seeds()), choice, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: ({},), "trace: expected 1 to 24 runs, got 0"),
        (lambda r: ([r["seed0"]],), "trace: expected paths in a list, got DataFrame; name tables in a dictionary"),
        (lambda r: (r, r["seed0"]), r"channels: expected a dictionary with names of the runs \(seed0, seed1\)"),
        (lambda r: (r, {"x": r["seed0"]}), r"channels: expected a dictionary with .*, got x"),
        (lambda r: (r | {"seed1": r["seed1"].drop(columns="weight")},), "run seed1: trace: expected column weight"),
    ],
)
def test_bad_runs(make: object, message: str) -> None:
    """An error names the run at fault."""
    with pytest.raises(ValueError, match=message):
        TransferExplorer(*make(seeds()))


def test_names_are_as_short_as_they_differ() -> None:
    """Runs are called by their folders, tables by their files, with as much of the path as tells them apart."""
    paths = [Path(p) for p in ("out/l2t-seed0/trace.csv", "out/l2t-seed1", "x/one.csv.gz")]
    assert run_names(paths) == ["l2t-seed0", "l2t-seed1", "one"]
    assert run_names([Path("a/seed0"), Path("b/seed0/trace.csv"), Path("c/d")]) == ["a/seed0", "b/seed0", "d"]
    assert run_names([Path("a/t.csv"), Path("a/t.csv")])[1].endswith("a/t (2)")


def test_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line takes an experiment's folder, runs and files; the menu's runs have their tables."""
    for name, trace in seeds().items():
        further = {"channels": tables.channels(trace)} if name == "seed0" else {"arrived": tables.arrived(trace)}
        written(tmp_path / "out" / f"l2t-{name}", trace=trace, **further)
    written(tmp_path / "out" / "source", log=pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    page = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "out"), "--output", str(page)]) == 0
    assert "2 runs, 6 pairs, 3 steps from 0 to 200. Without a trace, so not shown: source." in capsys.readouterr().out
    state = json.loads(re.search(r'id="state">(.*?)</script>', page.read_text("utf-8"), re.S).group(1))
    assert [run["name"] for run in state["content"]["runs"]] == ["l2t-seed0", "l2t-seed1"]
    assert [run["channels"] is None for run in state["content"]["runs"]] == [False, True]
    assert [run["arrived"] is None for run in state["content"]["runs"]] == [True, False]
    one, two = (tmp_path / "out" / f"l2t-{name}" / "trace.csv" for name in seeds())
    assert explored(one, two.parent)[0] == state["content"] | {"note": explored(one, two)[0]["note"]}
    single = explored(tmp_path / "out" / "l2t-seed0")[0]
    assert (single["runs"], single["name"]) == ([], "")


def trial(*pairs: tuple[int, int]) -> pd.DataFrame:
    """Return the trace of a trial that matches these layers, by number."""
    return pd.DataFrame([{"step": 0, "source": f"layer{m}", "target": f"conv{n}", "weight": 1.0} for m, n in pairs])


def test_layers_of_trials_are_in_their_networks_order(tmp_path: Path) -> None:
    """The first trial need not match the first layers, and the tenth comes after the second."""
    pairs = {0: [(1, 13), (2, 2), (2, 27)], 2: [(1, 2), (1, 6), (3, 6)], 10: [(2, 6), (2, 13), (3, 20), (3, 27)]}
    pairs[11] = [(1, 13), (1, 20)]
    for number, of_trial in pairs.items():
        written(tmp_path / "search" / f"trial{number}", trace=trial(*of_trial))
    content = explored(tmp_path)[0]
    assert content["sources"] == ["layer1", "layer2", "layer3"]
    assert content["targets"] == [f"conv{n}" for n in (2, 6, 13, 20, 27)]
    assert [run["name"] for run in content["runs"]] == ["trial0", "trial2", "trial10", "trial11"]


def test_layers_whose_order_the_runs_leave_open() -> None:
    """Where orders contradict each other, or one run names few pairs, it is that of their first appearance."""
    traces = {"a": trial((1, 1), (1, 2), (2, 1)), "b": trial((2, 3), (1, 2), (1, 1))}
    content = TransferExplorer(traces).content
    assert (content["sources"], content["targets"]) == (["layer1", "layer2"], ["conv1", "conv2", "conv3"])
    assert TransferExplorer(trial((1, 2), (2, 2), (2, 6), (3, 13))).content["targets"] == ["conv2", "conv6", "conv13"]
    by_hand = trial((1, 2), (1, 6), (1, 13), (2, 27))
    assert TransferExplorer(by_hand).content["targets"] == ["conv2", "conv6", "conv13", "conv27"]
    two = pd.concat([by_hand.assign(source=f"{name}/" + by_hand["source"]) for name in "ab"])
    assert TransferExplorer(two).content["sources"] == ["a/layer1", "a/layer2", "b/layer1", "b/layer2"]


def test_trials_of_a_search(tmp_path: Path) -> None:
    """They are left out beside the training that the search led to; of very many, the first ones are shown."""
    search = tmp_path / "search"
    for number in range(30):
        written(search / f"trial{number}", trace=trial((1, number % 3)))
    written(search / "channels" / "split0", trace=trial((1, 0), (1, 1), (1, 2)))
    for place in (tmp_path, search):
        content = explored(place)[0]
        assert [run["name"] for run in content["runs"]] == [f"trial{number}" for number in range(24)]
        assert "The first 24 of 30 trials are shown." in content["note"]
    assert "The search for channel weights is not shown." in content["note"]
    written(tmp_path / "train", trace=trial((1, 0), (1, 1)))
    content = explored(tmp_path)[0]
    assert not content["runs"]
    assert len(content["pairs"]) == 2
    assert "The 30 trials of the search are not shown." in content["note"]
    of_user = written(tmp_path / "mine" / "trial1", trace=trial((1, 0))).parent
    written(of_user / "baseline", trace=trial((1, 0)))
    assert [run["name"] for run in explored(of_user)[0]["runs"]] == ["baseline", "trial1"]


def test_several_curves(tmp_path: Path) -> None:
    """Curves of several files are one curve: of other models or seeds as they are, of the same ones by their files."""
    curve = tables.curve(seeds=2)
    for name, part in (("zero", curve[curve["seed"] == 0]), ("one", curve[curve["seed"] == 1])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    content = explored(tmp_path / "zero.csv", tmp_path / "one.csv")[0]
    assert content["summary"] == "2 models with 4 exits each, 2 runs"
    content = explored(tmp_path / "zero.csv", tmp_path / "zero.csv")[0]
    assert [m["name"].partition(" ")[0] for m in content["models"]] == ["sliced", "msdnet"] * 2
    assert len({m["name"] for m in content["models"]}) == 4


def test_several_logs_and_results(tmp_path: Path) -> None:
    """Logs become a picture each, with the run's name; results of the same methods stay apart."""
    for name in ("a", "b"):
        log = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})
        written(tmp_path / name, log=log)
        (tmp_path / f"{name}.csv").write_text("method,seed,accuracy\nl2t,0,0.5\nl2t,1,0.6\n")
    content = explored(tmp_path / "a", tmp_path / "b")[0]
    assert [picture["caption"] for picture in content["pictures"]] == ["a", "b"]
    content, alt = explored(tmp_path / "a.csv", tmp_path / "b.csv")
    assert content["title"] == "Accuracy by method"
    assert "2 methods" in alt or "l2t (a)" in alt


def test_places_that_make_no_page(tmp_path: Path) -> None:
    """Files of several kinds, an empty folder, and runs without tables: one line that names them, and no page."""
    written(tmp_path / "run", trace=tables.trace())
    tables.curve().to_csv(tmp_path / "curve.csv", index=False)
    written(tmp_path / "out" / "x")
    (tmp_path / "empty").mkdir()
    for places, message in (
        (
            ["run", "curve.csv"],
            r"places: expected tables of one kind, got a trace \(.*run\) and a curve \(.*curve.csv\)",
        ),
        (["run", "empty"], r"place: expected a CSV file or a run's folder \(trace.csv.*, got .*empty, without tables"),
        (["out"], "a folder with the runs x; name one of them, such as .*, once it has trained"),
        ([], "places: expected one or more files or folders, got 0"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            export_csv([tmp_path / place for place in places], tmp_path / "page.html")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_page_of_many_runs_is_small(tmp_path: Path) -> None:
    """Many runs share the room of a page: fewer steps each, and a note says so."""
    names = tuple(f"layer{i}" for i in range(8))
    trace = tables.trace(names, names, tuple(range(0, 1000, 5)))
    channels = tables.channels(trace, 64)
    runs = {f"seed{seed}": trace for seed in range(12)}
    explorer = TransferExplorer(runs, dict.fromkeys(runs, channels))
    assert "steps are shown, evenly spread." in explorer.content["note"]
    assert explorer.save_html(tmp_path / "page.html").stat().st_size < 3e6


def one_table(folder: Path, **results: float) -> Path:
    """Write two seeds into one folder of tables with a column seed, and their accuracies."""
    runs = seeds()
    channels = {name: tables.channels(trace) for name, trace in runs.items()}
    join = lambda parts: pd.concat([part.assign(seed=int(name[-1])) for name, part in parts.items()])  # noqa: E731
    written(folder, trace=join(runs), channels=join(channels))
    rows = pd.DataFrame({"method": "l2t", "seed": [int(name[-1]) for name in results], "accuracy": results.values()})
    rows.to_csv(folder / "results.csv", index=False)
    return folder


def test_runs_of_one_table(tmp_path: Path) -> None:
    """Seeds that share a table are runs of their own: in an explorer, on a page, from a folder, file or DataFrame."""
    folder = one_table(tmp_path / "runs", seed0=0.5, seed1=0.6251)
    explorer = TransferExplorer(folder)
    held = explorer.content["runs"]
    assert [(run["name"], run["accuracy"]) for run in held] == [("seed 0", 0.5), ("seed 1", 0.6251)]
    assert [len(run["channels"]["pairs"]) for run in held] == [6, 6]
    np.testing.assert_allclose(explorer.values("seed 1"), 2 * explorer.values("seed 0"))
    assert explorer.content["summary"] == "2 runs, 6 pairs, 3 steps from 0 to 200"
    for place in (folder, folder / "trace.csv", folder / "channels.csv"):
        assert explored(place)[0] == explorer.content
    trace, channels = pd.read_csv(folder / "trace.csv"), pd.read_csv(folder / "channels.csv")
    alone = TransferExplorer(trace, channels).content["runs"]
    assert [run.get("accuracy") for run in alone] == [None, None]
    names = [run["name"] for run in explored(folder, written(tmp_path / "other", trace=tables.trace()))[0]["runs"]]
    assert names == ["runs, seed 0", "runs, seed 1", "other"]
    methods = TransferExplorer(pd.concat([trace.assign(method=name) for name in ("l2t", "where")])).content["runs"]
    assert [run["name"] for run in methods] == ["l2t, seed 0", "l2t, seed 1", "where, seed 0", "where, seed 1"]
    one = TransferExplorer(trace[trace["seed"] == 1])
    assert (one.content["runs"], one.content["name"]) == ([], "")


def test_runs_of_one_table_that_do_not_fit(tmp_path: Path) -> None:
    """Channel weights without the seeds of their trace are refused, and accuracies that are not clear left out."""
    folder = one_table(tmp_path / "runs", seed0=0.5)
    channels = pd.read_csv(folder / "channels.csv").drop(columns="seed")
    with pytest.raises(ValueError, match="channels table: expected column seed, as in the trace, got none"):
        TransferExplorer(pd.read_csv(folder / "trace.csv"), channels)
    assert ["accuracy" in run for run in explored(folder)[0]["runs"]] == [True, False]
    (folder / "results.csv").write_text("method,seed,accuracy\nl2t,0,0.5\nwhere,0,0.6\n")
    assert ["accuracy" in run for run in explored(folder)[0]["runs"]] == [False, False]
    many = pd.concat([tables.trace(steps=(0,)).assign(seed=seed) for seed in range(25)])
    with pytest.raises(ValueError, match="trace: expected 1 to 24 runs, got 25"):
        TransferExplorer(many)


def test_a_run_that_has_headers_alone(tmp_path: Path) -> None:
    """A resumed run may have a table without a row: it is shown without it."""
    folder = written(tmp_path / "run", trace=tables.trace(), channels=tables.channels(tables.trace()))
    runs = runs_of(folder / "trace.csv")
    assert runs[next(iter(runs))].channels is not None  # the channels beside a trace are found
    (folder / "channels.csv").write_text("step,source,target,channel,weight\n")
    for place in (folder, folder / "trace.csv"):
        assert explored(place)
        runs = runs_of(place)
        assert runs[next(iter(runs))].channels is None


def test_times_that_are_words(tmp_path: Path) -> None:
    """The page's error names the table, the column and the row."""
    file = tmp_path / "results.csv"
    file.write_text("method,seed,accuracy,train_seconds\nl2t,0,0.5,12.5 s\n")
    with pytest.raises(ValueError, match=r"results.*train_seconds: expected numbers"):
        explored(file)
