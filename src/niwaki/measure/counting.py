"""Count parameters, bytes and multiply-accumulates of a model, in total and by part."""

# B batch, T tokens, D hidden, H heads, O outputs, I inputs

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.checkpoint import stored
from niwaki.layers.codebook import Codebook
from niwaki.layers.factored import FactoredLinear
from niwaki.layers.packed import Packed
from niwaki.layers.relaxed import RelaxedLinear
from niwaki.task import Encoded

LAYER = re.compile(r"(?:^|\.)(?:(?:albert_)?layers?|h|blocks?)\.(\d+)\.(.+)$")
ATTENTION = re.compile(r"^(?:attention|attn|self_attn|self_attention|sa_layer_norm|input_layernorm|ln_1)\.")
PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__}


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights and biases a model holds, in whatever bits; tied tensors count once.

    Scales and zero points of quantization are bookkeeping and do not count.
    """
    return sum(_weights_in(model, name, tensor) for name, tensor in _own_tensors(model))


def count_macs_per_token(model: nn.Module, examples: Encoded | Mapping[str, Tensor]) -> float:
    """Return the multiply-accumulates of one forward, per token.

    All matrix products count. Linears do by the shape of their weight (O, I), whatever its bits. Attention
    scores and contexts are 2 T^2 D a layer, so the number belongs to the length it was taken at. Look-ups,
    norms, activations and softmax are no matrix products.

    Args:
        model: a Transformers model, edited or not.
        examples: a split, of which the row nearest to the mean length is taken; or a batch (B, T) without
            padding.
    """
    batch = _batch_of(examples)
    return sum(_macs_by_module(model, batch).values()) / batch["input_ids"].numel()


def module_table(model: nn.Module, examples: Encoded | Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return rows `module`, `parameters`, `bytes`, `macs_per_token`: where size and work are.

    Parts are "embeddings", then "layer 0 attention", "layer 0 feed-forward", ..., then "head". Bytes are
    those of the tensors as stored, scales included. A tied tensor belongs to the first part that holds it.
    """
    batch = _batch_of(examples)
    parameters: Counter[str] = Counter()
    size_bytes: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for name, tensor in _own_tensors(model):
        parameters[part_of(name)] += _weights_in(model, name, tensor)
    for name, tensor in stored(model)[0].items():
        size_bytes[part_of(name)] += tensor.nbytes
    for name, count in _macs_by_module(model, batch).items():
        macs[part_of(name)] += count
    tokens = batch["input_ids"].numel()
    return [
        {
            "module": part,
            "parameters": parameters[part],
            "bytes": size_bytes[part],
            "macs_per_token": macs[part] / tokens,
        }
        for part in sorted(size_bytes.keys() | macs.keys(), key=_place_of)
    ]


def part_of(name: str) -> str:
    """Return the part of the model that a module or tensor name belongs to.

    >>> part_of("bert.encoder.layer.2.attention.self.query"), part_of("distilbert.transformer.layer.0.ffn")
    ('layer 2 attention', 'layer 0 feed-forward')
    >>> part_of("electra.embeddings_project.weight"), part_of("classifier.out_proj.bias")
    ('embeddings', 'head')
    """
    match = LAYER.search(name)
    if match:
        return f"layer {match[1]} {'attention' if ATTENTION.match(match[2] + '.') else 'feed-forward'}"
    return "embeddings" if "embed" in name else "head"


def _place_of(part: str) -> tuple[int, int, str]:
    """Sort embeddings first, then layers by number, then the head."""
    if part.startswith("layer "):
        return 1, int(part.split()[1]), part
    return (0 if part == "embeddings" else 2), 0, part


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of what the model's file holds, each tensor once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _weights_in(model: nn.Module, name: str, tensor: Tensor) -> int:
    """Return how many weights or biases a tensor holds: a parameter, or the integers or codes that took its place."""
    home, _, leaf = name.rpartition(".")
    module = model.get_submodule(home)
    if isinstance(module, Packed) and leaf == "weight":
        return len(tensor) * module.width
    if leaf == "codes":
        return module.num_weights if isinstance(module, Codebook) else 0
    return tensor.numel() if isinstance(tensor, nn.Parameter) or leaf in ("weight", "bias") else 0


def _batch_of(examples: Encoded | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs of a forward: the given batch, or the row nearest to the mean length."""
    if isinstance(examples, Mapping):
        batch = dict(examples)
    else:
        nearest = int(np.argmin(np.abs(examples.lengths - examples.lengths.mean())))
        batch = examples.batch([nearest])
    batch.pop("labels", None)
    return batch


def _macs_by_module(model: nn.Module, batch: Mapping[str, Tensor]) -> Counter[str]:
    """Return the multiply-accumulates of one forward by the name of the module that does them."""
    counter = _ProductCounter()
    training, device = model.training, next(iter(model.state_dict().values())).device
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.enter_context(counter.watching(name, module))
        stack.enter_context(torch.no_grad())
        stack.callback(model.train, training)
        model.eval()
        with counter:
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return counter.macs


class _ProductCounter(TorchFunctionMode):
    """Count multiply-accumulates while a model runs, under the name of the innermost module.

    Linears are counted by a hook from the shape of their weight, so that an operator of our own (int8) counts
    like torch's; what they call inside is not counted again. Products of two activations, which is attention,
    are counted where they are called: torch's own counter of operations sees nothing of fused attention on a
    CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.names: list[str] = []
        self.linears = 0

    @contextmanager
    def watching(self, name: str, module: nn.Module) -> Iterator[None]:
        """Keep track of when the module runs."""

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.names.append(name)
            self.linears += _is_linear(module, inputs)

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.names.pop()
            if _is_linear(module, inputs):
                self.linears -= 1
                weight: Any = module.weight
                self.macs[name] += inputs[0].numel() * weight.shape[0]

        handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the function and count it if it multiplies matrices outside a linear."""
        output = function(*args, **(kwargs or {}))
        if self.names and not self.linears:
            self.macs[self.names[-1]] += _product_macs(function, args, kwargs or {}, output)
        return output


def _is_linear(module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Say whether a module multiplies its floating input (..., I) by a weight (O, I).

    What is made of several linears leaves it to them.
    """
    if isinstance(module, FactoredLinear | RelaxedLinear):
        return False
    if not (inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point()):
        return False  # before its weight is asked for: that of a table in two factors is a product, and would count
    weight = getattr(module, "weight", None)
    if not (isinstance(weight, Tensor) and weight.dim() == 2):
        return False
    width = module.width if isinstance(module, Packed) else weight.shape[1]
    return bool(inputs[0].shape[-1] == width)


def _product_macs(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> int:
    """Return the multiply-accumulates of one torch function, 0 for all that is no product of matrices."""
    if function is nn.functional.scaled_dot_product_attention:
        named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
        query, key, value = named["query"], named["key"], named["value"]
        scores = query.numel() * key.shape[-2]  # (B, H, T, D) x (B, H, D, T)
        contexts = output.numel() * value.shape[-2]  # (B, H, T, T) x (B, H, T, D)
        return int(scores + contexts)
    if function in PRODUCTS:
        return int(output.numel() * args[0].shape[-1])
    return 0
