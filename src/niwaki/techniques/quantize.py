"""`quantize`: store weights and embeddings as integers, and compute with them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from niwaki.calibrate import input_ranges
from niwaki.packable import packable
from niwaki.surgery import quantize_embedding, quantize_linear
from niwaki.technique import Context, Grain, Technique


class Quantize(Technique):
    """Store weights as 8-bit integers: a quarter of the bytes, and integer products where the processor has them.

    A weight matrix W (O, I) becomes q = round(W / s) in -127..127 with one scale an output channel, s = max|W| / 127.
    An embedding table has one scale a row. Activations become x = (u - z) s with u in 0..255; their range is taken from
    each input at run time ("dynamic"), or once from calibration rows ("static"), or they stay as they are ("none":
    smaller, not faster). The integers in the saved model are the integers in the exported artifact.

    Args:
        bits: bits of a weight; 8.
        activations: "dynamic", "static" or "none". Dynamic needs no calibration and loses least; static saves the pass
            that finds the range.
        embeddings: also store the embedding tables as integers, and a language head tied to one; they are half of a
            small model's bytes.
        skip: dotted names, or patterns with * and ?, of modules that stay as they are.
        examples: training rows for static ranges; padding is never counted. 128 to 1024.
        keep_range: share of the values inside a static range, in (0.5, 1]; below 1 outliers are cut.

    Raises:
        NiwakiError: a pattern of `skip` matches nothing, or everything is packed already.

    Composes with: everything before it; comes last, for nothing may cut what is packed into bits.

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        equation 1. Zafrir et al. 2019, Q8BERT: Quantized 8Bit BERT.

    Example:
        >>> Quantize(bits=8).activations
        'dynamic'
    """

    grain: ClassVar[Grain] = Grain.BIT

    bits: Literal[8] = 8
    activations: Literal["dynamic", "static", "none"] = "dynamic"
    embeddings: bool = True
    skip: tuple[str, ...] = ()
    examples: int = Field(256, ge=1)
    keep_range: float = Field(1.0, gt=0.5, le=1)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Pack the model now."""
        linears, tables = self.chosen(model)
        ranges: dict[str, tuple[float, float]] = {}
        if self.activations == "static":
            ranges = input_ranges(model, linears, context.calibration_batches(self.examples), self.keep_range)
        for name in linears:
            if name in ranges:
                scale, zero_point = affine(*ranges[name])
                quantize_linear(
                    model, module=name, bits=self.bits, activations="static", scale=scale, zero_point=zero_point
                )
            else:
                quantize_linear(model, module=name, bits=self.bits, activations=self.activations)
        for name in tables:
            quantize_embedding(model, module=name, bits=self.bits)
        return model

    def chosen(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return the dotted names of the linears and of the embedding tables to pack."""
        return packable(model, embeddings=self.embeddings, skip=self.skip, technique=self.name)


def affine(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point that map [low, high], widened to hold 0, onto 0..255.

    >>> affine(-100.0, 155.0)
    (1.0, 100)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255.0, 1e-12)
    return scale, int(min(255, max(0, round(-low / scale))))
