"""A graph that lets rows leave by itself: the segments of a chain in one ONNX file, and where each row left beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from niwaki.errors import NiwakiError
from niwaki.runtime.graphs import Graph
from niwaki.runtime.rule import Rule

Array = npt.NDArray[Any]

#: The output that tells where each row left, and the note that tells by what rule.
EXITS = "exits"


@dataclass(frozen=True)
class OneFile:
    """Run the graph."""

    rule: Rule
    graph: Graph

    def classify(self, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return logits (B, C), and at which exit each row left, (B,); E where it stayed to the end."""
        logits_BC, exits_B = self.graph.run(inputs)
        return logits_BC, exits_B

    def every(self, inputs: Mapping[str, Array]) -> Array:
        """Refuse: the file gives what rows leave with, and nothing else."""
        raise NiwakiError(
            "one file with its exits inside does not tell what every exit says", expected="a chain", fix="chain.json"
        )


def in_one_file(graph: Graph, place: str) -> OneFile | None:
    """Return the graph as one that lets rows leave, or None where it does not."""
    if EXITS not in graph.outputs or EXITS not in graph.notes:
        return None
    return OneFile(Rule.read(json.loads(graph.notes[EXITS]), place), graph)
