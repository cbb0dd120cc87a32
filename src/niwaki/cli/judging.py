"""Commands that tell something: measure, compare, ablate, report, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from niwaki.cli import options
from niwaki.cli.app import MISSED, be_quiet, listed, only_json, print_json, tell_misses, verb


@verb
def measure(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a hub id.")],
    data: options.Data,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    long: options.Long = None,
    runtimes: options.Runtimes = None,
    threads: options.Threads = None,
    quick: options.Quick = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure one model on your data.

    Size, operations, latency, throughput, memory and quality, each taken on the artifact that ships, in
    each runtime, with its conditions. To judge one model by another use compare: numbers of two separate
    runs do not compare.

    Examples:
      niwaki measure runs/base --data reviews/
      niwaki measure runs/small --data reviews/ --runtimes onnxruntime,openvino --threads 1 --json

    Exit codes: 0 done, 1 an artifact does not agree with its model, 2 something in the command or the data is
    wrong.
    """
    be_quiet(quiet)
    import niwaki

    work = options.task_of(task, data, text, text_pair, label, metric, max_length, pack, long)
    with only_json(json):
        comparison = niwaki.measure(
            model,
            work,
            runtimes=listed(runtimes or []) or None,
            threads=threads,
            quick=quick,
            seed=seed,
            progress=not quiet,
        )
    print_json(comparison) if json else typer.echo(comparison)


@verb
def compare(
    base: options.Base,
    runs: Annotated[list[str], typer.Argument(help="Run folders, or models, to compare with it.")],
    data: options.Data,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    pack: options.Pack = False,
    long: options.Long = None,
    runtimes: options.Runtimes = None,
    threads: options.Threads = None,
    quick: options.Quick = False,
    seed: options.Seed = 0,
    budget: options.Bounds = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare models with their base.

    All are measured in one session, interleaved, and quality is paired on the same examples. A budget is
    held when all its bounds hold in one runtime. --json prints {"base": NAME, "rows": [...]}.

    Examples:
      niwaki compare runs/base runs/small --data reviews/
      niwaki compare runs/base runs/small runs/smaller --data reviews/ --threads 2 --json > comparison.json
      niwaki compare runs/base runs/small --data reviews/ --budget "size=10MB latency=2ms quality=-1pt"

    Exit codes: 0 done, 1 a run misses the budget or an artifact does not agree with its model,
    2 something in the command or the data is wrong.
    """
    be_quiet(quiet)
    import niwaki

    work = options.task_of(task, data, text, text_pair, label, metric, max_length, pack, long)
    bounds = options.bounds_of(budget, work)
    with only_json(json):
        comparison = niwaki.compare(
            base,
            *runs,
            task=work,
            runtimes=listed(runtimes or []) or None,
            threads=threads,
            quick=quick,
            seed=seed,
            progress=not quiet,
        )
    print_json(comparison) if json else typer.echo(comparison)
    if bounds is not None and tell_misses(bounds, comparison):
        raise typer.Exit(MISSED)


@verb
def ablate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a hub id.")],
    data: options.Data,
    task: options.Kind = "text-classification",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    metric: options.Metric = None,
    max_length: options.MaxLength = None,
    examples: Annotated[int, typer.Option("--examples", help="Rows to look at.")] = 512,
    heads: Annotated[bool, typer.Option(help="Also remove each single head; takes most of the time.")] = True,
    split: Annotated[
        str, typer.Option("--split", help="selection (rows to choose by) or evaluation (rows to report on).")
    ] = "selection",
    out: Annotated[Path | None, typer.Option("--out", help="A picture to write, .svg or .png.")] = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report which layers, heads and feed-forwards are redundant.

    Each part is removed alone, and the quality lost is measured beside the whole model on the same rows. Ends
    with a verdict: whether first and last layers matter more than the middle ones. Nothing is trained.

    Examples:
      niwaki ablate runs/base --data reviews/
      niwaki ablate runs/base --data reviews/ --examples 2000 --out redundancy.svg
      niwaki ablate runs/base --data reviews/ --no-heads --json

    Exit codes: 0 done, 2 something in the command or the data is wrong.
    """
    be_quiet(quiet)
    import niwaki

    work = options.task_of(task, data, text, text_pair, label, metric, max_length)
    with only_json(json):
        ablation = niwaki.ablate(
            model,
            work,
            examples=examples,
            heads=heads,
            split=split,
            out=out,
            threads=threads,
            seed=seed,
            progress=not quiet,
        )
    print_json(ablation) if json else typer.echo(ablation)


@verb
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    quiet: options.Quiet = False,
) -> None:
    """Write an HTML report from run folders.

    One self-contained file (comparison table, quality against latency and size, loss curves, where the
    bytes and the time go), and the model card of each run in its folder. Reads what is in the folders and
    builds no model. Prints the path.

    Examples:
      niwaki report runs/small
      niwaki report runs/small runs/smaller --out report.html

    Exit codes: 0 done, 2 a folder is no run folder, or holds no measurement.
    """
    be_quiet(quiet)
    import niwaki

    typer.echo(niwaki.report(folders, out=out))


@verb
def explain(
    name: Annotated[str | None, typer.Argument(help="A technique, train, or a shipped recipe.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes.")] = False,
) -> None:
    """Explain a technique, or print a shipped recipe.

    Of a technique: the paper in small, where it can stand, and its parameters with their defaults and ranges.
    Without NAME, everything there is to explain, with a line each. --schema is for editors that check YAML.

    Examples:
      niwaki explain
      niwaki explain prune
      niwaki explain encoder-cpu > my.yaml
      niwaki explain --schema > recipe.schema.json

    Exit codes: 0 done, 2 there is nothing of that name.
    """
    import niwaki

    if schema:
        print_json(niwaki.Recipe.schema())
    else:
        typer.echo(niwaki.explain(name))
