"""`finetune`: make a task model of a pre-trained one, so that there is a base to compress."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.run import Run, carry_out_into
from niwaki.task import Task
from niwaki.train import Train


def finetune(
    model: str | Path,
    task: Task,
    out: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 8e-5,
    batch_size: int = 64,
    seed: int = 0,
    best: bool = False,
    schedule: Literal["linear", "constant"] = "linear",
    average: float = 0.0,
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    """Train a pre-trained encoder, with a new head where it has none, on the task; write a plain Transformers folder.

    The same command goes on where an interrupted one stopped.

    Args:
        model: folder or hub id of a pre-trained or fine-tuned encoder.
        task: the task and its data.
        out: the folder to write.
        epochs: passes over the training rows. 2 to 4.
        learning_rate: highest rate of AdamW. 2e-5 for models of 100M parameters, up to 1e-4 for small ones.
        batch_size: rows in one optimizer step.
        seed: of everything random, the new head too.
        best: keep the weights of the best epoch on selection rows.
        schedule: the rate falls in a line to 0 (linear), or stays (constant, which wants an `average`).
        average: decay of a moving average of the weights, which is then the result; 0 keeps the last. 0.99 to 0.999.
        threads: of PyTorch.
        progress: draw progress bars.
    """
    if Path(model).resolve() == Path(out).resolve():
        raise NiwakiError(f"--out is the model's own folder {out}", expected="another folder")
    step = Train(
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, best=best, schedule=schedule, average=average
    )
    return carry_out_into(
        Path(out), str(model), Recipe([step]), task, seed=seed, threads=threads, progress=progress, new_head=True
    )
