"""`report`: the page about runs, and the model card of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from niwaki.report.card import card
from niwaki.report.folders import Place, read_runs
from niwaki.report.page import page


def report(folders: Place | Sequence[Place], out: Place = "report.html") -> Path:
    """Write one self-contained HTML file about runs, and the model card of each into its folder.

    The page holds the comparison, quality against latency and size, losses, and where bytes and time go.

    Args:
        folders: run folders, folders that hold runs, or JSON files of comparisons; one or several.
        out: file to write.

    Returns:
        The HTML file.

    Raises:
        NiwakiError: no measured run is there, or matplotlib or jinja2 is not installed.
    """
    runs = read_runs([folders] if isinstance(folders, str | os.PathLike) else folders)
    for run in runs:
        if run.path.is_dir() and (run.recipe or run.journal):
            card(run.path)
    return page(runs, Path(out))
