"""`share`: let layers read the same weights."""

from niwaki.techniques.share.technique import Share

__all__ = ["Share"]
