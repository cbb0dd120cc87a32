"""Tell the journal of edits in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from niwaki.report import units
from niwaki.report.folders import Row, section

# how the known families call their numbers of layers (where layers are repeated, of the different ones), heads and
# feed-forward neurons
LAYERS = ("inner_group_num", "num_hidden_layers", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_heads")
NEURONS = ("intermediate_size", "hidden_dim")
VOCABULARY = ("vocab_size",)
HIDDEN = ("hidden_size", "dim")
# the number of a layer in a dotted name, and what follows it
IN_LAYER = re.compile(r"\.(\d+)\.(.+)")
KNOWN = {
    "build",
    "keep_layers",
    "narrow_heads",
    "narrow_neurons",
    "narrow_hidden",
    "narrow_pooler",
    "narrow_vocabulary",
    "factor_linear",
    "factor_embedding",
    "cluster_linear",
    "cluster_embedding",
    "quantize_linear",
    "quantize_embedding",
    "sparsify_linear",
    "swap_attention",
    "extend_positions",
    "tie_weights",
    "relax_linear",
    "reorder_neurons",
    "turn_heads",
    "add_exit",
    "set_thresholds",
    "drop_tokens",
}


@dataclass
class Shape:
    """Follow the edits of a journal without a model.

    Attributes:
        layers: the base's numbers of the layers that are left, in order.
        heads, neurons: what is left of them, by the base's number of the layer.
        together: "heads" or "neurons", and layers that share them, which lose the same ones.
    """

    layers: list[int]
    heads: dict[int, int] = field(default_factory=dict)
    neurons: dict[int, int] = field(default_factory=dict)
    together: list[tuple[str, list[int]]] = field(default_factory=list)

    def tie(self, modules: Sequence[str]) -> None:
        """Note that the layers which these modules stand in share heads or neurons."""
        found = [match for name in modules if (match := IN_LAYER.search(name))]
        layers = [self.layers[int(match[1])] for match in found if int(match[1]) < len(self.layers)]
        if layers:
            self.together.append(("heads" if "att" in found[0][2] else "neurons", layers))

    def users(self, layer: int, part: str) -> list[int]:
        """Return the layers that lose a part's units with this one, itself among them."""
        return [layer, *(one for kind, layers in self.together if kind == part and layer in layers for one in layers)]


def plain_words(journal: Sequence[Row]) -> list[str]:
    """Return one sentence or list for each kind of edit, numbered as the base numbers its layers.

    >>> plain_words([{"edit": "build", "config": {"num_hidden_layers": 6, "num_attention_heads": 12}},
    ...              {"edit": "keep_layers", "layers": [0, 2, 4]},
    ...              {"edit": "narrow_heads", "layer": 1, "heads": [0, 1, 5, 7, 8, 11]}])
    ['layers 0, 2, 4 kept, of 6', 'layer 2: 6 of 12 heads']
    >>> shared = {"edit": "tie_weights", "modules": ["layer.0.output.dense", "layer.1.output.dense"]}
    >>> plain_words([shared, {"edit": "narrow_neurons", "layer": 1, "neurons": [3, 4]}])[0]
    'every layer: 2 neurons'
    """
    config = section(next((record for record in journal if record.get("edit") == "build"), {}), "config")
    total = _total(config, LAYERS)
    shape = _follow(journal, total or _layers_named(journal))
    sentences = []
    if any(record.get("edit") == "keep_layers" for record in journal):
        kept = ", ".join(map(str, shape.layers))
        sentences.append(f"layer{'s' * (len(shape.layers) != 1)} {kept} kept" + (f", of {total}" if total else ""))
    sentences += _widths(shape, _total(config, HEADS), _total(config, NEURONS))
    sentences += _hidden(journal, _total(config, HIDDEN))
    sentences += _sparse(journal)
    sentences += _symmetries(journal)
    sentences += _shared(journal)
    if words := [record for record in journal if record.get("edit") == "narrow_vocabulary"]:
        whole = _total(config, VOCABULARY)
        sentences.append(f"{len(words[-1].get('tokens', [])):,}{f' of {whole:,}' if whole else ''} tokens kept")
    sentences += _attention(journal)
    sentences += _factored(journal)
    sentences += _packed(journal)
    sentences += _exits(journal)
    sentences += _tokens(journal)
    sentences += [_other(record) for record in journal if record.get("edit") not in KNOWN]
    return sentences


def _symmetries(journal: Sequence[Row]) -> list[str]:
    """Tell how many layers are written in another way, and compute what they did.

    >>> _symmetries([{"edit": "reorder_neurons", "layer": 0}, {"edit": "turn_heads", "layer": 0}])
    ['neurons and heads of 1 layer written in another order, to the same function']
    """
    layers = {record.get("layer") for record in journal if record.get("edit") in ("reorder_neurons", "turn_heads")}
    many = f"{len(layers)} layer{'s' * (len(layers) != 1)}"
    return [f"neurons and heads of {many} written in another order, to the same function"] if layers else []


def _follow(journal: Sequence[Row], num_layers: int) -> Shape:
    """Replay the edits on numbers: an edit counts layers as they stand when it is made."""
    shape = Shape(list(range(num_layers)))
    for record in journal:
        if record.get("edit") == "keep_layers":
            shape.layers = [shape.layers[index] for index in record.get("layers", []) if index < len(shape.layers)]
        for edit, part, left in (
            ("narrow_heads", "heads", shape.heads),
            ("narrow_neurons", "neurons", shape.neurons),
        ):
            if record.get("edit") == edit and record.get("layer", -1) in range(len(shape.layers)):
                for layer in shape.users(shape.layers[record["layer"]], part):
                    left[layer] = len(record.get(part, []))
        if record.get("edit") == "tie_weights":
            shape.tie(record.get("modules", []))
    return shape


def _widths(shape: Shape, heads: int | None, neurons: int | None) -> list[str]:
    """Tell what is left inside the layers, like layers together."""
    told = {layer: _width(shape, layer, heads, neurons) for layer in shape.layers}
    told = {layer: text for layer, text in told.items() if text}
    if told and len(told) == len(shape.layers) > 1 and len(set(told.values())) == 1:
        return [f"every layer: {next(iter(told.values()))}"]
    sentences = []
    for text, group in groupby(told, key=lambda layer: told[layer]):
        layers = list(group)
        sentences.append(f"layer{'s' * (len(layers) > 1)} {units.listed([str(layer) for layer in layers])}: {text}")
    return sentences


def _width(shape: Shape, layer: int, heads: int | None, neurons: int | None) -> str:
    parts = []
    for left, total, noun in ((shape.heads, heads, "heads"), (shape.neurons, neurons, "neurons")):
        if layer in left:
            parts.append(f"{left[layer]:,} of {total:,} {noun}" if total else f"{left[layer]:,} {noun}")
    return ", ".join(parts)


def _sparse(journal: Sequence[Row]) -> list[str]:
    """Count what is stored sparse, each linear as it was left last, and say where that pays.

    >>> _sparse([{"edit": "sparsify_linear", "module": "a", "kept": kept} for kept in (9, 5)])
    ['1 linear layer stored sparse, 5 weights left: smaller in model.safetensors; ONNX, OpenVINO hold the zeros']
    """
    records = [record for record in journal if record.get("edit") == "sparsify_linear"]
    left = {record.get("module"): record.get("kept", 0) for record in records}
    if not left:
        return []
    layers = f"{len(left)} linear layer{'s' * (len(left) != 1)}"
    where = "smaller in model.safetensors; ONNX, OpenVINO hold the zeros"
    return [f"{layers} stored sparse, {sum(left.values()):,} weights left: {where}"]


def _shared(journal: Sequence[Row]) -> list[str]:
    """Count the weights that several linears share, and the rank of what each adds.

    >>> _shared([{"edit": "tie_weights", "modules": ["a", "b"]}, {"edit": "tie_weights", "modules": ["c", "d", "e"]}])
    ['5 linear layers share 2 weights: smaller, as many products']
    """
    ties = [record.get("modules", []) for record in journal if record.get("edit") == "tie_weights"]
    if not ties:
        return []
    ranks = sorted({record.get("rank", 0) for record in journal if record.get("edit") == "relax_linear"})
    own = f", each with its own difference of rank {units.listed([str(rank) for rank in ranks])}" if ranks else ""
    weights = f"{len(ties)} weight{'s' * (len(ties) != 1)}"
    layers = len({name for tie in ties for name in tie})
    return [f"{layers} linear layers share {weights}{own}: smaller, as many products"]


def _hidden(journal: Sequence[Row], total: int | None) -> list[str]:
    """Tell how many hidden channels are left, and how many outputs of the pooling linear.

    >>> _hidden([{"edit": "narrow_hidden", "channels": [0, 2]}, {"edit": "narrow_pooler", "outputs": [1, 3]}], 4)
    ['2 of 4 hidden channels', '2 of 4 outputs of the pooling linear']
    """
    sentences = []
    for edit, part, noun in (
        ("narrow_hidden", "channels", "hidden channels"),
        ("narrow_pooler", "outputs", "outputs of the pooling linear"),
    ):
        left = [len(record.get(part, [])) for record in journal if record.get("edit") == edit]
        sentences += [f"{left[-1]:,}{f' of {total:,}' if total else ''} {noun}"] if left else []
    return sentences


def _attention(journal: Sequence[Row]) -> list[str]:
    """Tell how layers attend, and how far the model reads.

    >>> _attention([{"edit": "extend_positions", "tokens": 4096},
    ...             *({"edit": "swap_attention", "layer": layer, "by": "window", "window": 128} for layer in (0, 1))])
    ['positions for 4,096 tokens', '2 layers attend by window of 128']
    """
    longer = [record.get("tokens", 0) for record in journal if record.get("edit") == "extend_positions"]
    swapped = {record.get("layer"): record for record in journal if record.get("edit") == "swap_attention"}
    words = [f"by {one.get('by')}" + (f" of {one['window']}" if "window" in one else "") for one in swapped.values()]
    told = [
        f"{words.count(word)} layer{'s attend' if words.count(word) > 1 else ' attends'} {word}"
        for word in dict.fromkeys(words)
    ]
    return [f"positions for {tokens:,} tokens" for tokens in longer[-1:]] + told


def _factored(journal: Sequence[Row]) -> list[str]:
    """Count what became two matrices of low rank.

    >>> _factored([{"edit": "factor_linear", "module": name, "rank": rank} for name, rank in (("a", 96), ("b", 64))])
    ['2 linear layers as pairs of rank 64 to 96']
    """
    told = []
    for edit, noun in (("factor_embedding", "embedding table"), ("factor_linear", "linear layer")):
        ranks = sorted({record.get("rank", 0) for record in journal if record.get("edit") == edit})
        count = sum(record.get("edit") == edit for record in journal)
        if count:
            plural = "s" * (count > 1)
            shown = " to ".join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))
            head = " and the tied head" * any(record.get("head") for record in journal if record.get("edit") == edit)
            told.append(f"{count} {noun}{plural}{head} as {'pairs' if count > 1 else 'a pair'} of rank {shown}")
    return told


def _packed(journal: Sequence[Row]) -> list[str]:
    """Count what was packed into bits.

    >>> _packed([{"edit": "cluster_linear", "module": name, "bits": 4} for name in "ab"])
    ['2 linear layers as codes of 4 bits: smaller in model.safetensors alone']
    """
    counts: dict[str, int] = {}
    for record in journal:
        if record.get("edit") == "quantize_linear":
            how = {"none": "weights only"}.get(
                str(record.get("activations")), f"{record.get('activations')} activations"
            )
            how += ", 7 of the bits in use" if record.get("reduced") else ""
            key = f"linear layer# in {record.get('bits', 8)} bits ({how})"
        elif record.get("edit") == "quantize_embedding":
            key = f"embedding table# in {record.get('bits', 8)} bits"
        elif record.get("edit") in ("cluster_linear", "cluster_embedding"):
            what = "linear layer#" if record.get("edit") == "cluster_linear" else "embedding table#"
            how = ", Huffman-coded" if record.get("entropy") else ""
            key = f"{what} as codes of {record.get('bits')} bits{how}: smaller in model.safetensors alone"
        else:
            continue
        counts[key] = counts.get(key, 0) + 1
    return [f"{count} {key.replace('#', 's' * (count != 1))}" for key, count in counts.items()]


def _exits(journal: Sequence[Row]) -> list[str]:
    """Tell after which layers texts may leave, and at what.

    >>> _exits([{"edit": "add_exit", "layer": 2}, {"edit": "add_exit", "layer": 1},
    ...         {"edit": "keep_layers", "layers": [0, 2, 3]},
    ...         {"edit": "set_thresholds", "by": "entropy", "thresholds": [0.93]}])
    ['exit after layer 1, by entropy from 0.930']
    """
    layers: list[int] = []
    by, thresholds = "", []
    for record in journal:
        if record.get("edit") == "add_exit":
            layers = sorted([*layers, record.get("layer", 0)])
        elif record.get("edit") == "keep_layers":
            kept = record.get("layers", [])[:-1]
            layers = [kept.index(layer) for layer in layers if layer in kept]
        elif record.get("edit") == "set_thresholds":
            by, thresholds = f", by {record.get('by')}", record.get("thresholds", [])
    if not layers:
        return []
    from niwaki.exit_rule import NEVER

    at = units.listed([units.figures(one) for one in dict.fromkeys(thresholds) if one != NEVER])
    how = f"{by} from {at}" if at else ", at which no text leaves"
    return [f"exit{'s' * (len(layers) > 1)} after layer {units.listed(list(map(str, layers)))}{how}"]


def _tokens(journal: Sequence[Row]) -> list[str]:
    """Tell how tokens are dropped, as it was said last.

    >>> _tokens([{"edit": "drop_tokens", "by": "share", "levels": [0.8, 0.8], "from_length": 64}])
    ['tokens dropped behind 2 layers, by share 0.800, in rows from 64 tokens on']
    >>> _tokens([{"edit": "drop_tokens", "by": "threshold", "levels": [0.0, 0.0]}])
    ['no token is dropped']
    """
    records = [record for record in journal if record.get("edit") == "drop_tokens"]
    if not records:
        return []
    last = records[-1]
    levels = [level for level in last.get("levels", []) if level != (1.0 if last.get("by") == "share" else 0.0)]
    if not levels:
        return ["no token is dropped"]
    shown = " to ".join(units.figures(one) for one in dict.fromkeys((min(levels), max(levels))))
    rows = f", in rows from {last['from_length']} tokens on" if last.get("from_length") else ""
    return [f"tokens dropped behind {len(levels)} layer{'s' * (len(levels) > 1)}, by {last.get('by')} {shown}{rows}"]


def _other(record: Row) -> str:
    """Tell an edit this file does not know, by its arguments, long lists by their length."""
    arguments = [
        f"{units.words(key)} {len(value)}"
        if isinstance(value, list) and len(value) > 8
        else f"{units.words(key)} {value}"
        for key, value in record.items()
        if key != "edit"
    ]
    return f"{units.words(str(record.get('edit')))}: {', '.join(arguments)}"


def _total(config: Row, names: Sequence[str]) -> int | None:
    value = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return value if isinstance(value, int) else None


def _layers_named(journal: Sequence[Row]) -> int:
    """Return the least number of layers that the journal makes sense with."""
    named = [index for record in journal for index in record.get("layers", []) if record.get("edit") == "keep_layers"]
    named += [record["layer"] for record in journal if isinstance(record.get("layer"), int)]
    return max(named, default=-1) + 1
