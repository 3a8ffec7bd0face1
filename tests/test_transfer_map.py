"""A fixed map: the loss is weighted by it, it comes back from its file, and a map of something else is refused."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from damage import PLAIN, altered, checked, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from typechecker import unchecked

from mtanytime.__main__ import main
from mtanytime.backbones import resnet, vgg9
from mtanytime.explore import draw
from mtanytime.explore.places import explored
from mtanytime.explore.transfer import TransferExplorer
from mtanytime.transfer import PAPER, TransferMap, TransferTrainer

PAIRS = [("first", "first"), ("first", "second"), ("second", "first"), ("second", "second")]
CHANNELS = {"first": 5, "second": 10}
UNEVEN = TransferMap(
    dict(zip(PAIRS, (0.5, 2.0, 0.0, 1.5), strict=True)),
    {pair: [0.0, 0.5, 0.25, 0.125, 0.125] if pair[0] == "first" else [0.2, 0.0] * 5 for pair in PAIRS},
)


def transfer(**options: object) -> TransferTrainer:
    """Three epochs of two batches of six images."""
    settings = PAPER | {"epochs": 3, "batch_size": 6, "lr": 0.05, "device": "cpu", "progress": False} | options
    return TransferTrainer(tiny.made(5, seed=2).eval(), tiny.made(4, seed=1), tiny.images(12), **settings)


def test_the_loss_is_weighted_by_the_map() -> None:
    """The first step's matching loss is β Σ λ · Σ_c w_c · error_c, summed by hand; a pair with λ = 0 costs nothing."""
    trainer = transfer(map=UNEVEN, beta=0.3)
    assert trainer.pairs == [PAIRS[0], PAIRS[1], PAIRS[3]]
    images, _ = next(trainer.batches.epoch(0))
    source = trainer.source_features(images)
    _, target = trainer.student.target.train()(images)
    expected = 0.0
    for pair in trainer.pairs:
        weight, bias = trainer.student.matching.regressor(pair)
        size = tuple(target[pair[1]].shape[2:])
        wanted = torch.nn.functional.interpolate(source[pair[0]], size, mode="bilinear", align_corners=False)
        error = (torch.nn.functional.conv2d(target[pair[1]], weight, bias) - wanted).square().mean(dim=(0, 2, 3))
        expected += UNEVEN.pairs[pair] * (error * torch.tensor(UNEVEN.channels[pair])).sum().item()
    metrics = next(iter(transfer(map=UNEVEN, beta=0.3))).metrics
    assert metrics["matching_loss"] == pytest.approx(0.3 * expected, rel=1e-5)


def test_the_uniform_map_is_all_to_all_matching() -> None:
    """The same losses and weights as without a map, and nothing is learned."""
    plain, mapped = transfer(what=False, where="off"), transfer(map=TransferMap.uniform(PAIRS, CHANNELS))
    expected, result = plain.train(), mapped.train()
    assert mapped.meta_optimizer is None
    pd.testing.assert_frame_equal(result.log.drop(columns="seconds"), expected.log.drop(columns="seconds"), rtol=1e-6)


def test_whole_numbers() -> None:
    """A map written by hand may say 1 where it means 1.0, for λ and for channels."""
    whole = TransferMap(dict.fromkeys(PAIRS, 1), {pair: [1] + [0] * (CHANNELS[pair[0]] - 1) for pair in PAIRS})
    weights = {pair: [1.0] + [0.0] * (CHANNELS[pair[0]] - 1) for pair in PAIRS}
    same = TransferMap(dict.fromkeys(PAIRS, 1.0), weights)
    expected, result = (transfer(map=one).train() for one in (same, whole))
    pd.testing.assert_frame_equal(result.log.drop(columns="seconds"), expected.log.drop(columns="seconds"))


def test_file(tmp_path: Path) -> None:
    """A map comes back from its file, and a trainer takes the file; its pairs are matched without being named."""
    UNEVEN.save(tmp_path / "map.json")
    assert TransferMap.load(tmp_path / "map.json") == UNEVEN
    some = TransferMap({PAIRS[1]: 1.0, PAIRS[2]: 3.0}, {PAIRS[1]: [0.2] * 5, PAIRS[2]: [0.1] * 10})
    some.save(tmp_path / "some.json")
    trainer = transfer(map=tmp_path / "some.json")
    assert trainer.pairs == [PAIRS[1], PAIRS[2]]
    result = trainer.train()
    assert result.map.pairs == pytest.approx(some.pairs)
    assert result.map.channels[PAIRS[2]] == pytest.approx(some.channels[PAIRS[2]])


def test_a_map_from_the_tables_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a Sequential are called "0", "1", …, which a table read from a file holds as numbers."""
    pair = ("0", "3")
    trace = pd.DataFrame([{"step": 1, "source": 0, "target": 3, "weight": 2.0}])
    channels = pd.DataFrame(
        [{"step": 1, "source": 0, "target": 3, "channel": c, "weight": w} for c, w in enumerate([0.25, 0.75])]
    )
    found = TransferMap.from_tables(trace, channels)
    assert found == TransferMap({pair: 2.0}, {pair: [0.25, 0.75]})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    found.save("~/map.json")
    assert TransferMap.load(tmp_path / "map.json") == TransferMap.load("~/map.json") == found


@pytest.mark.parametrize(
    ("trace", "channels", "message"),
    [
        ({"source": ["a"]}, {}, "trace: expected columns target, weight"),
        ({}, {"source": ["a"], "target": ["b"]}, "channels: expected columns channel, weight"),
        ({"weight": [1.0, np.nan]}, {}, r"pairs\[a → b\]|pairs.*nan"),
        ({}, {"target": ["b", "c"]}, "channels: expected the pairs of the trace, "),
    ],
)
def test_tables_that_give_no_map(trace: dict, channels: dict, message: str) -> None:
    """A missing column, λ that is no number, or channels of another pair: one line that says which."""
    whole = {"source": ["a", "a"], "target": ["b", "b"]}
    tables = [
        pd.DataFrame(given if "source" in given else whole | own | given)
        for own, given in (({"weight": [1.0, 2.0]}, trace), ({"channel": [0, 1], "weight": [0.5, 0.5]}, channels))
    ]
    with pytest.raises(ValueError, match=message):
        TransferMap.from_tables(*tables)


def test_mean_of_maps_of_other_channels() -> None:
    """Their weights have no mean."""
    maps = [TransferMap({("a", "b"): 1.0}, {("a", "b"): [1 / count] * count}) for count in (1, 2)]
    with pytest.raises(ValueError, match="maps: expected maps with as many channels"):
        TransferMap.mean(maps)


def test_another_map_is_another_run(tmp_path: Path) -> None:
    """The map identifies the run: resumed with the same numbers, refused with others."""
    whole = transfer(map=UNEVEN).train().log
    for report in transfer(map=UNEVEN, folder=tmp_path / "run"):
        if report.step == 3:
            break
    resumed = transfer(map=UNEVEN, folder=tmp_path / "run").train().log
    assert resumed.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    for other in ({"map": UNEVEN.scaled(2.0)}, {"what": False, "where": "off"}):
        with pytest.raises(ValueError, match="another run"):
            transfer(folder=tmp_path / "run", **other)


def test_a_strong_map_diverges_unless_it_is_normalized() -> None:
    """λ = 6 for all pairs from the first step is too much where λ = 1 is not; the error names the remedy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = resnet(8, 37, width=8).eval()
    options = {"steps": 20, "batch_size": 20, "beta": 16.0, "teacher": None, "standardize": False}
    options |= {"device": "cpu", "progress": False}
    data = tiny.images(40, classes=10, size=32)

    def trainer(**more: object) -> TransferTrainer:
        return TransferTrainer(source, lambda: vgg9(10, width=4), data, **options, **more)

    plain = trainer()
    strong = TransferMap.uniform(plain.pairs, plain.student.matching.source_channels).scaled(6)
    with pytest.raises(
        FloatingPointError, match=r"loss is .*6\.0.*; with normalize_weights=True, the map's λ have the"
    ):
        trainer(map=strong).train()
    log = trainer(map=strong, normalize_weights=True).train().log
    assert log["loss"].equals(plain.train().log["loss"])
    assert log["loss"].iloc[-1] < log["loss"].iloc[0] / 2


def test_scaled_and_mean() -> None:
    """Each map counts alike in a mean, however strong its λ; channel weights still sum to 1."""
    weak = TransferMap(dict.fromkeys(PAIRS, 0.01), TransferMap.uniform(PAIRS, CHANNELS).channels)
    mean = TransferMap.mean([weak, UNEVEN])
    assert sum(mean.pairs.values()) == pytest.approx(4)
    assert mean.pairs[PAIRS[1]] == pytest.approx((1 + 2.0) / 2)
    assert all(sum(weights) == pytest.approx(1) for weights in mean.channels.values())
    assert UNEVEN.with_uniform_channels().channels[PAIRS[0]] == [0.2] * 5


def test_some_pairs_of_a_map() -> None:
    """They alone are matched, with equal λ and the map's channels; unknown pairs are refused."""
    one = UNEVEN.only([list(PAIRS[1])])  # JSON gives lists
    assert one.pairs == dict.fromkeys(PAIRS, 0.0) | {PAIRS[1]: len(PAIRS)}
    assert one.channels == UNEVEN.channels
    assert set(UNEVEN.only(PAIRS).pairs.values()) == {1}
    for pairs in ([], [("second", "nowhere")]):
        with pytest.raises(ValueError, match="pairs: expected some of the map's pairs, got "):
            UNEVEN.only(pairs)


def test_the_pictures_take_a_map() -> None:
    """A map is drawn as a trace and as channel weights."""
    draw.heatmap(UNEVEN.trace)
    draw.channel_weights(UNEVEN.channel_table, "second", "first")


def test_explorers_take_the_file_of_a_map(tmp_path: Path) -> None:
    """A searched map is a JSON file beside its run: shown with its channels, by the widget and by the command."""
    file, page = tmp_path / "map.json", tmp_path / "map.html"
    UNEVEN.save(file)
    from_tables = TransferExplorer(UNEVEN.trace, UNEVEN.channel_table).content
    assert TransferExplorer(file).content == explored(file)[0] == from_tables
    assert draw.heatmap(file).alt == draw.heatmap(UNEVEN.trace).alt
    assert main(["explore", str(file), "--output", str(page)]) == 0
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"map": TransferMap.uniform(PAIRS[:2], CHANNELS), "pairs": PAIRS[:3] + PAIRS[3:]},
            "map: expected the pairs that",
        ),
        (
            {"map": TransferMap.uniform(PAIRS, {"first": 5, "second": 9})},
            "map: expected 10 channel weights .*got 9",
        ),
        ({"map": TransferMap.uniform([("first", "third")], CHANNELS)}, "target: .*third"),
    ],
)
def test_a_map_of_something_else(options: dict, message: str) -> None:
    """Other pairs, another network: refused before training."""
    with pytest.raises(ValueError, match=message):
        transfer(**options)


@pytest.mark.parametrize(
    ("pairs", "channels", "message"),
    [
        ({}, {}, "pairs: expected at least one"),
        ({PAIRS[0]: -1.0}, {PAIRS[0]: [1.0]}, "expected a weight >= 0, got -1.0"),
        ({PAIRS[0]: 0.0}, {PAIRS[0]: [1.0]}, "pairs: expected a weight above 0"),
        ({PAIRS[0]: 1.0}, {PAIRS[1]: [1.0]}, "channels: expected weights of the map's pairs"),
        ({PAIRS[0]: 1.0}, {PAIRS[0]: [0.5, 0.6]}, "weights >= 0 with the sum 1, got 2 with the sum 1.1"),
        ({PAIRS[0]: 1.0}, {PAIRS[0]: [1.5, -0.5]}, "weights >= 0 with the sum 1"),
        ({PAIRS[0]: 1.0}, {PAIRS[0]: [float("nan")]}, "weights >= 0 with the sum 1"),
    ],
)
def test_bad_weights(pairs: dict, channels: dict, message: str) -> None:
    """Named by pair."""
    with pytest.raises(ValueError, match=message):
        TransferMap(pairs, channels)


def test_foreign_files(tmp_path: Path) -> None:
    """Whatever is in the file, the error names it; nothing in it is run."""
    UNEVEN.save(tmp_path / "map.json")
    text = (tmp_path / "map.json").read_text(encoding="utf-8")
    twice = json.loads(text)
    twice["pairs"].append(twice["pairs"][0])
    others = [text[:-20], "", "[]", "{}", '{"format": "other"}', json.dumps(twice), text.replace("0.5", '"a lot"', 1)]
    others += [text.replace("0.5", "NaN", 1), text.replace('"channels"', '"colours"')]
    for i, other in enumerate(others):
        file = tmp_path / f"{i}.json"
        file.write_text(other, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{i}.json: expected a transfer map, got a foreign or damaged file \("):
            TransferMap.load(file)
    (tmp_path / "bytes.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match=r"bytes.json: expected a transfer map"):
        TransferMap.load(tmp_path / "bytes.json")
    with pytest.raises(FileNotFoundError):
        TransferMap.load(tmp_path / "none.json")


@settings(max_examples=examples(20))
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    """Random bytes, damaged maps, and maps with parts of other types: a whole map, or one line that names the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "map.json"
        UNEVEN.save(path)
        valid = path.read_bytes()
        other = altered(json.loads(valid), PLAIN).map(lambda content: json.dumps(content, default=str).encode())
        path.write_bytes(data.draw(st.one_of(damaged(valid), other)))
        found = checked(TransferMap.load, path)
        checked(explored, path)
    if found is not None:
        assert all(type(name) is str for pair in found.pairs for name in pair)
        assert all(type(weight) is float and weight >= 0 for weight in found.pairs.values())
        assert all(sum(weights) == pytest.approx(1, abs=1e-3) for weights in found.channels.values())


def test_numbers_of_any_type_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's and torch's numbers become floats, whose file reads back as the same run."""
    monkeypatch.setattr(TransferMap, "__init__", unchecked(TransferMap.__init__))
    channels = {pair: torch.full((CHANNELS[pair[0]],), 1 / CHANNELS[pair[0]]) for pair in PAIRS}
    made = TransferMap({pair: np.float32(i) for i, pair in enumerate(PAIRS)}, channels)
    made.save(tmp_path / "map.json")
    assert TransferMap.load(tmp_path / "map.json") == made


def test_listed_layers_that_a_map_leaves_out() -> None:
    """The call that searched for the map, with its layers, trains with it; a layer that it needs must be there."""
    pairs = {PAIRS[0]: 1.0, PAIRS[3]: 0.0}
    one = TransferMap(pairs, {pair: TransferMap.uniform(PAIRS, CHANNELS).channels[pair] for pair in pairs})
    layers = ["first", "second"]
    assert transfer(map=one, source_layers=layers, target_layers=layers).pairs == [PAIRS[0]]
    with pytest.raises(ValueError, match="expected a layer of the source"):
        transfer(map=one, source_layers=["second"], target_layers=layers)
    by_name = {"map": TransferMap({("a/first", "first"): 1.0}, {("a/first", "first"): [0.2] * 5})}
    sources = {"a": tiny.made(5, seed=2).eval(), "b": tiny.made(5, seed=3).eval()}
    settings = {"steps": 1, "batch_size": 6, "device": "cpu", "progress": False, "teacher": None}
    named = {"source_layers": {"a": layers, "b": layers}, "target_layers": layers}
    assert TransferTrainer(sources, tiny.made(), tiny.images(), **by_name, **named, **settings).pairs
    alone = {"a": sources["a"]}
    named["source_layers"] = {"a": layers}
    assert TransferTrainer(alone, tiny.made(), tiny.images(), **by_name, **named, **settings).pairs


def test_sources_that_a_map_leaves_out() -> None:
    """Their layers may be named all the same."""
    sources = {"a": tiny.made(5, seed=2).eval(), "b": tiny.made(5, seed=3).eval()}
    pairs = {("a/first", "first"): 1.0, ("b/first", "first"): 0.0}
    one = TransferMap(pairs, {pair: [0.2] * 5 for pair in pairs})
    settings = {"steps": 1, "batch_size": 6, "device": "cpu", "progress": False, "teacher": None}
    trainer = TransferTrainer(
        sources, tiny.made(), tiny.images(), map=one, source_layers={"a": ["first"], "b": ["first"]}, **settings
    )
    assert list(trainer.networks) == ["a"]
    with pytest.raises(ValueError, match="source_layers: expected"):
        TransferTrainer(sources, tiny.made(), tiny.images(), map=one, source_layers={"c": ["first"]}, **settings)


def test_no_map_where_all_pairs_were_switched_off() -> None:
    """The error says what happened."""
    trainer = transfer()
    with torch.no_grad():
        for name, parameter in trainer.meta.where.named_parameters():
            parameter.fill_(-5.0 if name.endswith("bias") else 0.0)
    result = trainer.train()
    with pytest.raises(ValueError, match=r"map: expected a run with a pair weight above 0, got λ = 0 for every pair"):
        _ = result.map
