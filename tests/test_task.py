"""Task: rows from every source and in every bad shape, labels to ids, tokens to batches, metrics."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niwaki.errors import NiwakiError
from niwaki.task import KINDS, Dataset, Encoded, Rows, Task, score
from niwaki.task.encoded import stratified_rows
from niwaki.task.tokens import CHUNK_ROWS
from niwaki.task.windows import Windows

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Row = dict[str, Any]
REVIEWS: list[Row] = [{"text": f"a film, number {n}", "label": ("good", "bad")[n % 2]} for n in range(40)]


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def classify(data: Path | str, **parameters: Any) -> Task:
    return Task("text-classification", data=str(data), **parameters)


def read(data: Path | str, labels: list[str] | None = None, **parameters: Any) -> Rows:
    return classify(data, **parameters).read(labels)


def refused(data: Path | str, labels: list[str] | None = None, **parameters: Any) -> str:
    """Return the message of the error that reading ends in."""
    with pytest.raises(NiwakiError) as error:
        read(data, labels, **parameters)
    return str(error.value)


def encoded(rows: list[list[int]], pad: int = 0, types: bool = False) -> Encoded:
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    kinds = (tokens % 2).astype(np.int8) if types else None
    return Encoded("train", tokens, kinds, offsets, np.arange(len(rows), dtype=np.int64) % 2, 0, pad)


# ---- the same rows from every format

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
names = st.sampled_from([[0, 1], [1, 2, 10], ["no", "yes"], ["b", "a", "ü"]])


@QUICK
@given(data=st.data(), kinds=names, pairs=st.booleans())
def test_csv_jsonl_and_parquet_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kinds: list[Any], pairs: bool
) -> None:
    columns = ["premise", "hypothesis"] if pairs else ["sentence"]
    more = data.draw(st.lists(st.sampled_from(kinds), max_size=6))
    rows = [{**{c: data.draw(texts) for c in columns}, "label": label} for label in [*kinds, *more]]
    folder = tmp_path_factory.mktemp("rows")
    found = []
    # Of tab-separated values with tabs and line breaks inside the texts nobody can say how they are quoted.
    written = "".join(row[column] for row in rows for column in columns)
    plain = "\t" not in written or not {"\n", "\r"} & set(written)
    for suffix in ("csv", "jsonl", "parquet", *(["tsv"] if plain else [])):
        write(folder / suffix / f"train.{suffix}", rows)
        write(folder / suffix / f"dev.{suffix}", rows)
        found.append(read(folder / suffix))
    for other in found:
        assert other.train and other.train.texts == [row[columns[0]] for row in rows]
        assert other.train.pairs == ([row["hypothesis"] for row in rows] if pairs else None)
        assert [other.labels[i] for i in other.validation.labels] == [str(row["label"]) for row in rows]
        assert other.labels == tuple(map(str, sorted(kinds)))
        assert other.notes == found[0].notes


def test_a_csv_may_have_a_byte_order_mark_semicolons_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "validation.csv"
    file.write_bytes('\ufefftext;label\r\n"two\r\nlines; ""quoted""";1\r\nplain;0\r\n'.encode())
    rows = read(file)
    assert rows.validation.texts == ['two\r\nlines; "quoted"', "plain"]


def test_a_tsv_may_have_bare_quotes(tmp_path: Path) -> None:
    bare = 'sentence\tlabel\n"never closed\t1\nand here it ends"\t0\na 5" disk\t1\n'
    file = tmp_path / "dev.tsv"
    file.write_text(bare)
    assert read(file).validation.texts == ['"never closed', 'and here it ends"', 'a 5" disk']
    file.write_text('sentence\tlabel\n"a\nline break"\t1\nplain\t0\n')
    assert read(file).validation.texts == ["a\nline break", "plain"]


def test_json_lines_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text('{"text": "a\u2028b", "label": 1}\n\n{"text": "c", "label": 0}\r\n', encoding="utf-8", newline="")
    assert read(file).validation.texts == ["a\u2028b", "c"]
    file = tmp_path / "valid.json"
    file.write_text('[{"text": "a", "label": 1},\n {"text": "c", "label": 0}]')
    assert read(file).validation.texts == ["a", "c"]


# ---- which rows are which split


def test_a_lone_file_gives_a_tenth_to_validation(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "reviews.csv", REVIEWS))
    assert rows.train is not None and rows.test is None
    assert (len(rows.train), len(rows.validation)) == (36, 4)
    assert sorted(rows.train.texts + rows.validation.texts) == sorted(row["text"] for row in REVIEWS)
    assert np.bincount(rows.validation.labels).tolist() == [2, 2]
    assert "4 of 40 rows were held out" in rows.notes[0]
    again = read(write(tmp_path / "folder" / "train.jsonl", REVIEWS).parent)
    assert again.validation.texts == rows.validation.texts


def test_a_lone_file_too_small_to_hold_a_row_out_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "reviews.csv", REVIEWS[:2])
    with pytest.raises(NiwakiError, match=r"no row of train \(2\) can be held out"):
        read(file)


@pytest.mark.parametrize("name", ["dev.csv", "valid.csv", "val.csv", "Validation.csv", "validation_matched.csv"])
def test_validation_has_many_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", REVIEWS)
    write(tmp_path / name, REVIEWS[:10])
    write(tmp_path / "test.csv", REVIEWS[:6])
    (tmp_path / "notes.txt").write_text("not rows")
    rows = read(tmp_path)
    assert [(split.name, len(split)) for split in rows.splits] == [
        ("train", 40),
        ("validation", 10),
        ("test", 6),
    ]


def test_a_validation_file_alone_is_for_measuring(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "dev.csv", REVIEWS))
    assert rows.train is None and len(rows.validation) == 40
    rows = read(write(tmp_path / "test" / "test.csv", REVIEWS).parent)
    assert rows.train is None and rows.test is None and "test split alone" in rows.notes[0]


def test_shards_are_one_split_and_know_their_file(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / "data" / f"train-0000{shard}-of-00003.parquet", REVIEWS[shard * 10 : shard * 10 + 10])
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", REVIEWS[:4])
    rows = read(tmp_path)
    assert rows.train and rows.train.texts == [row["text"] for row in REVIEWS[:30]]
    write(tmp_path / "data" / "train-00002-of-00003.parquet", [{"text": None, "label": "good"}])
    assert "train-00002-of-00003.parquet, row 1" in refused(tmp_path)


@pytest.mark.parametrize("rows", [[{"text": "a"}], [{"text": "a", "label": -1}], [{"text": "a", "label": None}]])
def test_a_test_split_without_labels_is_left_out(tmp_path: Path, rows: list[Row]) -> None:
    numbered = [{"text": row["text"], "label": n % 2} for n, row in enumerate(REVIEWS)]
    write(tmp_path / "train.jsonl", numbered)
    write(tmp_path / "validation.jsonl", numbered)
    write(tmp_path / "test.jsonl", rows)
    found = read(tmp_path)
    assert found.test is None and "no labels" in found.notes[0]


def test_minus_one_may_be_a_class(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": n % 2 * 2 - 1} for n, row in enumerate(REVIEWS)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "dev.csv", rows)
    write(tmp_path / "test.csv", [rows[0]])
    found = read(tmp_path)
    assert found.labels == ("-1", "1") and found.test is not None and found.test.labels.tolist() == [0]


def test_rows_known_from_train_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", REVIEWS)
    write(tmp_path / "dev.csv", [*REVIEWS[:3], {"text": "new", "label": "good"}])
    assert "3 of 4 validation texts (75.0%) are in train too" in read(tmp_path).notes


# ---- which column is which


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("text,label", "text - label"),
        ("Review,Sentiment", "Review - Sentiment"),
        ("idx,sentence1,sentence2,label", "sentence1 sentence2 label"),
        ("premise,hypothesis,label", "premise hypothesis label"),
        ("question,sentence,label", "question sentence label"),
        ("phrase,stars", "phrase - stars"),
        ("id,content,verdict", "content - verdict"),
    ],
)
def test_columns_are_found(tmp_path: Path, columns: str, found: str) -> None:
    header = columns.split(",")
    text, pair, label = found.split()
    rows = [dict.fromkeys(header, f"filler {n}") for n in range(4)]
    for n, row in enumerate(rows):
        row |= {text: f"first {n}", label: "ab"[n % 2]} | ({} if pair == "-" else {pair: f"second {n}"})
    split = read(write(tmp_path / "dev.csv", rows)).validation
    assert split.texts == [f"first {n}" for n in range(4)] and split.labels.tolist() == [0, 1, 0, 1]
    assert split.pairs == (None if pair == "-" else [f"second {n}" for n in range(4)])


def test_columns_are_named(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": "y", "t": f"t{n}", "p": f"p{n}", "l": n % 2} for n in range(4)]
    file = write(tmp_path / "dev.csv", rows)
    split = read(file, text="t", text_pair="p", label="l").validation
    assert split.texts[1] == "t1" and split.pairs is not None and split.pairs[1] == "p1"
    assert read(file, text="t", label="l").validation.pairs is None
    message = refused(file, text="txt", label="l")
    assert 'no column "txt"' in message and "text, label, t, p, l" in message and 'write: text="text"' in message
    assert "name one column twice" in refused(file, text="t", label="t")


def test_a_choice_between_columns_is_noted(tmp_path: Path) -> None:
    rows = [{"title": "t", "content": f"c{n}", "label": n % 2} for n in range(4)]
    found = read(write(tmp_path / "dev.csv", rows))
    assert found.validation.texts[0] == "c0" and 'column "content" was taken as the text, not title' in found.notes[0]


# ---- which number a label gets


def labelled(tmp_path: Path, values: list[Any], suffix: str = "jsonl") -> Path:
    return write(tmp_path / f"dev.{suffix}", [{"text": f"text {n}", "label": v} for n, v in enumerate(values)])


@pytest.mark.parametrize(
    ("values", "labels", "ids"),
    [
        ([10, 9, 1], ("1", "9", "10"), [2, 1, 0]),
        (["10", "9", 1], ("1", "9", "10"), [2, 1, 0]),
        (["yes", "no", "maybe"], ("maybe", "no", "yes"), [2, 1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
        (["007", "01"], ("007", "01"), [0, 1]),
        (["eng", "nan"], ("eng", "nan"), [0, 1]),
        ([" a", "a ", "b"], ("a", "b"), [0, 0, 1]),
    ],
)
def test_labels_get_stable_ids(tmp_path: Path, values: list[Any], labels: tuple[str, ...], ids: list[int]) -> None:
    rows = read(labelled(tmp_path, values))
    assert rows.labels == labels and rows.validation.labels.tolist() == ids
    # A model that was saved with these names finds the same ids in part of the rows.
    again = read(labelled(tmp_path, values[:1]), list(labels))
    assert again.labels == labels and again.validation.labels.tolist() == ids[:1]


@pytest.mark.parametrize(
    ("names", "values", "ids"),
    [
        (["NEGATIVE", "POSITIVE"], ["positive", "Negative"], [1, 0]),
        (["POSITIVE", "NEGATIVE"], ["positive", "Negative"], [0, 1]),
        (["NEGATIVE", "POSITIVE"], [1, 0, 1], [1, 0, 1]),
        (["LABEL_0", "LABEL_1"], ["1", "0"], [1, 0]),
        (["1", "2", "3"], [1, 3, 2], [0, 2, 1]),
        (["US", "us", "uk"], ["us", "US", "UK"], [1, 0, 2]),
    ],
)
def test_labels_are_matched_with_those_of_a_model(
    tmp_path: Path, names: list[str], values: list[Any], ids: list[int]
) -> None:
    rows = read(labelled(tmp_path, values), names)
    assert rows.labels == tuple(names) and rows.validation.labels.tolist() == ids


def test_reading_numbers_as_ids_is_noted(tmp_path: Path) -> None:
    note = "labels were read as the ids of the model: 0 is NEGATIVE, 1 is POSITIVE"
    assert note in read(labelled(tmp_path, [1, 0]), ["NEGATIVE", "POSITIVE"]).notes


@pytest.mark.parametrize(
    ("names", "values", "value"),
    [
        (["negative", "positive"], ["positive", "neutral"], "neutral"),
        (["negative", "positive"], [0, 1, 2], "0"),
        (["1", "2", "3"], [1, 2, 0], "0"),  # not ids: that would shift each label by one
        (["LABEL_0", "LABEL_1"], ["bad", "good"], "bad"),
    ],
)
def test_labels_that_a_model_does_not_know(tmp_path: Path, names: list[str], values: list[Any], value: str) -> None:
    message = refused(labelled(tmp_path, values), names)
    assert f'the label "{value}" is none that the model knows' in message
    assert f"row {[str(v) for v in values].index(value) + 1} (line" in message and names[0] in message


def named_parquet(path: Path, values: list[int], classes: list[str]) -> Path:
    """Write a file as the `datasets` library does, with the names of the classes in its metadata."""
    table = pyarrow.table({"text": [f"text {n}" for n in range(len(values))], "label": values})
    features = {"features": {"text": {"_type": "Value"}, "label": {"names": classes, "_type": "ClassLabel"}}}
    metadata = {"huggingface": json.dumps({"info": features})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_parquet_knows_the_names_of_classes(tmp_path: Path) -> None:
    file = named_parquet(tmp_path / "dev.parquet", [1, 0], ["neutral", "contradiction"])
    assert read(file).labels == ("neutral", "contradiction")
    assert read(file, ["CONTRADICTION", "NEUTRAL"]).validation.labels.tolist() == [0, 1]
    assert read(file, ["LABEL_0", "LABEL_1"]).validation.labels.tolist() == [1, 0]
    assert 'the label "contradiction"' in refused(file, ["entailment", "other"])


# ---- rows that cannot be

BAD: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("dev.csv", b"", ("dev.csv: the file is empty",)),
    "blank": ("dev.csv", b"\n\n", ("blank lines only",)),
    "no rows": ("dev.csv", b"text,label\n", ("no rows", "text, label")),
    "no label": (
        "dev.csv",
        b"text,x,z\na,1,2\n",
        ("looks like the label", "text, x, z", "label, labels, class"),
    ),
    "no text": ("dev.jsonl", b'{"a": 1, "b": 2, "label": 1}\n', ("looks like the text", "a, b, label")),
    "one class": ("dev.csv", b"text,label\na,1\nb,1\n", ('all 2 labels are "1"', "two classes or more")),
    "many": (
        "dev.csv",
        b"text,label\n" + b"".join(b"a,%d\n" % n for n in range(120)),
        ("120 different labels",),
    ),
    "latin": ("dev.csv", b"text,label\na,1\ncaf\xe9,0\n", ("0xe9 at offset 18 (line 3)", "WINDOWS-1252")),
    "utf-16": ("dev.csv", "text,label\na,1\n".encode("utf-16"), ("0xff at offset 0", "iconv -f UTF-16")),
    "no text here": (
        "dev.csv",
        b"text,label\na,1\n  ,0\n,1\n",
        ("row 2 (line 3)", "empty here, and 1 more of 3"),
    ),
    "null": (
        "dev.jsonl",
        b'{"text": "a", "label": 1}\n{"label": 0}\n',
        ("row 2 (line 2)", '"text" is missing'),
    ),
    "number": ("dev.jsonl", b'{"text": 5, "label": 1}\n{"text": "b", "label": 0}\n', ("row 1", "'5', a int")),
    "half": (
        "dev.jsonl",
        rb'[{"text": "\ud83d", "label": 1}, {"text": "b", "label": 0}]',
        ("half a character", "'\\ud83d'", "row 1"),
    ),
    "uneven": (
        "dev.csv",
        b"text,label\na,1\n\nb,so what,0\n",
        ("row 2 (line 4): 3 fields", "2 as in the header"),
    ),
    "uneven tsv": ("dev.tsv", b"text\tlabel\na\t1\nb\n", ("row 2 (line 3): 1 fields",)),
    "open": ("dev.csv", b'text,label\na,1\n"b,0\nc,1\n', ("row 2 (line 3)", "not well quoted")),
    "doubled": ("dev.csv", b"text,label,text\na,1,b\n", ('"text" more than once', "line 1")),
    "missing": ("dev.csv", b"text,label\na,1\nb,\nc,nan\nd,0\n", ("row 2", "2 of 4 labels are missing")),
    "decimal": ("dev.csv", b"text,label\na,1\nb,0.5\n", ("row 2", "the label is 0.5, a decimal number")),
    "list": (
        "dev.jsonl",
        b'{"text": "a", "labels": [1, 2]}',
        ("row 1", "'[1, 2]', a list", "one label a row"),
    ),
    "json": ("dev.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', ("line 2, column", "not JSON")),
    "not object": (
        "dev.jsonl",
        b'{"text": "a", "label": 1}\n["a", 1]\n',
        ("row 2 (line 2)", "not an object"),
    ),
    "parquet": ("dev.parquet", b"text,label\n", ("not a Parquet file",)),
    "type": ("dev.xlsx", b"PK", ('".xlsx" is not a file type', ".csv .tsv .jsonl", "dev.csv")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_say_what_and_where(tmp_path: Path, case: str) -> None:
    name, content, fragments = BAD[case]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert str(tmp_path / name) in message
    for fragment in fragments:
        assert fragment in message


def test_missing_labels_of_parquet_come_before_decimals(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1.0, math.nan, 0.0]})
    pyarrow.parquet.write_table(table, tmp_path / "dev.parquet")
    assert "row 2: the label is missing" in refused(tmp_path / "dev.parquet")
    pyarrow.parquet.write_table(table.take([0, 2]), tmp_path / "dev.parquet")
    assert "row 1: the label is 1.0, a decimal number" in refused(tmp_path / "dev.parquet")


def test_validation_may_not_bring_labels_that_train_has_not(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", REVIEWS)
    write(tmp_path / "dev.csv", [*REVIEWS[:3], {"text": "so", "label": "so-so"}])
    message = refused(tmp_path)
    assert "dev.csv, row 4 (line 5)" in message and 'the label "so-so" is none that train knows' in message


def test_train_needs_two_classes_whatever_the_model_knows(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", REVIEWS[::2])
    write(tmp_path / "dev.csv", REVIEWS)
    assert 'all 20 labels are "good"' in refused(tmp_path, ["bad", "good"])


def test_columns_of_other_splits_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", REVIEWS)
    write(tmp_path / "dev.csv", [{"texts": "a", "label": "good"}])
    message = refused(tmp_path)
    assert "dev.csv" in message and 'no column "text"' in message and "texts, label" in message


def test_folders_and_paths_that_cannot_be(tmp_path: Path) -> None:
    assert "it holds nothing" in refused(tmp_path)
    (tmp_path / "readme.md").write_text("hello")
    assert "it holds readme.md" in refused(tmp_path)
    write(tmp_path / "one.csv", REVIEWS)
    assert len(read(tmp_path).splits) == 2  # a lone file in a folder is a lone file
    write(tmp_path / "two.csv", REVIEWS)
    assert "no file is named after a split: one.csv, two.csv" in refused(tmp_path)
    write(tmp_path / "train.csv", REVIEWS)
    assert "one.csv was left out: its name is not that of a split" in read(tmp_path).notes
    write(tmp_path / "train.jsonl", REVIEWS)
    assert "more than one file is the train split: train.csv, train.jsonl" in refused(tmp_path)
    assert f'write: data="{tmp_path / "two.csv"}"' in refused(tmp_path / "tow.csv")
    assert "no file or folder" in refused("./nothing/here/")


# ---- the hub


class HubSplit:
    """Stand in for one split of the `datasets` library."""

    def __init__(self, rows: list[Row], classes: list[str]) -> None:
        self.rows, self.column_names = rows, list(rows[0])
        self.features = {"sentence": object(), "label": types.SimpleNamespace(names=classes)}

    def __len__(self) -> int:
        return len(self.rows)

    def select_columns(self, names: list[str]) -> HubSplit:
        return self

    def __getitem__(self, rows: slice) -> dict[str, list[Any]]:
        return {name: [row[name] for row in self.rows[rows]] for name in self.column_names}


def test_a_hub_id_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"sentence": f"s{n}", "label": n % 2} for n in range(10)]
    unlabelled = [{"sentence": "s", "label": -1}]
    asked = []

    def load_dataset(name: str, configuration: str | None) -> dict[str, HubSplit]:
        asked.append((name, configuration))
        if configuration is None:
            raise ValueError("Config name is missing.\nPlease pick one among cola, sst2")
        parts = {"train": rows, "validation": rows, "test": unlabelled, "extra": rows}
        return {name: HubSplit(part, ["negative", "positive"]) for name, part in parts.items()}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = read("nyu-mll/glue:sst2")
    assert asked == [("nyu-mll/glue", "sst2")] and found.labels == ("negative", "positive")
    assert found.train and found.train.texts == [f"s{n}" for n in range(10)] and found.test is None
    assert "the split extra of nyu-mll/glue:sst2 was left out" in found.notes
    message = refused("nyu-mll/glue")
    assert "hub did not give it: Config name is missing." in message and "nyu-mll/glue:CONFIGURATION" in message


def test_a_folder_saved_by_the_datasets_library(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    features = library.Features({"sentence": library.Value("string"), "label": library.ClassLabel(names=["no", "ay"])})
    parts = {"train": [0, 1, 1], "validation": [1, 0], "test": [-1]}
    columns = {
        name: {"sentence": [f"{name} {n}" for n in range(len(ids))], "label": ids} for name, ids in parts.items()
    }
    splits = {name: library.Dataset.from_dict(column, features=features) for name, column in columns.items()}
    library.DatasetDict(splits).save_to_disk(str(tmp_path))
    rows = read(tmp_path)
    assert rows.labels == ("no", "ay") and rows.validation.labels.tolist() == [1, 0] and rows.test is None
    assert rows.train is not None and rows.train.texts == ["train 0", "train 1", "train 2"]


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "niwaki[data]"' in refused("stanfordnlp/sst2")


# ---- tokens

WORDS = "a film of great charm and dull plot w x y z ! ?".split()
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


@QUICK
@given(data=st.data(), family=st.sampled_from(["bert", "roberta", "distilbert"]), pairs=st.booleans())
def test_cutting_gives_what_the_tokenizer_gives(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Callable[..., Any],
    data: st.DataObject,
    family: str,
    pairs: bool,
) -> None:
    tokenizer, max_length = tiny_tokenizer(family), data.draw(st.integers(6, 40))
    tokenizer.truncation_side = data.draw(st.sampled_from(["left", "right"]))
    rows: list[Row] = [{"text": data.draw(sentences), "label": n % 2} for n in range(6)]
    for row in rows if pairs else []:
        row["text_pair"] = data.draw(sentences)
    file = write(tmp_path_factory.mktemp("rows") / "dev.jsonl", rows)
    split = classify(file, max_length=max_length).encode(tokenizer, 64).validation
    assert split.tokens.dtype == np.int32 and split.pad == tokenizer.pad_token_id
    assert (split.types is not None) == (pairs and family == "bert")
    for n, row in enumerate(rows):
        inputs = (row["text"], row["text_pair"]) if pairs else (row["text"],)
        wanted = tokenizer(*inputs, truncation="longest_first", max_length=max_length)
        assert split.tokens_of(n).tolist() == wanted["input_ids"]
        if split.types is not None:
            assert split.types.dtype == np.int8
            assert split.types[split.offsets[n] : split.offsets[n + 1]].tolist() == wanted["token_type_ids"]
    full = tokenizer(*zip(*[(r["text"], r["text_pair"]) if pairs else (r["text"],) for r in rows], strict=True))
    assert split.truncated == sum(len(ids) > max_length for ids in full["input_ids"])


def test_tokenizers_written_in_python_are_cut_too(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    fast = tiny_tokenizer("bert")

    class Slow:
        """Give what a tokenizer without a Rust half gives: lists, without the places of special tokens."""

        def __getattr__(self, name: str) -> Any:
            return getattr(fast, name)

        def __call__(self, *inputs: Any, **settings: Any) -> Any:
            given = fast(*inputs, **settings)
            given._encodings = None
            return given

    rows = [{"text": "film " * n, "text_pair": "plot " * (n % 7 + 1), "label": n % 2} for n in range(1, 30)]
    file = write(tmp_path / "dev.csv", rows)
    one, other = (classify(file, max_length=16).encode(kind, 64).validation for kind in (fast, Slow()))
    assert one.fingerprint == other.fingerprint and one.truncated == other.truncated > 0


def test_cut_texts_are_counted_and_told(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    long = [{"text": "film " * 50, "label": "good"}] * 3
    write(tmp_path / "train.csv", REVIEWS)
    write(tmp_path / "dev.csv", [*REVIEWS, *long])
    data = classify(tmp_path, max_length=20).encode(tiny_tokenizer("bert"), 64)
    assert "3 of 43 validation texts (7.0%) were cut to 20 tokens" in data.notes
    assert data.validation.truncated == 3 and data.validation.lengths.max() == 20
    assert data.train is not None and data.train.truncated == 0


@QUICK
@given(words=st.lists(st.sampled_from(WORDS[:7]), min_size=1, max_size=60), size=st.integers(4, 20))
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_windows_read_all_of_a_text(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Callable[..., Any],
    family: str,
    words: list[str],
    size: int,
) -> None:
    """In the split that is reported on alone; each as the tokenizer would write its stretch of the text."""
    folder, tokenizer = tmp_path_factory.mktemp("rows"), tiny_tokenizer(family)
    rows = [{"text": " ".join(words), "label": n % 2} for n in range(3)]
    for name in ("train", "dev"):
        write(folder / f"{name}.csv", rows)
    data = classify(folder, max_length=size, long="mean").encode(tokenizer, 64)
    whole = tokenizer(" ".join(words))["input_ids"]
    assert data.train is not None and data.train.windows is None
    assert data.train.tokens_of(0).tolist() == tokenizer(" ".join(words), truncation=True, max_length=size)["input_ids"]
    cut, owners = data.validation.in_windows([2, 1])
    count = len(cut) // 2
    assert owners.tolist() == [0] * count + [1] * count and cut.labels is not None and cut.labels[-1] == 1
    head, tail = 1, int(family == "bert")
    texts = [cut.tokens_of(row)[head : cut.lengths[row] - tail].tolist() for row in range(count)]
    plain, start = whole[head : len(whole) - tail], 0
    assert all(cut.tokens_of(row)[0] == whole[0] for row in range(count))
    assert all(tail == 0 or cut.tokens_of(row)[-1] == whole[-1] for row in range(count))
    if len(whole) <= size:
        assert texts == [plain]
        return
    assert {len(text) for text in texts} == {size - head - tail}
    step = max(1, size - head - tail - round(0.25 * (size - head - tail)))
    for text in texts[:-1]:
        assert text == plain[start : start + len(text)]
        start += step
    assert texts[-1] == plain[-len(texts[-1]) :] and len(plain) - len(texts[-1]) <= start
    assert data.validation.batch([0])["input_ids"].shape == (count, size)
    assert any(f"3 of 3 validation texts (100.0%) were read in windows of {size} tokens" in one for one in data.notes)


def test_windows_do_not_hang_on_the_first_text(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    """Of which nothing may be left when it is normalised; where that is so of all, it is said of all."""
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(("\u200b", "\u200b", "film " * 30))]
    task = classify(write(tmp_path / "dev.csv", rows), max_length=16, long="mean")
    data = task.encode(tiny_tokenizer("bert"), 64).validation
    assert data.windows == Windows(size=16, before=1, after=1, pool="mean")
    assert data.lengths.tolist() == [2, 2, 32]
    with pytest.raises(NiwakiError, match="no token in any of"):
        classify(write(tmp_path / "blank.csv", 4 * rows[:2]), long="mean").encode(tiny_tokenizer("bert"), 64)


def test_windows_are_for_single_texts(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    write(tmp_path / "dev.csv", [{"text": "film", "text_pair": "plot", "label": n} for n in range(2)])
    with pytest.raises(NiwakiError, match="in windows, of pairs"):
        classify(tmp_path, long="max").encode(tiny_tokenizer("bert"), 64)


def test_splits_of_many_calls_stay_in_order(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    rows = [{"text": WORDS[n % 7], "label": n % 2} for n in range(CHUNK_ROWS + 5)]
    data = classify(write(tmp_path / "dev.csv", rows)).encode(tiny_tokenizer("bert"), 64).validation
    assert len(data) == CHUNK_ROWS + 5
    for row in (0, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 4):
        assert data.tokens_of(row).tolist() == tiny_tokenizer("bert")(WORDS[row % 7])["input_ids"]


def test_tokenizers_and_lengths_that_cannot_be(tmp_path: Path, tiny_tokenizer: Callable[..., Any]) -> None:
    file = write(tmp_path / "dev.csv", REVIEWS)
    tokenizer = tiny_tokenizer("bert")
    with pytest.raises(NiwakiError, match="max_length is 100\n.*at most 64"):
        classify(file, max_length=100).encode(tokenizer, 64)
    with pytest.raises(NiwakiError, match="2 special tokens"):
        classify(file).encode(tokenizer, 2)
    tokenizer.pad_token = None
    with pytest.raises(NiwakiError, match="no padding token"):
        classify(file).encode(tokenizer, 64)


# ---- batches

ragged = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=12)


@QUICK
@given(rows=ragged, pad=st.sampled_from([0, 1, 7]), types=st.booleans(), data=st.data())
def test_a_batch_loses_no_token_and_pads_right(
    rows: list[list[int]], pad: int, types: bool, data: st.DataObject
) -> None:
    split = encoded(rows, pad, types)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    batch = split.batch(chosen)
    assert set(batch) == {"input_ids", "attention_mask", "labels"} | ({"token_type_ids"} if types else set())
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    width = max(len(rows[row]) for row in chosen)
    for place, row in enumerate(chosen):
        fill = width - len(rows[row])
        assert batch["input_ids"][place].tolist() == rows[row] + [pad] * fill
        assert batch["attention_mask"][place].tolist() == [1] * len(rows[row]) + [0] * fill
        if types:
            assert batch["token_type_ids"][place].tolist() == [token % 2 for token in rows[row]] + [0] * fill
    assert batch["labels"].tolist() == [row % 2 for row in chosen]
    selected = split.select(chosen)
    assert [selected.tokens_of(n).tolist() for n in range(len(chosen))] == [rows[row] for row in chosen]
    again = selected.batch(range(len(chosen)))
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_fingerprints_see_every_change() -> None:
    rows = [[1, 2], [3], [4, 5, 6]]
    split = encoded(rows)
    assert split.fingerprint == encoded(rows).fingerprint and len(split.fingerprint) == 64
    others = [
        encoded(rows, pad=1),
        encoded(rows, types=True),
        encoded([[1], [2, 3], [4, 5, 6]]),
        split.select([0, 2, 1]),
    ]
    assert len({split.fingerprint, *(other.fingerprint for other in others)}) == 5
    data = Dataset(split, split, None, ("a", "b"))
    assert data.fingerprint != Dataset(split, split, None, ("a", "c")).fingerprint
    assert data.fingerprint != Dataset(None, split, split, ("a", "b")).fingerprint


def test_selection_spares_the_rows_that_are_reported() -> None:
    train, other = encoded([[n] for n in range(1, 201)]), encoded([[1], [2]])
    with_test = Dataset(train, other, encoded([[3]]), ("a", "b"))
    assert with_test.selection(0) == (train, other) and with_test.evaluation is with_test.test
    data = Dataset(train, other, None, ("a", "b"))
    rest, held = data.selection(0)
    assert data.evaluation is other and (len(rest), len(held)) == (190, 10)
    assert sorted([*rest.tokens, *held.tokens]) == sorted(train.tokens)
    assert np.bincount(held.labels).tolist() == [5, 5]
    assert data.selection(0)[1].fingerprint == held.fingerprint != data.selection(1)[1].fingerprint
    with pytest.raises(NiwakiError, match="no train split"):
        Dataset(None, other, None, ("a", "b")).selection(0)
    with pytest.raises(NiwakiError, match="no row of train .* can be held out"):
        Dataset(train.select(np.array([0])), other, None, ("a", "b")).selection(0)


@QUICK
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), share=st.floats(0.05, 0.5))
def test_stratified_rows_leave_some_of_each_class(sizes: list[int], share: float) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    held = stratified_rows(labels, round(share * len(labels)), seed=3)
    assert len(np.unique(held)) == len(held) and len(held) >= min(1, sum(size > 1 for size in sizes))
    for size, taken in zip(sizes, np.bincount(labels[held], minlength=len(sizes)), strict=True):
        assert taken < size and (size == 1 or abs(taken - share * size) <= 2)


# ---- the task itself


def test_a_task_is_a_value() -> None:
    task = Task("text-classification", data=Path("reviews"))
    assert (task.kind, task.data, task.metric, task.max_length) == (
        "text-classification",
        "reviews",
        "accuracy",
        None,
    )
    assert type(task).__name__ == "TextClassification" and isinstance(task, Task)
    assert Task(**task.model_dump()) == task == copy.deepcopy(task) == pickle.loads(pickle.dumps(task))
    assert task.model_copy(update={"metric": "f1"}).metric == "f1"


@pytest.mark.parametrize(
    ("kind", "parameters", "fragments"),
    [
        ("text-clasification", {}, ['no task "text-clasification"', 'Task("text-classification"']),
        ("text-classification", {"txt": "a"}, ['no parameter "txt"', "text_pair", "text='a'"]),
        ("text-classification", {"metric": "auc"}, ["metric is 'auc'", "'accuracy', 'f1' or 'mcc'"]),
        ("text-classification", {"max_length": 2}, ["max_length is 2", "4 or more"]),
        ("text-classification", {"data": " "}, ["data is ' '", "hub"]),
    ],
)
def test_parameters_that_cannot_be(kind: str, parameters: Row, fragments: list[str]) -> None:
    with pytest.raises(NiwakiError) as error:
        Task(kind, **{"data": "reviews/", **parameters})
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
    with pytest.raises(NiwakiError, match="data is not given"):
        Task("text-classification")


def test_another_kind_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Task):
        target: str = "n"

    module = types.ModuleType("counting")
    module.Counting = Counting  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting", module)
    monkeypatch.setitem(KINDS, "counting", "counting:Counting")
    task = Task("counting", data="numbers/", target="m")
    assert isinstance(task, Counting) and task.target == "m"


def test_the_loss_is_cross_entropy() -> None:
    task = classify("reviews/")
    logits_BC = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert task.loss(logits_BC, torch.tensor([1, 0])).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


# ---- metrics


def test_metrics_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    predictions = np.array([1, 1, 0, 1, 0, 0, 0, 0])  # 2 true positives, 1 false, 1 missed, 4 true negatives
    assert score("accuracy", predictions, labels) == 75.0
    assert score("f1", predictions, labels) == pytest.approx(100 * 2 / 3)
    assert score("mcc", predictions, labels) == pytest.approx(100 * (2 * 4 - 1) / math.sqrt(3 * 3 * 5 * 5))
    three = np.array([0, 1, 2, 2])  # F1 by class: 1, 2/3 (precision 1/2), 2/3 (recall 1/2)
    assert score("f1", np.array([0, 1, 1, 2]), three) == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)
    assert score("mcc", 1 - labels, labels) == pytest.approx(-100)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "mcc"])
def test_metrics_of_a_single_class_warn_of_nothing(metric: str) -> None:
    zeros, ones = np.zeros(4, int), np.ones(4, int)
    assert score(metric, zeros, ones) == 0.0
    assert score(metric, zeros, zeros) == {"accuracy": 100.0}.get(metric, 0.0)
    assert score(metric, zeros, zeros, num_classes=3) == {"mcc": 0.0}.get(metric, 100.0)


def test_metrics_refuse_what_does_not_fit() -> None:
    with pytest.raises(NiwakiError, match='no metric "acuracy"'):
        score("acuracy", np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="must be one"):
        score("f1", np.zeros(2), np.zeros(3))
