"""The budget explorer without a browser: what a budget buys, by hand; choices; static form."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tables
import torch
from ipywidgets import Widget
from typechecker import unchecked

from mtanytime.explore import contents, draw
from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.contents import budget


def stops(explorer: BudgetExplorer) -> list[str]:
    """Return the labels of the slider's stops."""
    for view in explorer.content["views"]:
        if view["cost"] == explorer.cost and (view["level"] or "") == explorer.level:
            return [stop["label"] for stop in view["stops"]]
    raise AssertionError


def test_stops_are_worded() -> None:
    """A stop names its budget and the exit that it buys, and the model if there are several."""
    curve = tables.curve()
    single = BudgetExplorer(curve[curve["model"] == "sliced"])
    wanted = [
        "1 M MACs · exit 1 of 4",
        "4 M MACs · exit 2 of 4",
        "9 M MACs · exit 3 of 4",
        "16 M MACs · exit 4 of 4",
    ]
    assert stops(single) == wanted
    single.cost = "latency_ms"
    assert stops(single)[1] == "4 ms · exit 2 of 4"
    single.cost = "params"
    assert stops(single)[1] == "20 k parameters · exit 2 of 4"
    both = BudgetExplorer(curve)
    assert stops(both)[:3] == [
        "1 M MACs · sliced exit 1 of 4",
        "1.5 M MACs · msdnet exit 1 of 4",
        "4 M MACs · sliced exit 2 of 4",
    ]
    both.cost = "latency_ms"  # exit 3 of the one costs what exit 2 of the other costs
    assert "6 ms · sliced exit 3 of 4, msdnet exit 2 of 4" in stops(both)


def test_picks_are_what_the_budget_pays_for() -> None:
    """6 M MACs buy exit 2 of both models: means, spreads, and cost and gain of the next exit by hand."""
    explorer = BudgetExplorer(tables.curve())
    explorer.at = ["msdnet", 2]
    assert explorer.budget == 6e6
    picks = explorer.picks()
    assert list(picks["model"]) == ["sliced", "msdnet"]
    assert list(picks["exit"]) == [2, 2]
    np.testing.assert_allclose(picks["macs"], [4e6, 6e6])
    np.testing.assert_allclose(picks["accuracy"], [0.7, 0.675])
    np.testing.assert_allclose(picks["spread"], 0.01)  # of 0.69, 0.70, 0.71
    np.testing.assert_allclose(picks["more_cost"], [5e6, 7.5e6])
    np.testing.assert_allclose(picks["more_accuracy"], 0.1)
    assert list(explorer.picks(1.2e6)["model"]) == ["sliced"]
    assert explorer.picks(1.0).empty
    last = explorer.picks(1e9)
    assert list(last["exit"]) == [4, 4]
    assert last["more_cost"].isna().all()


def test_front_end_holds_the_same_picks() -> None:
    """The contents of the front end agree with `picks` at every stop, in numbers and in words."""
    explorer = BudgetExplorer(tables.curve())
    for view in explorer.content["views"]:
        explorer.cost = view["cost"]
        for stop in view["stops"]:
            explorer.at = stop["at"][0]
            picks = explorer.picks().set_index("model")
            for model, line, place in zip(explorer.content["models"], view["lines"], stop["picks"], strict=True):
                assert (place >= 0) == (model["name"] in picks.index)
                if place >= 0:
                    pick = picks.loc[model["name"]]
                    assert line[place]["exit"] == pick["exit"]
                    assert line[place]["said"] == f"{100 * pick['accuracy']:.1f} ± {100 * pick['spread']:.1f} %"
    words = explorer.content["views"][0]["lines"][0]
    assert words[1]["next"] == "exit 3: +5 M MACs (+125%) for +10.0 points"
    assert words[3]["next"] == "the last exit"
    json.dumps(explorer.content, allow_nan=False)


def test_exits_that_lose_or_lack_accuracy() -> None:
    """A later exit may be worse, and a run may have diverged: both are shown."""
    curve = tables.curve(seeds=1)
    curve.loc[2, "accuracy"] = 0.65  # exit 3 of the first model, below exit 2
    curve.loc[3, "accuracy"] = np.nan
    line = BudgetExplorer(curve).content["views"][0]["lines"][0]
    assert line[1]["next"].endswith("for −4.0 points")
    assert line[2]["next"].endswith("for no known gain")
    assert (line[3]["accuracy"], line[3]["said"], line[1]["said"]) == (None, "none", "69.0 %")


def test_costs_that_are_there() -> None:
    """Only costs that every row has are offered."""
    curve = tables.curve()
    costs = lambda table: [cost["name"] for cost in BudgetExplorer(table).content["costs"]]  # noqa: E731
    assert costs(curve) == ["macs", "latency_ms", "params"]
    assert costs(curve[["model", "seed", "exit", "latency_ms", "accuracy"]]) == ["latency_ms"]
    assert costs(curve.assign(latency_ms=curve["latency_ms"].where(curve["exit"] > 1))) == ["macs", "params"]


def test_levels_of_a_taxonomy() -> None:
    """With an accuracy per level, a level is chosen; with a level per exit, the exit's label names it."""
    fine = tables.curve()
    coarse = fine.assign(accuracy=fine["accuracy"] + 0.05, level="coarse")
    explorer = BudgetExplorer(pd.concat([coarse, fine.assign(level="fine")]))
    assert (explorer.content["levels"], explorer.level) == (["coarse", "fine"], "fine")
    accuracy = explorer.picks(1e9)["accuracy"]
    explorer.level = "coarse"
    np.testing.assert_allclose(explorer.picks(1e9)["accuracy"], accuracy + 0.05)
    assert "level coarse" in explorer.picture().axes[0].get_title(loc="left")
    some = BudgetExplorer(pd.concat([coarse[coarse["exit"] < 4], fine.assign(level="fine")]))
    some.at, some.level = ["msdnet", 4], "coarse"  # an exit that has no coarse accuracy
    assert some.budget == 1e6
    each = BudgetExplorer(fine.assign(level=np.where(fine["exit"] < 3, "coarse", "fine")))
    assert each.content["levels"] == []
    assert "1 M MACs · sliced exit 1 of 4 (coarse)" in stops(each)


def test_strip_of_images() -> None:
    """The contents hold every exit's answers with the images; large images are shown smaller."""
    curve = tables.curve()
    images, predictions = tables.strip(curve)
    strip = BudgetExplorer(curve, images, predictions).content["strip"]
    assert len(strip["images"]) == 3
    assert strip["answers"]["sliced"]["2"]["1"] == {"answer": "class 9", "coarse": "group 1", "right": False}
    assert strip["answers"]["msdnet"]["3"]["1"] == {"answer": "class 1", "coarse": "group 1", "right": True}
    plain = BudgetExplorer(curve, images, predictions.drop(columns=["coarse", "right"])).content["strip"]
    assert plain["answers"]["sliced"]["2"]["1"] == {"answer": "class 9"}
    noise = np.random.default_rng(0).integers(0, 255, (64, 3, 256, 224), dtype=np.uint8)
    many = predictions[predictions["image"] == 0]
    assert sum(map(len, contents.budget_contents(curve, noise, many)["strip"]["images"])) < 2_500_000


def test_static_form() -> None:
    """Without a front end there are the curves with the budget marked, and one line of stable text."""
    explorer = BudgetExplorer(tables.curve())
    data, about = explorer._repr_mimebundle_()
    assert data["text/plain"] == "BudgetExplorer: 2 models with 4 exits each, 3 runs"
    assert about["image/png"]["alt"] == (
        "Accuracy against multiply-adds (MACs) of 2 models: sliced, msdnet; "
        "a budget of 9 M MACs pays for sliced exit 3, msdnet exit 2"
    )
    picture = draw.accuracy_by_budget(tables.curve(), budget=9e6)
    assert data["image/png"] == picture._repr_mimebundle_()[0]["image/png"]
    single = BudgetExplorer(tables.curve().iloc[:1])
    assert repr(single) == "BudgetExplorer: 1 model with 1 exit"
    assert stops(single) == ["1 M MACs · exit 1 of 1"]


def test_nothing_is_left_after_closing() -> None:
    """Closing an explorer removes its widgets."""
    before = set(Widget.get_manager_state()["state"])
    BudgetExplorer(tables.curve()).close()
    assert set(Widget.get_manager_state()["state"]) == before


@pytest.mark.parametrize("column", ["model", "exit", "accuracy"])
def test_missing_columns(column: str) -> None:
    """A curve that lacks a column is refused, and the message names it."""
    with pytest.raises(ValueError, match=f"curve: expected column {column}, got columns"):
        BudgetExplorer(tables.curve().drop(columns=column))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[["model", "exit", "accuracy"]], "curve: expected column macs, got columns model, exit, accuracy"),
        (
            lambda c: c.assign(accuracy=93.0),
            r"column accuracy: expected fractions in \[0, 1\], got 93.0 in the row",
        ),
        (
            lambda c: c.assign(macs=0),
            "curve, column macs: expected finite numbers above 0, got 0 in the row",
        ),
        (
            lambda c: c.assign(macs=np.inf),
            "column macs: expected finite numbers above 0, got inf in the row",
        ),
        (lambda c: pd.concat([c, c]), "one row per model, exit, seed, got several for model sliced, exit 1, seed 0$"),
        (lambda c: c.drop(columns="seed"), "got several for model sliced, exit 1; tell runs apart by a column seed"),
        (lambda c: c.assign(macs=["2M", *c["macs"][1:]]), "curve, column macs: expected numbers, got '2M'"),
        (lambda c: c.assign(exit=1.5), "curve, column exit: expected whole numbers, got 1.5"),
        (lambda c: c.iloc[:0], "curve: expected at least one row, got none"),
    ],
)
def test_bad_curves(change: object, message: str) -> None:
    """A curve with an invalid value is refused before anything is drawn, and the message names the column."""
    with pytest.raises(ValueError, match=message):
        BudgetExplorer(change(tables.curve()))


def test_bad_images_and_predictions() -> None:
    """Images and predictions that do not match are refused with the reason."""
    curve = tables.curve()
    images, predictions = tables.strip(curve)
    strip = unchecked(budget._strip)
    known = BudgetExplorer(curve).content["exits"]

    def refused(match: str, images: object, predictions: object) -> None:
        with pytest.raises(ValueError, match=match):
            strip(images, predictions, known)

    refused("images and predictions: expected both or neither, got only one of them", images, None)
    refused("images: expected a NumPy array of uint8 .*, got float64 of shape", images / 255, predictions)
    refused("images: expected a NumPy array", torch.zeros(3, 3, 8, 8), predictions)
    refused("images: expected 1 to 64 images, got 65", np.zeros((65, 3, 8, 8), np.uint8), predictions)
    refused("predictions table, column image: expected images 0 to 1, got 2", images[:2], predictions)
    refused(
        "predictions table: expected exits of the curve, got sliced exit 9",
        images,
        predictions.replace({"exit": {4: 9}}),
    )
    refused("predictions table: expected column answer, got columns", images, predictions.drop(columns="answer"))
    refused(
        "one row per image, model, exit, got several for image 0, model sliced, exit 1",
        images,
        pd.concat([predictions, predictions]),
    )


@pytest.mark.parametrize(
    ("choice", "value", "message"),
    [
        ("cost", "joules", "cost: expected one of 'macs', 'latency_ms', 'params', got 'joules'"),
        ("level", "fine", "level: expected one of '', got 'fine'"),
        ("at", ["sliced", 9], r"at: expected one of \['sliced', 1\].*got \['sliced', 9\]"),
    ],
)
def test_choices_that_are_not_offered(choice: str, value: object, message: str) -> None:
    """A choice that is not offered is refused with the choices that are."""
    with pytest.raises(ValueError, match=message):
        setattr(BudgetExplorer(tables.curve()), choice, value)


def test_an_exit_by_a_numpy_number(tmp_path: Path) -> None:
    """`picks` gives them, and JSON knows none."""
    explorer = BudgetExplorer(tables.curve())
    first = explorer.picks().iloc[0]
    explorer.at = [first["model"], np.int64(first["exit"])]
    explorer.save_html(tmp_path / "page.html")
    assert explorer.at == [first["model"], int(first["exit"])]


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_above_nothing(budget: float) -> None:
    """A budget is a finite number above 0."""
    with pytest.raises(ValueError, match="budget: expected a finite number above 0, got"):
        BudgetExplorer(tables.curve()).picks(budget)


def test_hidden_models_are_left_out() -> None:
    """A hidden model is neither picked nor drawn; not all models can be hidden, nor one that is not there."""
    explorer = BudgetExplorer(tables.curve())
    explorer.hidden = ["sliced"]
    assert list(explorer.picks(1e9)["model"]) == ["msdnet"]
    assert "sliced" not in explorer.picture().alt
    for value, message in (
        (["sliced", "msdnet"], "hidden: expected fewer than all models"),
        (["x"], "hidden: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            explorer.hidden = value
    assert explorer.hidden == ["sliced"]


def test_stops_of_equal_costs_are_one_stop() -> None:
    """Also where the mean over three seeds would differ from the cost of one seed by the last bit."""
    ms = 6.166357757671799
    rows = [
        {"model": model, "exit": k, "seed": seed, "macs": k, "latency_ms": cost, "accuracy": 0.5}
        for model, seeds in (("a", 3), ("b", 1))
        for seed in range(seeds)
        for k, cost in ((1, 1.0), (2, ms))
    ]
    explorer = BudgetExplorer(pd.DataFrame(rows))
    explorer.cost = "latency_ms"
    assert stops(explorer) == ["1 ms · a exit 1 of 2, b exit 1 of 2", "6.17 ms · a exit 2 of 2, b exit 2 of 2"]
    assert explorer.picks(ms)["exit"].tolist() == [2, 2]


def test_a_hidden_model_takes_nothing_from_the_picture() -> None:
    """The level stays, though the other model has one row per exit, and so do the colours."""
    tax = [{"model": "tax", "exit": k, "level": level, "macs": k, "accuracy": 0.5} for k in (1, 2) for level in "ab"]
    flat = [{"model": "flat", "exit": k, "level": "b", "macs": 2 * k, "accuracy": 0.6} for k in (1, 2)]
    explorer = BudgetExplorer(pd.DataFrame(tax + flat))
    before = {line.get_label(): line[0].get_color() for line in explorer.picture().axes[0].containers}
    explorer.hidden = ["tax"]
    now = explorer.picture()
    assert "of 1 model: flat" in now.alt
    assert [line[0].get_color() for line in now.axes[0].containers] == [before["flat"]]
    with pytest.raises(ValueError, match="hidden: expected fewer than all models"):
        draw.accuracy_by_budget(pd.DataFrame(flat), hidden=["flat"])


def test_the_budget_of_a_hidden_model() -> None:
    """It is the cost of what is shown and costs no more, else of the cheapest exit, as in the browser."""
    costs = {"a": (1e6, 7e6), "b": (5e6, 10e6)}
    rows = [
        {"model": model, "exit": k, "macs": macs, "accuracy": 0.5}
        for model in costs
        for k, macs in enumerate(costs[model], 1)
    ]
    explorer = BudgetExplorer(pd.DataFrame(rows))
    explorer.at = ["a", 1]
    explorer.hidden = ["a"]
    assert explorer.budget == 5e6
    assert explorer.picks()["exit"].tolist() == [1]
    explorer.at = ["a", 2]
    assert explorer.budget == 5e6
    explorer.hidden = []
    assert explorer.budget == 7e6
