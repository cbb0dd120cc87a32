"""Tell what runs came to: `report` writes a page, `card` a model card, `picture` the one picture of a result.

Folders are read, no model is built. matplotlib and jinja2 load on first use, from the extra `report`.

page.py, card.py, picture.py        the three that are written; verb.py writes page and cards
folders.py, log.py, journal.py      what a run folder says
headline.py, tables.py, units.py    numbers in words and in rows
steps.py, usage.py                  how a run was made, credited, used and made again
drawing.py                          matplotlib to SVG that a page can theme
points.py, labels.py, scatter.py    quality against latency and size
race.py                             which parent to start from
redundancy.py                       what each part of a model is worth
curves.py, shares.py                losses; bytes and work by module
"""

from __future__ import annotations

from niwaki.report.card import card
from niwaki.report.picture import picture
from niwaki.report.verb import report

__all__ = ["card", "picture", "report"]
