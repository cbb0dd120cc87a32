"""`factor`: two matrices of low rank in the place of one; at once, or little by little in training."""

from niwaki.techniques.factor.technique import Factor

__all__ = ["Factor"]
