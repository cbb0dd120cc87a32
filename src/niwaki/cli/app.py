"""What all commands share: how errors are told, what exit codes mean, and that --json prints JSON only."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
import typer
from typer.core import TyperGroup

from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from niwaki.budget import Budget

OK, MISSED, BAD_INPUT, FAULT, INTERRUPTED = 0, 1, 2, 3, 130
ORDER = ("finetune", "compress", "measure", "compare", "race", "ablate", "export", "report", "explain", "demo")
RESUMES = ("compress", "finetune", "race", "demo")


class Verbs(TyperGroup):
    """Run a command, and end with a plain message and a code that means something."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let --debug stand anywhere."""
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """List the verbs in the order they are used in."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; tell what the user can mend in red, and all else with its traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resume = ctx.invoked_subcommand in RESUMES
            typer.echo("interrupted" + (": run the same command to resume" if resume else ""), err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (NiwakiError, pydantic.ValidationError) as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
            # A goal that was missed (a mismatch of an exported artifact) carries its own code.
            raise typer.Exit(getattr(error, "exit_code", BAD_INPUT)) from None
        except Exception as error:
            # Typer's own exceptions carry their code; a closed pipe is Typer's to handle.
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise
            traceback.print_exc()
            raise typer.Exit(FAULT) from None


HELP = """Turn a fine-tuned transformer into a smaller and faster one, as a file to ship, with the proof.

Examples:
  niwaki demo
  niwaki finetune path/or/hub-id --data reviews/ --out runs/base
  niwaki compress runs/base --data reviews/ --recipe encoder-cpu --out runs/small
  niwaki compare runs/base runs/small --data reviews/
  niwaki report runs/small --out report.html
  niwaki explain prune

Exit codes of every command:
  0    done
  1    a budget was missed, or an artifact does not agree with its model
  2    something in the command, the recipe or the data is wrong; the message says what to write instead
  3    a fault that is not yours to mend; the traceback is printed
  130  interrupted
"""


def kept_lines(text: str) -> str:
    """Mark the paragraphs whose line breaks are to be kept, as Typer wants it."""
    return re.sub(r"^(?=Examples:|Exit codes)", "\b\n", text, flags=re.MULTILINE)


app = typer.Typer(
    cls=Verbs,
    name="niwaki",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


Verb = TypeVar("Verb", bound=Callable[..., None])


def verb(function: Verb) -> Verb:
    """Register a command; its docstring is its help."""
    return app.command(help=kept_lines(inspect.getdoc(function) or ""))(function)


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"niwaki {version('niwaki')}")
        raise typer.Exit


@app.callback(help=kept_lines(HELP))
def niwaki(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Send what is printed meanwhile to stderr, that of C++ libraries too, so that stdout holds JSON only."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def be_quiet(quiet: bool) -> None:
    """Silence the progress bars and notes of the libraries underneath; errors stay."""
    if quiet:
        os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def print_json(result: Any) -> None:
    """Print as JSON what a verb returned: a comparison, or plain data."""
    if hasattr(result, "to_json"):
        typer.echo(result.to_json())
    else:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))


def listed(words: list[str]) -> tuple[str, ...]:
    """Split words at commas: ["torch,openvino"] is ("torch", "openvino"); "none" is nothing."""
    parts = [part.strip() for word in words for part in word.split(",")]
    return tuple(part for part in parts if part and part != "none")


def tell_misses(budget: Budget, comparison: Any) -> bool:
    """Print to stderr what each model misses, and say whether any does."""
    missed = {name: misses for name, misses in budget.judge(comparison.rows, comparison.base).items() if misses}
    for name, misses in missed.items():
        for miss in misses:
            typer.secho(f"budget missed: {name}: {miss}", fg=typer.colors.RED, err=True)
    return bool(missed)
