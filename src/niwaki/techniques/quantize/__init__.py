"""`quantize`: store weights and embeddings as integers, and compute with them."""

from niwaki.techniques.quantize.packing import affine
from niwaki.techniques.quantize.technique import Quantize

__all__ = ["Quantize", "affine"]
