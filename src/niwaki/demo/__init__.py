"""See the whole job done once, without data and without a network.

grammar.py  reviews from frames and words, by a seed
frames.py   the sentence frames: where negation, contrast, other people's verdicts stand
lexicon.py  the words, in five domains
files.py    the reviews as train.csv and validation.csv
weights.py  the base: a small real model, checked
job.py      the verb
"""

from __future__ import annotations

from niwaki.demo.files import write_reviews
from niwaki.demo.grammar import Review, reviews
from niwaki.demo.job import demo
from niwaki.demo.weights import find_base

__all__ = ["Review", "demo", "find_base", "reviews", "write_reviews"]
