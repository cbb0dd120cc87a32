"""The command race."""

from __future__ import annotations

from typing import Annotated

import typer

from niwaki.cli import options
from niwaki.cli.app import MISSED, be_quiet, listed, only_json, print_json, verb

Parents = Annotated[
    list[str],
    typer.Argument(help="Two or more: MODEL, NAME=MODEL, or a smaller relative, NAME=MODEL:keep_layers=N."),
]
Recipes = Annotated[
    list[str],
    typer.Option("--recipe", help="RECIPE, or NAME=RECIPE for one parent; repeat for stronger ones, mildest first."),
]
Strengths = Annotated[
    str | None,
    typer.Option(
        "--strengths", metavar="PATH=V,V", help="Try each recipe that has PATH with each value, mildest first."
    ),
]


@verb
def race(
    parents: Parents,
    recipe: Recipes,
    data: options.Data,
    budget: Annotated[str, typer.Option("--budget", help='What all must hold: "latency=2ms", "size=10MB".')],
    out: options.OutFolder,
    strengths: Strengths = None,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    settings: options.Settings = None,
    epochs: Annotated[
        float, typer.Option("--epochs", min=0, help="Fine-tune each parent first; 0: they are given fine-tuned.")
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of that fine-tuning.")] = 8e-5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Of that fine-tuning.")] = 64,
    schedule: options.Schedule = "linear",
    average: options.Average = 0.0,
    runtimes: options.Runtimes = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    r"""Find which of several models to start from.

    Each parent is compressed by the mildest of its recipes that fits the budget; then parents and finalists
    are measured in one session, and the finalists paired on the same examples. Run the same command again to
    resume what was interrupted.

    Examples:
      niwaki race runs/large runs/base --data reviews/ --budget latency=2ms --recipe mild.yaml --recipe strong.yaml \
        --out runs/race
      niwaki race runs/large runs/base --data reviews/ --budget size=8MB --recipe cut.yaml \
        --strengths "steps[0].drop.keep_layers=6,4,3" --out runs/race
      niwaki race base=path/or/hub-id half=path/or/hub-id:keep_layers=3 --epochs 2 --data reviews/ \
        --budget latency=2ms --recipe base=cut.yaml --recipe half=int8.yaml --out runs/race

    Exit codes: 0 done, 1 no parent reaches the budget or an artifact does not agree with its model,
    2 something in the command, a recipe or the data is wrong, 130 interrupted.
    """
    be_quiet(quiet)
    import niwaki
    from niwaki.race import read_parents, read_recipes

    named = read_parents(parents)
    training = (
        niwaki.Train(
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, schedule=schedule, average=average
        )
        if epochs
        else None
    )
    with only_json(json):
        result = niwaki.race(
            list(named.values()),
            read_recipes(recipe, named, settings or (), strengths),
            options.task_of(task, data, text, text_pair, label, metric, max_length, pack),
            budget,
            out,
            training=training,
            runtimes=listed(runtimes or []) or None,
            threads=threads,
            seed=seed,
            progress=not quiet,
        )
    print_json(result) if json else typer.echo(f"{result}\n\n{out}")
    if result.winner is None:
        raise typer.Exit(MISSED)
