"""The kinds of attention that can stand in the place of the exact one, by name."""

from __future__ import annotations

from typing import Any, Literal

from niwaki.layers.attention import Mechanism, WindowAttention
from niwaki.layers.hybrid import HybridAttention
from niwaki.layers.linear_attention import LinearAttention
from niwaki.layers.nystrom import NystromAttention

Kind = Literal["window", "linear", "nystrom", "hybrid"]
#: The kinds for models that read from left to right; the others are for encoders.
OF_DECODERS: tuple[Kind, ...] = ("hybrid",)
#: The parameters of each kind.
SETTINGS: dict[Kind, tuple[str, ...]] = {
    "window": ("window", "global_tokens"),
    "linear": ("features",),
    "nystrom": ("landmarks",),
    "hybrid": ("window", "features"),
}


def build(by: Kind, heads: int, head_size: int, key_value_heads: int | None = None, **settings: Any) -> Mechanism:
    """Return the attention of a kind, with its parameters in `SETTINGS`; heads share keys in "hybrid" alone."""
    mechanism: Mechanism
    if by == "window":
        mechanism = WindowAttention(heads, **settings)
    elif by == "nystrom":
        mechanism = NystromAttention(heads, **settings)
    elif by == "hybrid":
        mechanism = HybridAttention(heads, head_size, key_value_heads or heads, **settings)
    else:
        mechanism = LinearAttention(heads, head_size, **settings)
    mechanism.form = (by, settings)
    return mechanism
