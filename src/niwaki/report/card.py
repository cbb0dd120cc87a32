"""Write the README.md of a run: a model card for the Hugging Face hub, made from the folder's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.errors import NiwakiError
from niwaki.report import steps, tables, usage
from niwaki.report.folders import Place, Row, RunFolder, number, read_run, section
from niwaki.report.headline import headlines
from niwaki.report.journal import plain_words
from niwaki.report.left import exits_told
from niwaki.report.log import factored
from niwaki.report.page import origin_of, render, write
from niwaki.report.points import MEAN_LATENCY, latency_of
from niwaki.report.precision import told_of

SHOWN = (
    "model",
    "runtime",
    "size",
    "smaller",
    "latency",
    "faster",
    "vs first",
    "p10 – p90",
    "quality",
    "difference",
    "changed",
    "parity",
)
PIPELINES = {"language-modelling": "text-generation"}
METRICS = {"accuracy": "accuracy", "f1": "f1", "mcc": "matthews_correlation"}


def card(run_folder: Place, credits: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write the model card of a run into its folder.

    Args:
        run_folder: the run; what it does not hold (measurement, log, artifacts) is left out, or said to be
            missing.
        credits: papers by technique; when None, the references of the techniques' own docstrings.

    Returns:
        The README.md.

    Raises:
        NiwakiError: there is no such folder, or nothing in it is of a run.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise NiwakiError(
            f"there is no folder {folder}",
            expected="a run folder",
            fix="niwaki compress ... --out runs/small",
        )
    run = read_run(folder)
    if not (run.recipe or run.journal or run.rows):
        raise NiwakiError(f"{folder} is no run folder", expected="recipe.yaml, journal.jsonl or measurement.json in it")
    return write(folder / "README.md", card_text(run, credits))


def card_text(run: RunFolder, credits: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the text of a run's model card."""
    used = steps.techniques_of(run.recipe)
    return render(
        "card.md.j2",
        front_matter=_front_matter(run, used),
        name=markdown(run.name),
        base=markdown(usage.shown_path(run.origin.get("model") or run.base or "its base")),
        said=[(markdown(line.name), markdown(line.sentence)) for line in headlines(run)],
        table=_table(run),
        notes=[markdown(note) for note in tables.notes([], [run])],
        conditions=[(markdown(what), markdown(value)) for what, value in tables.conditions(run.rows)],
        steps=[markdown(step) for step in steps.steps_in_words(run.recipe)],
        edits=[markdown(edit) for edit in [*plain_words(run.journal), *factored(run.log)]],
        told=[*told_of(run.log), *exits_told(run.rows)],
        middle="mean" if latency_of([run]) is MEAN_LATENCY else "median",
        markdown=markdown,
        recipe=run.recipe.strip(),
        origin=[(markdown(what), markdown(value)) for what, value in origin_of(run)],
        limits=[markdown(limit) for limit in limits(run)],
        snippets=usage.snippets(run, run.path.resolve().name),
        command=usage.command_of(run),
        credits=steps.credits_of(used)
        if credits is None
        else {name: credits[name] for name in used if name in credits},
    )


def limits(run: RunFolder) -> list[str]:
    """Return what a user must not take for granted, drawn from the measurement."""
    told = []
    own = next((row for row in run.rows if row["name"] != run.base), {})
    quality = section(own, "quality")
    source = usage.shown_path(section(run.origin, "data").get("source") or "its own data")
    count, split = number(quality, "count"), quality.get("split")
    if number(quality, "value") is None:
        told.append("Its quality has not been measured.")
    else:
        rows = f"{count:,.0f} {f'{split} ' if split else ''}examples" if count else "the examples"
        told.append(
            f"Its quality was measured on {rows} of {source} and on nothing else; on other texts it may lose more."
        )
    changed = number(quality, "changed")
    if changed:
        told.append(
            f"{100 * changed:.1f}% of its predictions differ from the base's, whatever the average says;"
            " look at them where single decisions matter."
        )
    if own.get("latency_seconds"):
        told.append("Latencies hold for the machine and the lengths of text named here; measure again on yours.")
    told += [_covered(record) for record in run.log if "covered_tokens" in record][-1:]
    if any("8 bits" in edit for edit in plain_words(run.journal)):
        told.append(
            "Arithmetic in 8 bits is fast on processors with instructions for it (VNNI, AMX, dot product);"
            " on others the gain is smaller."
        )
    told.append("It inherits the licence, the biases and the limits of its base.")
    return told


def _covered(record: Row) -> str:
    """Tell how much of new texts a trimmed vocabulary reads as the base does."""
    tokens, rows = (100 * (number(record, key) or 0.0) for key in ("covered_tokens", "covered_rows"))
    return (
        f"Its vocabulary is that of its training texts: {tokens:.1f}% of the tokens of the validation texts, and"
        f" {rows:.1f}% of the texts, are read as the base reads them; other words are read in smaller pieces."
    )


def markdown(text: str) -> str:
    r"""Return a text with nothing in it that Markdown or HTML would act on.

    >>> print(markdown("<script> | `x` *y*"))
    &lt;script&gt; \| \`x\` \*y\*
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text).replace("\n", " ")


def _table(run: RunFolder) -> list[Sequence[str]]:
    """Return the head and the lines of the table, of its columns those that say something."""
    groups = tables.comparison([run]) if run.rows else []
    names = [title for title, _ in tables.heads([run])]
    shown = [index for index in tables.columns_in_use(groups) if tables.COLUMNS[index][0] in SHOWN]
    body = [[markdown(line.cells[index]) for index in shown] for group in groups for line in group.lines]
    return [[names[index] for index in shown], *body] if body else []


def _front_matter(run: RunFolder, used: Sequence[str]) -> str:
    import yaml

    metric = next((section(row, "quality").get("metric") for row in run.rows if section(row, "quality")), None)
    kind = str(section(run.origin, "task").get("kind", "text-classification"))
    ends = {".onnx": "onnx", ".xml": "openvino"}
    formats = [name for end, name in ends.items() if any(file.endswith(end) for file in run.artifacts)]
    matter: dict[str, Any] = {"library_name": "niwaki"}
    for key, value in (
        ("base_model", run.origin.get("model")),
        ("datasets", section(run.origin, "data").get("source")),
    ):
        if is_hub_id(value):
            matter[key] = [value] if key == "datasets" else value
    matter["pipeline_tag"] = PIPELINES.get(kind, kind)
    matter["tags"] = list(dict.fromkeys(["niwaki", "compression", *used, *formats]))
    if metric:
        matter["metrics"] = [METRICS.get(str(metric), str(metric))]
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip()


def is_hub_id(value: Any) -> bool:
    """Say whether a name can be one of the hub's: `owner/name`, and nothing of that name lies here.

    >>> is_hub_id("owner/all-MiniLM-L6-v2"), is_hub_id("runs/../base"), is_hub_id("/models/base")
    (True, False, False)
    """
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value):
        return False
    return ".." not in value and value.split("/")[0] not in ("runs", "models", "data") and not Path(value).exists()
