"""The child process: holds one artifact, answers requests on its standard streams until they close.

Requests and replies are pickles between a parent and the child it started itself: one interpreter, one
machine, no third party.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from niwaki.errors import NiwakiError
from niwaki.runtime.artifact import Artifact, Batch, open_artifact
from niwaki.runtime.outcomes import OUTCOMES

SETTLE_STEP_SECONDS = 0.02
SETTLE_LIMIT_SECONDS = 3.0


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which closes the pipe
    faulthandler.enable()
    requests, replies = _private_streams()
    service = Service()
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_answer(getattr(service, name), arguments), replies, protocol=5)
        replies.flush()


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Take the two pipes away from everyone else: what a library prints goes to standard error."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _answer(method: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    """Call a method; an exception becomes the parts of an error message."""
    try:
        return "value", method(**arguments)
    except NiwakiError as error:
        return "error", (error.wrong, error.expected, error.fix)
    except Exception as error:
        return "error", (f"{type(error).__name__}: {error}", "", "")


class Service:
    """Do what the parent asks, on one artifact."""

    def __init__(self) -> None:
        self.baseline_bytes = peak_memory_bytes()
        self.artifact: Artifact | None = None

    def open(self, path: str, runtime: str, threads: int, precision: str | None) -> dict[str, Any]:
        """Open the artifact and say how it will run."""
        self.artifact = open_artifact(path, runtime, threads, precision, alone=True)
        return {
            "inputs": self.artifact.inputs,
            "precision": self.artifact.precision,
            "rows_independent": self.artifact.rows_independent,
            "rule": self.artifact.exits and self.artifact.exits.rule,
            "memory_baseline_bytes": self.baseline_bytes,
            "memory_loaded_bytes": peak_memory_bytes(),
        }

    def run(self, batches: Sequence[Batch]) -> list[Any]:
        """Return the logits (B, C) of each batch."""
        artifact = self._opened()
        return [artifact(batch) for batch in batches]

    def outcomes(self, batches: Sequence[Batch], kind: str) -> list[Any]:
        """Return what is kept of the logits of each batch: `kind` is a key of `OUTCOMES`."""
        artifact = self._opened()
        return [OUTCOMES[kind](artifact(batch), batch) for batch in batches]

    def classify(self, batches: Sequence[Batch]) -> list[tuple[Any, Any]]:
        """Return of each batch the logits (B, C), and at which exit each row left, (B,)."""
        artifact = self._opened()
        return [artifact.classify(batch) for batch in batches]

    def every(self, batches: Sequence[Batch]) -> list[Any]:
        """Return of each batch the logits (E + 1, B, C) of every exit and of the end."""
        artifact = self._opened()
        if artifact.exits is None:
            raise NiwakiError("the artifact has no exits", expected="a chain, or a model folder with exits")
        return [artifact.exits.every(artifact.prepare(batch)) for batch in batches]

    def time(self, batches: Sequence[Batch], warm: Sequence[Batch]) -> list[float]:
        """Return the seconds of each batch, after running `warm` unrecorded."""
        artifact = self._opened()
        prepared, warm_prepared = ([artifact.prepare(batch) for batch in some] for some in (batches, warm))
        seconds = time_calls(artifact.run, prepared, warm_prepared)
        settle()
        return seconds

    def peak_memory(self) -> int:
        """Return the peak resident bytes of this process so far."""
        return peak_memory_bytes()

    def modules(self) -> list[str]:
        """Return the names of the top-level modules this process has imported."""
        return sorted({name.partition(".")[0] for name in sys.modules})

    def _opened(self) -> Artifact:
        if self.artifact is None:
            raise NiwakiError("no artifact is open")
        return self.artifact


def time_calls(call: Callable[[Any], Any], inputs: Sequence[Any], warm: Sequence[Any] = ()) -> list[float]:
    """Return the wall seconds of each call, after the `warm` ones, with the garbage collector held off."""
    seconds = []
    gc.collect()  # before the warm calls: it would cool the caches they warm
    gc.disable()
    try:
        for prepared in warm:
            call(prepared)
        for prepared in inputs:
            begin = time.perf_counter()
            call(prepared)
            seconds.append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return seconds


def settle() -> None:
    """Return when this process' threads have stopped spinning.

    Thread pools (ONNX Runtime, OpenMP) go on spinning for 1 to 1000 ms after the last call, on the cores that
    the next subject is to be timed on. Turning spinning off would be simpler, and would time a configuration
    that nobody deploys; so every block runs with it and ends when the process uses no more processor time
    (`process_time` counts all threads).
    """
    limit = time.monotonic() + SETTLE_LIMIT_SECONDS
    while time.monotonic() < limit:
        begin = time.process_time()
        time.sleep(SETTLE_STEP_SECONDS)
        if time.process_time() - begin < 0.05 * SETTLE_STEP_SECONDS:
            return


def peak_memory_bytes() -> int:
    """Return the peak resident bytes of this process.

    `ru_maxrss` is only the second choice: on Linux it survives `exec`, so a child's begins at its parent's
    size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
