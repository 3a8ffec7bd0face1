"""Every figure in RESULTS.md and in the README's findings is the one that the tables in data/results give.

For each section this file computes the expected pieces of text (table rows and phrases). All of them must be in the
section, and no number may be left in it that is neither in such a piece nor among the section's stated settings.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtanytime import measure
from mtanytime.anytime import SliceShape
from mtanytime.anytime.shape_search import exit_layers
from mtanytime.experiments.anytime_recipes import build_network, slice_widths
from mtanytime.experiments.export_bench import kept_deadlines
from mtanytime.experiments.recipe import changed
from mtanytime.experiments.runner import RECIPES
from mtanytime.transfer.pair_search import PairSearch, later
from mtanytime.transfer.settings import TransferSettings

METHODS = {
    "scratch": "from scratch",
    "matching_one": "one-to-one, by hand",
    "matching_all": "all-to-all, λ = 1",
    "what": "*what* learned",
    "where": "*where* learned",
    "l2t": "L2T-ww",
}
BUILT_IN = {
    "scratch": "from scratch",
    "probe": "the source, linear probe",
    "matching_single": "one pair, by hand",
    "matching_one": "one-to-one, by hand",
    "matching_all": "all-to-all, λ = 1",
    "matching_not_later": "nine pairs, by a rule",
    "random_search": "the best of 32 random maps",
    "l2t": "L2T-ww",
    "l2t_not_later": "L2T-ww, with the pairs of the rule",
    "search_then_train": "nine pairs, searched by trials",
}
RIVALS = ["matching_single", "matching_one", "matching_all", "random_search", "l2t"]
PLANTED = {
    "source": "a second source network, trained on shuffled labels",
    "layer": "a layer of an untrained network, in the place of the source's second stage",
    "channels": "noise, in the place of half of the last stage's channels",
}
HALF_WIDTH = {
    "probe": "the source, linear probe",
    "fine_tuning": "the source, fine-tuned, the start of its head chosen",
    "l2sp": "the source, fine-tuned with L2-SP",
    "scratch": "from scratch",
    "lwf": "LwF",
    "at": "attention transfer",
    "lwf_at": "LwF and attention transfer",
    "semckd": "SemCKD",
    "reviewkd": "ReviewKD",
    "probe_distilled": "the probe's answers, distilled",
    "matching_single": "one pair, by hand",
    "matching_one": "one-to-one, by hand",
    "matching_all": "all-to-all, λ = 1",
    "matching_all_views": "all-to-all, with strong views",
    "matching_all_unlabelled": "all-to-all, with unlabelled images",
    "recommended": "all-to-all, with views and the probe's answers",
    "recommended_unlabelled": "all-to-all, with unlabelled images and the probe's answers",
    "random_search": "the best of sixteen random maps, with views",
    "search_then_train": "nine pairs, searched by trials, with views",
    "l2t": "L2T-ww, with views",
    "matching_not_later_views": "nine pairs, by a rule, with views",
    "l2t_not_later": "L2T-ww, with the pairs of the rule, with views",
}
CONVOLUTIONS = {
    "dense 3×3": "dense 3×3",
    "dense 1×1": "dense 1×1",
    "groups of 4": "3×3 in groups of 4",
    "depthwise": "depthwise 3×3",
}
BALANCED = "(gradients of each slice divided by the number of exits that read it)"
CASCADE = (
    "slice_reads=stages slice_block=inverted slice_blocks=2,2,2 slice_widths=16,8,16,16/48,16,32,32/128,32,64,64 {}"
    "precision=bfloat16"
)
BASIC = (
    "slice_reads=layers slice_block=basic slice_blocks=1,1,1 slice_widths=26,11,13,14 slice_squeeze=4 {}"
    "precision=bfloat16"
)
LEVERS = {  # tried on held-out images, and the settings of their rows
    "cascade": CASCADE.format(""),
    "cascade, distillation from the widest exit (0.5)": CASCADE.format("distillation=0.5 "),
    "cascade, gradients balanced": CASCADE.format(f"{BALANCED} "),
    "cascade, learning rate 0.05": CASCADE.format("lr=0.05 "),
    "cascade, weight decay 0.001": CASCADE.format("weight_decay=1e-3 "),
    "basic blocks with squeeze-and-excitation": BASIC.format(""),
    "basic blocks with squeeze-and-excitation, 20 epochs": BASIC.format("epochs=20 "),
}
EFFECTS = {
    "distillation changes them by": "cascade, distillation from the widest exit (0.5)",
    "balanced gradients by": "cascade, gradients balanced",
    "twice as many epochs by": "basic blocks with squeeze-and-excitation, 20 epochs",
}
MODELS = {"sliced": "sliced ResNeXt", "msdnet": "MSDNet", "inclusive": "inclusive", "separate": "separate networks"}
PAIR = ["source", "target"]


@pytest.fixture(scope="module")
def tables(root: Path) -> Callable[[str], pd.DataFrame]:
    """`tables("transfer_builtin")` reads that table of data/results."""
    return lambda name: pd.read_csv(root / "data" / "results" / f"{name}.csv", comment="#")


def provenance(root: Path, name: str) -> list[str]:
    """Return the parts of a table's first line: commands, machine, versions."""
    with (root / "data" / "results" / f"{name}.csv").open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip().split("; ")


def section(root: Path, heading: str, file: str = "RESULTS.md") -> str:
    """Return the text of a file under a second-level heading."""
    text = (root / file).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{file} has no section {heading!r}"
    return found[1]


def check(text: str, figures: list[str], settings: list[str] = ()) -> None:
    """Assert that a text holds these figures and these statements of settings, and no other number outside code."""
    missing = [figure for figure in [*figures, *settings] if figure not in text]
    assert not missing, "not in the text:\n" + "\n".join(missing)
    for figure in sorted([*figures, *settings], key=len, reverse=True):
        text = text.replace(figure, "")
    code_links_names = r"```.*?```|`[^`]*`|\]\([^)]*\)|[A-Za-z][\w/]*-?\d+\w*"  # such as ResNet-32, L2T, CIFAR-10
    rest = re.sub(code_links_names, "", text, flags=re.DOTALL)
    assert not re.findall(r"\d+(?:\.\d+)?", rest), f"numbers that no table gives are left in:\n{rest}"


def spread(values: pd.Series, digits: int = 1) -> str:
    """Format fractions in per cent: mean ± standard deviation, or each value where there are fewer than three."""
    percent = 100 * values
    if len(percent) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in percent)
    return f"{percent.mean():.{digits}f} ± {percent.std():.{digits}f}"


def mean_shares(results: pd.DataFrame) -> pd.Series:
    """The mean share taken over of each method."""
    return measure.share_taken_over(results).groupby(results["method"]).mean()


def points(difference: pd.Series) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.sem()
    return difference.mean(), difference.mean() - half, difference.mean() + half


def at_an_end(tried: pd.DataFrame) -> list[str]:
    """The methods (rows) whose best strength (columns) is the smallest or the largest that was tried."""
    ends = {name: row.dropna() for name, row in tried.iterrows()}
    return [name for name, row in ends.items() if row.idxmax() in (row.index.min(), row.index.max())]


def signed(text: str) -> str:
    """The text with typographic minus signs."""
    return re.sub(r"-(?=\d)", "−", text)


def four_more(tables: Callable[[str], pd.DataFrame]) -> str:
    """The sentence on four validation seeds by which no strength was chosen."""
    tried = tables("baselines_builtin_search").query("104 <= seed <= 107")
    changed = tried["map_changed"].astype(str)
    rows = {
        "one": tried[(tried["method"] == "matching_one") & (changed == "Intel")],
        "rule": tried[(tried["method"] == "matching_not_later") & (changed == "Intel")],
        "long": tried[changed.str.startswith("16 trials of 240 steps") & changed.str.endswith("Intel")],
        "short": tried[changed.str.startswith("32 trials of 120 steps") & changed.str.endswith("best 9")],
    }
    assert all(sorted(of["seed"]) == [104, 105, 106, 107] for of in rows.values())
    percent = {name: f"{100 * of['accuracy'].mean():.1f} %" for name, of in rows.items()}
    pairs, agreed = [f"{m}-{n}" for m in (1, 2, 3) for n in (2, 6, 13, 20, 27)], {}
    for name in ("long", "short"):
        kept = rows[name]["pairs"].str.get_dummies(" ").reindex(columns=pairs, fill_value=0)
        assert (kept.sum(axis="columns") == 9).all()
        agreed[name] = np.corrcoef(kept)[np.triu_indices(4, 1)].mean()
    return (
        f"* On four more validation seeds, 104 to 107, one-to-one reaches {percent['one']}, the rule "
        f"{percent['rule']}, and searched maps {percent['long']} after 16 trials of 240 steps and {percent['short']} "
        "after 32 of 120, at the same cost. The maps of the shorter trials correlate by "
        f"{agreed['short']:.2f} there, those of the longer ones by {agreed['long']:.2f}. Since maps should agree, the "
        "searches of the table have 32 trials of 120 steps."
    )


def by_probability(tables: Callable[[str], pd.DataFrame]) -> str:
    """The sentence on maps of all pairs, weighted by their probability of being among the best."""
    tried = tables("baselines_builtin_search").query("beta == 2")
    tried = tried[tried["map_changed"].astype(str).str.startswith("32 trials of 120 steps")]
    kind = tried["map_changed"].str.rpartition("; ")[2].rename("kind")
    percent = 100 * tried.pivot_table(index="seed", columns=kind, values="accuracy")
    soft, best = percent["all pairs, by probability"], percent["the best 9"]
    assert percent.index.tolist() == list(range(100, 108))
    mean, low, high = points(soft - best)
    return signed(
        f"From the same trials, such maps reach "
        f"{soft.mean():.1f} % on the seeds 100 to 107, the best nine alone {best.mean():.1f} %: {mean:+.1f} points "
        f"({low:+.1f} to {high:+.1f})."
    )


def stored_trials(tables: Callable[[str], pd.DataFrame]) -> str:
    """The sentences on maps by probability of the test seeds whose trials are stored."""
    trials = tables("baselines_builtin_trials").query("method == 'search_then_train'")
    pairs = [(f"layer{m}", f"features.{n}") for m in (1, 2, 3) for n in (2, 6, 13, 20, 27)]
    probabilities, best = {}, {}
    for seed, of_seed in trials.groupby("seed"):
        search = PairSearch(pairs, matched=6, seed=seed)
        assert len(of_seed) == 32
        for matched, loss in zip(of_seed["pairs"], of_seed["loss"], strict=True):
            search.add([pair.split("→") for pair in matched.split()], loss)
        probabilities[seed] = search.probabilities(9)
        best[seed] = [float(pair in search.best(9)) for pair in pairs]
    maps = tables("baselines_builtin_maps").query("method == 'search_then_train'")
    stored = maps.pivot_table(index="seed", columns=["source", "target"], values="weight", sort=False)
    assert stored.loc[list(best)].gt(0).astype(float).to_numpy().tolist() == list(best.values())
    agreed, equal = (
        np.corrcoef(list(each.values()))[np.triu_indices(len(each), 1)].mean() for each in (probabilities, best)
    )
    soft = 100 * tables("baselines_builtin_probability").set_index("seed")["accuracy"]
    assert soft.index.tolist() == list(best)
    results = tables("baselines_builtin").query("method == 'search_then_train'").set_index("seed")
    hard = 100 * results.loc[soft.index, "accuracy"]
    mean, low, high = points(soft - hard)
    return signed(
        f"On the test seeds {min(best)} to {max(best)}, whose trials are stored "
        f"(`data/results/baselines_builtin_trials.csv`), such maps correlate by {agreed:.2f} between seeds, those of "
        f"the best nine alone by {equal:.2f}; the targets reach {soft.mean():.1f} % "
        f"(`baselines_builtin_probability.csv`) and {hard.mean():.1f} %: {mean:+.1f} points "
        f"({low:+.1f} to {high:+.1f})."
    )


def weights_by_rule(tables: Callable[[str], pd.DataFrame]) -> tuple[float, float]:
    """L2T-ww's mean λ, over all pairs, of those that the rule keeps and of those that it leaves out."""
    weights = tables("baselines_builtin_maps").query("method == 'l2t'")
    weights = weights.groupby(["source", "target"], sort=False)["weight"].mean()
    is_late = later(list(weights.index)) > 0
    return weights[~is_late].mean(), weights[is_late].mean()


def test_built_in(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on the built-in task agrees with its tables."""
    results = tables("baselines_builtin")
    percent = 100 * results.pivot_table(index="seed", columns="method", values="accuracy")
    assert set(percent) == set(BUILT_IN)
    assert list(percent.index) == list(range(len(percent)))
    assert not percent.isna().any(axis=None)  # the differences are paired
    seconds = results[results["seed"].between(8, 21)].groupby("method")["train_seconds"].mean()  # one machine
    recipe = RECIPES["baselines-builtin"].settings
    figures = []
    for method, words in BUILT_IN.items():
        beta = f"{recipe[f'beta_{method}']:g}" if f"beta_{method}" in recipe else "–"
        against = "–"
        if method != "search_then_train":
            mean, low, high = points(percent["search_then_train"] - percent[method])
            against = signed(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        time = "–" if method == "probe" else f"{seconds[method] / seconds['matching_one']:.1f}"
        accuracy = spread(results.loc[results["method"] == method, "accuracy"])
        figures.append(f"| {words} | `{method}` | {beta} | {accuracy} | {against} | {time} |")
    best = percent.mean()[RIVALS].idxmax()
    figures.append(f"use neither the rule nor a search by trials, `{best}` is the best")
    for method, words in (("search_then_train", "A searched map differs from it by"), ("l2t", "and L2T-ww by")):
        mean, low, high = points(percent[method] - percent[best])
        figures.append(signed(f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"))
    tried = tables("baselines_builtin_betas").groupby(["method", "beta"])["accuracy"].mean()
    assert not at_an_end(tried.unstack())
    by_rule = "matching_not_later"
    of_rule, searched = (100 * tried[name, recipe[f"beta_{name}"]] for name in (by_rule, "search_then_train"))
    again = tables("baselines_builtin_search")
    again = again[again["map_changed"].astype(str).str.endswith("the best 9, again") & (again["seed"] <= 103)]
    assert set(again["beta"]) == {recipe["beta_search_then_train"]}
    again = 100 * again["accuracy"].mean()
    figures.append(
        f"by which the strengths were chosen, it reaches {of_rule:.1f} %, and the searched maps {searched:.1f} %"
    )
    figures.append(f"({again:.1f} % when they were trained a second time; 16 trials of 240 steps)")
    for rival, words in (("search_then_train", "On the test seeds it differs by"), (best, "for each seed, and by")):
        mean, low, high = points(percent[by_rule] - percent[rival])
        figures.append(signed(f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"))
    agreed = tables("map_agreement").groupby("method")["correlation"].mean()
    figures.append(f"correlate by {agreed['search_then_train']:.2f} on average")
    figures.append(f"those of the random searches by {agreed['random_search']:.2f}")
    figures += [four_more(tables), by_probability(tables), stored_trials(tables)]
    plain = 100 * tables("transfer_builtin").groupby("method")["accuracy"].mean()
    here = percent.loc[:7].mean()
    figures += [
        f"{words} {plain[name]:.1f} %{seeds}, here {here[name]:.1f} %"
        for name, words, seeds in (
            ("matching_one", "one-to-one reaches", " on seeds 0 to 7"),
            ("matching_all", "all-to-all", ""),
        )
    ]
    figures.append(f"Its maps correlate by {agreed['l2t']:.2f} between seeds, with the pairs of the rule by ")
    figures[-1] += f"{agreed['l2t_not_later']:.2f}."
    kept, left_out = weights_by_rule(tables)
    figures.append(f"end with λ = {left_out:.1f} on average, those that it keeps with {kept:.1f}")
    by_rival = ((best, "It differs by"), ("search_then_train", f"`{best}` and by"), (by_rule, "the rule alone:"))
    for rival, words in by_rival:
        mean, low, high = points(percent["l2t_not_later"] - percent[rival])
        figures.append(signed(f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"))
    assert low < 0 < high
    dearer = seconds["l2t_not_later"] / seconds[by_rule]
    figures.append(f", in {dearer:.1f} times its time")
    learned = 100 * tried["l2t_not_later", recipe["beta_l2t_not_later"]]
    figures.append(f"level with the rule ({learned:.1f} % and {of_rule:.1f} %)")
    outer = 100 * tables("outer_builtin").groupby(["outer", "beta", "meta_lr"])["accuracy"].mean()
    fresh = 100 * tables("meta_every_builtin").query("meta_every == 1")["accuracy"].mean()
    of_views = outer["strong views", recipe["beta_l2t"], recipe["meta_lr_l2t"]]
    calibrated = outer["calibrated strong views", recipe["beta_l2t"]]
    figures.append(f"gives {of_views:.1f} %, fresh batches {fresh:.1f} %")
    figures.append(f"it is {calibrated[recipe['meta_lr_l2t']]:.1f} %")
    figures.append(f"{calibrated.max():.1f} % with the learning rate {calibrated.idxmax():g}")
    assert outer.drop("calibrated strong views").max() < fresh < calibrated.max() < fresh + 2
    for method, means in tried.groupby(level="method"):
        assert means.idxmax()[1] == recipe[f"beta_{method}"]
    command, machine, versions = provenance(root, "baselines_builtin")[:3]
    assert percent.index.tolist() == list(range(len(percent)))
    assert command == f"python -m mtanytime run baselines-builtin --out FOLDER --seed $(seq 0 {percent.index.max()})"
    settings = [f"Seeds 0 to {percent.index.max()}", "seeds 100 to 103", "seeds 100 to 107", "its 95 % interval"]
    settings += ["four validation seeds", "mean training times of seeds 8 to 21"]
    settings += ["240 steps, each on 25 labelled images", "on 25 strong views", "λ = 1", f"`{command}`"]
    paper = TransferSettings().meta_lr
    settings.append(f"the learning rate of the meta-networks is {recipe['meta_lr_l2t']:g}, not {paper:g}")
    cores = "2 cores of Intel(R) Xeon(R) Processor (seeds 0 to 21) and of AMD EPYC (the others), 1 thread"
    settings += [cores, versions.removesuffix("+cu130")]
    assert machine.startswith(cores)
    check(section(root, "Built-in task: letters to digits"), figures, settings)


def planted_bullets(tables: Callable[[str], pd.DataFrame]) -> list[str]:
    """The first sentences under the table of the planted truths."""
    built_in = 100 * tables("baselines_builtin").pivot_table(index="seed", columns="method", values="accuracy")
    gain = (built_in["search_then_train"] - built_in["matching_all"]).mean()
    maps = tables("planted_maps").assign(kept=lambda table: table["weight"] > 0)
    source = maps[maps["task"] == "source"]
    kept = {
        name: source[source["source"].str.startswith(f"{name}/")].groupby("seed")["kept"].sum()
        for name in ("trained", "useless")
    }
    of_layer = maps[(maps["task"] == "layer") & maps["source"].str.contains("layer2")]
    kept["layer"] = of_layer.groupby("seed")["kept"].sum()
    number = {name: f"{n.min()} to {n.max()}" if n.min() < n.max() else str(n.max()) for name, n in kept.items()}
    # How often pairs drawn at random would keep a larger share of the useful ones.
    chance = [
        stats.hypergeom(pairs, useful, matched).sf(math.floor(matched * useful / pairs))
        for pairs, useful, matched in ((30, 15, 18), (15, 10, 9))
    ]
    by_hand = 100 * tables("planted_by_hand").groupby(["method", "task", "beta"])["accuracy"].mean()
    best = by_hand.groupby(["method", "task"]).max().unstack()[list(PLANTED)]
    rule, one = (", ".join(f"{value:.1f}" for value in best.loc[m]) for m in ("matching_not_later", "matching_one"))
    searched = 100 * tables("planted").query("method == 'search_then_train'").groupby("task")["accuracy"].mean()
    assert (best.loc["matching_not_later"] > searched[list(PLANTED)]).all()
    return [
        "* **Against equal weights, a search gains most where much of the source is useless.** On the built-in task "
        f"itself, where nothing is useless, a searched map is {gain:.1f} points above all pairs alike "
        "(`matching_all`). On `source` it gains far more, on `layer` and `channels` about as much: there the search "
        "finds what is useless, but gains no more than on the plain task.",
        "* All of this is against equal weights. The rule and one-to-one are stronger rivals, blind to what is "
        "useless: on two other seeds (100 and 101, `data/results/planted_by_hand.csv`) and at the best of three "
        f"strengths, the rule of the section above reaches {rule} % on the three tasks, and one-to-one {one} %. So a "
        "search that finds what is useless is not shown to be the best map.",
        "* A right map is not a clean one. Of the fifteen pairs of each network, the maps of `source` keep "
        f"{number['trained']} of the useful one and {number['useless']} of the useless one; of the five pairs of the "
        f"untrained layer, those of `layer` keep {number['layer']}. Maps of as many pairs drawn at random would be "
        f"right in {100 * chance[0]:.0f} % and {100 * chance[1]:.0f} % of cases.",
    ]


def test_planted(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on tasks whose right map is known agrees with its table."""
    results, recipe = tables("planted"), RECIPES["planted"].settings
    percent = 100 * results.pivot_table(index=["task", "seed"], columns="method", values="accuracy")
    right = results[results["method"] == "search_then_train"].set_index(["task", "seed"])["right_first"]
    figures = []
    for task, words in PLANTED.items():
        mean, low, high = points(percent.loc[task, "search_then_train"] - percent.loc[task, "uniform"])
        accuracies = [spread(percent.loc[task, method] / 100) for method in recipe["methods"]]
        against = signed(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        found = f"{right[task].sum()} of {len(right[task])}"
        figures.append(f"| `{task}` | {words} | {accuracies[0]} | {accuracies[1]} | {against} | {found} |")
    command, machine, versions = provenance(root, "planted")[:3]
    last = percent.index.get_level_values("seed").max()
    assert command == f"python -m mtanytime run planted --out FOLDER --seed {' '.join(map(str, range(last + 1)))}"
    settings = [f"Seeds 0 to {last}", f"`{command}`", machine.removesuffix(", beside other work"), versions]
    settings += [f"β = {recipe[f'beta_{name}']:g}" for name in ("uniform", "uniform_source", "search_then_train")]
    settings.append("for two other seeds, 100 and 101")
    means = percent.groupby("task").mean()
    words = ", ".join(f"{t} {means.uniform[t]:.0f} to {means.search_then_train[t]:.0f} %" for t in PLANTED)
    assert words in RECIPES["planted"].expected
    tried = tables("planted_betas").groupby(["task", "beta"])["accuracy"].mean()
    for task, means in tried.groupby(level="task"):
        chosen = recipe.get(f"beta_uniform_{task}", recipe["beta_uniform"])
        assert means.idxmax()[1] == chosen
        assert means.index.get_level_values("beta").min() < chosen < means.index.get_level_values("beta").max()
    settings += [f"in {recipe['trials']} trials", f"{recipe['steps']} steps", "95 % interval", "1 thread"]
    figures += planted_bullets(tables)
    check(section(root, "Built-in task: planted truths"), figures, settings)


def test_papers_objective(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on the built-in task with the paper's objective agrees with its tables."""
    results = tables("transfer_builtin")
    percent = 100 * results.pivot_table(index="seed", columns="method", values="accuracy")
    seconds = results.groupby("method")["train_seconds"].mean()
    betas = results.groupby("method")["beta"].agg(["min", "max"])
    assert list(percent.index) == list(range(8))
    assert (betas["min"] == betas["max"]).all()
    figures = []
    for method, words in METHODS.items():
        accuracy = spread(results.loc[results["method"] == method, "accuracy"])
        beta = f"{betas['min'][method]:g}" if betas["min"][method] else "–"
        against = "–"
        if method != "l2t":
            mean, low, high = points(percent["l2t"] - percent[method])
            against = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")
        times = f"{seconds[method] / seconds['matching_one']:.1f}"
        figures.append(f"| {words} | `{method}` | {beta} | {accuracy} | {against} | {times} |")
    mean, low, high = points(percent["matching_one"] - percent["l2t"])
    gains = percent.mean().drop("scratch") - percent["scratch"].mean()
    assert gains.min() > 30
    figures.append(f"L2T-ww is {mean:.1f} points below one-to-one, with a 95 % interval of {low:.1f} to {high:.1f}")
    figures.append(f"takes {seconds['l2t'] / seconds['matching_one']:.1f} times as long")
    for method, words in (("what", "all-to-all matching: {:+.1f} points"), ("where", "(*where*) gives {:+.1f} points")):
        difference, low, high = points(percent[method] - percent["matching_all"])
        assert low < 0 < high
        figures.append(signed(f"{words.format(difference)} ({low:+.1f} to {high:+.1f})"))

    search = tables("transfer_builtin_search").groupby(["method", "beta"])["accuracy"].mean().mul(100).unstack()
    assert search.idxmax(axis="columns").to_dict() == {"l2t": 4.0, "matching_all": 4.0, "matching_one": 16.0}
    assert betas["min"].drop("scratch").to_dict() == {
        "l2t": 4,
        "matching_all": 4,
        "matching_one": 16,
        "what": 4,
        "where": 4,
    }
    assert not at_an_end(search)
    span = search.max(axis="columns") - search.min(axis="columns")
    figures.append(
        f"between the best and the worst strength of a method lie {span.min():.0f} to {span.max():.0f} points"
    )

    maps = tables("transfer_builtin_maps").query("method == 'l2t'")
    correlation = maps.pivot_table(index=PAIR, columns="seed", values="weight").corr().to_numpy()
    count = len(correlation)
    mean = (correlation.sum() - count) / (count * (count - 1))
    figures.append(f"the maps of two seeds correlate by {mean:.2f} on average")
    command, machine, versions = provenance(root, "transfer_builtin")
    assert command == "python -m mtanytime run built-in --out FOLDER --seed 0 1 2 3 4 5 6 7 --set methods=" + ",".join(
        METHODS
    )
    settings = [
        "seeds 0 to 7",
        "seeds 100 and 101",
        "95 % interval",
        "more than 30 points",
        "β = 2, 4, 8 and 16, for one-to-one also 32",
    ]
    settings += ["λ = 1", f"`{command}`", "2 cores of AMD EPYC, 1 thread", versions.removesuffix("+cu130")]
    assert machine.startswith("2 cores of AMD EPYC, 1 thread")
    check(section(root, "Built-in task: the paper's objective"), figures, settings)


def test_cifar10_few(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on CIFAR-10 with few labels agrees with its tables."""
    results = tables("transfer_cifar10_n50")
    assert (results["epochs"] == 200).all()
    figures = []
    for (rate, precision), runs in results.groupby(["lr", "precision"], sort=False):
        cells = [
            spread(runs.loc[runs["method"] == method, "last_accuracy"])
            for method in METHODS
            if method not in ("what", "where")
        ]
        figures.append(f"| {rate:g}, {precision} | {' | '.join(cells)} |")
    losses = tables("transfer_cifar10_n50_losses").query("lr == 0.1 and step <= 40").groupby("seed")["loss"]
    figures.append(f"its loss rises from {losses.first().mean():.1f} to between {losses.max().min():.0f} and ")
    figures[-1] += f"{losses.max().max():.0f} within 40 steps"
    maps = tables("transfer_cifar10_n50_maps").pivot_table(index=PAIR, columns="lr", values="weight")
    assert set(tables("transfer_cifar10_n50_maps")["step"]) == {800}
    figures.append(f"their maps correlate by {maps.corr().iloc[0, 1]:.2f} after 800 steps")
    commands, machine, versions = (
        provenance(root, "transfer_cifar10_n50")[0],
        *provenance(root, "transfer_cifar10_n50")[-2:],
    )
    assert commands.startswith("python -m mtanytime run cifar10-few --out FOLDER --seed 0 --set methods=l2t")
    assert machine.startswith("2 cores of AMD EPYC, 1 thread")
    settings = [
        "λ = 1",
        "200 epochs",
        "800 steps",
        "At 0.1",
        "at 0.01",
        "about 40 % from scratch and 65 %",
    ]
    settings += [
        "0.1, 0.03 and 0.01",
        "2,000 of the test images",
        "2 cores of AMD EPYC, 1 thread",
        versions,
        "three seeds",
    ]
    settings += ["cosine of 0.89 with that in float32 after six steps (measured once, no table)"]
    check(section(root, "CIFAR-10 with 50 labels per class"), figures, settings)


def test_a_long_training(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on transfer at a credible length agrees with its tables."""
    results = tables("long_cifar10_n50")
    of_seed = 100 * results.query("method == 'recommended' and seed == 0").set_index("steps")["accuracy"]
    results = results[results["steps"] <= 4000]
    shares = mean_shares(results)
    names = {
        "probe": "the source, linear probe",
        "fine_tuning_probe": "the source, fine-tuned from the probe",
        "scratch": "VGG-9, from scratch",
        "matching_all": "VGG-9, all-to-all, λ = 1",
        "matching_all_views": "VGG-9, all-to-all, with views",
        "l2t": "VGG-9, L2T-ww, with views",
        "search_then_train": "VGG-9, nine pairs, searched by trials, with views",
        "recommended": "VGG-9, labels only",
        "recommended_unlabelled": "VGG-9, with unlabelled images",
    }
    assert set(results["method"]) == set(names)
    assert set(results["steps"]) == {0, 4000}
    assert of_seed[8000] <= of_seed[4000]
    longer = f"reaches {of_seed[8000]:.1f}, against {of_seed[4000]:.1f} with 4,000"
    figures = [f"with 8,000 steps (seed 0, in bfloat16 on a CPU) {longer}"]
    for method, words in names.items():
        accuracy, share = results.loc[results["method"] == method, "accuracy"], shares[method]
        assert sorted(results.loc[results["method"] == method, "seed"]) == list(range(len(accuracy)))
        share = "–" if np.isnan(share) else f"{share:.2f}"
        figures.append(f"| {words} | `{method}` | {spread(accuracy)} | {share} |")
    percent = 100 * results.pivot_table(index="seed", columns="method", values="accuracy")
    mean = percent.mean()
    above, scratch = mean["recommended"] - mean["probe"], percent.loc[0, "recommended"] - percent.loc[0, "scratch"]
    figures.append(f"{above:.1f} points above the probe and {scratch:.0f} points above training from scratch")
    figures.append(f"{mean['fine_tuning_probe'] - mean['recommended']:.1f} points below fine-tuning the source")
    unlabelled = mean["recommended_unlabelled"]
    figures.append(f"{unlabelled - mean['recommended']:+.1f} points. They are {unlabelled - mean['probe']:.1f} points")

    zero, defaults = percent.loc[0], RECIPES["cifar10-long"].settings
    trials = f"nine pairs from {defaults['trials']} trials of {defaults['search_steps']} steps"
    figures.append(
        f"reaches {zero['l2t']:.1f}, {trials} {zero['search_then_train']:.1f}, all pairs alike "
        f"{zero['matching_all_views']:.1f}"
    )
    learned = tables("long_cifar10_n50_maps").pivot_table(index=["source", "target"], columns="method", values="weight")
    on_digits = tables("baselines_builtin_maps").query("method == 'search_then_train'")
    digits_map = on_digits.groupby(["source", "target"], sort=False)["weight"].mean().reset_index()
    mean_map = digits_map.set_index(["source", "target"])["weight"]
    figures.append(f"correlates by {learned['search_then_train'].corr(mean_map):.2f} with the mean map")
    opposed = learned["search_then_train"].corr(learned["l2t"])
    figures.append(signed(f"with the λ of L2T-ww on the same images by {opposed:.2f}"))
    assert learned["search_then_train"].gt(0).sum() == 9
    follows = later(list(zip(digits_map["source"], digits_map["target"], strict=True))) == 0
    figures.append(f"correlates with that mean map by {np.corrcoef(digits_map['weight'], follows)[0, 1]:.2f}")

    recipe = ["probe", "fine-tuned source", "recommended", "unlabelled"]
    methods = ["probe", "fine_tuning_probe", "recommended", "recommended_unlabelled"]
    words = ", ".join(f"{name} {mean[method]:.1f} %" for name, method in zip(recipe, methods, strict=True))
    assert words in RECIPES["cifar10-long"].expected

    search = tables("baselines_cifar10_search")
    search["accuracy"] *= 100
    (standard,) = search.loc[search["standardize"] == 2, "accuracy"]
    pairs = search[(search["precision"] == "bfloat16") & (search["standardize"] == 0)]
    pairs = pairs.set_index(["method", "pairs", "beta"])["accuracy"]
    nine, kinds = pairs["recommended"]["not later"], pairs["recommended"]
    figures.append(
        f"nine pairs reach {nine[2]:.1f} at β = 2 and {nine[4]:.1f} at β = 4; "
        f"at β = 2, all pairs reach {kinds['all', 2]:.1f}"
    )
    figures.append(f"one-to-one {kinds['one', 2]:.1f}")
    search = search[(search["weight_teacher"].fillna(1) == 1) & (search["precision"] == "float32")]
    search = search.set_index(["method", "beta", "standardize"])["accuracy"]
    read = {beta: search["matching_all", beta, 0] for beta in (0.5, 2, 5)}
    own = {beta: search["recommended", beta, 0] for beta in (0.5, 2)}
    figures.append(f"β = 2 gives {read[2]:.1f} for all-to-all matching and {own[2]:.1f} for `recommended`")
    figures.append(f"β = 0.5 gives {read[0.5]:.1f} and {own[0.5]:.1f}, β = 5 gives {read[5]:.1f} for the first")
    figures.append(f"reaches {kinds['all', 2]:.1f} at β = 2, and {standard:.1f} with the defaults")
    settings = [
        "4,000 steps",
        "32 labelled images and 32 strong views",
        "has 32 of",
        "seeds 0, 1 and 2 (seed 0",
        "at seed 0",
    ]
    settings += [
        "10,000 other training images (seed 100, a target of half the width, 1,000 steps",
        "and β = 5",
    ]
    settings += ["55.2 % (WRN-16-8) and 58.0 % (harmonic networks)", "50 labels per class"]  # of another repository
    settings += [provenance(root, "long_cifar10_n50")[-1]]
    check(section(root, "CIFAR-10 with 50 labels per class, a long training"), figures, settings)


STRENGTHS = {  # by method: its name in RESULTS.md, the setting, and the column of the search
    "lwf": ("LwF", "weight_lwf", "weight_lwf"),
    "at": ("attention transfer", "weight_at", "weight_at"),
    "semckd": ("SemCKD", "weight_semckd", "weight_semckd"),
    "reviewkd": ("ReviewKD", "weight_reviewkd", "weight_reviewkd"),
    "matching_single": ("one pair β =", "beta_matching_single", "beta"),
    "matching_one": ("one-to-one β =", "beta_matching_one", "beta"),
    "l2sp": ("L2-SP has α =", "l2sp_alpha", "l2sp_alpha"),
}


def chosen_strengths(search: pd.DataFrame, settings: dict[str, Any]) -> list[str]:
    """The recipe's strength of each method in words, with the range of the search in which it is the best."""
    figures = []
    for method, (name, setting, column) in STRENGTHS.items():
        read = 100 * search[search["method"] == method].set_index(column)["accuracy"]
        chosen = settings[setting]
        if method == "l2sp":
            figures.append(f"{name} {chosen}, which gives {read[chosen]:.1f}, not 0.0001, which gives {read[1e-4]:.1f}")
            figures.append(f"the 0.1 of the library's default gives {read[0.1]:.1f}")
        else:
            assert read.idxmax() == chosen, method
            figures.append(f"{name} {chosen:,g} (of {read.index.min():g} to {read.index.max():,g})")
    return figures


def test_half_the_width(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on all alternatives agrees with its table, and so does what the recipe expects."""
    results = tables("baselines_cifar10_n50")
    shares = mean_shares(results)
    figures = []
    for method in results["method"].unique():
        rows = results[results["method"] == method]
        assert rows["seed"].tolist() == list(range(len(rows)))
        share = "–" if np.isnan(shares[method]) else f"{shares[method]:.2f}"
        figures.append(f"| {HALF_WIDTH[method]} | `{method}` | {spread(rows['accuracy'])} | {share} |")
    percent = 100 * results.pivot_table(index="seed", columns="method", values="accuracy")
    mean, unlabelled = percent.mean(), percent["recommended_unlabelled"]
    figures.append(f"`recommended` is {mean['recommended'] - mean['probe']:.1f} points above the probe")
    figures.append(f"the mean is {unlabelled.mean() - mean['recommended']:.1f} points higher")
    figures.append(f"its spread over seeds is {unlabelled.std():.1f} points")
    rival = mean[["lwf", "at", "lwf_at", "semckd", "reviewkd", "probe_distilled"]].idxmax()
    below = [mean[name] - mean[rival] for name in ("matching_all", "recommended")]
    figures.append(
        f"{HALF_WIDTH[rival]}, the best of the methods that do not match pairs of layers by regression, is at "
        f"{mean[rival]:.1f}, {below[0]:.1f} points below plain all-to-all matching and {below[1]:.1f} below"
    )
    gain = mean["matching_all_views"] - mean["matching_all"]
    assert gain > abs(below[0])
    figures.append(f"strong views add {gain:.1f} points to all-to-all matching")
    figures.append(f"The probe's answers alone, distilled, reach {mean['probe_distilled']:.1f}:")
    zero = percent.loc[0]
    figures.append(
        f"With the labels of seed 0, `matching_all_views` reaches {zero['matching_all_views']:.1f}, L2T-ww "
        f"{zero['l2t']:.1f}, the searched map {zero['search_then_train']:.1f} and the best of sixteen random maps "
        f"{zero['random_search']:.1f}; all four"
    )
    of_rule = [zero[method] for method in ("matching_not_later_views", "l2t_not_later")]
    figures.append(f"With the nine pairs of the built-in task's rule it is {of_rule[0]:.1f}, or {of_rule[1]:.1f} if")
    assert zero["matching_all_views"] >= max(*of_rule, *zero[["l2t", "search_then_train", "random_search"]])
    defaults = RECIPES["cifar10-baselines"].settings
    steps = defaults["trials"] * defaults["search_steps"]
    figures.append(f"its {defaults['trials']} trials have {steps:,} steps in all")
    parts = [f"{name} {mean[name]:.1f}" for name in ("scratch", "matching_all", "recommended")]
    words = ", ".join([f"probe {mean['probe']:.1f} %", *parts])
    assert words in RECIPES["cifar10-baselines"].expected
    figures += chosen_strengths(tables("baselines_cifar10_search"), RECIPES["cifar10-baselines"].settings)
    lengths = tables("steps_cifar10_n50")
    by_length = 100 * lengths.pivot_table(index="steps", columns="method", values="accuracy")
    for steps, row in by_length[["scratch", "matching_all", "recommended"]].iterrows():
        figures.append(f"| {steps:,} | " + " | ".join(f"{accuracy:.1f}" for accuracy in row) + " |")
    seed, longest = lengths["seed"].unique().item(), lengths[lengths["steps"] == 4000]
    same = longest.merge(results, on=["method", "seed"])
    assert same["accuracy_x"].tolist() == same["accuracy_y"].tolist()
    assert len(same) == 3
    settings = ["4,000 steps of 64 images", "seeds 0, 1 and 2", "2 cores", "64 labelled images per step and no views"]
    header = "; ".join(provenance(root, "baselines_cifar10_n50"))
    names = "`scratch`, `matching_all`, `matching_all_views`, `recommended` and `recommended_unlabelled`"
    assert "l2t with meta_every=4" in header
    settings.append(f"Seed 0 of {names}, and seed 1 of `scratch`, were trained in float32")
    assert settings[-1].split(", were")[0].replace("Seed", "seed").replace("`", "") in header
    settings += [f"accuracy of seed {seed}", "falls to 0 within its steps"]
    settings += [f"β = {RECIPES['cifar10-baselines'].settings['beta']:g} for all-to-all matching", "after 1,000 steps"]
    settings += ["1 thread", "Python 3.11.7, torch 2.14.1", "--seed 0 1 2"]
    check(section(root, "CIFAR-10 with 50 labels per class, half the width"), figures, settings)


def worth_rows(tables: Callable[[str], pd.DataFrame]) -> list[str]:
    """The table of the section on what a learned map is worth: task, method, steps, lookaheads and accuracy."""
    builtin, cifar = (RECIPES[name].settings for name in ("baselines-builtin", "cifar10-baselines"))
    searched = {name: each["trials"] * each["search_steps"] for name, each in (("b", builtin), ("c", cifar))}
    test, tried = tables("baselines_builtin"), tables("baselines_builtin_betas")
    longer, rare = tables("longer_builtin"), tables("meta_every_builtin")
    rows = []

    def add(task: str, words: str, steps: int, lookaheads: int, accuracy: pd.Series) -> None:
        seen = f"{lookaheads:,}" if lookaheads else "–"
        rows.append(f"| {task} | {words} | {steps:,} | {seen} | {spread(accuracy)} |")

    task, steps = f"digits, {test['seed'].nunique()} test seeds", builtin["steps"]
    for method, trials, lookaheads in (
        ("matching_one", 0, 0),
        ("matching_not_later", 0, 0),
        ("l2t", 0, steps),
        ("l2t_not_later", 0, steps),
        ("search_then_train", searched["b"], 0),
    ):
        add(task, BUILT_IN[method], trials + steps, lookaheads, test.loc[test["method"] == method, "accuracy"])
    task = f"digits, {longer['seed'].nunique()} validation seeds"
    for method in ("matching_one", "matching_all", "matching_not_later", "l2t", "l2t_not_later", "search_then_train"):
        trials = searched["b"] if method == "search_then_train" else 0
        if method == "l2t":
            for every, each in rare.groupby("meta_every"):
                add(task, BUILT_IN[method], steps, steps // every, each["accuracy"])
            continue
        short = tried[(tried["method"] == method) & (tried["beta"] == builtin[f"beta_{method}"])]
        lookaheads = steps if method == "l2t_not_later" else 0
        add(task, BUILT_IN[method], trials + steps, lookaheads, short["accuracy"])
        for count, each in longer[longer["method"] == method].groupby("steps"):
            add(task, BUILT_IN[method], trials + count, 0, each["accuracy"])
    for task, name in (("half the width", "baselines_cifar10_n50"), ("full width", "long_cifar10_n50")):
        zero = tables(name).query("seed == 0 and (steps == 4000 or method == 'probe')").set_index("method")
        views = (
            "matching_all_views",
            "matching_not_later_views",
            "l2t",
            "l2t_not_later",
            "random_search",
            "search_then_train",
        )
        for method in (*views, "lwf", "probe_distilled", "recommended"):
            if method not in zero.index:
                continue
            trials = searched["c"] if method in ("random_search", "search_then_train") else 0
            lookaheads = 4000 // 4 if method.startswith("l2t") else 0
            of_task = f"CIFAR-10, {task}, seed 0"
            add(of_task, HALF_WIDTH[method], trials + 4000, lookaheads, zero.loc[[method], "accuracy"])
        add(f"CIFAR-10, {task}, seed 0", HALF_WIDTH["probe"], 0, 0, zero.loc[["probe"], "accuracy"])
    return [row.replace("| 0 | – |", "| – | – |") for row in rows]


def test_what_a_learned_map_is_worth(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section that compares learned maps with maps by hand at equal compute agrees with the tables."""
    test = 100 * tables("baselines_builtin").pivot_table(index="seed", columns="method", values="accuracy")
    figures = worth_rows(tables)
    longer = 100 * tables("longer_builtin").pivot_table(index="seed", columns="method", values="accuracy")
    tried, recipe = tables("baselines_builtin_betas"), RECIPES["baselines-builtin"].settings
    short = tried[tried["beta"] == tried["method"].map(lambda name: recipe[f"beta_{name}"])]
    short = 100 * short.pivot_table(index="seed", columns="method", values="accuracy").loc[longer.index]
    assert (longer["matching_one"] > short["search_then_train"]).all()
    gains = (longer - short).mean()
    figures.append(f"is {gains['matching_one']:.1f} points better than with 240")
    above = (longer["matching_one"] - short["search_then_train"]).mean()
    figures.append(f"{above:.1f} points better than the searched map with 240")
    for table, method, words in (
        (longer, "search_then_train", "the searched map differs from one-to-one by"),
        (longer, "matching_not_later", "the rule by"),
        (longer, "matching_all", "all pairs alike by"),
        (test, "search_then_train", "a searched map differs from the best map by hand by"),
        (test, "matching_not_later", "the rule by"),
        (test, "l2t_not_later", "and L2T-ww with the pairs of the rule by"),
    ):
        mean, low, high = points(table[method] - table["matching_one"])
        figures.append(signed(f"{words} {mean:+.1f} points ({low:+.1f} to {high:+.1f})"))
    seconds = tables("longer_builtin").query("method == 'matching_one' and seed > 101")["train_seconds"].mean()
    of_l2t = tables("meta_every_builtin").query("meta_every == 1")["train_seconds"].mean()
    figures.append(f"in {seconds / of_l2t:.1f} times the time of L2T-ww")
    rare = tables("meta_every_builtin").groupby("meta_every")[["accuracy", "train_seconds"]].mean()
    dearest = rare["train_seconds"] / rare["train_seconds"].max()
    for every, words in ((2, "second"), (4, "fourth"), (8, "eighth")):
        figures.append(f"{words} step {dearest[every]:.2f} times")
    settings = [
        f"{test.shape[0]} test seeds",
        "95 % interval",
        "with 2,000 steps",
        "the four validation seeds, 100 to 103",
        "trials of 240 steps",
        "240-step trainings",
        "With 2,000 steps each",
        "with 240 steps, the four differ more",
    ]
    check(section(root, "What a learned map is worth"), figures, settings)


def test_practitioner(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """An ImageNet network into a torchvision network, beside its linear probe."""
    results = tables("practitioner")
    percent = 100 * results.pivot_table(index="seed", columns="method", values="accuracy")
    figures = [f"`{method}` | {spread(percent[method] / 100)} |" for method in ("probe", "scratch", "recommended")]
    share = (percent["recommended"] - percent["scratch"]) / (percent["probe"] - percent["scratch"])
    figures.append(f"{share.mean():.2f} ± {share.std():.2f} of the way")
    figures.append(f"{(percent['probe'] - percent['recommended']).mean():.1f} points better")
    words = ", ".join(f"{method} {percent[method].mean():.1f} %" for method in ("scratch", "probe", "recommended"))
    assert words in RECIPES["practitioner"].expected
    tried = 100 * tables("practitioner_search").set_index("standardize")["accuracy"]
    figures.append(f"it gives {tried[2]:.1f} there, one scale per pair of layers {tried[1]:.1f}")
    seconds = results.groupby("method")["train_seconds"].agg(["min", "max"])
    parts = [
        f"{s['min'] / 60:.0f} to {s['max'] / 60:.0f}" for s in (seconds.loc["recommended"], seconds.loc["scratch"])
    ]
    probe = seconds.loc["probe"]
    figures.append(
        f"took {parts[0]} minutes, `scratch` {parts[1]}, the probe {probe['min']:.0f} to {probe['max']:.0f} s"
    )
    settings = RECIPES["practitioner"].settings
    assert settings["standardize"] == tried.idxmax()
    stated = [f"{settings['per_class']} labels per class", f"{settings['size']}×{settings['size']}"]
    stated += [f"{settings['steps']:,} steps", f"β = {settings['beta']:g}", "16 labelled images and 16 strong views"]
    stated += ["32 labelled images per step", "seeds 0, 1 and 2", "seed 100", "2 cores", "1 thread"]
    stated += ["Python 3.11.7, torch 2.14.1, torchvision 0.29.1"]
    check(section(root, "An ImageNet network into a torchvision network"), figures, stated)


def test_anytime(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on anytime networks trained on all images agrees with its table."""
    curves = tables("anytime_cifar10_full")
    assert (curves["epochs"] == 10).all()
    assert (curves["accuracy"] == curves["last_accuracy"]).all()
    figures, ends, seeds = [], [], curves["seed"].nunique()
    for model, words in {"sliced": "sliced cascade", "msdnet": "MSDNet", "inclusive": "inclusive ResNeXt"}.items():
        exits = curves[curves["model"] == model].groupby("exit")
        for number, runs in exits:
            assert runs["seed"].tolist() == list(range(1 if model == "inclusive" else seeds))
            costs = [f"{runs[column].iloc[0] / 1e6:.1f}" for column in ("macs", "macs_own_head")]
            costs += [f"{runs['latency1_ms'].iloc[0]:.2f}", f"{runs['latency64_ms'].iloc[0]:.1f}"]
            figures.append(" | ".join([f"| {words}", str(number), *costs, f"{spread(runs['accuracy'])} |"]))
        means = 100 * exits["accuracy"].mean()
        if model != "inclusive":
            ends.append(f"{words.split()[0]} {means.min():.1f} to {means.max():.1f} %")
    assert RECIPES["anytime-cifar10-full"].expected == "on test images " + ", ".join(ends)
    gaps, saving = {}, {}
    for cost in ("macs", "macs_own_head", "latency1_ms", "latency64_ms"):
        gaps[cost] = measure.gap(curves, "sliced", "msdnet", cost=cost, last_stands=True)
        saving[cost] = measure.savings(curves, "sliced", "msdnet", cost=cost)["saving_percent"]
    for i, number in enumerate(gaps["macs"]["exit"]):
        cells = [f"{gap['gap_points'][i]:+.1f} ± {gap['sem_points'][i]:.1f}" for gap in gaps.values()]
        saved = [saving[cost][i] for cost in ("macs", "latency64_ms")]
        cells += ["–" if np.isnan(percent) else f"{percent:.0f}" for percent in saved]
        figures.append(signed(" | ".join([f"| {number}", *cells]) + " |"))
    ranges = {
        cost: signed(f"{gap['gap_points'].min():.1f} to {gap['gap_points'].max():.1f}") for cost, gap in gaps.items()
    }
    figures.append(f"{ranges['macs']} points with all heads counted, {ranges['macs_own_head']} with the answering")
    figures.append(f"{ranges['latency64_ms']} at equal milliseconds for 64 images and {ranges['latency1_ms']} for one")
    figures.append(f"up to {saving['macs'].max():.0f} % fewer multiply-adds and {saving['latency64_ms'].max():.0f} %")
    beside = measure.gap(curves, "sliced", "inclusive", last_stands=True)["gap_points"]
    *first, last = [signed(f"{gap:+.1f}") for gap in beside]
    figures.append(f"at the costs of its exits, {', '.join(first)} and {last} points")
    search = tables("anytime_full_search").set_index(["changes", "exit"])["accuracy"].unstack()
    for words, changes in LEVERS.items():
        accuracies = 100 * search.loc[changes]
        figures.append(" | ".join([f"| {words}", *(f"{accuracies[k]:.1f}" for k in range(1, 5))]) + " |")
    for phrase, tried in EFFECTS.items():
        plain = LEVERS["basic blocks with squeeze-and-excitation" if "epochs" in tried else "cascade"]
        effects = [signed(f"{effect:+.1f}") for effect in 100 * (search.loc[LEVERS[tried]] - search.loc[plain])[:4]]
        figures.append(f"{phrase} {', '.join(effects[:3])} and {effects[3]}")
    area = measure.area_under_curve(curves, (7.84e6, 37.7e6)).groupby("model")["area"]
    figures.append(
        f"is {spread(area.get_group('sliced'))} for sliced and {spread(area.get_group('msdnet'))} for MSDNet"
    )
    commands, timing, machine, *versions = provenance(root, "anytime_cifar10_full")
    assert machine.startswith("2 cores of AMD EPYC, 1 thread")
    settings = [
        "All 50,000 training images, 10 epochs",
        f"seeds {', '.join(map(str, range(seeds - 1)))} and {seeds - 1}",
        "for one image and for 64",
        *(f"`{command}`" for command in commands.split(", and the same ")[:1]),
        f"the same {commands.split(', and the same ')[1].replace('with ', 'with `')}`",
    ]
    settings += ["from 7.84 to 37.7 million multiply-adds", "5,000 training images", "300 epochs; 10 of them"]
    settings += ["ms, 1 image", "ms, 64 images", "ms of 1 image", "ms of 64 images", *versions]
    settings += ["seed 0 only", "exit 1 | exit 2 | exit 3 | exit 4"]
    settings += [f"`{timing.removeprefix('milliseconds: ')}`", "2 cores of AMD EPYC, 1 thread"]
    check(section(root, "Anytime networks on CIFAR-10"), figures, settings)


def test_anytime_after_a_short_training(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on anytime networks trained on 10,000 images agrees with its table."""
    curves = tables("anytime_cifar10")
    assert (curves["epochs"] == 8).all()
    figures = []
    for model, words in MODELS.items():
        for number, runs in curves[curves["model"] == model].groupby("exit"):
            cost, own = (f"{runs[column].iloc[0] / 1e6:.1f}" for column in ("macs", "macs_own_head"))
            figures.append(f"| {words} | {number} | {cost} | {own} | {spread(runs['accuracy'])} |")
    gap = measure.gap(curves, "sliced", "msdnet", last_stands=True)
    own = measure.gap(curves, "sliced", "msdnet", cost="macs_own_head", last_stands=True)
    saving = measure.savings(curves, "sliced", "msdnet")["saving_percent"]
    for i in range(len(gap)):
        text = [f"{table['gap_points'][i]:+.1f} ± {table['sem_points'][i]:.1f}" for table in (gap, own)]
        figures.append(f"| {gap['exit'][i]} | {text[0]} | {saving[i]:.0f} | {text[1]} |")
    assert (own["gap_points"] < own["sem_points"]).all()
    low, high = gap["gap_points"].min(), gap["gap_points"].max()
    figures.append(f"above MSDNet by {low:.1f} to {high:.1f} points at the cost of each of its exits")
    figures.append(f"with up to {saving.max():.0f} % fewer multiply-adds")
    figures.append(f"the gaps are {own['gap_points'].min():.1f} to {own['gap_points'].max():.1f} points")
    area = measure.area_under_curve(curves[curves["model"].isin(["sliced", "msdnet"])], (7.84e6, 37.7e6))
    sliced, msdnet = (spread(area.loc[area["model"] == model, "area"]) for model in ("sliced", "msdnet"))
    figures.append(f"is {sliced} for sliced and {msdnet} for MSDNet")

    search = tables("anytime_cifar10_search")
    tried = search.groupby("model")["changes"].nunique()
    figures.append({6: "six", 4: "four"}[tried["msdnet"]] + " settings for MSDNet")
    figures.append({6: "six", 4: "four"}[tried["sliced"]] + " for sliced")
    commands, machine, versions = provenance(root, "anytime_cifar10")
    command = commands.split(", and the same")[0]
    assert machine.startswith("2 cores of AMD EPYC, 1 thread")
    settings = ["10,000 training images", "8 epochs", "8 epochs on 10,000 images", "seeds 0, 1 and 2", "seed 0"]
    settings += ["from 7.84 to 37.7 million multiply-adds", f"`{command}`", "seed 100", "5,000 training images"]
    settings += ["2 cores of AMD EPYC, 1 thread", versions]
    check(section(root, "Anytime networks on CIFAR-10, a short training"), figures, settings)


def test_longer_trials_are_of_the_networks_that_they_name(tables: Callable[[str], pd.DataFrame]) -> None:
    """Each row's settings, with the recipe's defaults for the others, give a network of the row's cost."""
    trials = tables("anytime_full_search")
    defaults = RECIPES["anytime-cifar10-full"].settings
    for (model, changes), rows in trials.groupby(["model", "changes"]):
        named = re.sub(r"\([^)]*\) ", "", changes).split()  # in brackets: what is no setting
        settings = changed(defaults, dict(change.split("=", 1) for change in named))
        assert (rows["epochs"] == settings["epochs"]).all()
        costs = measure.exit_costs(build_network(model, settings, 10))
        for cost in ("macs", "macs_own_head", "params"):
            assert rows.sort_values("exit")[cost].tolist() == costs[cost].tolist(), changes


def test_convolutions(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The section on the times of convolutions agrees with its tables, and the shapes have the multiply-adds stated."""
    times = tables("layer_times")
    speed = times["batch"] * times["macs"] / times["ms"] / 1e6
    assert times["gmacs_per_s"].to_numpy() == pytest.approx(speed.to_numpy(), rel=0.01, abs=0.006)
    at = times[times["side"] == 16].set_index(["kind", "outputs", "batch", "runtime"])
    columns = [(batch, runtime) for batch in (1, 64) for runtime in ("eager", "channels-last", "onnxruntime")]
    figures = []
    for kind, words in CONVOLUTIONS.items():
        for channels in (32, 64, 128):
            speeds = [f"{at.loc[(kind, channels, *column), 'gmacs_per_s']:.1f}" for column in columns]
            figures.append(" | ".join([f"| {words}", str(channels), *speeds]) + " |")
    onnx = at.xs((64, "onnxruntime"), level=("batch", "runtime"))
    speed, dense = onnx["gmacs_per_s"].unstack(), onnx.loc["dense 3×3"]
    ratio = speed.loc["dense 3×3", [32, 64, 128]] / speed.loc["depthwise", [32, 64, 128]]
    figures.append(f"does {ratio.min():.0f} to {ratio.max():.0f} times as many multiply-adds per second")
    ms = [f"{dense['ms'][channels]:.1f} ms" for channels in (24, 32)]
    figures.append(f"takes {ms[0]} for a dense 3×3 convolution of 24 channels and {ms[1]} for one")
    figures.append(f"of 32, which has {dense['macs'][32] / dense['macs'][24]:.1f} times as many")
    shapes = tables("shapes")
    keys = ["block", "blocks", "reads", "batch", "runtime", "rank", "slice_widths"]
    for (block, blocks, reads, batch, runtime, rank, widths), exits in shapes.groupby(keys, sort=False):
        depth = tuple(map(int, blocks.split(",")))
        shape = SliceShape(slice_widths(widths, len(depth), 16), depth, block)
        if reads == "stages":  # of slices that read layers, the zeros of absent connections are not counted
            layers = [exit_layers(shape, k, reads=reads) for k in exits["exit"]]
            assert exits["macs"].tolist() == [sum(layer.macs for layer in parts) for parts in layers]
        if rank == 1:
            ms = " ".join(f"{value:.{2 if batch == 1 else 1}f}" for value in exits["ms"])
            macs = " ".join(f"{value:.1f}" for value in exits["macs"] / 1e6)
            figures.append(f"| {block}, {reads} | {batch} | {runtime} | `{widths}` | {ms} | {macs} |")
    command, machine, *versions = provenance(root, "layer_times")
    settings = [f"`{command}`", machine, *versions, "3×3 convolution as in", "16×16 pixels", "8×8"]
    settings += ["16, 24 and 48 channels", "multiples of 16 channels", "for one image and for 64", "1 image: eager"]
    settings += ["64 images: eager", "For 64 images", "for 64 images"]
    check(section(root, "Which convolutions are fast"), figures, settings)


def test_readme_findings(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """The README's findings agree with the tables."""
    results = tables("baselines_builtin")
    percent = 100 * results.groupby("method")["accuracy"].mean()
    best = percent[RIVALS].idxmax()
    figures = [f"reach {percent['matching_not_later']:.1f} % with equal weights and "]
    figures[-1] += f"{percent['l2t_not_later']:.1f} % with L2T-ww's"
    figures.append(f"L2T-ww over all pairs {percent['l2t']:.1f} %")
    figures.append(f"found by 32 trial trainings {percent['search_then_train']:.1f} %")
    figures.append(f"the best pairs by hand (`{best}`) {percent[best]:.1f} %")
    figures.append(f"linear probe {percent['probe']:.1f} %, training from scratch {percent['scratch']:.1f} %")
    long = 100 * tables("long_cifar10_n50").query("steps <= 4000").groupby("method")["accuracy"].mean()
    figures.append(f"reaches {long['recommended']:.1f} %, against {long['probe']:.1f} % by that probe")
    figures.append(f"and {long['scratch']:.1f} % from scratch (one seed)")
    figures.append(f"fine-tuning the source itself reaches {long['fine_tuning_probe']:.1f} %")
    curves = tables("anytime_cifar10_full")
    gaps = {
        cost: measure.gap(curves, "sliced", "msdnet", cost=cost, last_stands=True)["gap_points"]
        for cost in ("macs", "macs_own_head", "latency64_ms")
    }
    texts = {cost: signed(f"{gap.min():.1f} to {gap.max():.1f}") for cost, gap in gaps.items()}
    figures.append(f"is {texts['macs']} points above MSDNet at equal multiply-adds")
    figures.append(f"{texts['macs_own_head']} with only the answering head counted")
    figures.append(f"{texts['latency64_ms']} at equal milliseconds")
    settings = [
        "50 labels per class",
        "batches of 64",
        "300 epochs",
        "after 4,000 steps",
        "10 epochs on all 50,000 images",
        f"{results['seed'].nunique()} seeds",
    ]
    check(section(root, "What we found", "README.md"), figures, settings)


def test_check_finds_stray_numbers() -> None:
    """The tests above would pass vacuously if a number typed by hand went unnoticed."""
    check("ResNet-14 scores 3.1 ± 0.2 in `run 7`.", ["3.1 ± 0.2"])
    with pytest.raises(AssertionError, match="numbers that no table gives"):
        check("It scores 3.1 ± 0.2 in 40 steps.", ["3.1 ± 0.2"])
    with pytest.raises(AssertionError, match="not in the text"):
        check("It scores 3.1.", ["3.2"])
    assert spread(pd.Series(np.array([0.1, 0.2, 0.3]))) == "20.0 ± 10.0"
    assert spread(pd.Series([0.1, 0.25])) == "10.0, 25.0"


def export_figures(results: pd.DataFrame, deadlines: pd.DataFrame) -> list[str]:
    """The table's rows, and the phrases, of the section on exported networks."""
    columns = ["network", "exit", "runtime", "precision"]
    one = results[results["batch"] == 1].set_index(columns)
    torch, onnx = (one.xs(name, level="runtime") for name in ("torch", "onnxruntime"))
    exact = results[(results["runtime"] == "onnxruntime") & (results["precision"] == "float32")]
    figures = []
    for (network, exit, _), row in onnx.xs("float32", level="precision", drop_level=False).iterrows():
        words = {"sliced": "sliced", "msdnet": "MSDNet"}[network]
        chain = "–" if np.isnan(row["chain_ms"]) else f"{row['chain_ms']:.2f}"
        eager = torch.loc[network, exit, "float32"]["ms"]
        figures.append(f"| {words} | {exit} | {eager:.2f} | {row['ms']:.2f} | {chain} | {row['bytes'] / 1000:.0f} |")
    last = exact[(exact["network"] == "sliced") & (exact["exit"] == 4)].set_index("batch")
    ratio = last["chain_ms"] / last["ms"]
    assert exact["largest_difference"].max() <= 1e-5
    figures.append(f"{ratio[1]:.2f} times one pass of the widest for one image, {ratio[64]:.2f} times for 64")
    faster = torch["ms"].droplevel(2) / onnx.xs("float32", level="precision")["ms"]
    figures.append(f"{faster.min():.1f} to {faster.max():.1f} times as fast as eager torch for one image")
    figures.append(f"differ from torch's by at most {1e6 * exact['largest_difference'].max():.1f} millionths")
    sizes = onnx.groupby(level="precision")["bytes"].sum()
    for precision, bits in (("float16", 16), ("int8", 8)):
        largest = onnx.xs(precision, level="precision")["largest_difference"].max()
        share = 100 * sizes[precision] / sizes["float32"]
        figures.append(f"in {bits} bits they are {share:.0f} % as large, and logits differ by at most {largest:.3f}")
    kept = kept_deadlines(deadlines)
    figures.append(f"Of {len(deadlines):,} random deadlines")
    figures.append(f"{100 * kept['answered']:.1f} % had an answer by then")
    figures.append(f"{100 * kept['returned']:.1f} % of the calls returned")
    figures.append(f"({kept['longest_ms']:.2f} ms), the latest {kept['latest_ms']:.1f} ms after its deadline")
    return figures


def test_exported_networks(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """Times, sizes and differences of exported networks, and how deadlines were kept."""
    assert provenance(root, "export") == provenance(root, "deadlines")
    figures = export_figures(tables("export"), tables("deadlines"))
    settings = ["20 % above", *provenance(root, "export")[1:]]
    check(section(root, "Exported networks"), figures, settings)


def scale_figures(steps: pd.DataFrame, files: pd.DataFrame) -> list[str]:
    """The table's rows, and the phrases, of the section on many images and several processes."""
    figures = []
    for name, rows in steps.groupby("trainer", sort=False):
        one, two = (rows[rows["processes"] == count].iloc[0] for count in (1, 2))
        words = {"Trainer": "VGG-9", "AnytimeTrainer": "sliced ResNet", "TransferTrainer": "L2T-ww"}[name]
        figures.append(f"| `{name}` | {words} | {one['seconds']:.2f} | {two['seconds']:.2f} | {two['speedup']:.2f} |")
    read = files.set_index("reader")
    ours, cached, theirs = (
        read.loc[name] for name in ("ImageFiles", "ImageFiles, cache filled", "torchvision ImageFolder")
    )
    assert ours["resident_mb"] < 2000
    assert ours["images_per_second"] > theirs["images_per_second"]
    times, cached_times = (part["images_per_second"] / theirs["images_per_second"] for part in (ours, cached))
    figures.append(
        f"{int(ours['images']):,} files take {ours['resident_mb'] / 1000:.2f} GB of memory, workers included"
    )
    figures.append(f"{times:.2f} times as many images per second as torchvision's ImageFolder")
    figures.append(f"{cached_times:.1f} times as many from the file of decoded images")
    return figures


def test_many_images_and_several_processes(root: Path, tables: Callable[[str], pd.DataFrame]) -> None:
    """Seconds per step by one process and two, and memory and images per second of sets that stay on disk."""
    figures = scale_figures(tables("processes"), tables("image_files"))
    settings = ["32×32", "64 images", "64×64", "2 workers", "one thread per process"]
    for name in ("processes", "image_files"):
        settings += provenance(root, name)
    check(section(root, "Many images, several processes"), figures, settings)


def test_runs_to_explore(root: Path) -> None:
    """What the explorers show first are whole runs of several seeds that have learned something, in small files."""
    folder = root / "data" / "results" / "transfer_runs"
    read = {path.stem: pd.read_csv(path, comment="#") for path in folder.glob("*.csv")}
    assert set(read) == {"trace", "channels", "arrived", "results"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    command = "python -m mtanytime run baselines-builtin --out FOLDER --seed 0 1 2 --set methods=l2t"
    for name in read:
        made = "; ".join(provenance(root, f"transfer_runs/{name}"))
        assert f"{command} measure_arrived=1; " in made if name == "arrived" else f"{command}; " in made
        assert set(read[name]["seed"]) == {0, 1, 2}
    trace = read["trace"]
    assert trace["step"].max() == RECIPES["baselines-builtin"].settings["steps"] >= 240
    assert (read["results"]["accuracy"] > 0.6).all()  # a guess is correct in a tenth of the cases
    last = trace[trace["step"] == trace["step"].max()].groupby("seed")["weight"]
    assert (last.max() - last.min() > 0.5).all()
    r2 = read["arrived"].groupby("step")["r2"].mean()
    assert r2.index.max() == trace["step"].max()
    assert r2.iloc[-1] > r2.iloc[0] + 0.05
