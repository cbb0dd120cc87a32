"""The edit of the vocabulary, and what the model itself says of its tokens."""

# V vocabulary, D hidden

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.surgery.cutting import as_table, check_indices
from niwaki.surgery.journal import Record, edit


@edit
def narrow_vocabulary(model: nn.Module, *, tokens: list[int]) -> None:
    """Keep these tokens' rows of the word table, and of an output head over the vocabulary; ids count anew from 0.

    The ids that the config names follow. What shared a tensor with the table shares the narrowed one.

    Args:
        model: any model of a known family.
        tokens: ids, ascending, `fixed_tokens` among them.
    """
    anatomy = anatomy_of(model)
    table = word_table(model)
    check_indices(tokens, table.num_embeddings, "tokens")
    new = {old: index for index, old in enumerate(tokens)}
    if missing := sorted(fixed_tokens(model) - new.keys()):
        raise NiwakiError(f"tokens {missing} would go", expected="what the model itself names among those that stay")
    head = anatomy.vocabulary_head
    if head is not None:
        model.tie_weights()  # type: ignore[operator]  # built on the meta device, a model has lost its ties
    index = torch.tensor(tokens, device=table.weight.device)
    wide = [table.weight, *(head.parameters(recurse=False) if head else ())]
    narrow = {
        id(one): (one, nn.Parameter(one.detach().index_select(0, index), requires_grad=one.requires_grad))
        for one in wide
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in narrow:
                setattr(module, name, narrow[id(parameter)][1])
    table.num_embeddings = len(tokens)
    if table.padding_idx is not None:
        table.padding_idx = new[table.padding_idx]
    if isinstance(head, nn.Linear):
        head.out_features = len(tokens)
    for name, value in _named_tokens(model).items():
        ids = [new.get(one, one) for one in value]
        setattr(model.config, name, ids if isinstance(getattr(model.config, name), list) else ids[0])
    model.config.vocab_size = len(tokens)  # type: ignore[union-attr]


def word_table(model: nn.Module) -> nn.Embedding:
    """Return the word table (V, D), or say that it is packed."""
    return as_table(anatomy_of(model).word_embeddings, "the word table")


def fixed_tokens(model: nn.Module) -> set[int]:
    """Return the ids of the tokens that the model itself names, so that none of them can go.

    Where positions count from the padding's id (RoBERTa), every token before it stays too: the padding keeps its id.
    """
    table = word_table(model)
    fixed = {one for value in _named_tokens(model).values() for one in value if 0 <= one < table.num_embeddings}
    if table.padding_idx is not None:
        fixed.add(table.padding_idx)
    for module in anatomy_of(model).embeddings.modules():
        if isinstance(module, nn.Embedding) and module is not table and module.padding_idx is not None:
            fixed |= set(range(module.padding_idx + 1))
    return fixed


def vocabulary_of(records: Sequence[Record]) -> list[int] | None:
    """Return, for each token after these edits, its id before them; None when all ids are as they were."""
    ids: list[int] | None = None
    for record in records:
        if record["edit"] == "narrow_vocabulary":
            ids = list(record["tokens"]) if ids is None else [ids[token] for token in record["tokens"]]
    return ids


def _named_tokens(model: nn.Module) -> dict[str, list[int]]:
    """Return the ids of each entry of the config that names tokens (`pad_token_id` and the like)."""
    config: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr,operator]
    named = {name: value for name, value in config.items() if name.endswith("token_id") and value is not None}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items()}
