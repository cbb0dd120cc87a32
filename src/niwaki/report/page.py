"""Gather what a report says and render it as one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niwaki.errors import NiwakiError
from niwaki.report import exits, steps, tables, units, usage
from niwaki.report.curves import POINTS, Training, trainings
from niwaki.report.folders import RunFolder, number, section
from niwaki.report.headline import Headline, headlines
from niwaki.report.journal import plain_words
from niwaki.report.left import exits_told
from niwaki.report.log import durations, factored, notes_of
from niwaki.report.points import SIZE, latency_of
from niwaki.report.precision import told_of
from niwaki.report.race import race_told
from niwaki.report.scatter import quality_plot
from niwaki.report.shares import Shares, shares_of
from niwaki.report.told import Told

TEMPLATES = Path(__file__).parent / "templates"
DETAILED = 12
"""Runs that are told in full; of more, the table and the plots tell."""


@dataclass(frozen=True)
class Chapter:
    """Hold all that is told of one run beside its headline and its lines in the table."""

    run: RunFolder
    headlines: Sequence[Headline]
    trainings: Sequence[Training]
    durations: Sequence[tuple[str, str]]
    notes: Sequence[str]
    told: Sequence[Told]
    exits: Sequence[tuple[str, str]]
    shares: Shares | None
    steps: Sequence[str]
    edits: Sequence[str]
    snippets: Sequence[tuple[str, str]]
    command: str
    origin: Sequence[tuple[str, str]]
    conditions: Sequence[tuple[str, str]]


def page(runs: Sequence[RunFolder], out: Path) -> Path:
    """Write the HTML file about these runs.

    Raises:
        NiwakiError: matplotlib or jinja2 is not installed.
    """
    return write(out, render("report.html.j2", **contents(runs)))


def contents(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return what the page's template asks for."""
    groups = tables.comparison(runs)
    rows = [row for run in runs for row in run.rows]
    points = max(40, min(POINTS, 6 * POINTS // len(runs)))
    drawn = ((latency_of(runs), "latency"), (SIZE, "size"))
    chapters = [chapter(run, f"run-{index}", points) for index, run in enumerate(runs[:DETAILED])]
    return {
        "title": _title(runs),
        "said": [line for run in runs for line in headlines(run)],
        "columns": tables.heads(runs),
        "in_use": tables.columns_in_use(groups),
        "words": tables.WORDS,
        "groups": groups,
        "notes": tables.notes(groups, runs),
        "plots": [plot for measure, name in drawn if (plot := quality_plot(runs, measure, name))],
        "small_print": tables.small_print(rows),
        "chapters": chapters,
        "left_out": [run.name for run in runs[DETAILED:]],
    }


def chapter(run: RunFolder, name: str, points: int = POINTS) -> Chapter:
    """Return what is told of one run; what its folder does not hold is empty."""
    return Chapter(
        run=run,
        headlines=headlines(run),
        trainings=trainings(run.log, f"{name}-losses", points),
        durations=durations(run.log),
        notes=[*notes_of(run.log), *factored(run.log)],
        told=[*race_told(run.race), *told_of(run.log), *exits_told(run.rows)],
        exits=exits.pictures(run.log, f"{name}-exits"),
        shares=shares_of(run.modules, f"{name}-shares", run.base, run.name),
        steps=steps.steps_in_words(run.recipe),
        edits=plain_words(run.journal),
        snippets=usage.snippets(run, run.path.name),
        command=usage.command_of(run),
        origin=origin_of(run),
        conditions=tables.conditions(run.rows),
    )


def origin_of(run: RunFolder) -> list[tuple[str, str]]:
    """Return (what, value) of what the run was made from."""
    if not run.origin:
        return []
    data, rows = section(run.origin, "data"), section(section(run.origin, "data"), "rows")
    splits = ", ".join(f"{split} {count:,}" for split, count in rows.items() if isinstance(count, int))
    told = [
        ("base model", usage.shown_path(run.origin.get("model") or run.base)),
        ("family", str(run.origin.get("family") or "")),
        (
            "base parameters",
            units.count(number(run.origin, "parameters")) if "parameters" in run.origin else "",
        ),
        ("data", usage.shown_path(data.get("source") or "")),
        ("rows", splits),
        ("labels", ", ".join(map(str, run.origin.get("labels") or ()))),
    ]
    return [(what, value if len(value) < 300 else f"{value[:300]}…") for what, value in told if value]


def render(template: str, **values: Any) -> str:
    """Fill a template; values are escaped in HTML, but for drawings, which are escaped when they are made."""
    try:
        import jinja2
    except ImportError as error:
        raise NiwakiError(
            "a report needs jinja2, which is not installed",
            expected="the extra named report",
            fix='pip install "niwaki[report]"',
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def write(path: Path, text: str) -> Path:
    """Write a text file aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def _title(runs: Sequence[RunFolder]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs against their base"
    subjects = runs[0].subjects
    return (
        f"{' and '.join(subjects[:3])}{' and others' if len(subjects) > 3 else ''}, against {runs[0].base}"
        if subjects
        else runs[0].name
    )
