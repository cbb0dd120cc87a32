"""`exit`: let easy texts leave before the last layer."""

from niwaki.techniques.exit.technique import Exit

__all__ = ["Exit"]
