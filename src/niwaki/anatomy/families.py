"""One table per model family: where its parts are.

A table holds attribute paths, not modules, so that it describes a model on any device, the meta device too.
A new family is one more row of `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Hold the attribute paths of one model family.

    Attributes:
        name: `config.model_type` of the family.
        backbone: attribute of the task model that holds the encoder or decoder.
        embeddings: the embedding block, below the backbone.
        word_embeddings: the token table, below the backbone.
        embedding_projection: the linear from embedding to hidden width where a family has one (else empty).
        layers: the list of layers, below the backbone.
        query, key, value, output: attention projections, below a layer.
        attention: the module that holds the number of heads and their size, below a layer.
        heads, head_size, all_head_size: attribute names on `attention` (all but `head_size` may be empty: the
            number of heads is then told by the rows of the projections).
        up, down: the feed-forward's two linears, below a layer.
        gate: the linear whose activation multiplies what `up` gives, where a family has one (else empty).
        attention_norm, output_norm: the two norms of a layer, below it.
        pre_norm: whether they stand before attention and feed-forward, inside the residual branch, not after the sum.
        final_norm: the norm after the last layer, below the backbone, where a family has one (else empty).
        pooler: the pooling linear, below the task model (may be absent in a model).
        head: the classification linear, below the task model.
        language_head: the linear from hidden state to vocabulary, below the task model, of a family that writes text.
        first_token: whether the classification head reads the first token's hidden state alone.
        config_layers, config_neurons: names of the counts in the config.
        config_uses: name of the number of times that the same layers run, in a family that repeats them (else empty).
        config_heads: the same of heads.
        config_key_value_heads: the same of key and value heads, of a family whose config states the size of a head too
            (under the name `head_size`); in the others it is the hidden width divided by the number of heads.
    """

    name: str
    backbone: str
    embeddings: str = "embeddings"
    word_embeddings: str = "embeddings.word_embeddings"
    embedding_projection: str = ""
    layers: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention: str = "attention.self"
    heads: str = "num_attention_heads"
    head_size: str = "attention_head_size"
    all_head_size: str = "all_head_size"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    gate: str = ""
    attention_norm: str = "attention.output.LayerNorm"
    output_norm: str = "output.LayerNorm"
    pre_norm: bool = False
    final_norm: str = ""
    pooler: str = ""
    head: str = "classifier"
    language_head: str = ""
    first_token: bool = True
    config_layers: str = "num_hidden_layers"
    config_neurons: str = "intermediate_size"
    config_heads: str = "num_attention_heads"
    config_key_value_heads: str = ""
    config_uses: str = ""


def _llama(name: str) -> Family:
    """Return the table of a decoder built as Llama is: norms first, a gated feed-forward, grouped-query attention."""
    return Family(
        name,
        backbone="model",
        embeddings="embed_tokens",
        word_embeddings="embed_tokens",
        layers="layers",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        attention="self_attn",
        heads="",
        head_size="head_dim",
        all_head_size="",
        up="mlp.up_proj",
        down="mlp.down_proj",
        gate="mlp.gate_proj",
        attention_norm="input_layernorm",
        output_norm="post_attention_layernorm",
        pre_norm=True,
        final_norm="norm",
        head="score",
        language_head="lm_head",
        first_token=False,
        config_key_value_heads="num_key_value_heads",
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("bert", backbone="bert", pooler="bert.pooler.dense"),
        Family("roberta", backbone="roberta", pooler="classifier.dense", head="classifier.out_proj"),
        Family(
            "electra",
            backbone="electra",
            embedding_projection="embeddings_project",
            pooler="classifier.dense",
            head="classifier.out_proj",
        ),
        Family(
            "distilbert",
            backbone="distilbert",
            layers="transformer.layer",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            attention="attention",
            heads="n_heads",
            all_head_size="",
            up="ffn.lin1",
            down="ffn.lin2",
            attention_norm="sa_layer_norm",
            output_norm="output_layer_norm",
            pooler="pre_classifier",
            config_layers="n_layers",
            config_neurons="hidden_dim",
            config_heads="n_heads",
        ),
        Family(
            "albert",
            backbone="albert",
            embedding_projection="encoder.embedding_hidden_mapping_in",
            layers="encoder.albert_layer_groups.0.albert_layers",
            query="attention.query",
            key="attention.key",
            value="attention.value",
            output="attention.dense",
            attention="attention",
            up="ffn",
            down="ffn_output",
            attention_norm="attention.LayerNorm",
            output_norm="full_layer_layer_norm",
            pooler="albert.pooler",
            config_layers="",
            config_uses="num_hidden_layers",
        ),
        _llama("llama"),
        _llama("mistral"),
        _llama("qwen2"),
    )
}
