"""The parts of a model: its layers, their linears and norms, embeddings, pooler and head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from niwaki.anatomy.families import FAMILIES, Family
from niwaki.errors import NiwakiError

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

    @property
    def depth(self) -> int:
        """Return how many layers a text runs through, each time that one runs."""
        return self.num_layers * self.uses

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
    def embedding_projection(self) -> nn.Module | None:
        """Return the linear from embedding to hidden width, or None where there is none."""
        path = self.family.embedding_projection
        return _find(self.model, self.prefix + path) if path else None

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
