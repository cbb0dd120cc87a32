"""The command `niwaki`: one command for each verb. It parses, calls and prints; there is no logic in it.

app.py holds what all commands share (errors, exit codes, pure JSON), options.py the options, and the verbs
stand in making.py (finetune, compress, export, demo), racing.py (race) and judging.py (measure, compare,
ablate, report, explain).
"""

from niwaki.cli import judging, making, racing  # noqa: F401  (they register their commands)
from niwaki.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name="niwaki")
