"""`quantize`: store weights and embeddings as integers, and compute with them."""

from niwaki.techniques.quantize.technique import Quantize, affine

__all__ = ["Quantize", "affine"]
