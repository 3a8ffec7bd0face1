"""CSV files as people have them: names as text, separators, decimal commas, encodings, and lines cut off."""

import gzip
import re
import warnings
from pathlib import Path

import pandas as pd
import pytest
from damage import check_message, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples

from mtanytime.explore.tables import TEXT_COLUMNS, load_table, read_channels, read_curve, read_trace
from mtanytime.measure.tables import as_booleans

HEADER = "step,source,target,weight\n"
NAMES = [
    "NA",
    "null",
    "nan",
    "None",
    "1e5",
    "007",
    "True",
    "-",
    "a,b",
    'say "x"',
    "two\nlines",
    " spaced ",
    "#1",
    "$x$",
]


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    """Return a file with this content."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_layer_called_NA(name: str, tmp_path: Path) -> None:
    """A name that looks like a missing value, a number or a boolean is the same text as in the table written."""
    table = pd.DataFrame({"step": [1], "source": [name], "target": ["f"], "slice": ["01"], "weight": [0.1]})
    table.to_csv(tmp_path / "t.csv", index=False)
    back = read_trace(tmp_path / "t.csv")
    assert back["source"].tolist() == [name]
    assert back["target"].tolist() == ["f slice 01"]
    assert back["weight"].tolist() == [0.1]


@pytest.mark.parametrize("name", NAMES)
def test_levels_and_models_are_names(name: str, tmp_path: Path) -> None:
    """A level or model called NA keeps its rows: grouping by a missing value would drop them."""
    rows = {"model": name, "exit": [1, 1], "macs": 10, "accuracy": [0.5, 0.25], "level": [name, "fine"]}
    pd.DataFrame(rows).to_csv(tmp_path / "c.csv", index=False)
    curve = read_curve(tmp_path / "c.csv")
    assert curve[["model", "level"]].to_numpy().tolist() == [[name, name], [name, "fine"]]
    assert curve["accuracy"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "text",
    [
        "step;source;target;weight\n10;layer1;f;0,5\n20;layer1;f;1\n",
        "step\tsource\ttarget\tweight\n10\tlayer1\tf\t0,5\n20\tlayer1\tf\t1\n",
        "step|source|target|weight\n10|layer1|f|.5\n20|layer1|f|1e0\n",
        "sep=;\nstep;source;target;weight\n10;layer1;f;5e-1\n20;layer1;f;1\n",
        "\ufeffstep,source,target,weight\n10,layer1,f,0.5\n20,layer1,f,1.0\n",
        "# how, it; came\n#\n\nstep,source,target,weight\r\n10,layer1,f,0.5\r\n\r\n20,layer1,f,1.0\r\n",
        "step,source,target,weight\r10,layer1,f,0.5\r20,layer1,f,1.0",
        "step, source,target ,weight,,\n10,layer1,f,0.5,,\n20,layer1,f,1,,\n,,,,,\n",
    ],
    ids=["semicolons", "tabs", "bars", "sep line", "byte-order mark", "comments, CRLF", "CR, no end", "spreadsheet"],
)
def test_semicolons_and_decimal_commas(text: str, tmp_path: Path) -> None:
    """What spreadsheets and other programs write is the same table."""
    trace = read_trace(write(tmp_path, text))
    assert trace[["step", "source", "target", "weight"]].to_numpy().tolist() == [
        [10, "layer1", "f", 0.5],
        [20, "layer1", "f", 1.0],
    ]


def test_encodings_and_compressions(tmp_path: Path) -> None:
    """UTF-16 with its mark, as spreadsheets write it, and compressed files are read; Latin-1 is named with its line."""
    text = HEADER + "1,größe,f,0.5\n"
    for data, name in ((text.encode("utf-16"), "t.csv"), (gzip.compress(text.encode()), "t.csv.gz")):
        assert read_trace(write(tmp_path, data, name))["source"].tolist() == ["größe"]
    with pytest.raises(
        ValueError, match=r"t\.csv, which cannot be read: line 2 is not text in UTF-8; save it in UTF-8"
    ):
        read_trace(write(tmp_path, text.encode("latin-1")))
    with pytest.raises(ValueError, match=r"t\.csv\.gz, which cannot be read"):
        read_trace(write(tmp_path, gzip.compress(text.encode())[:-9], "t.csv.gz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1,a,b\n2,a,b,1\n", "trace: expected 4 fields per line, as in the header, got 3 in line 2"),
        (HEADER + "1,a,b,1,\n", "got 5 in line 2"),  # pandas alone would take the steps for an index
        (HEADER + '1,"a,b,1\n2,a,b,1\n', "expected 4 fields per line, as in the header, got 2 in line 2"),
        ("step,source,target,weight,weight\n1,a,b,1,2\n", "columns of different names, got several called weight"),
        ("step;source;target;weight;weight_std\n1;a;b;0,5;0.25\n", r"expected numbers with .*, got 0,5 and 0\.25"),
        (HEADER + '1,a,b,"1,5"\n', "trace, column weight: expected numbers, got '1,5'"),
        (HEADER + "1,a,b,True\n", "trace, column weight: expected numbers, got .*True"),
        (HEADER + "1,,b,1\n", "trace, column source: expected a name in every row"),
        (HEADER + "1e300,a,b,1\n", "trace, column step: expected whole numbers"),
        (HEADER + "inf,a,b,1\n", "trace, column step: expected whole numbers"),
        ("step,source,target,channel,weight\n1,a,b,0,1\n", "got a table of channel weights; TransferExplorer"),
        (
            "step,loss\n1,2\n",
            "expected columns source, target, weight, got .*; it is a log: draw.learning_curves shows",
        ),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    """Silent repairs would draw wrong numbers: the line, column or both ways to read it are named."""
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    """A run's folder stands for its tables; a folder without the table is named, one for an unknown table refused."""
    write(tmp_path, HEADER + "1,NA,b,1\n", "trace.csv")
    assert read_trace(tmp_path)["source"].tolist() == ["NA"]
    with pytest.raises(ValueError, match=r"channels table: expected a CSV file or a run's folder with channels\.csv"):
        read_channels(tmp_path)
    with pytest.raises(ValueError, match=r"table: expected a CSV table, got .*, which is a folder"):
        load_table(tmp_path, "table")


@pytest.mark.parametrize("cut", ["2,a", '2,"a', "2,a,b"])
def test_a_last_line_cut_off(cut: str, tmp_path: Path) -> None:
    """A row that is still being written is left out, and said; a whole last line without its end counts."""
    path = write(tmp_path, HEADER + "1,a,b,0.5\n" + cut)
    with pytest.warns(UserWarning, match=r"trace: the last line of .*t\.csv is cut off and left out"):
        assert read_trace(path)["step"].tolist() == [1]
    whole = write(tmp_path, HEADER + "1,a,b,0.5\n2,a,b,0.123")
    assert read_trace(whole)["weight"].tolist() == [0.5, 0.123]
    write(tmp_path, "{}", "config.json")  # a run ends every row with a line end: this number may go on
    with pytest.warns(UserWarning, match="cut off"):
        assert read_trace(whole)["weight"].tolist() == [0.5]


def test_booleans_as_text() -> None:
    """A column of True and False is also read where it has become text; bool("False") would be True."""
    cells = ["True", "false", "1", "0", True, False, 1, 0.0, None, "", " FALSE "]
    wanted = [True, False, True, False, True, False, True, False, None, None, False]
    assert as_booleans(pd.DataFrame({"right": pd.Series(cells, dtype=object)}), "t", "right").tolist() == wanted
    with pytest.raises(ValueError, match="t, column right: expected True, False, 1 or 0, got maybe"):
        as_booleans(pd.DataFrame({"right": ["True", "maybe"]}), "t", "right")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=12)


@settings(max_examples=examples(60))
@given(names=st.lists(text, min_size=1, max_size=4), number=st.floats(width=32), separator=st.sampled_from(",;\t"))
def test_any_name_comes_back(names: list[str], number: float, separator: str, tmp_path_factory) -> None:
    """What pandas writes is read as it was: names are the same text and numbers the same numbers."""
    path = tmp_path_factory.mktemp("names") / "t.csv"
    rows = {"step": 1, "source": names, "target": "f", "weight": number}
    pd.DataFrame(rows).to_csv(path, index=False, sep=separator)
    table = load_table(path, "trace")
    assert table["source"].tolist() == names
    pd.testing.assert_series_equal(table["weight"], pd.Series([number] * len(names), name="weight"), check_dtype=False)


NUMBERS = ("step", "exit", "channel", "weight", "macs", "accuracy")
VALID = (HEADER + "".join(f"{step},layer{i},f,0.{i}5\n" for step in (1, 2) for i in range(3))).encode()


CURVE = b"model,exit,macs,accuracy\n" + b"".join(b"net %d,%d,%d00,0.%d\n" % (i // 3, i % 3, i + 1, i) for i in range(6))
CHANNELS = b"step,source,target,channel,weight\n" + b"".join(b"1,a,b,%d,0.25\n" % channel for channel in range(4))
READERS = {"trace": read_trace, "curve": read_curve, "channels table": read_channels}


@settings(max_examples=examples(60))
@given(content=damaged(VALID, CURVE, CHANNELS))
def test_damaged_files(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random bytes, and tables with bytes changed, inserted or cut, are a table or one line of error."""
    path = tmp_path_factory.mktemp("bytes") / "t.csv"
    path.write_bytes(content)
    for name, read in READERS.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*cut off", UserWarning)
                table = read(path)
        except ValueError as error:
            check_message(error, re.compile(rf"{name}(, column \w+)?: expected .*, got "))
        else:
            assert len(table) > 0
            names = table[[column for column in table if column in TEXT_COLUMNS]]
            assert all(isinstance(cell, str) for cell in names.to_numpy().ravel())
            assert all(table[column].dtype.kind in "if" for column in table if column in NUMBERS)
    assert path.read_bytes() == content
