"""Rewrite an encoder for export: the same function of the same weights, with less work in its graph.

A model written for training computes things an artifact never needs. What is taken out, or done once:

* the classification head reads the first token alone, so in the last layer the query, the output projection and
  the feed-forward run for that token alone;
* query, key and value read one input: it is rounded to bytes once, and the three products become one;
* an attention without heads or a feed-forward without neurons adds its bias alone;
* an attention that sees a window, or is linear, makes no mask with a row for each query;
* tokens that a layer drops are taken out before its output projection, not behind it;
* clustered weights are looked up once, and stand in the file as floats;
* the token-type row is added to the position table when all types are 0, and the attention mask is expanded once.

The user's model is never touched: the rewritten one borrows its modules. Only what is recognised is rewritten; any
other model is exported as it stands.
"""

# B batch, T tokens, Q queries (T, or 1 in the last layer), D hidden, H heads, C classes

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import FAMILIES, Anatomy, Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.export.together import Together, alike
from niwaki.layers.attention import Mechanism, apart, attend, side_by_side
from niwaki.layers.codebook import in_floats
from niwaki.layers.dropping import TokenDropper, attend_and_score, droppers_of, taken, to_front
from niwaki.layers.empty import EmptyAttention
from niwaki.layers.linear import QuantizedEmbedding
from niwaki.layers.packed import PackedEmbedding

#: Class names of layer and attention that the rewriting knows by heart, by family.
_KNOWN = {
    "bert": ("BertForSequenceClassification", "BertLayer", "BertSelfAttention"),
    "roberta": ("RobertaForSequenceClassification", "RobertaLayer", "RobertaSelfAttention"),
    "electra": ("ElectraForSequenceClassification", "ElectraLayer", "ElectraSelfAttention"),
    "distilbert": ("DistilBertForSequenceClassification", "TransformerBlock", "DistilBertSelfAttention"),
    "albert": ("AlbertForSequenceClassification", "AlbertLayer", "AlbertAttention"),
}

#: The linear before the classifier, and its activation, of families that have them beside each other.
_BEFORE: dict[str, tuple[str, Any]] = {
    "distilbert": ("pre_classifier", torch.relu),
    "albert": ("albert.pooler", torch.tanh),
}


def prepare(model: nn.Module, token_types: bool) -> nn.Module:
    """Return a module from input_ids, attention_mask[, token_type_ids], all int64 (B, T), to logits (B, C).

    Args:
        model: in eval mode; it is not changed, and its modules are shared with the result.
        token_types: whether the artifact takes token types; else they are all 0.

    Raises:
        NiwakiError: it drops tokens, and is not one that is rewritten.
    """
    model = in_floats(model)
    if is_known(model):
        return LeanClassifier(anatomy_of(model), token_types)
    if droppers_of(model):
        raise NiwakiError(
            f"a {type(model).__name__} that drops tokens has parts that export does not know",
            expected=f"a plain classifier: {', '.join(classifier for classifier, *_ in _KNOWN.values())}",
        )
    return AsItStands(model)


def is_known(model: nn.Module) -> bool:
    """Say whether every part of the model that a rewrite replaces is the one it was written for."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in _KNOWN or kind not in FAMILIES or not FAMILIES[kind].first_token:
        return False
    classifier, layer, attention = _KNOWN[kind]
    layers = anatomy_of(model).layers
    parts = [model, *(part.module for part in layers), *(part.attention for part in layers)]
    attentions = [attention if part.heads else EmptyAttention.__name__ for part in layers]
    expected = [classifier, *[layer] * len(layers), *attentions]
    plain = not getattr(config, "is_decoder", False) and not getattr(config, "add_cross_attention", False)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return plain and not hooked and [type(part).__name__ for part in parts] == expected


class AsItStands(nn.Module):
    """Call a Transformers model and return its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits (B, C)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits)


class LeanClassifier(nn.Module):
    """Classify a text by its first token."""

    def __init__(self, anatomy: Anatomy, token_types: bool) -> None:
        super().__init__()
        model = anatomy.model
        self.embeddings = LeanEmbeddings(anatomy, token_types)
        apart = shares_with_last(anatomy)
        inner = [LeanLayer(layer, first_token=False, merges=layer.index not in apart) for layer in anatomy.layers]
        final = anatomy.layers[-1]
        last = LeanLayer(final, first_token=_is_enough(final), merges=final.index not in apart)
        self.layers = nn.ModuleList([*(inner * anatomy.uses)[:-1], last])
        self.head = cast("Callable[[Tensor], Tensor]", _Head(model, anatomy.family.name))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits (B, C)."""
        return self.head(through(self.layers, self.embeddings(input_ids, token_type_ids), attention_mask))


def through(layers: Iterable[Any], hidden_BTD: Tensor, attention_mask: Tensor) -> Tensor:
    """Return hidden states (B, Q, D) behind lean layers, of those (B, T, D) before them and the mask (B, T)."""
    layers = list(layers)
    mask_B11T = attention_mask.to(torch.bool)[:, None, None, :]
    # The runtime's attention wants a row of the mask for each query; one expansion serves all layers up to one that
    # drops tokens.
    in_full = any(layer.in_full for layer in layers)
    mask_B1TT = mask_B11T.expand(-1, -1, hidden_BTD.shape[1], -1) if in_full else mask_B11T
    for layer in layers:
        if layer.dropper is None:
            hidden_BTD = layer(hidden_BTD, mask_B1TT if layer.in_full else mask_B11T)
            continue
        hidden_BTD, mask_B11T = layer.drop(hidden_BTD, mask_B11T)
        mask_B1TT = mask_B11T.expand(-1, -1, hidden_BTD.shape[1], -1) if in_full else mask_B11T
    return hidden_BTD


class LeanEmbeddings(nn.Module):
    """Add word, position and token-type rows, normalise, and project where the family does."""

    def __init__(self, anatomy: Anatomy, token_types: bool) -> None:
        super().__init__()
        source: Any = anatomy.embeddings
        self.words = source.word_embeddings
        self.positions = source.position_embeddings
        self.types = getattr(source, "token_type_embeddings", None)
        self.norm = source.LayerNorm
        self.projection = anatomy.embedding_projection
        self.pad = int(source.padding_idx) if anatomy.family.name == "roberta" else None
        if self.types is not None and not token_types:
            self._fold_first_type(table_of(self.types)[0])

    def _fold_first_type(self, row_D: Tensor) -> None:
        """Add the row of type 0 to the positions: into their table if it is in floats, else as a constant."""
        self.types = None
        if isinstance(self.positions, nn.Embedding):
            self.positions = nn.Embedding.from_pretrained(self.positions.weight.detach() + row_D)
        else:
            self.register_buffer("first_type_D", row_D.clone())

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return hidden states (B, T, D)."""
        added = self._position_rows(input_ids)
        if hasattr(self, "first_type_D"):
            added = added + cast(Tensor, self.first_type_D)
        if self.types is not None and token_type_ids is not None:
            added = added + self.types(token_type_ids)
        hidden_BTD = self.norm(self.words(input_ids) + added)
        return cast(Tensor, hidden_BTD if self.projection is None else self.projection(hidden_BTD))

    def _position_rows(self, input_ids: Tensor) -> Tensor:
        """Return the rows of the positions, (T, D), or (B, T, D) where they depend on padding."""
        if self.pad is not None:
            # RoBERTa counts from its padding id, and only tokens that are not padding.
            counted = input_ids.ne(self.pad).to(torch.int64)
            return cast(Tensor, self.positions(counted.cumsum(dim=1) * counted + self.pad))
        length = input_ids.shape[1]
        if isinstance(self.positions, QuantizedEmbedding):
            return self.positions.weight[:length].to(torch.float32) * self.positions.scale[:length]
        if isinstance(self.positions, nn.Embedding):
            return self.positions.weight[:length]
        return cast(Tensor, self.positions(torch.arange(length, device=input_ids.device)))


class LeanLayer(nn.Module):
    """Attend and feed forward, for every token or for the first alone.

    Args:
        layer: of the model.
        first_token: give the state of the first token alone.
        merges: make one product of query, key and value where possible.
    """

    def __init__(self, layer: Layer, first_token: bool, merges: bool = True) -> None:
        super().__init__()
        self.first_token = first_token
        self.heads, self.neurons = layer.heads, layer.neurons
        self.scaling = layer.head_size**-0.5
        self.mechanism: Mechanism | None = getattr(layer.attention, "mechanism", None)
        self.dropper: TokenDropper | None = None if first_token else getattr(layer.attention, "dropper", None)
        self.in_full = not (first_token or self.mechanism or self.dropper)
        shared = [layer.part(role) for role in ("query", "key", "value")]
        self.alike = alike(shared)
        if self.heads and first_token:
            self.query, self.key_value = Together(shared[:1]), Together(shared[1:], merges)
        elif self.heads:
            self.projections = Together(shared, merges)
        self.output, self.attention_norm = layer.part("output"), layer.part("attention_norm")
        self.up, self.down, self.output_norm = layer.part("up"), layer.part("down"), layer.part("output_norm")
        self.activation = _activation_of(layer)

    def forward(self, hidden_BTD: Tensor, mask_B1QT: Tensor) -> Tensor:
        """Return hidden states (B, Q, D)."""
        hidden_BQD = hidden_BTD[:, :1] if self.first_token else hidden_BTD
        return self._feed(self._attend(hidden_BTD, mask_B1QT) + hidden_BQD)

    def drop(self, hidden_BTD: Tensor, mask_B11T: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states (B, K, D) and the mask (B, 1, 1, K) of the tokens that stay."""
        assert self.dropper is not None
        real_BT = mask_B11T[:, 0, 0]
        query, key, value = (apart(states_BTD, self.heads) for states_BTD in self._project(hidden_BTD))
        context_BHTS, scores_BT = attend_and_score(query, key, value, real_BT, self.scaling)
        stays_BT = self.dropper(scores_BT, real_BT)
        index_BK = to_front(stays_BT)
        context_BKD = taken(side_by_side(context_BHTS), index_BK)
        hidden_BKD = self._feed(self.output(context_BKD) + taken(hidden_BTD, index_BK))
        return hidden_BKD, stays_BT.gather(1, index_BK)[:, None, None, :]

    def _feed(self, summed_BQD: Tensor) -> Tensor:
        """Return hidden states (B, Q, D), of the sum of those before the attention and what it put out."""
        hidden_BQD = self.attention_norm(summed_BQD)
        fed_BQD = self.down(self.activation(self.up(hidden_BQD))) if self.neurons else self.down.bias
        return cast(Tensor, self.output_norm(fed_BQD + hidden_BQD))

    def _attend(self, hidden_BTD: Tensor, mask_B1QT: Tensor) -> Tensor:
        """Return the attention's output (B, Q, D), or its bias (D) where it has no heads."""
        if not self.heads:
            return cast(Tensor, self.output.bias)
        query_BQD, key_BTD, value_BTD = self._project(hidden_BTD)
        if self.mechanism is None:
            context_BQD = attend(query_BQD, key_BTD, value_BTD, mask_B1QT, self.heads, self.scaling)
        else:
            ask = self.mechanism.first if self.first_token else self.mechanism
            context_BQD = ask(query_BQD, key_BTD, value_BTD, mask_B1QT[:, 0, 0], self.scaling)
        return cast(Tensor, self.output(context_BQD))

    def _project(self, hidden_BTD: Tensor) -> Sequence[Tensor]:
        """Return query (B, Q, D'), key and value (B, T, D')."""
        if not self.first_token:
            return cast("Sequence[Tensor]", self.projections(hidden_BTD))
        if not self.alike:
            return (*self.query(hidden_BTD[:, :1]), *self.key_value(hidden_BTD))
        inputs = self.key_value.share(hidden_BTD)
        # What is shared begins with the input, rounded or not; scale and zero point stay those of all tokens.
        first = (inputs[0][:, :1], *inputs[1:])
        return (*self.query.multiply(*first), *self.key_value.multiply(*inputs))


class _Head(nn.Module):
    """Apply a family's classification head to hidden states whose first token is the text's."""

    def __init__(self, model: Any, family: str) -> None:
        super().__init__()
        self.classifier = model.classifier
        self.pooler = model.bert.pooler if family == "bert" else None
        path, self.activation = _BEFORE.get(family, ("", None))
        self.before = model.get_submodule(path) if path else None

    def forward(self, hidden_BQD: Tensor) -> Tensor:
        """Return logits (B, C)."""
        if self.pooler is not None:
            return cast(Tensor, self.classifier(self.pooler(hidden_BQD)))
        if self.before is not None:
            return cast(Tensor, self.classifier(self.activation(self.before(hidden_BQD[:, 0]))))
        return cast(Tensor, self.classifier(hidden_BQD))


def _activation_of(layer: Layer) -> Any:
    """Return the function between a feed-forward's linears."""
    module: Any = layer.module
    name = layer.family.name
    holder = module if name == "albert" else module.ffn if name == "distilbert" else module.intermediate
    return getattr(holder, "activation", None) or holder.intermediate_act_fn


def _is_enough(layer: Layer) -> bool:
    """Say whether the first token's query is all that a layer needs to answer for that token."""
    mechanism: Mechanism | None = getattr(layer.attention, "mechanism", None)
    return mechanism is None or mechanism.first_alone


def shares_with_last(anatomy: Anatomy) -> set[int]:
    """Return the last layer and those that share its key's or value's weight, or nothing where it runs once, alone.

    The last layer's query stands apart from its key and value; so the products of those that share its weights do not
    become one, or the file would hold these weights twice.
    """
    weights = [{one for role in ("key", "value") for one in _tensors(layer.part(role))} for layer in anatomy.layers]
    sharing = {index for index, own in enumerate(weights) if own & weights[-1]}
    return sharing if len(sharing) > 1 or anatomy.uses > 1 else set()


def _tensors(linear: nn.Module) -> set[int]:
    """Return what tells the tensors of a linear apart from others."""
    return {id(tensor) for tensor in linear.state_dict(keep_vars=True).values()}


def table_of(embedding: nn.Module) -> Tensor:
    """Return an embedding's table in floats, (V, D)."""
    if isinstance(embedding, QuantizedEmbedding | PackedEmbedding):
        return embedding.dequantized()
    return cast(Tensor, embedding.weight).detach()
