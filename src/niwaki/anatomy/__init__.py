"""Where a transformer's parts are.

families.py  one table per model family
parts.py     the parts of a model, by its family's table
reading.py   what a model reads, and the names of what it answers
"""

from niwaki.anatomy.families import FAMILIES, Family
from niwaki.anatomy.parts import UNITS, Anatomy, Layer, anatomy_of, rows_of, uses_of
from niwaki.anatomy.reading import first_position, label_names, longest_input, longest_read

__all__ = [
    "FAMILIES",
    "UNITS",
    "Anatomy",
    "Family",
    "Layer",
    "anatomy_of",
    "first_position",
    "label_names",
    "longest_input",
    "longest_read",
    "rows_of",
    "uses_of",
]
