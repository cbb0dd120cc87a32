"""Tell what runs came to: `report` writes a page, `card` a model card, `picture` the one picture of a result.

Folders are read, no model is built. matplotlib and jinja2 load on first use, from the extra `report`.
"""

from __future__ import annotations

from niwaki.report.card import card
from niwaki.report.page import report
from niwaki.report.picture import picture

__all__ = ["card", "picture", "report"]
