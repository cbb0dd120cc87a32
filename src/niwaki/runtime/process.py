"""The parent's side of a worker: start it, ask it, and make its death an error that names the artifact."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from niwaki.errors import NiwakiError
from niwaki.runtime.artifact import Array, Batch
from niwaki.runtime.rule import Rule

# -P keeps the working folder off the path: a user's `task.py` must not shadow anything.
COMMAND = (sys.executable, "-P", "-m", "niwaki.runtime")
START_SECONDS = 300.0
REQUEST_SECONDS = 3600.0


def default_threads() -> int:
    """Return the number of physical cores this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@dataclass
class Worker:
    """Hold one artifact in a process of its own; made by `open_worker`, ended by `with`.

    Attributes:
        path, runtime: what runs there.
        process, words: the child, and the file its standard error goes to.
        inputs, precision, rows_independent: of the opened artifact, see `Artifact`.
        rule: by which rows leave, where the artifact has exits.
        memory_baseline_bytes: peak resident bytes before the runtime was imported.
        memory_loaded_bytes: the same once the artifact was open.
    """

    path: Path
    runtime: str
    process: subprocess.Popen[bytes]
    words: IO[bytes]
    inputs: tuple[str, ...] = ()
    precision: str = ""
    rows_independent: bool = False
    rule: Rule | None = None
    memory_baseline_bytes: int = 0
    memory_loaded_bytes: int = 0
    _doing: str = field(default="being started", repr=False)

    def run(self, batches: Sequence[Batch]) -> list[Array]:
        """Return the logits (B, C) of each padded batch."""
        self._doing = "running a batch"
        logits: list[Array] = self._ask("run", batches=list(batches))
        return logits

    def outcomes(self, batches: Sequence[Batch], kind: str) -> list[Array]:
        """Return what is kept of the logits of each padded batch: `kind` is a key of `OUTCOMES`."""
        self._doing = "running a batch"
        kept: list[Array] = self._ask("outcomes", batches=list(batches), kind=kind)
        return kept

    def classify(self, batches: Sequence[Batch]) -> list[tuple[Array, Array]]:
        """Return of each padded batch the logits (B, C), and at which exit each row left, (B,)."""
        self._doing = "running a batch"
        found: list[tuple[Array, Array]] = self._ask("classify", batches=list(batches))
        return found

    def every(self, batches: Sequence[Batch]) -> list[Array]:
        """Return of each padded batch the logits (E + 1, B, C) of every exit and of the end: no row leaves."""
        self._doing = "running a batch"
        logits: list[Array] = self._ask("every", batches=list(batches))
        return logits

    def time(self, batches: Sequence[Batch], warm: Sequence[Batch] = ()) -> list[float]:
        """Return the wall seconds of each batch; `warm` is run before and not recorded."""
        self._doing = "being timed"
        seconds: list[float] = self._ask("time", batches=list(batches), warm=list(warm))
        return seconds

    def peak_memory(self) -> int:
        """Return the worker's peak resident bytes so far."""
        return int(self._ask("peak_memory"))

    def modules(self) -> list[str]:
        """Return the names of the top-level modules the worker has imported."""
        names: list[str] = self._ask("modules")
        return names

    def open(self, threads: int, precision: str | None, seconds: float) -> None:
        """Open the artifact in the worker."""
        self._doing = "being loaded"
        path = self.path.absolute() if self.path.exists() else self.path.as_posix()  # a hub id stays as it is
        what = {"path": str(path), "runtime": self.runtime}
        facts = self._ask("open", seconds, **what, threads=threads, precision=precision)
        for name, value in facts.items():
            setattr(self, name, value)

    def close(self) -> None:
        """End the worker, gently if it listens, and wait until it is gone."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.words.close()

    def __enter__(self) -> Worker:
        """Return the worker itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """End the worker; at once if something went wrong."""
        if error is not None:
            self.process.kill()
        self.close()

    def _ask(self, name: str, seconds: float = REQUEST_SECONDS, /, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        with self._deadline(seconds) as expired:
            try:
                pickle.dump((name, arguments), self.process.stdin, protocol=5)
                self.process.stdin.flush()
                kind, value = pickle.load(self.process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                raise self._death(expired, seconds) from error
        if kind == "error":
            wrong, expected, fix = value
            raise NiwakiError(wrong, expected=expected, fix=fix, place=f"{self.path} in {self.runtime}")
        return value

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the worker after `seconds`; a pipe has no time limit of its own that works on every system."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            timer.join()

    def _death(self, expired: threading.Event, seconds: float) -> NiwakiError:
        """Say how the worker died, with its last words."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        late = f"gave no answer in {seconds:g} seconds"
        how = late if expired.is_set() else _ending(self.process.returncode)
        words = self._last_words()
        said = f"; it said:\n{words}" if words else ""
        return NiwakiError(
            f"the {self.runtime} process {how} while the artifact was {self._doing}{said}",
            expected="a runtime that survives this artifact on this processor",
            fix=f"runtimes without {self.runtime}, or another precision or thread count",
            place=str(self.path),
        )

    def _last_words(self, lines: int = 8) -> str:
        self.words.seek(0)
        text = self.words.read().decode(errors="replace").strip().splitlines()
        return "\n".join(f"    {line}" for line in text[-lines:])


def _ending(code: int | None) -> str:
    """Put a return code in words.

    >>> _ending(-8), _ending(3)
    ('was killed by SIGFPE', 'ended with exit code 3')
    """
    if code is None:
        return "closed its pipe"
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code if 0 <= code < 256 else hex(code & 0xFFFFFFFF)}"


def open_worker(
    path: str | Path,
    runtime: str,
    *,
    threads: int,
    precision: str | None = None,
    start_seconds: float = START_SECONDS,
    command: Sequence[str] = COMMAND,
) -> Worker:
    """Start a process that holds one artifact, and open the artifact in it.

    Args:
        path: as for `open_artifact`, like the next three.
        runtime: one of `RUNTIMES`.
        threads: of one inference.
        precision: "f32", "bf16" or None.
        start_seconds: time to start and load in, seconds above 0.
        command: what to start; the default is this interpreter's `niwaki.runtime`.

    Raises:
        NiwakiError: the artifact cannot be opened; or the process died or did not answer in time.
    """
    words = tempfile.TemporaryFile()  # noqa: SIM115  (the worker closes it)
    process = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, env=_environment(threads)
    )
    worker = Worker(Path(path), runtime, process, words)
    try:
        worker.open(threads, precision, start_seconds)
    except BaseException:
        process.kill()
        worker.close()
        raise
    return worker


def _environment(threads: int) -> dict[str, str]:
    """Return the child's environment: this package on its path, thread pools of one size, nothing printed."""
    package_folder = str(Path(__file__).absolute().parents[2])
    path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH", "")]))
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **pools, **quiet, "PYTHONPATH": path}
