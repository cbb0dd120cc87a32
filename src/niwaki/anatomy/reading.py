"""What a model reads, how much of it, and the names of what it answers."""

from __future__ import annotations

from typing import Any

from torch import nn

from niwaki.errors import NiwakiError


def label_names(model: nn.Module) -> list[str]:
    """Return the names of the classes, in id order."""
    config: Any = model.config
    return [config.id2label[index] for index in sorted(config.id2label)]


def first_position(model: nn.Module) -> int:
    """Return the position of a text's first token: RoBERTa counts from its padding index + 1, the others from 0."""
    config: Any = model.config
    return int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0


def longest_read(model: nn.Module) -> int:
    """Return how many tokens a model has positions for."""
    config: Any = model.config
    return int(config.max_position_embeddings) - first_position(model)


def longest_input(model: nn.Module, tokenizer: Any, asked: int | None = None) -> int:
    """Return how many tokens a text is cut to: `asked`, or what model and tokenizer can read.

    Raises:
        NiwakiError: more is asked for than the model can read.
    """
    reads = int(min(longest_read(model), tokenizer.model_max_length))
    if asked is not None and asked > reads:
        raise NiwakiError(f"max_length is {asked}", expected=f"at most {reads}, which the model can read")
    return asked or reads
