"""Run rows through a model and gather what techniques decide by: logits, ranges, influence, products of inputs."""

# B batch, T tokens, D hidden, C classes, N rows, I inputs of a linear

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of, uses_of
from niwaki.batching import in_row_order, length_sorted
from niwaki.layers.dropping import dropping
from niwaki.task import Encoded

Batches = Iterable[dict[str, Tensor]]


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch that the model's forward takes."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode, without gradients, while the block lasts."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with no gradients by its weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


def predict(
    model: nn.Module,
    rows: Encoded,
    batch_size: int = 64,
    keep: Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray] = lambda logits, batch: logits,
) -> np.ndarray:
    """Return the logits (N, C) of all rows, in their order, or what `keep` makes of those of a batch.

    Batches hold rows of like length.
    """
    device = next(model.parameters()).device
    batches = length_sorted(rows.lengths, batch_size)
    parts = []
    with evaluating(model):
        for indices in batches:
            inputs = inputs_of(rows.batch(indices))
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits.float().cpu().numpy()
            parts.append(keep(logits, {name: value.numpy() for name, value in inputs.items()}))
    return in_row_order(batches, parts)


@contextlib.contextmanager
def watched(modules: dict[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `see(name, input, output)` whenever one of the modules ran, while the block lasts."""

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            see(name, inputs[0], output)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Sizes:
    """Hold how large the inputs of a module are.

    Attributes:
        tokens: how many the module saw, padding apart: texts, where it reads one token of each.
        largest_I: max |x| of each input over them.
    """

    tokens: int
    largest_I: Tensor


def input_sizes(model: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, Sizes]:
    """Return how many tokens each module saw, and how large each of its inputs was; padding is not counted.

    Args:
        model: in any mode; it is run in eval mode without gradients.
        names: dotted names of linears; their input is (B, T, I) or (B, I).
        batches: padded batches with an attention mask.
    """
    mask: list[Tensor] = []
    linears = {name: model.get_submodule(name) for name in names}
    widths = {name: cast(Tensor, linear.weight).shape[1] for name, linear in linears.items()}
    seen = {name: Sizes(0, torch.zeros(width)) for name, width in widths.items()}

    def see(name: str, states: Tensor, output: Tensor) -> None:
        real_PI = _real(states, mask[0]).flatten(0, -2).float()
        largest_I = torch.maximum(seen[name].largest_I, real_PI.abs().amax(dim=0).cpu())
        seen[name] = Sizes(seen[name].tokens + len(real_PI), largest_I)

    with watched(linears, see):
        for batch in _evaluated(model, batches, mask):
            model(**batch)
    # made in inference mode, where nothing can be changed afterwards: copies can
    return {name: Sizes(sizes.tokens, sizes.largest_I.clone()) for name, sizes in seen.items()}


def input_ranges(
    model: nn.Module,
    names: Sequence[str],
    batches: Batches,
    keep: float = 1.0,
    factors: Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of each module's input over all tokens that are not padding.

    Args:
        model: in any mode; it is run in eval mode without gradients.
        names: dotted module names whose input is (B, T, D) or (B, D).
        batches: padded batches with an attention mask.
        keep: share of the values of a batch that the range must hold, in (0.5, 1]; 1 is the plain minimum and maximum,
            below 1 both tails are cut evenly. The range over batches is the mean of theirs when `keep` is below 1, else
            the widest.
        factors: what the inputs of some of the modules will be multiplied by, (I,).
    """
    factors = factors or {}
    mask: list[Tensor] = []
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def see(name: str, states: Tensor, output: Tensor) -> None:
        states = states * factors[name] if name in factors else states
        values = _real(states, mask[0]).float().flatten()
        if keep < 1.0:
            tail = max(1, round(values.numel() * (1.0 - keep) / 2))
            low, high = values.kthvalue(tail).values, values.kthvalue(values.numel() - tail + 1).values
        else:
            low, high = values.aminmax()
        seen[name].append((float(low), float(high)))

    with watched({name: model.get_submodule(name) for name in names}, see):
        for batch in _evaluated(model, batches, mask):
            model(**batch)
    if keep < 1.0:
        return {name: _mean_range(ranges) for name, ranges in seen.items()}
    return {name: (min(low for low, _ in ranges), max(high for _, high in ranges)) for name, ranges in seen.items()}


def input_products(
    model: nn.Module, names: Sequence[str], batches: Batches, *, squares_only: bool = False
) -> dict[str, Tensor]:
    """Return X^T X (I, I) of each linear's inputs X over all tokens that are not padding, or only its diagonal (I,).

    A pass through the model ends as soon as the last of the linears has run. Linears that read the very same tensor
    (query, key and value) share one product.

    Args:
        model: in any mode; it is run in eval mode without gradients.
        names: dotted names of linears whose input is (B, T, I) or (B, I).
        batches: padded batches with an attention mask.
        squares_only: sum up ||X_j||^2 alone.

    Returns:
        By name, in 64 bits.
    """
    modules = {name: model.get_submodule(name) for name in names}
    with evaluating(model), dropping(model, "off"):
        passes = ((batch["attention_mask"], partial(model, **inputs_of(batch))) for batch in batches)
        return products_over(modules, passes, squares_only=squares_only, once=uses_of(model) == 1)


def products_over(
    modules: dict[str, nn.Module],
    passes: Iterable[tuple[Tensor, Callable[[], object]]],
    *,
    squares_only: bool = False,
    dtype: torch.dtype = torch.float64,
    once: bool = True,
) -> dict[str, Tensor]:
    """Return X^T X (I, I) of the inputs X of linears, or only its diagonal (I,), over whatever passes run them.

    Args:
        modules: linears, by name.
        passes: attention masks (B, T), each with what runs the linears on that batch.
        squares_only: sum up ||X_j||^2 alone.
        dtype: of the sums; in 32 bits there is never a second matrix of their size in memory.
        once: whether a pass runs each linear no more than once, and may end when all have run.
    """
    mask: list[Tensor] = []
    reader: dict[str, str] = {}  # the first linear that reads what this one reads
    read: dict[str, Tensor] = {}  # in the present batch, by first readers
    sums: dict[str, Tensor] = {}
    seen: set[str] = set()

    def see(name: str, states: Tensor, output: Tensor) -> None:
        first = next((other for other, tensor in read.items() if tensor is states), name)
        reader[name] = first
        if first == name:
            read[name] = states
            real_PI = _real(states, mask[0]).flatten(0, -2).float()
            if name not in sums:
                shape = real_PI.shape[1:] if squares_only else 2 * real_PI.shape[1:]
                with torch.inference_mode(False):  # what is made in inference mode cannot be changed afterwards
                    sums[name] = torch.zeros(shape, dtype=dtype, device=real_PI.device)
            _add_products(sums[name], real_PI, squares_only)
        seen.add(name)
        if once and len(seen) == len(modules):
            raise _Enough

    with watched(modules, see):
        for mask_BT, run in passes:
            mask[:] = [mask_BT]
            read.clear()
            seen.clear()
            with contextlib.suppress(_Enough):
                run()
    return {name: sums[reader[name]] for name in modules}


def _add_products(total: Tensor, real_PI: Tensor, squares_only: bool) -> None:
    if squares_only:
        total += real_PI.square().sum(dim=0)
    elif total.dtype == real_PI.dtype:
        total.addmm_(real_PI.T, real_PI)
    else:
        total += real_PI.T @ real_PI


def cross_products(model: nn.Module, whole: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """Return Z^T X (I, I) of each linear's inputs over all tokens that are not padding: Z in `whole`, X in `model`.

    With X^T X of `input_products` it is what least squares needs to give, from the inputs that a changed model has, the
    outputs that the whole one had.

    Args:
        model: in any mode; it is run in eval mode without gradients.
        whole: the model as it was, with linears of the same names and widths.
        names: dotted names of linears whose input is (B, T, I) or (B, I).
        batches: padded batches with an attention mask.

    Returns:
        By name, in 64 bits.
    """
    sums: dict[str, Tensor] = {}
    for batch in batches:
        here, there = (_read_by(one, names, batch) for one in (model, whole))
        for name in names:
            product = (there[name].T @ here[name]).double()
            sums[name] = sums[name] + product if name in sums else product
    return sums


def _read_by(model: nn.Module, names: Sequence[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each linear reads of one batch, (P, I), padding left out; of each time it runs, one after another."""
    read: dict[str, list[Tensor]] = {}
    mask: list[Tensor] = []
    once = uses_of(model) == 1

    def see(name: str, states: Tensor, output: Tensor) -> None:
        read.setdefault(name, []).append(_real(states, mask[0]).flatten(0, -2).float().clone())
        if once and len(read) == len(names):
            raise _Enough

    with watched({name: model.get_submodule(name) for name in names}, see):
        for inputs in _evaluated(model, [batch], mask):
            with contextlib.suppress(_Enough):
                model(**inputs)
    return {name: torch.cat(states) for name, states in read.items()}


class _Enough(Exception):
    """End a pass through a model from within."""


def _real(states: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the states of all tokens that are not padding, (P, D), or states that have no tokens as they are."""
    has_tokens = states.dim() == 3 and states.shape[:2] == mask_BT.shape
    return states[mask_BT.bool()] if has_tokens else states


def block_influence(model: nn.Module, batches: Batches) -> list[float]:
    """Return for each layer 1 - E[cos(h_in, h_out)] over real tokens: 0 for a layer that changes nothing.

    Source: Men et al. 2024, ShortGPT, equation 1.
    """
    anatomy = anatomy_of(model)
    mask: list[Tensor] = []
    sums, counts = [0.0] * anatomy.num_layers, [0] * anatomy.num_layers

    def see(name: str, before_BTD: Tensor, after: Tensor | tuple[Tensor, ...]) -> None:
        after_BTD = after[0] if isinstance(after, tuple) else after
        cosine_BT = nn.functional.cosine_similarity(before_BTD.float(), after_BTD.float(), dim=-1)
        sums[int(name)] += float((1.0 - cosine_BT)[mask[0].bool()].sum())
        counts[int(name)] += int(mask[0].sum())

    with watched({str(layer.index): layer.module for layer in anatomy.layers}, see):
        for batch in _evaluated(model, batches, mask):
            model(**batch)
    return [total / count for total, count in zip(sums, counts, strict=True)]


def angular_distances(model: nn.Module, batches: Batches, length: int) -> list[float]:
    """Return the distance that each run of `length` layers moves the hidden state: arccos(cos(h_in, h_out)) / pi.

    h_in is the input of the run's first layer and h_out the output of its last, so that value i tells of the layers
    i .. i + length - 1: 0 where the run changes no direction, 1 where it turns every one around. Mean over real tokens.

    Args:
        model: in any mode; it is run in eval mode without gradients.
        batches: padded batches with an attention mask.
        length: layers of a run, 1 to all of them.

    Source: Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, section 3.2 (there at the last
    token alone, from which a decoder predicts).
    """
    anatomy = anatomy_of(model)
    mask: list[Tensor] = []
    states: list[Tensor] = []
    count, tokens = anatomy.num_layers - length + 1, 0
    sums = [0.0] * count

    def see(name: str, before_BTD: Tensor, after: Tensor | tuple[Tensor, ...]) -> None:
        after_BTD = after[0] if isinstance(after, tuple) else after
        states.extend([after_BTD] if states else [before_BTD, after_BTD])

    with watched({str(layer.index): layer.module for layer in anatomy.layers}, see):
        for batch in _evaluated(model, batches, mask):
            states.clear()
            model(**batch)
            real_BT = mask[0].bool()
            tokens += int(real_BT.sum())
            for start in range(count):
                # in double: near 1, arccos turns the last digit of a float into an angle of 1e-4
                ends = (states[start][real_BT].double(), states[start + length][real_BT].double())
                cosine = nn.functional.cosine_similarity(*ends, dim=-1).clamp(-1.0, 1.0)
                sums[start] += float(cosine.arccos().sum()) / torch.pi
    return [total / tokens for total in sums]


def _evaluated(model: nn.Module, batches: Batches, mask: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the batches with the model in eval mode, and all tokens in all layers; `mask` holds a batch's own."""
    with evaluating(model), dropping(model, "off"):
        for batch in batches:
            mask[:] = [batch["attention_mask"]]
            yield inputs_of(batch)


def _mean_range(ranges: list[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*ranges, strict=True)
    return sum(lows) / len(lows), sum(highs) / len(highs)
