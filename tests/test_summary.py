"""The command `table`: means and intervals, the paper's figures, and results that must not be mixed."""

import math
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from mtanytime.__main__ import main
from mtanytime.experiments.grid import make_grid
from mtanytime.experiments.paper_figures import paper_figure
from mtanytime.experiments.summary import as_markdown, load_results, summarize
from mtanytime.explore import draw

HEADER = "# python -m mtanytime run cifar10-baselines --out FOLDER --seed 0 1 2 --set {}; 2 cores; Python 3.11\n"
ROWS = """method,network,seed,steps,accuracy,train_seconds
scratch,vgg9-half,0,4000,0.40,1.0
scratch,vgg9-half,1,4000,0.44,2.0
scratch,vgg9-half,2,4000,0.45,3.0
lwf,vgg9-half,0,4000,0.50,3.0
probe,source,0,0,0.60,3.0
probe,source,1,0,,3.0
"""


def results(tmp_path: Path, name: str = "a.csv", settings: str = "methods=scratch lr=0.05", rows: str = ROWS) -> Path:
    """Write a table of results with its comment line."""
    path = tmp_path / name
    path.write_text(HEADER.format(settings) + rows)
    return path


def test_means_and_intervals(tmp_path: Path) -> None:
    """The interval is scipy's, by Student's t; one run has none, and a run that diverged is counted."""
    summary = summarize(load_results([results(tmp_path)]))
    assert summary[["method", "n", "diverged"]].to_records(index=False).tolist() == [
        ("scratch", 3, 0),
        ("lwf", 1, 0),
        ("probe", 1, 1),
    ]
    values = [0.40, 0.44, 0.45]
    low, high = stats.t.interval(0.95, 2, loc=0.43, scale=stats.sem(values))
    assert summary["accuracy"][0] == pytest.approx(0.43)
    assert summary["half"][0] == pytest.approx((high - low) / 2)
    assert summary["half"][0] == pytest.approx(4.302653 * 0.0264575 / math.sqrt(3), rel=1e-5)  # by hand
    assert summary["half"][1:].isna().all()


def test_share_taken_over(tmp_path: Path) -> None:
    """Each seed's share, among runs of the same settings; none for scratch and the probe, or without one of them."""
    rows = ROWS.replace("1,0,,", "1,0,0.64,").replace("lwf,vgg9-half,0", "lwf,vgg9-half,1")
    sources = load_results([results(tmp_path, rows=rows)])
    summary = summarize(sources).set_index("method")
    assert summary["share"]["lwf"] == pytest.approx((0.50 - 0.44) / (0.64 - 0.44))
    assert summary["share"][["scratch", "probe"]].isna().all()
    assert "| lwf | 1 | 50.0 | 0.30 | 43.32 † |" in as_markdown(summary.reset_index())
    mixed = "\n".join(f"{line},{0.1 if line.startswith('probe') else 0.2}" for line in rows.splitlines()[1:])
    other = results(tmp_path, "lr.csv", "methods=scratch", rows.splitlines()[0] + ",lr\n" + mixed + "\n")
    assert "share" not in summarize(load_results([other]), ["method", "lr"])


def test_table_on_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Markdown with n, an interval, shares, and the paper's figures, whose mark says what they are."""
    assert main(["table", str(results(tmp_path))]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| method | n | accuracy (%) | share taken over | paper (%) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| scratch | 3 | 43.0 ± 6.6 |  | 39.99 † |",
        "| lwf | 1 | 50.0 | 0.50 | 43.32 † |",
        "| probe | 1 (1 diverged) | 60.0 |  |  |",
        "",
        "±: half of the mean's 95 % confidence interval over n seeds (Student's t).",
        "",
        "Share taken over: of the way from scratch to the source's linear probe, the mean over seeds.",
        "",
        "†: recalled from the paper and not checked again.",
    ]
    for settings in ("per_class=100", "scored_on=validation"):  # the paper has no such figures
        assert main(["table", str(results(tmp_path, settings=settings))]) == 0
        assert "paper" not in capsys.readouterr().out


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers as a file of each kind; an existing file is kept."""
    csv = str(results(tmp_path))
    for name in ("t.md", "t.csv", "t.png", "t.svg"):
        assert main(["table", csv, "--out", str(tmp_path / name)]) == 0
    text = capsys.readouterr().out.split(str(tmp_path))[0]
    assert (tmp_path / "t.md").read_text() == text
    summary = pd.read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(summary, summarize(load_results([tmp_path / "a.csv"])))
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "t.svg").read_text()
    for name, message in (("t.md", "a file that does not exist yet"), ("t.pdf", "a name in .md, .csv, .png or .svg")):
        assert main(["table", csv, "--out", str(tmp_path / name)]) == 1
        assert f"error: --out: expected {message}, got " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": "methods=scratch lr=0.1"},
            r"lr: expected one value, or a column of --by, got 0\.05 \(.*a\.csv\) and",
        ),
        (
            {"rows": ROWS.replace("half", "full")},
            "network: .* got vgg9-half and vgg9-full for method scratch; --by method",
        ),
        ({"rows": ROWS}, "results: expected one run per seed, got seed 0 twice for method scratch"),
    ],
)
def test_mixing_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """A mean over runs with different settings is the mean of nothing; the error names the setting and its values."""
    places = [results(tmp_path), results(tmp_path, "b.csv", **changes)]
    with pytest.raises(ValueError, match=message):
        summarize(load_results(places))


def test_a_setting_that_is_a_column(tmp_path: Path) -> None:
    """A place's values of a setting are those of its column, else the one it states; the table compares them all."""
    first, *others = ROWS.splitlines()

    def column(name: str, value: float, setting: str = "lr", kept: str = "") -> Path:
        rows = [f"{row},{value}" for row in others if row.startswith(kept)]
        return results(tmp_path, name, "methods=scratch", "\n".join([f"{first},{setting}", *rows, ""]))

    stated = results(tmp_path, "b.csv", "lr=0.001", rows="\n".join([first, *others[3:4], ""]))
    for other in (stated, column("c.csv", 0.01, kept="lwf")):
        with pytest.raises(ValueError, match=r"lr: expected one value, .* got 0\.1 \(.*a\.csv\) and 0\.0"):
            summarize(load_results([column("a.csv", 0.1, kept="scratch"), other]))
    same = summarize(load_results([column("a.csv", 0.001, kept="scratch"), stated]))
    assert same["method"].tolist() == ["scratch", "lwf"]
    few = column("d.csv", 50, "per_class", kept="scratch")
    assert summarize(load_results([few, results(tmp_path, "e.csv", rows=stated.read_text().partition("\n")[2])]))[
        "paper"
    ].tolist() == [0.3999, 0.4332]


def test_papers_figures_of_each_place(tmp_path: Path) -> None:
    """They depend on a place's own settings, and not on the order of the places."""
    places = [results(tmp_path, settings="lr=0.05"), results(tmp_path, "b.csv", "scored_on=validation")]
    for order in (places, places[::-1]):
        summary = summarize(load_results(order), ["method", "scored_on"]).set_index(["method", "scored_on"])["paper"]
        assert summary["scratch", "test"] == 0.3999
        assert math.isnan(summary["scratch", "validation"])


def test_tables_without_settings_are_not_mixed(tmp_path: Path) -> None:
    """A CSV without its command may come from other settings; alone, its mean is that of one table."""
    stated, silent = results(tmp_path), results(tmp_path, "b.csv")
    lines = silent.read_text().splitlines(keepends=True)
    silent.write_text("".join(line for line in lines if not line.startswith("#")))
    assert len(summarize(load_results([silent]))) > 0
    with pytest.raises(ValueError, match=r"b\.csv: expected a comment with the command that made it, .* got none"):
        summarize(load_results([stated, silent]))
    with pytest.raises(ValueError, match="place: expected the folder of a sweep or a CSV file, got "):
        load_results([tmp_path / "nowhere"])


def test_settings_to_tell_apart(tmp_path: Path) -> None:
    """A setting that the files state becomes a column when --by names it."""
    places = [results(tmp_path), results(tmp_path, "b.csv", "lr=0.1")]
    summary = summarize(load_results(places), ["methods", "lr"])
    assert summary[["method", "lr"]].to_records(index=False).tolist() == [
        (method, lr) for lr in (0.05, 0.1) for method in ("scratch", "lwf", "probe")
    ]
    with pytest.raises(ValueError, match="--by: expected columns or settings of the results, got 'lrs'; the nearest"):
        summarize(load_results(places), ["lrs"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("method,seed\na,0\n", "accuracy"),
        ("name,seed,accuracy\na,0,0.5\n", "a column method or model"),
        ("method,seed,accuracy\na,0,55\n", "fractions in"),
        ("method,seed,accuracy\na,0,high\n", "accuracy"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    """One line of error names what is missing."""
    (tmp_path / "a.csv").write_text(text)
    assert main(["table", str(tmp_path / "a.csv")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert main(["table", str(tmp_path)]) == 1
    assert "expected the folder of a sweep, got a folder without sweep.json" in capsys.readouterr().err


def test_our_results(root: Path) -> None:
    """The project's own tables can be read, and their means are those that pandas gives."""
    path = root / "data" / "results" / "transfer_builtin.csv"
    summary = summarize(load_results([path])).set_index("method")
    expected = pd.read_csv(path, comment="#").groupby("method")["accuracy"].mean()
    pd.testing.assert_series_equal(summary["accuracy"].sort_index(), expected, check_names=False)
    with pytest.raises(ValueError, match=r"lr: expected one value, or a column of --by, got 0\.1 and 0.01 for method"):
        summarize(load_results([root / "data" / "results" / "transfer_cifar10_n50.csv"]))
    few = summarize(load_results([root / "data" / "results" / "baselines_cifar10_n50.csv"]))
    assert set(few["paper_is"].dropna()) == {"recalled"}


def test_paper_figures() -> None:
    """What was only recalled must not pass for verified; a few labels have figures of their own."""
    assert paper_figure("CUB-200", "l2t") == (65.05, True)
    assert paper_figure("CUB-200", "lwf") == (45.52, False)
    assert paper_figure("CIFAR-10", "l2t", 50) == (64.91, False)
    assert paper_figure("CIFAR-10", "l2t", 100) is None
    assert paper_figure("CIFAR-10", "l2t") is None
    assert paper_figure("CUB-200", "probe") is None


def test_picture() -> None:
    """A numeric column is the x-axis with a line per method and an error bar per group; otherwise groups are rows."""
    rows = [
        {"method": method, "per_class": count, "n": 3, "diverged": 0, "accuracy": accuracy, "half": 0.02}
        for method, accuracies in {"scratch": (0.4, 0.6), "l2t": (0.5, 0.7)}.items()
        for count, accuracy in zip((50, 500), accuracies, strict=True)
    ]
    summary = pd.DataFrame(rows).assign(paper=[0.3999, math.nan, 0.6491, math.nan], paper_is="recalled")
    ax = draw.accuracy_summary(summary).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("per_class", "accuracy (%)", "log")
    assert [list(container[0].get_ydata()) for container in ax.containers] == [[40, 60], [50, 70]]
    (bars,) = ax.containers[0][2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([38, 42])
    picture = draw.accuracy_summary(summary[summary["per_class"] == 50].drop(columns="per_class"))
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["scratch", "l2t"]
    labels = [text.get_text() for text in picture.legends[0].get_texts()]
    assert labels == ["95 % interval of the mean", "the paper (recalled, not checked)"]
    probe = pd.DataFrame([{"method": "probe", "n": 3, "diverged": 0, "accuracy": 0.62, "half": 0.01}])
    ax = draw.accuracy_summary(pd.concat([summary[["method", "n", "accuracy", "half"]][:1], probe])).axes[0]
    assert [line.get_xdata() for line in ax.lines if line.get_linestyle() == "--"] == [[62, 62]]
    with pytest.raises(ValueError, match="summary: expected a group with an accuracy, got none"):
        draw.accuracy_summary(summary.assign(accuracy=math.nan))


def test_settings_of_a_sweep_with_spaces(tmp_path: Path) -> None:
    """The command in a sweep's table is one for the shell, so that every setting can be read back."""
    grid = make_grid("cifar10-baselines", [0], {"methods": "l2t,scratch"}, {"lr": "0.01", "images": "/my data"})
    (tmp_path / "results.csv").write_text(f"# {grid.command}; 2 cores\nmethod,seed,accuracy\nl2t,0,0.5\n")
    (source,) = load_results([tmp_path / "results.csv"])
    assert (source.settings["images"], source.settings["lr"]) == ("/my data", "0.01")


def test_settings_with_spaces_or_none(tmp_path: Path) -> None:
    """Each setting of the command counts, whatever values stand before it."""
    for settings in (
        "lr=0.01",
        "images= lr=0.01",
        "'images=/my data' lr=0.01",
        "lr=0.01 (in brackets)",
        "lr=0.01, and",
    ):
        (source,) = load_results([results(tmp_path, settings=settings)])
        assert source.settings["lr"] == "0.01"


def test_true_and_false_are_no_axis() -> None:
    """A setting that is on or off names groups, it is not a number."""
    rows = [{"method": name, "nesterov": on, "n": 3, "diverged": 0} for name in "ab" for on in (True, False)]
    summary = pd.DataFrame(rows).assign(accuracy=0.5, half=0.01)
    assert "4 groups: a, True, a, False" in draw.accuracy_summary(summary).alt
