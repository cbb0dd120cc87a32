"""Execute artifacts: open one as a callable, here or in a process of its own.

`open_artifact` opens it in this process. `open_worker` opens it in a fresh process, so that its memory is the
deployment's and a native crash is an error of ours. Nothing here imports torch unless the artifact is a torch
folder.
"""

from __future__ import annotations

from niwaki.runtime.artifact import RUNTIMES, Artifact, installed, open_artifact, size_on_disk
from niwaki.runtime.outcomes import OUTCOMES
from niwaki.runtime.process import Worker, default_threads, open_worker

__all__ = [
    "OUTCOMES",
    "RUNTIMES",
    "Artifact",
    "Worker",
    "default_threads",
    "installed",
    "open_artifact",
    "open_worker",
    "size_on_disk",
]
