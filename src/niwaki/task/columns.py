"""Find which column of a table is the text, the second text and the label."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.errors import NiwakiError, closest
from niwaki.task.tables import Table

# In order of preference; matched without regard to case.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
)
TEXTS = (
    *(
        "text",
        "sentence",
        "review",
        "content",
        "comment",
        "tweet",
        "message",
        "body",
        "document",
        "utterance",
    ),
    *("query", "question", "review_body", "review_text", "comment_text", "description", "title", "input"),
)
LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "polarity"),
    *("stars", "rating", "coarse_label", "label_text", "y"),
)
NUMBERS_OF_ROWS = ("id", "idx", "index", "guid", "unnamed: 0", "")


@dataclass(frozen=True)
class Columns:
    """Name the columns of a table."""

    text: str
    text_pair: str | None
    label: str


def find_columns(
    table: Table, text: str | None, text_pair: str | None, label: str | None
) -> tuple[Columns, tuple[str, ...]]:
    """Return the columns that the user named, the others found by name, and notes on doubtful choices.

    In a table of two columns of which one is known, the other is what is missing.

    Raises:
        NiwakiError: when a named column is not there, or one cannot be found; it lists the columns there are.
    """
    for parameter, name in (("text", text), ("text_pair", text_pair), ("label", label)):
        if name is not None:
            require_column(table, name, parameter)
    notes: list[str] = []
    if label is None:
        label = _preferred(table, LABELS, {text, text_pair}, "label", notes)
    if text is None and text_pair is None:
        text, text_pair = _pair(table, label)
    if text is None:
        text = _preferred(table, TEXTS, {label, text_pair}, "text", notes)
    text, label = text or _other(table, label), label or _other(table, text)
    if text is None or label is None:
        raise _not_found(table, "text" if text is None else "label")
    if len({text, text_pair, label}) < 3:
        raise NiwakiError(
            f'text="{text}", text_pair="{text_pair}", label="{label}" name one column twice',
            expected="a column of its own for each",
            place=table.source,
        )
    return Columns(text, text_pair, label), tuple(notes)


def find_text(table: Table, text: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the column of the text where there is nothing else to find, and notes on doubtful choices.

    Raises:
        NiwakiError: when the named column is not there, or none can be found; it lists the columns there are.
    """
    if text is not None:
        require_column(table, text, "text")
        return text, ()
    notes: list[str] = []
    others = [column for column in table.columns if column.lower() not in NUMBERS_OF_ROWS]
    found = _preferred(table, TEXTS, set(), "text", notes) or (others[0] if len(others) == 1 else None)
    if found is None:
        raise _not_found(table, "text")
    return found, tuple(notes)


def require_column(table: Table, name: str, parameter: str) -> None:
    """Refuse a table that has no column of this name."""
    if name in table.columns:
        return
    meant = closest(name, table.columns) or next((c for c in table.columns if c.lower() == name.lower()), "")
    raise NiwakiError(
        f'there is no column "{name}"',
        expected=f"one of the columns of the file: {', '.join(table.columns)}",
        fix=f'{parameter}="{meant}"' if meant else "",
        place=table.source,
    )


def _known(table: Table, names: tuple[str, ...]) -> list[str]:
    """Return the columns of the table that bear one of these names, in the order of the names."""
    by_name = {column.lower(): column for column in reversed(table.columns)}
    return [by_name[name] for name in names if name in by_name]


def _preferred(
    table: Table, names: tuple[str, ...], taken: set[str | None], parameter: str, notes: list[str]
) -> str | None:
    """Return the first known column that is not taken, and note the ones passed over."""
    found = [column for column in _known(table, names) if column not in taken]
    if len(found) > 1:
        passed = ", ".join(found[1:])
        notes.append(f'column "{found[0]}" was taken as the {parameter}, not {passed} (name it with {parameter}="...")')
    return found[0] if found else None


def _pair(table: Table, label: str | None) -> tuple[str | None, str | None]:
    """Return the first known pair of columns, or two Nones."""
    for names in PAIRS:
        found = _known(table, names)
        if len(found) == 2 and label not in found:
            return found[0], found[1]
    return None, None


def _other(table: Table, known: str | None) -> str | None:
    """Return the other column of a table of two (numbers of rows not counted)."""
    columns = [column for column in table.columns if column.lower() not in NUMBERS_OF_ROWS]
    if known not in columns or len(columns) != 2:
        return None
    return columns[1] if columns[0] == known else columns[0]


def _not_found(table: Table, parameter: str) -> NiwakiError:
    """Say that no column looks like the one wanted."""
    names = TEXTS if parameter == "text" else LABELS
    return NiwakiError(
        f"no column looks like the {parameter}; the file has {', '.join(table.columns)}",
        expected=f"a header line of column names, the {parameter} called {', '.join(names[:5])}, ...",
        fix=f'{parameter}="{table.columns[0]}"  (the name of the column that it is in)',
        place=table.source,
    )
