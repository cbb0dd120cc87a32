"""Find the train, validation and test rows of a folder, a file or a hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from niwaki.errors import NiwakiError, closest
from niwaki.task.formats import READERS, read_table
from niwaki.task.tables import Table, joined

# What people call their splits, in lower case. Of MNLI's two validation sets the matched one is the usual.
NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": (
        "validation",
        "dev",
        "valid",
        "val",
        "development",
        "eval",
        "validation_matched",
        "dev_matched",
    ),
    "test": ("test", "testing", "test_matched"),
}
# The shards of one split as the hub writes them: train-00000-of-00004.parquet.
SHARD = re.compile(r"[-_.]\d+([-_.]of[-_.]\d+)?$")
LOCAL = 'data="reviews/"   (a folder with train.csv and validation.csv)'
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?$")


def read_splits(data: str) -> tuple[dict[str, Table], list[str]]:
    """Read the splits that `data` has, by the names train, validation and test, with notes.

    A lone file of no split's name comes back as train; the caller holds rows out of it.

    Raises:
        NiwakiError: when nothing is there, nothing can be read, or two files claim one split.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return {split_of(path.stem) or "train": read_table(path)}, []
    if path.suffix.lower() in READERS or not HUB_ID.match(data) or data.startswith("."):
        raise NiwakiError(
            f'there is no file or folder "{data}"',
            expected=f"a folder with train and validation files ({' '.join(READERS)}), one file, or a hub id",
            fix=_sibling(path) or LOCAL,
        )
    return _of_hub(data)


def split_of(name: str) -> str | None:
    """Return which split a file or hub split of this name is, or None.

    >>> split_of("train-00000-of-00002"), split_of("dev"), split_of("reviews")
    ('train', 'validation', None)
    """
    bare = SHARD.sub("", name.lower())
    return next((split for split, names in NAMES.items() if bare in names), None)


def _sibling(path: Path) -> str:
    """Return an existing path that the user may have meant."""
    if not path.parent.is_dir():
        return ""
    meant = closest(path.name, (entry.name for entry in path.parent.iterdir()))
    return f'data="{path.parent / meant}"' if meant else ""


def _of_folder(folder: Path) -> tuple[dict[str, Table], list[str]]:
    """Read the splits of a folder of files, of a clone of a hub data set, or of `datasets.save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        return _of_mapping(_datasets(str(folder)).load_from_disk(str(folder)), str(folder))
    here = _data_files(folder)
    files = here or (_data_files(folder / "data") if (folder / "data").is_dir() else [])
    if not files:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise NiwakiError(
            f"the folder has no file to read; it holds {found}",
            expected=f"train and validation files: {' '.join(READERS)}",
            fix=f"{folder / 'train.csv'} and {folder / 'validation.csv'}",
            place=str(folder),
        )
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file.stem) or "", []).append(file)
    strangers = groups.pop("", [])
    if not groups and len(strangers) == 1:
        return {"train": read_table(strangers[0])}, []
    if not groups:
        raise NiwakiError(
            f"no file is named after a split: {', '.join(file.name for file in strangers[:12])}",
            expected="train, validation (or dev, valid, val) and, if there is one, test",
            fix=f"mv {strangers[0]} {folder / ('train' + strangers[0].suffix)}",
            place=str(folder),
        )
    notes = [f"{file.name} was left out: its name is not that of a split" for file in strangers]
    return {split: joined([read_table(file) for file in _one_kind(split, groups[split])]) for split in groups}, notes


def _data_files(folder: Path) -> list[Path]:
    """Return the readable, visible files of a folder by name."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in READERS and entry.is_file() and not entry.name.startswith(".")
    )


def _one_kind(split: str, files: list[Path]) -> list[Path]:
    """Return the files of a split when they are one file, or the shards of one."""
    kinds = {(SHARD.sub("", file.stem.lower()), file.suffix.lower()) for file in files}
    plain = [file for file in files if not SHARD.search(file.stem)]
    if len(kinds) > 1 or (plain and len(files) > 1):
        raise NiwakiError(
            f"more than one file is the {split} split: {', '.join(file.name for file in files)}",
            expected=f"one file, {split}.csv, or its shards, {split}-00000-of-00002.parquet and so on",
            fix="move the others out of the folder",
            place=str(files[0].parent),
        )
    return files


def _datasets(data: str) -> Any:
    """Import the `datasets` library on first use."""
    try:
        import datasets
    except ImportError:
        raise NiwakiError(
            f'"{data}" is no file or folder here, and to read it from the Hugging Face hub, the package '
            "datasets is needed",
            expected="a folder or file that exists, or the package",
            fix='pip install "niwaki[data]"',
        ) from None
    return datasets


def _of_hub(data: str) -> tuple[dict[str, Table], list[str]]:
    """Load a data set from the hub; `id:configuration` names one of several."""
    name, _, configuration = data.partition(":")
    library = _datasets(data)
    try:
        loaded = library.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises a dozen kinds, from connection to parsing
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        several = "config" in str(error).lower() and not configuration
        raise NiwakiError(
            f'"{data}" is no file or folder here, and the Hugging Face hub did not give it: {reason}',
            expected="a folder or file that exists, or the id of a data set on the hub",
            fix=f'data="{name}:CONFIGURATION"' if several else LOCAL,
        ) from error
    return _of_mapping(loaded, data)


def _of_mapping(loaded: Any, source: str) -> tuple[dict[str, Table], list[str]]:
    """Take the splits of a `DatasetDict` by their names."""
    if not isinstance(loaded, Mapping):
        raise NiwakiError("this is one split, not a data set with splits", expected="a DatasetDict", place=source)
    splits: dict[str, Table] = {}
    notes: list[str] = []
    for name in loaded:
        split = split_of(str(name))
        if split is None or split in splits:
            notes.append(f"the split {name} of {source} was left out")
        elif len(loaded[name]):
            splits[split] = _of_split(loaded[name], f"{source} ({name})")
    if not splits:
        raise NiwakiError(
            f"no split with rows is called train, validation or test; it has {', '.join(map(str, loaded))}",
            expected="a train and a validation split",
            place=source,
        )
    return splits, notes


def _of_split(split: Any, source: str) -> Table:
    """Wrap one split of the `datasets` library, with the names of its classes."""
    classes = {name: tuple(feature.names) for name, feature in split.features.items() if hasattr(feature, "names")}

    def read(name: str) -> list[Any]:
        return list(split.select_columns([name])[:][name])

    return Table(source, tuple(split.column_names), len(split), read, None, classes)
