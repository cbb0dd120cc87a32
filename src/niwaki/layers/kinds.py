"""The kinds of attention that can stand in the place of the exact one, by name."""

from __future__ import annotations

from typing import Any, Literal

from niwaki.layers.attention import LinearAttention, Mechanism, WindowAttention
from niwaki.layers.nystrom import NystromAttention

Kind = Literal["window", "linear", "nystrom"]
#: The parameters of each kind.
SETTINGS: dict[Kind, tuple[str, ...]] = {
    "window": ("window", "global_tokens"),
    "linear": ("features",),
    "nystrom": ("landmarks",),
}


def build(by: Kind, heads: int, head_size: int, **settings: Any) -> Mechanism:
    """Return the attention of a kind, with its parameters in `SETTINGS`."""
    if by == "window":
        return WindowAttention(heads, **settings)
    if by == "nystrom":
        return NystromAttention(heads, **settings)
    return LinearAttention(heads, head_size, **settings)
