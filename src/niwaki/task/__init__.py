"""What a model is trained for and judged by: rows, labels, loss and metric under one name.

task.py                 the contract, and the registry of kinds
text_classification.py  language_modelling.py  one file a kind
splits.py formats.py    where the rows come from: folder, file or hub; CSV, TSV, JSON lines, Parquet
columns.py labels.py    which column is what, and which number a label gets
texts.py                what kinds share about their texts
tokens.py encoded.py    rows as token ids, flat in memory, and their batches
metrics.py              accuracy, F1, Matthews correlation; nats per token, perplexity
"""

from __future__ import annotations

from niwaki.task.encoded import Dataset, Encoded
from niwaki.task.metrics import METRICS, higher_is_better, outcome_of, score
from niwaki.task.task import KINDS, Rows, Task, TextRows

__all__ = [
    "KINDS",
    "METRICS",
    "Dataset",
    "Encoded",
    "Rows",
    "Task",
    "TextRows",
    "higher_is_better",
    "outcome_of",
    "score",
]
