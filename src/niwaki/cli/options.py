"""The options that commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from niwaki.budget import Budget
    from niwaki.task import Task

Base = Annotated[str, typer.Argument(help="The model to start from: a folder or a hub id.")]
Kind = Annotated[str, typer.Option("--task", help="text-classification or language-modelling.")]
Data = Annotated[
    str,
    typer.Option("--data", help="A folder with train, validation and perhaps test files, one file, or a hub data set."),
]
Text = Annotated[str | None, typer.Option("--text", help="Column of the text; found when not named.")]
TextPair = Annotated[str | None, typer.Option("--text-pair", help="Column of the second text, for pairs.")]
Label = Annotated[str | None, typer.Option("--label", help="Column of the label; found when not named.")]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric", help="accuracy, f1 or mcc; of a language model nats or perplexity. The first is the default."
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Cut texts to this many tokens, else to what the model reads."),
]
Pack = Annotated[
    bool, typer.Option("--pack", help="Of a language model: join all texts and cut them into rows of one length.")
]
Long = Annotated[
    str | None,
    typer.Option(
        "--long",
        help="Longer texts: truncate, or read in windows and take the mean or the max of their logits.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with.")]
Runtimes = Annotated[
    list[str] | None,
    typer.Option("--runtimes", help="Of torch, onnxruntime, openvino; commas between. Else all."),
]
Bounds = Annotated[
    str | None,
    typer.Option("--budget", help='Bounds to hold: "size=10MB latency=2ms memory=500MB quality=-1pt" (or 97%).'),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds: a first look, not a result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and all else to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write, or to go on with.")]

Average = Annotated[
    float,
    typer.Option("--average", help="Decay of a moving average of the weights, kept as the result; 0.99 to 0.999."),
]
Schedule = Annotated[
    Literal["linear", "constant"],
    typer.Option("--schedule", help="The rate falls in a line to 0 (linear), or stays (constant, with --average)."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="PATH=VALUE", help="Set one value of the recipe; repeat for more."),
]


def task_of(
    kind: str,
    data: str,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    metric: str | None,
    max_length: int | None = None,
    pack: bool = False,
    long: str | None = None,
) -> Task:
    """Return the task that the options describe; what is not given is left to the kind of task."""
    import niwaki

    given = {"text": text, "text_pair": text_pair, "label": label, "metric": metric, "max_length": max_length}
    given |= {"pack": pack or None, "long": long}
    return niwaki.Task(kind, data=data, **{name: value for name, value in given.items() if value is not None})


def bounds_of(budget: str | None, task: Task) -> Budget | None:
    """Return the bounds that the option describes, if it is given; refuse those that mean nothing for the task."""
    import niwaki

    if budget is None:
        return None
    bounds = niwaki.Budget.parse(budget)
    bounds.require(task.metric)
    return bounds
