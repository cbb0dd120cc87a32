"""Keep what exporters print, log and warn away from the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_TALKERS = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "openvino", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters; an error they raise carries on, with nothing hidden."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
