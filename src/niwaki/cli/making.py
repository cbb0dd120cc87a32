"""Commands that make something: finetune, compress, export, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from niwaki.cli import options
from niwaki.cli.app import MISSED, be_quiet, listed, only_json, print_json, tell_misses, verb
from niwaki.errors import NiwakiError

Best = Annotated[bool, typer.Option("--best", help="Keep the best epoch on held-out rows, not the last.")]

Recipe = Annotated[
    str,
    typer.Option("--recipe", help="A YAML file, or a shipped recipe by name (niwaki explain lists them)."),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read a decoder from disk block by block, and measure nothing; else only one too large for the memory.",
    ),
]
Exports = Annotated[
    list[str] | None,
    typer.Option(
        "--export",
        help="Artifacts to write: onnx (the default but for language models), openvino, safetensors, or none.",
    ),
]


@verb
def finetune(
    model: Annotated[str, typer.Argument(help="A pre-trained model: a folder or a hub id.")],
    data: options.Data,
    out: options.OutFolder,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training rows, 2 to 4.")] = 2.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Highest; 2e-5 to 2e-4.")] = 8e-5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows in a step, 16 to 128.")] = 64,
    best: Best = False,
    schedule: options.Schedule = "linear",
    average: options.Average = 0.0,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune a model on your data.

    The result is the base that compress starts from: a plain Transformers folder with model, tokenizer and
    label names. Prints its path. Run the same command again to resume what was interrupted.

    Examples:
      niwaki finetune sentence-transformers/all-MiniLM-L6-v2 --data reviews/ --out runs/base
      niwaki finetune path/to/model --data pairs.csv --text premise --text-pair hypothesis --out runs/base
      niwaki finetune path/to/model --data reviews/ --epochs 3 --learning-rate 5e-5 --out runs/base

    Exit codes: 0 done, 2 something in the command or the data is wrong, 130 interrupted.
    """
    be_quiet(quiet)
    import niwaki

    run = niwaki.finetune(
        model,
        options.task_of(task, data, text, text_pair, label, metric, max_length, pack),
        out,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        best=best,
        schedule=schedule,
        average=average,
        threads=threads,
        seed=seed,
        progress=not quiet,
    )
    typer.echo(run.folder)


@verb
def compress(
    base: options.Base,
    recipe: Recipe,
    data: options.Data,
    out: options.OutFolder,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    long: options.Long = None,
    settings: options.Settings = None,
    export: Exports = None,
    budget: options.Bounds = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Compare with the base and write the model card.")
    ] = True,
    runtimes: options.Runtimes = None,
    threads: options.Threads = None,
    stream: Stream = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a fine-tuned model by a recipe.

    Writes a run folder with the model, its artifacts, the comparison with the base, the model card and the
    log, and prints the comparison; the base is left as it was. Run the same command again to resume what was
    interrupted. With --budget, a missed bound ends in exit 1. A recipe with a list of targets makes a run
    for each of them.

    Examples:
      niwaki compress runs/base --data reviews/ --recipe encoder-cpu --out runs/small
      niwaki compress runs/base --data reviews/ --recipe my.yaml -s "steps[0].train.epochs=2" --out runs/b
      niwaki compress runs/base --data reviews/ --recipe my.yaml --budget "size=10MB quality=97%" --out runs/c

    Exit codes: 0 done, 1 the budget is missed or an artifact does not agree with its model,
    2 something in the command, the recipe or the data is wrong, 130 interrupted.
    """
    be_quiet(quiet)
    import niwaki

    steps = niwaki.Recipe.read(recipe).replaced(settings or [])
    work = options.task_of(task, data, text, text_pair, label, metric, max_length, pack, long)
    bounds = options.bounds_of(budget, work)
    wanted = None if export is None else listed(export)
    with only_json(json):
        run = niwaki.compress(
            base,
            steps,
            work,
            out,
            seed=seed,
            export=wanted,
            measure=measure or bounds is not None,
            runtimes=listed(runtimes or []) or None,
            threads=threads,
            progress=not quiet,
            stream=_stream_under(bounds is not None, stream),
        )
    folders = [str(member.folder) for member in run.members]
    if not (measure or bounds) or not run.is_measured:
        if measure and not quiet:
            typer.echo("the model was read from disk block by block: nothing was measured", err=True)
        one_or_more = {"run": folders[0]} if len(folders) == 1 else {"runs": folders}
        print_json(one_or_more) if json else typer.echo("\n".join(folders))
        return
    comparison = run.comparison
    cards = "\n".join(f"{folder}/README.md" for folder in folders)
    print_json(comparison) if json else typer.echo(f"{comparison}\n\n{cards}")
    if bounds is not None and tell_misses(bounds, comparison):
        raise typer.Exit(MISSED)


def _stream_under(budget: bool, stream: bool | None) -> bool | None:
    """Return whether to stream: not under a budget, which wants a measurement."""
    if budget and stream:
        raise NiwakiError(
            "a budget is held by what is measured, and with --stream nothing is",
            expected="--budget or --stream",
            fix="--stream, and niwaki compare on a machine that holds the base",
        )
    return False if budget else stream


@verb
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or the folder of a fine-tuned model.")],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino or safetensors.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", help="The file to write, else RUN/artifacts/.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Rows to check on; a run knows its own.")] = None,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model as a file to ship.

    The file is run on real inputs and compared with the model before anything is said to be done; one that
    does not agree is an error, and is not kept. Prints the path of the artifact.

    Examples:
      niwaki export runs/small
      niwaki export runs/small --to openvino
      niwaki export runs/pruned --to safetensors
      niwaki export runs/base --to onnx --data reviews/ --out base.onnx

    Exit codes: 0 done, 1 the artifact does not agree with its model, 2 something in the command is wrong.
    """
    be_quiet(quiet)
    import niwaki

    rows = options.task_of(task, data, text, text_pair, label, None, max_length, pack) if data else None
    with only_json(json):
        path = niwaki.export(run, to, out, task=rows)
    print_json({"artifact": str(path), "to": to}) if json else typer.echo(path)


@verb
def demo(
    out: options.OutFolder = Path("runs/demo"),
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """See it all once, on data made here.

    A small real model is fine-tuned, compressed, measured and reported. Needs no data of yours, and no
    network where the model is installed. Leaves the comparison, the report, the card and the artifacts in
    the folder.

    Examples:
      niwaki demo
      niwaki demo --out runs/first-look --json

    Exit codes: 0 done, 2 something is missing (the message says what), 130 interrupted.
    """
    be_quiet(quiet)
    import niwaki

    with only_json(json):
        comparison = niwaki.demo(out=out, progress=not quiet)
    print_json(comparison) if json else typer.echo(comparison)
