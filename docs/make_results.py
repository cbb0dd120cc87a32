"""Make docs/results.md from benchmarks/*/result.json, so that no figure of the documentation is typed.

python docs/make_results.py            write docs/results.md
python docs/make_results.py --check    exit with 1 when it is not up to date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAD = """# Results

Made by `docs/make_results.py` from the `result.json` of each case in `benchmarks/`, not edited by hand.
`make bench CASE=NAME` runs a case again. A figure holds under its conditions, which stand below it.
"""
NOTHING = """
No benchmark has left a result yet.
"""
COLUMNS = (
    "model",
    "runtime",
    "size",
    "latency",
    "p90",
    "faster",
    "rows/s",
    "memory",
    "quality",
    "difference (95%)",
    "p",
)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it."""
    page = ROOT / "docs" / "results.md"
    text = results(sorted((ROOT / "benchmarks").glob("*/result.json")))
    if "--check" in arguments:
        return 0 if page.is_file() and page.read_text("utf-8") == text else 1
    page.write_text(text, "utf-8")
    return 0


def results(files: Iterable[Path]) -> str:
    """Return the page for these result files; one that cannot be read gets a line that says so."""
    sections = [section(file) for file in files]
    return HEAD + ("\n" + "\n\n".join(sections) + "\n" if sections else NOTHING)


def section(file: Path) -> str:
    """Return the section of one case: figures, comparison, conditions."""
    name = file.parent.name
    try:
        result = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"## {name}\n\nIts `result.json` cannot be read: {error}."
    parts = [f"## {name}"]
    if isinstance(result.get("about"), str):
        parts.append(result["about"])
    figures = result.get("figures") or {}
    if figures:
        flat = {key: value for key, value in figures.items() if not is_table(value)}
        parts.append(table(("figure", "value"), [(words(key), number(value)) for key, value in flat.items()]))
        parts += [lines(key, value) for key, value in figures.items() if is_table(value)]
    found = comparisons(result)
    for title, rows in found:
        told = [in_brief("", machine_of(rows))] if len(found) > 1 else []
        parts.append("\n\n".join([*title, comparison(rows), *filter(None, told)]))
    told = conditions(result, found[0][1] if len(found) == 1 else [])
    if brief := in_brief("**Conditions.** ", told):
        parts.append(brief)
    long = {key: text for key, text in told.items() if "\n" in text}
    parts += [f"**{words(key).capitalize()}**\n\n```yaml\n{text.rstrip()}\n```" for key, text in long.items()]
    return "\n\n".join(parts)


def comparisons(result: Mapping[str, Any]) -> list[tuple[list[str], list[Mapping[str, Any]]]]:
    """Return each list of measurement rows of a result, with its title where it has one.

    A case may keep `rows` beside its figures, or comparisons (`{"base", "rows"}`) under names in `records`; rows may
    name their stage, and a stage whose records are of another kind has its figures alone.
    """
    found = [([], result["rows"])] if is_rows(result.get("rows")) else []
    records = result.get("records")
    if isinstance(records, list):
        stages = dict.fromkeys(row.get("stage") for row in records if isinstance(row, Mapping))
        for stage in stages:
            own = [row for row in records if isinstance(row, Mapping) and row.get("stage") == stage]
            if is_rows(own):
                found.append(([f"### {words(stage)}"] if stage else [], own))
    if isinstance(records, Mapping):
        if is_rows(records.get("rows")):
            found.append(([], records["rows"]))
        for key, value in records.items():
            if isinstance(value, Mapping) and is_rows(value.get("rows")):
                found.append(([f"### {words(key)}"], value["rows"]))
    return found


def is_rows(value: Any) -> bool:
    """Say whether this is a list of measurement rows."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) and "runtime" in row for row in value)
    )


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return measurement rows as a table."""
    return table(COLUMNS, [cells(row) for row in rows], right=range(2, len(COLUMNS)))


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return one row of the comparison; what was not measured is a dash."""
    latency, ratio = row.get("latency_seconds") or {}, row.get("latency_ratio") or {}
    quality = row.get("quality") or {}
    low, high = quality.get("interval") or (None, None)
    difference = shown(quality.get("difference"), "{:+.2f}")
    interval = f" ({low:+.2f} .. {high:+.2f})" if low is not None and high is not None else ""
    return [
        str(row.get("name", "")),
        str(row.get("runtime", "")),
        shown(row.get("size_bytes"), "{:.1f} MB", 1e-6),
        shown(latency.get("mean") or latency.get("median"), "{:.2f} ms", 1e3),
        shown(latency.get("p90"), "{:.2f} ms", 1e3),
        shown(ratio.get("median"), "{:.2f}×"),
        shown(row.get("throughput_per_second"), "{:,.0f}"),
        shown(row.get("memory_peak_bytes"), "{:,.0f} MB", 1e-6),
        shown(quality.get("value"), "{:.2f}"),
        difference + interval,
        shown(quality.get("p_value"), "{:.2g}"),
    ]


def machine_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the machine's conditions from the first row that has them, as words."""
    machine = next((row["conditions"] for row in rows if isinstance(row.get("conditions"), Mapping)), {})
    return {key: text for key, value in machine.items() if (text := plain(value))}


def in_brief(before: str, told: Mapping[str, str]) -> str:
    """Return conditions of a line each as one sentence, or nothing."""
    brief = [f"{words(key)}: {text}" for key, text in told.items() if "\n" not in text]
    return f"{before}{'; '.join(brief)}." if brief else ""


def conditions(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the conditions of a result, and the machine's from its first row, as words."""
    told = result.get("conditions")
    merged: dict[str, Any] = {**machine_of(rows), **(told if isinstance(told, Mapping) else {})}
    if isinstance(stages := merged.pop("stages", None), Mapping):
        merged |= common(stages)
    return {key: text for key, value in merged.items() if (text := plain(value))}


def common(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the conditions of several stages: said once what they have in common, by stage what differs."""
    keys = dict.fromkeys(key for stage in stages.values() for key in stage)
    found = {key: {name: stage[key] for name, stage in stages.items() if key in stage} for key in keys}
    firsts = {key: next(iter(own.values())) for key, own in found.items()}
    return {
        key: firsts[key] if all(value == firsts[key] for value in own.values()) else own for key, own in found.items()
    }


def plain(value: Any) -> str:
    """Return a condition as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value)
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = (1,)) -> str:
    """Return a Markdown table."""
    bars = ["---:" if index in set(right) else "---" for index in range(len(titles))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, bars, *rows])


def shown(value: Any, form: str, scale: float = 1.0) -> str:
    """Return a number in its form, or a dash."""
    return form.format(value * scale) if isinstance(value, (int, float)) else "–"


def is_table(value: Any) -> bool:
    """Say whether a figure is a list of objects, each of which is a line."""
    return isinstance(value, list) and bool(value) and all(isinstance(line, dict) and line for line in value)


def lines(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a figure that is a list of objects of the same keys, as a table of its own."""
    heads = [words(name), *map(words, list(rows[0])[1:])]
    return table(heads, [tuple(number(value) for value in row.values()) for row in rows])


def number(value: Any) -> str:
    """Return a number with as many digits as it deserves."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def words(name: str) -> str:
    """Return a field name as words."""
    return str(name).replace("_", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
