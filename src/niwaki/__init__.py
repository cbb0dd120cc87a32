"""Turn a fine-tuned transformer into a smaller and faster one, as a file to ship, with the proof.

The public API on one screen. Each name is loaded on first use, so that `import niwaki` is fast.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

_HOME = {
    # values
    "Task": "task",
    "Recipe": "recipe",
    "Train": "train",
    "Attend": "techniques.attend.technique",
    "Cluster": "techniques.cluster",
    "Distill": "techniques.distill",
    "Drop": "techniques.drop",
    "DropTokens": "techniques.drop_tokens.technique",
    "Exit": "techniques.exit.technique",
    "Factor": "techniques.factor",
    "Prune": "techniques.prune",
    "Quantize": "techniques.quantize",
    "Replace": "techniques.replace",
    "Share": "techniques.share",
    "Trim": "techniques.trim",
    "Measurement": "measure",
    "Budget": "budget",
    # for those who write techniques
    "Technique": "technique",
    "Companion": "technique",
    "Context": "technique",
    # verbs
    "finetune": "finetune",
    "compress": "run",
    "measure": "comparison",
    "compare": "comparison",
    "race": "race",
    "ablate": "ablation",
    "export": "artifacts",
    "load": "checkpoint",
    "report": "report",
    "explain": "explain",
    "demo": "demo",
    # mistakes
    "NiwakiError": "errors",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module, once."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("niwaki")
    elif name in _HOME:
        found = getattr(importlib.import_module(f"niwaki.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


class _Package(types.ModuleType):
    """Keep the verbs: importing the module `niwaki.measure` must not put it where that verb stands."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if TYPE_CHECKING:
    from niwaki.ablation import ablate as ablate
    from niwaki.artifacts import export as export
    from niwaki.budget import Budget as Budget
    from niwaki.checkpoint import load as load
    from niwaki.comparison import compare as compare
    from niwaki.comparison import measure as measure
    from niwaki.demo import demo as demo
    from niwaki.errors import NiwakiError as NiwakiError
    from niwaki.explain import explain as explain
    from niwaki.finetune import finetune as finetune
    from niwaki.measure import Measurement as Measurement
    from niwaki.race import race as race
    from niwaki.recipe import Recipe as Recipe
    from niwaki.report import report as report
    from niwaki.run import compress as compress
    from niwaki.task import Task as Task
    from niwaki.technique import Companion as Companion
    from niwaki.technique import Context as Context
    from niwaki.technique import Technique as Technique
    from niwaki.techniques.attend.technique import Attend as Attend
    from niwaki.techniques.cluster import Cluster as Cluster
    from niwaki.techniques.distill import Distill as Distill
    from niwaki.techniques.drop import Drop as Drop
    from niwaki.techniques.drop_tokens.technique import DropTokens as DropTokens
    from niwaki.techniques.exit.technique import Exit as Exit
    from niwaki.techniques.factor import Factor as Factor
    from niwaki.techniques.prune import Prune as Prune
    from niwaki.techniques.quantize import Quantize as Quantize
    from niwaki.techniques.replace import Replace as Replace
    from niwaki.techniques.share import Share as Share
    from niwaki.techniques.trim import Trim as Trim
    from niwaki.train import Train as Train

    __version__: str
