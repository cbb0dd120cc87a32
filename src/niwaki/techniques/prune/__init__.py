"""`prune`: heads, neurons, channels and single weights; at once, or learnt in training."""

from niwaki.techniques.prune.technique import Keep, Prune

__all__ = ["Keep", "Prune"]
