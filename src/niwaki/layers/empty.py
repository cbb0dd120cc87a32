"""What stands where an attention lost all its heads."""

# B batch, T tokens, D hidden

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.layers.factored import FactoredLinear
from niwaki.layers.relaxed import RelaxedLinear


class EmptyAttention(nn.Module):
    """Attend with no head: the output projection has no column left and puts out its bias alone.

    The projections stay as matrices without rows, so that whoever walks over a layer's parts finds them all; no product
    is computed.

    In a cache of keys and values it counts the tokens, for a decoder asks its first layer how many there were.

    Args:
        attention: the attention, with its heads already cut away; its submodules move here.
        output: name of the output projection where it is part of the attention, else empty.
        heads, head_size: names under which the attention tells the number and the width of its heads; `heads` may be
            empty.
    """

    def __init__(self, attention: nn.Module, output: str, heads: str, head_size: str) -> None:
        super().__init__()
        for name, module in attention.named_children():
            if isinstance(module, nn.Linear | FactoredLinear | RelaxedLinear):
                self.add_module(name, module)
        self.output = output
        if heads:
            setattr(self, heads, 0)
        setattr(self, head_size, int(getattr(attention, head_size)))
        if hasattr(attention, "layer_idx"):
            self.layer_idx = attention.layer_idx

    def forward(self, hidden_states: Tensor, *positional: Any, **arguments: Any) -> tuple[Tensor, None]:
        """Return the attention's output for hidden states (B, T, D), and no attention weights."""
        cache = arguments.get("past_key_values")
        if cache is not None:
            token_B1T1 = hidden_states[:, None, :, :1]  # one number a token, which nobody reads
            cache.update(token_B1T1, token_B1T1, self.layer_idx)
        nothing_BT0 = hidden_states[..., :0]
        return (self.get_submodule(self.output)(nothing_BT0) if self.output else nothing_BT0), None
