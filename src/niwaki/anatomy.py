"""Where a transformer's parts are: one table per model family.

A table holds attribute paths, not modules, so that it describes a model on any device, the meta device too.
A new family is one more row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from niwaki.errors import NiwakiError


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


#: The kinds of units that a layer has.
UNITS = ("heads", "neurons")


@dataclass(frozen=True)
class Layer:
    """Give the parts of one layer by their role, whatever the family calls them."""

    family: Family
    index: int
    path: str
    module: nn.Module

    def part(self, role: str) -> nn.Module:
        """Return the module that plays `role` (a field name of `Family`)."""
        return self.module.get_submodule(getattr(self.family, role))

    def name_of(self, role: str) -> str:
        """Return the dotted name, in the whole model, of the module that plays `role`."""
        return f"{self.path}.{getattr(self.family, role)}"

    @property
    def attention(self) -> nn.Module:
        """Return the module that knows how many heads there are."""
        return self.part("attention")

    @property
    def heads(self) -> int:
        """Return the number of attention heads that are left."""
        if self.family.heads:
            return int(getattr(self.attention, self.family.heads))
        return rows_of(self.part("query")) // self.head_size

    @property
    def key_value_heads(self) -> int:
        """Return the number of key and value heads that are left: fewer than heads where several share one."""
        return rows_of(self.part("key")) // self.head_size

    @property
    def group_size(self) -> int:
        """Return how many heads share one key and value head: 1 but in grouped-query attention."""
        return self.heads // max(1, self.key_value_heads) or 1

    def heads_of(self, groups: list[int]) -> list[int]:
        """Return the heads of these groups: those that share the keys and values of one."""
        return [head for group in groups for head in range(group * self.group_size, (group + 1) * self.group_size)]

    def units(self, kind: str) -> int:
        """Return how many units of a kind can go one by one: "heads" (groups that share keys and values), "neurons"."""
        return self.key_value_heads if kind == "heads" else self.neurons

    def reader(self, kind: str) -> nn.Linear:
        """Return what reads the units of a kind: the output ("heads") or the down projection ("neurons")."""
        return cast(nn.Linear, self.part("output" if kind == "heads" else "down"))

    def unit_width(self, kind: str) -> int:
        """Return how many inputs of their reader belong to one unit of a kind."""
        return self.group_size * self.head_size if kind == "heads" else 1

    @property
    def norms_inside(self) -> bool:
        """Say whether the attention module adds its input and normalises: without heads it is still needed."""
        return self.family.attention_norm.startswith(f"{self.family.attention}.")

    @property
    def head_size(self) -> int:
        """Return the width of one head."""
        return int(getattr(self.attention, self.family.head_size))

    @property
    def neurons(self) -> int:
        """Return the number of feed-forward neurons that are left."""
        return rows_of(self.part("up"))


@dataclass(frozen=True)
class Anatomy:
    """Give the parts of a model by their role."""

    family: Family
    model: nn.Module

    @property
    def prefix(self) -> str:
        """Return the dotted name of the backbone, with its dot, or nothing where the model is a bare backbone."""
        return f"{self.family.backbone}." if hasattr(self.model, self.family.backbone) else ""

    @property
    def layers_name(self) -> str:
        """Return the dotted name of the list of layers."""
        return self.prefix + self.family.layers

    @property
    def layer_list(self) -> nn.ModuleList:
        """Return the list of layers itself."""
        layers = self.model.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def num_layers(self) -> int:
        """Return the number of layers that are left."""
        return len(self.layer_list)

    @property
    def uses(self) -> int:
        """Return how many times the layers run, one after the other: 1 but in a family that repeats them."""
        return int(getattr(self.model.config, self.family.config_uses)) if self.family.config_uses else 1

    def refuse_repeated(self, what: str, fix: str = "") -> None:
        """Refuse what needs layers that run once, in a model that runs the same ones again and again."""
        if self.family.config_uses:
            layers = "one layer" if self.num_layers == 1 else "the same layers"
            raise NiwakiError(
                f"{what}: {_article(self.family.name)} runs {layers} {self.uses} times",
                expected="a model whose layers each run once",
                fix=fix,
            )

    @property
    def layers(self) -> list[Layer]:
        """Return the layers from input to output."""
        return [
            Layer(self.family, index, f"{self.layers_name}.{index}", module)
            for index, module in enumerate(self.layer_list)
        ]

    @property
    def embeddings(self) -> nn.Module:
        """Return the embedding block."""
        return self.model.get_submodule(self.prefix + self.family.embeddings)

    @property
    def word_embeddings(self) -> nn.Module:
        """Return the token table (V, D)."""
        return self.model.get_submodule(self.prefix + self.family.word_embeddings)

    @property
    def pooler(self) -> nn.Module | None:
        """Return the pooling linear, or None where the model has none."""
        return _find(self.model, self.family.pooler)

    @property
    def head(self) -> nn.Module | None:
        """Return the linear that gives the logits, or None where the model is a bare backbone."""
        head = _find(self.model, self.family.head)
        return self.language_head if head is None else head

    @property
    def language_head(self) -> nn.Module | None:
        """Return the linear from hidden state to vocabulary, or None where the model writes no text."""
        return _find(self.model, self.family.language_head)

    @property
    def tied_names(self) -> tuple[str, str] | None:
        """Return the dotted names of head and word table, where the config ties them and both are stored alike."""
        head, table = self.language_head, self.word_embeddings
        names = (self.family.language_head, self.prefix + self.family.word_embeddings)
        if head is None or not getattr(self.model.config, "tie_word_embeddings", False):
            return None
        if hasattr(head, "outer") and hasattr(table, "inner"):  # of two factors each, those with a row a word
            head, table = head.get_submodule("outer"), table.get_submodule("inner")
            names = (f"{names[0]}.outer", f"{names[1]}.inner")
        # what a module stores first is its matrix, in floats, integers or codes
        first = [next(iter(part.state_dict(keep_vars=True).items()), ("", None)) for part in (head, table)]
        stored = [(name, tensor.shape, tensor.dtype) for name, tensor in first if tensor is not None]
        alike = len(stored) == 2 and stored[0] == stored[1]
        return names if alike else None

    @property
    def vocabulary_head(self) -> nn.Module | None:
        """Return the linear that gives a score to each token of the vocabulary, or None in a classifier."""
        found = getattr(self.model, "get_output_embeddings", None)
        head: nn.Module | None = found() if found else None
        return head

    def embedding_names(self) -> Iterator[str]:
        """Yield the dotted name of every embedding table; what is inside one (of two factors) is none."""
        start = self.prefix + self.family.embeddings
        modules = dict(self.embeddings.named_modules())
        for name, module in modules.items():
            inside = bool(name) and hasattr(modules[name.rpartition(".")[0]], "num_embeddings")
            if hasattr(module, "num_embeddings") and not inside:
                yield f"{start}.{name}" if name else start

    def linear_names(self) -> Iterator[str]:
        """Yield the dotted name of every linear inside the layers, of a pair both, from input to output."""
        for layer in self.layers:
            for role in ("query", "key", "value", "output", "gate", "up", "down"):
                if getattr(layer.family, role):
                    halves = (".inner", ".outer") if hasattr(layer.part(role), "outer") else ("",)
                    yield from (f"{layer.name_of(role)}{half}" for half in halves)


def rows_of(module: nn.Module) -> int:
    """Return the number of rows of a linear's or an embedding's weight: outputs, or words."""
    if isinstance(outputs := getattr(module, "out_features", None), int):
        return outputs  # of a linear of several the weight is a product, or there is none
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at `path`, or None."""
    found: nn.Module | None = model
    for part in path.split("."):
        found = getattr(found, part, None) if part else None
    return found


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find the anatomy of a Transformers model by `config.model_type`.

    Raises:
        NiwakiError: the family is not known; the known ones are listed.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise NiwakiError(
            f"the model family {kind!r} is not known",
            expected=f"one of {', '.join(sorted(FAMILIES))}",
            fix="a model of a known family, or add its table to niwaki.anatomy.FAMILIES",
        )
    groups = getattr(cast(Any, model).config, "num_hidden_groups", 1)
    if groups > 1:
        raise NiwakiError(
            f"{_article(kind)} with {groups} groups of layers", expected="one group, as the published ones have"
        )
    return Anatomy(FAMILIES[kind], model)


def uses_of(model: nn.Module) -> int:
    """Return how many times the layers of any model run in one pass; 1 where its family is not known."""
    known = getattr(getattr(model, "config", None), "model_type", None) in FAMILIES
    return anatomy_of(model).uses if known else 1


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


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
