"""A cache for `generate` that does not grow: what hybrid attention remembers in the place of all keys and values."""

# B batch, K key and value heads, T tokens, S width of a head

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.hybrid import HybridAttention, Past


def recurrent_cache(model: nn.Module) -> Cache:
    """Return an empty cache for `generate`, or for step-by-step calls: `past_key_values=recurrent_cache(model)`.

    A layer of hybrid attention keeps its last keys and values and its sums, the same number of bytes whatever has been
    read; a layer whose attention is exact keeps all keys and values, as ever.

    Args:
        model: a decoder with hybrid attention in one layer at least. The cache is for this one model.

    Raises:
        NiwakiError: no layer has it.
    """
    layers: list[Any] = [_layer_of(getattr(layer.attention, "mechanism", None)) for layer in anatomy_of(model).layers]
    if not any(isinstance(layer, RecurrentLayer) for layer in layers):
        raise NiwakiError(
            "no layer of the model has a state that does not grow",
            expected="hybrid attention",
            fix="attend: {by: hybrid}; or the cache that Transformers makes itself",
        )
    return Cache(layers=layers)


def _layer_of(mechanism: nn.Module | None) -> CacheLayerMixin:
    return RecurrentLayer(mechanism) if isinstance(mechanism, HybridAttention) else DynamicLayer()


class RecurrentLayer(CacheLayerMixin):
    """Hand a layer's attention what it remembers, and keep it from one call to the next.

    Transformers asks `update` for keys and values just before it asks the attention. Those that come are returned as
    they are: the rest of the past is not in them but in `past`.
    """

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, mechanism: HybridAttention) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mechanism, self.read = mechanism, 0
        self.past: Past | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first call makes what is kept."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Let the attention read this memory in the call that follows; return keys and values (B, K, T, S)."""
        self.is_initialized = True
        self.read += key_states.shape[-2]
        self.mechanism.memory = self
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens there will be, and that none is left out."""
        return self.read + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many tokens were read."""
        return self.read

    def get_max_length(self) -> int:
        """Return -1: any number."""
        return -1

    def offload(self) -> None:
        """Do nothing: it is small."""

    def prefetch(self) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Forget all."""
        self.past, self.read, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow these beams."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        self.past = self.past and self.past.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self.past is not None:
            self.past = self.past.select(torch.arange(len(self.past.real)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what has gone into a sum does not come out again."""
        if tokens_to_remove:
            raise NiwakiError(
                f"{abs(tokens_to_remove)} tokens are to be forgotten, which are in sums by now",
                expected="generation that goes forward alone, without an assistant",
            )
