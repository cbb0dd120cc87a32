"""`prune` of single weights: exact shares, the papers' equations by hand, zeros that stay zero."""

# O outputs, I inputs

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import input_products, inputs_of
from niwaki.checkpoint import WEIGHTS, load, save
from niwaki.errors import NiwakiError
from niwaki.hessian import DAMPING, factor_of_inverse
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.prune import Prune, first_order, movement, sparsegpt, weights
from niwaki.techniques.prune.masks import Rule, masks, strongest
from niwaki.techniques.prune.units import MEMORY
from niwaki.techniques.quantize import Quantize
from niwaki.testing import fresh, logits, make_context, short_train

Bases = Callable[..., Path]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert"), toy_task, tmp_path)


def matrices(model: nn.Module) -> list[Tensor]:
    return [linear.weight.detach() for linear in weights.matrices_of(model).values()]


def counts(model: nn.Module) -> list[int]:
    return [int(matrix.count_nonzero()) for matrix in matrices(model)]


# Masks


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(-1, 61))
def test_strongest_is_exact_and_sound(values: list[int], count: int) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    mask = strongest(scores, count)
    assert int(mask.sum()) == min(max(count, 0), len(values))
    if 0 < count < len(values):
        assert scores[mask].min() >= scores[~mask].max()


@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]), st.booleans())
def test_on_the_way_to_a_pattern(seed: int, done: float, pattern: tuple[int, int], even: bool) -> None:
    """The share falls in a line, no group ever has fewer than N, and at the end each has N."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(4, 16, generator=generator), torch.rand(8, 8, generator=generator)]
    found = masks(scores, Rule(pattern=pattern, even=even), done)
    groups = torch.cat([mask.reshape(-1, pattern[1]).sum(dim=1) for mask in found])
    assert int(groups.min()) >= pattern[0]
    share = 1.0 - (1.0 - pattern[0] / pattern[1]) * done
    assert int(groups.sum()) == pytest.approx(128 * share, abs=1)
    if done == 1.0:
        assert groups.unique().tolist() == [pattern[0]]


# At once


def test_the_share_of_the_whole_model_is_exact(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    before = matrices(fresh(context))
    model = Prune(keep_weights=0.37, by="magnitude").apply(fresh(context), context)
    total = sum(matrix.numel() for matrix in before)
    assert sum(counts(model)) == round(0.37 * total)
    left = torch.cat([matrix[after != 0].abs() for matrix, after in zip(before, matrices(model), strict=True)])
    gone = torch.cat([matrix[after == 0].abs() for matrix, after in zip(before, matrices(model), strict=True)])
    assert left.min() >= gone.max()
    assert len(before) == 2 * 6, "six matrices a layer, no embedding, pooler or head"
    assert all(int((p == 0).sum()) == 0 for name, p in model.named_parameters() if "pooler" in name and p.dim() == 2)


@pytest.mark.parametrize("by", ["magnitude", "first-order", "random", "wanda", "sparsegpt"])
def test_the_same_share_in_every_matrix(by: str, context: Context) -> None:
    model = Prune(keep_weights=0.25, by=by, even=True, examples=64).apply(fresh(context), context)
    assert counts(model) == [matrix.numel() // 4 for matrix in matrices(model)]


@pytest.mark.parametrize("by", ["magnitude", "first-order", "random", "wanda", "sparsegpt"])
def test_two_of_four(by: str, context: Context) -> None:
    model = Prune(pattern="2:4", by=by, examples=64).apply(fresh(context), context)
    for matrix in matrices(model):
        assert (matrix.reshape(-1, 4) != 0).sum(dim=1).unique().tolist() == [2]


def test_widths_that_no_group_divides_are_refused_before_any_work(context: Context) -> None:
    model = fresh(context)
    with pytest.raises(NiwakiError, match=r"pattern 2:5, and .*query has 32 inputs"):
        Prune(pattern="2:5", by="magnitude").check(model)
    Prune(pattern="2:8", by="wanda").check(model)
    Prune(keep_neurons=0.5, multiple_of=2).apply(model, context)  # widths that are known only later
    odd = [one for one in anatomy_of(model).layers if one.neurons % 8]
    if odd:
        with pytest.raises(NiwakiError, match=f"has {odd[0].neurons} inputs"):
            Prune(pattern="2:8", by="magnitude").apply(model, context)
    with pytest.raises(NiwakiError, match="packed into bits"):
        Prune(keep_weights=0.5, by="magnitude").check(Quantize().apply(model, context))


def test_nothing_to_remove_is_an_error(context: Context) -> None:
    with pytest.raises(NiwakiError, match="nothing to remove"):
        Prune(keep_weights=0.99999, by="magnitude").apply(fresh(context), context)


def test_pruning_again_goes_on(context: Context) -> None:
    model = Prune(keep_weights=0.5, by="magnitude").apply(fresh(context), context)
    gone = [matrix == 0 for matrix in matrices(model)]
    Prune(keep_weights=0.25, by="magnitude").apply(model, context)
    total = sum(matrix.numel() for matrix in matrices(model))
    assert sum(counts(model)) == total // 4
    assert not any(bool((matrix[mask] != 0).any()) for matrix, mask in zip(matrices(model), gone, strict=True))


# What the loss says


def test_weights_that_the_loss_leans_on_stay(context: Context) -> None:
    """At once, those of highest |W| times the sum over batches of |dL/dW|, of the whole model."""
    before, scores = fresh(context), []
    for batch in context.calibration_batches(64, batch_size=16):
        before.zero_grad()
        context.task.loss(before.eval()(**inputs_of(batch)).logits, batch["labels"]).backward()
        own = [linear.weight for linear in weights.matrices_of(before).values()]
        scores.append(torch.cat([(one * one.grad).detach().abs().reshape(-1) for one in own]))
    pruned = Prune(keep_weights=0.3, examples=64).apply(fresh(context), context)
    mask = torch.cat([matrix.reshape(-1) != 0 for matrix in matrices(pruned)])
    total = torch.stack(scores).sum(dim=0)
    assert len(scores) == 4 and float(total[mask].min()) >= float(total[~mask].max())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pruned.parameters())


def test_slopes_are_averaged_over_steps_while_weights_go(context: Context) -> None:
    model = fresh(context)
    companion = Prune(keep_weights=0.5, begin=0.0, end=1.0).accompany(model, context)
    assert isinstance(companion, first_order.Weights)
    name, linear = next(iter(companion.linears.items()))
    expected = torch.zeros_like(linear.weight)
    for batch in list(context.calibration_batches(24, batch_size=8)):
        model.zero_grad()
        context.task.loss(model(**inputs_of(batch)).logits, batch["labels"]).backward()
        expected = MEMORY * expected + (1 - MEMORY) * linear.weight.grad.abs()
    torch.testing.assert_close(companion.slopes_0, expected)
    companion.step(0.5)
    scores = torch.cat([one.reshape(-1) for one in companion.scores()])
    torch.testing.assert_close(companion.scores()[0][linear.mask], (linear.weight.abs() * expected)[linear.mask])
    assert int((scores > -1).sum()) == sum(int(one.mask.sum()) for one in companion.linears.values())
    companion.step(1.0)
    held = companion.slopes_0.clone()
    context.task.loss(model(**inputs_of(batch)).logits, batch["labels"]).backward()
    assert torch.equal(companion.slopes_0, held), "all is chosen: nothing is gathered any more"


# What the inputs say


def test_products_are_of_real_tokens(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """One padded batch gives what its rows give one by one, without padding."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    layer = anatomy_of(model).layers[0]
    names = [layer.name_of(role) for role in ("query", "key", "value", "output", "up", "down")]
    batch = next(context.calibration_batches(8))
    assert not bool(batch["attention_mask"].all()), "there is padding"
    products = input_products(model, names, [batch])
    single = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        single.append({name: value[row : row + 1, :length] for name, value in batch.items() if name != "labels"})
    alone = input_products(model, names, single)
    squares = input_products(model, names, [batch], squares_only=True)
    for name in names:
        torch.testing.assert_close(products[name], alone[name], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(squares[name], products[name].diagonal(), rtol=1e-5, atol=1e-5)
        assert len(products[name]) == model.get_submodule(name).in_features
    assert products[names[0]] is products[names[1]] is products[names[2]]
    assert products[names[3]] is not products[names[0]]
    assert not model.training and not any(module._forward_hooks for module in model.modules())


def test_wanda_by_hand() -> None:
    """|W| = (1 4 2 3), (3 3 3 3); ||X|| = (5, 1, 2, 1): scores (5 4 4 3), (15 3 6 3). Each row keeps its own half."""
    weight_OI = torch.tensor([[1.0, -4.0, 2.0, 3.0], [-3.0, 3.0, 3.0, -3.0]])
    squares_I = torch.tensor([25.0, 1.0, 4.0, 1.0])
    assert weights.wanda(weight_OI, squares_I, Rule(0.5)).int().tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]
    assert weights.wanda(weight_OI, squares_I, Rule(0.25)).int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert weights.wanda(weight_OI, squares_I, Rule(pattern=(1, 2))).int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]


def test_later_layers_see_the_pruned_earlier_ones(context: Context) -> None:
    before = fresh(context)
    model = Prune(keep_weights=0.5, by="wanda", examples=64).apply(fresh(context), context)
    name = anatomy_of(model).layers[1].name_of("query")

    def expected(seen: nn.Module) -> Tensor:
        squares = input_products(seen, [name], context.calibration_batches(64), squares_only=True)[name]
        return weights.wanda(before.get_submodule(name).weight.detach(), squares, Rule(0.5))

    found = model.get_submodule(name).weight != 0
    assert torch.equal(found, expected(model))
    assert not torch.equal(found, expected(before)), "else the test says nothing"


# SparseGPT


def problem(outputs: int = 5, inputs: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight (O, I) and the damped products (I, I) of correlated inputs, in 64 bits."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(64, inputs, dtype=torch.float64, generator=generator)
    mixed = mixed @ torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)
    weight_OI = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator)
    return weight_OI, mixed.T @ mixed


def damped(products_II: Tensor) -> Tensor:
    return products_II + torch.eye(len(products_II)) * DAMPING * products_II.diagonal().mean()


def least_change(row_I: Tensor, products_II: Tensor, fixed: list[int]) -> tuple[Tensor, float]:
    """Return the row with `fixed` at zero that changes the outputs least, by normal equations, and the change."""
    free = [index for index in range(len(row_I)) if index not in fixed]
    best_I = torch.zeros_like(row_I)
    best_I[free] = torch.linalg.solve(products_II[free][:, free], (products_II @ row_I)[free])
    change_I = row_I - best_I
    return best_I, float(change_I @ products_II @ change_I)


def test_the_first_removed_weight_is_made_up_for_by_all_others() -> None:
    """Column 0 removed: the update is the optimum over all other weights, found another way."""
    weight_OI, products_II = problem(outputs=1)
    weight_OI[0, 0] = 1e-3  # the cheapest
    solved_OI = sparsegpt.solve(weight_OI, products_II, Rule(7 / 8))
    best_I, _ = least_change(weight_OI[0], damped(products_II), [0])
    assert float(solved_OI[0, 0]) == 0.0
    torch.testing.assert_close(solved_OI[0], best_I, rtol=1e-9, atol=1e-9)


def test_sparsegpt_is_the_surgeon_from_left_to_right() -> None:
    """Cost and update against brute force: weights before a column are fixed, those after it are free."""
    weight_OI, products_II = problem()
    full_II = damped(products_II)
    outputs, inputs = weight_OI.shape
    solved_OI = sparsegpt.solve(weight_OI, products_II, Rule(0.5))
    costs_OI = torch.tensor(
        [[least_change(row_I[j:], full_II[j:, j:], [0])[1] for j in range(inputs)] for row_I in weight_OI]
    )
    mask_OI = strongest(costs_OI, outputs * inputs // 2)
    assert torch.equal(solved_OI != 0, mask_OI)
    expected_OI = weight_OI.clone()
    for row, column in itertools.product(range(outputs), range(inputs)):
        if not mask_OI[row, column]:
            expected_OI[row, column:] = least_change(expected_OI[row, column:], full_II[column:, column:], [0])[0]
    torch.testing.assert_close(solved_OI, expected_OI, rtol=1e-8, atol=1e-8)


def test_blocks_change_the_choice_only() -> None:
    """With the same mask (a pattern of one per block), narrow blocks give the weights that a wide one gives."""
    weight_OI, products_II = problem(inputs=16)
    wide = sparsegpt.solve(weight_OI, products_II, Rule(pattern=(2, 4)), block=16)
    narrow = sparsegpt.solve(weight_OI, products_II, Rule(pattern=(2, 4)), block=4)
    torch.testing.assert_close(wide, narrow, rtol=1e-9, atol=1e-9)
    assert (wide.reshape(-1, 4) != 0).sum(dim=1).unique().tolist() == [2]


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
def test_sparsegpt_changes_outputs_less_than_masks_do(keep: float) -> None:
    """Over many matrices, in the published order: SparseGPT below Wanda below magnitude."""
    totals = {"sparsegpt": 0.0, "wanda": 0.0, "magnitude": 0.0}
    for seed in range(20):
        weight_OI, products_II = problem(outputs=8, inputs=24, seed=seed)
        spread_I = torch.logspace(-1, 1, 24, dtype=torch.float64)  # inputs of unlike size
        products_II = products_II * spread_I * spread_I[:, None]
        found = {
            "sparsegpt": sparsegpt.solve(weight_OI, products_II, Rule(keep)),
            "wanda": weight_OI * weights.wanda(weight_OI, products_II.diagonal(), Rule(keep)),
            "magnitude": weight_OI * strongest(weight_OI.abs(), round(keep * 8 * 24)),
        }
        assert int(found["sparsegpt"].count_nonzero()) == round(keep * 8 * 24)
        for name, other_OI in found.items():
            change_OI = other_OI - weight_OI
            totals[name] += float((change_OI @ products_II * change_OI).sum())
    assert totals["sparsegpt"] < totals["wanda"] < totals["magnitude"]


def test_inputs_that_are_never_there_and_too_few_rows() -> None:
    """A dead input takes its weights along; a product of rank one is damped until it has a factor."""
    weight_OI, _ = problem()
    row_I = torch.arange(8, dtype=torch.float64)  # the first input is always zero
    solved_OI = sparsegpt.solve(weight_OI.float(), torch.outer(row_I, row_I), Rule(0.75))
    assert solved_OI.dtype == torch.float32 and bool(torch.isfinite(solved_OI).all())
    assert int(solved_OI[:, 0].count_nonzero()) == 0 and int(solved_OI.count_nonzero()) == 30
    indefinite_II = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5], dtype=torch.float64))
    assert bool(torch.isfinite(factor_of_inverse(indefinite_II)).all()), "10% is too little, 100% is enough"
    with pytest.raises(NiwakiError, match="no Cholesky factor"):
        factor_of_inverse(torch.full((2, 2), float("nan"), dtype=torch.float64))


# In training


@pytest.mark.parametrize("by", ["magnitude", "first-order", "random", "movement"])
@pytest.mark.parametrize("pattern", [None, "1:4"])
def test_training_ends_at_the_exact_share(by: str, pattern: str | None, context: Context, tmp_path: Path) -> None:
    share = {"keep_weights": 0.25} if pattern is None else {"pattern": pattern}
    model = short_train([Prune(**share, by=by)], context).run(fresh(context), context)
    total = sum(matrix.numel() for matrix in matrices(model))
    assert sum(counts(model)) == total // 4
    if pattern:
        assert all((matrix.reshape(-1, 4) != 0).sum(dim=1).unique().tolist() == [1] for matrix in matrices(model))
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert counts(again) == counts(model)
    assert not any("mask" in name for name, _ in again.named_buffers())
    assert torch.equal(logits(again, context), logits(model, context))


def test_what_is_gone_stays_gone_and_is_not_trained(context: Context) -> None:
    """Weights under the mask add nothing to the forward pass, and have no gradient; the schedule only takes away."""
    model = fresh(context)
    companion = Prune(keep_weights=0.2, by="magnitude", begin=0.0, end=1.0).accompany(model, context)
    assert isinstance(companion, weights.Gradual)
    linears = companion.linears
    gone: list[Tensor] = [torch.zeros_like(linear.weight, dtype=torch.bool) for linear in linears.values()]
    total = sum(mask.numel() for mask in gone)
    for progress in (0.0, 0.3, 0.7, 1.0):
        companion.step(progress)
        now = [~linear.get_buffer("mask") for linear in linears.values()]
        assert all(bool((~before | after).all()) for before, after in zip(gone, now, strict=True))
        expected = total * 0.8 * (1 - (1 - progress) ** 3)
        assert sum(int(mask.sum()) for mask in now) == pytest.approx(expected, rel=0.05)
        gone = now
        with torch.no_grad():
            for linear, mask in zip(linears.values(), gone, strict=True):
                linear.weight[mask] += 1e6  # an optimizer with momentum does as much, and more is louder
    batch = next(context.calibration_batches(8))
    loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
    loss.backward()
    assert loss.item() < 1e3
    for linear, mask in zip(linears.values(), gone, strict=True):
        assert linear.weight is linear._parameters["weight"], "the masked weight is gone after the pass"
        assert linear.weight.grad is not None
        assert not bool(linear.weight.grad[mask].any()) and bool(linear.weight.grad[~mask].any())
    companion.finish(model)
    assert [int(mask.sum()) for mask in gone] == [int((matrix == 0).sum()) for matrix in matrices(model)]


def test_a_stage_is_saved(context: Context) -> None:
    """A companion that takes up another's state does not choose anew before the next stage."""
    model = fresh(context)
    companion = Prune(keep_weights=0.2, by="magnitude", begin=0.0, end=1.0).accompany(model, context)
    companion.step(0.5)
    state, parts = companion.state_dict(), model.state_dict()
    other = fresh(context)
    heir = Prune(keep_weights=0.2, by="magnitude", begin=0.0, end=1.0).accompany(other, context)
    heir.load_state_dict(state)
    other.load_state_dict(parts)
    masks_before = [linear.get_buffer("mask").clone() for linear in heir.linears.values()]  # type: ignore[attr-defined]
    with torch.no_grad():
        for linear in heir.linears.values():  # type: ignore[attr-defined]
            linear.weight.normal_()
    heir.step(0.505)
    after = [linear.get_buffer("mask") for linear in heir.linears.values()]  # type: ignore[attr-defined]
    assert all(torch.equal(one, two) for one, two in zip(masks_before, after, strict=True))
    assert not all(bool(mask.all()) for mask in after)


def test_units_and_weights_go_in_one_training(context: Context) -> None:
    """Units are cut first at the end, and the masks with them."""
    pair = [
        Prune(keep_heads=0.5, keep_neurons=0.5, even=True, multiple_of=8),
        Prune(keep_weights=0.25, by="magnitude", even=True),
    ]
    model = short_train(pair, context).run(fresh(context), context)
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(2, 32), (2, 32)]
    left = sum(counts(model)) / sum(matrix.numel() for matrix in matrices(model))
    assert 0.1 < left < 0.5
    short_train([Distill(), Prune(keep_weights=0.1, by="movement")], context).run(fresh(context), context)


# Movement


def test_scores_have_the_gradient_of_the_paper(context: Context) -> None:
    """dL/dS = dL/d(W * M) * W, for seen and unseen weights; dL/dW = dL/d(W * M) * M."""
    model = fresh(context)
    companion = Prune(keep_weights=0.5, by="movement").accompany(model, context)
    assert isinstance(companion, movement.Weights)
    generator = torch.Generator().manual_seed(0)
    for linear in companion.linears.values():
        linear.get_buffer("mask").copy_(torch.rand(linear.weight.shape, generator=generator) < 0.5)
    batch = next(context.calibration_batches(8))
    context.task.loss(model(**inputs_of(batch)).logits, batch["labels"]).backward()
    other = fresh(context)
    with torch.no_grad():
        for name, linear in companion.linears.items():
            other.get_submodule(name).weight.mul_(linear.get_buffer("mask"))
    context.task.loss(other(**inputs_of(batch)).logits, batch["labels"]).backward()
    for (name, linear), scores in zip(companion.linears.items(), companion.learnt, strict=True):
        gradient = other.get_submodule(name).weight.grad
        torch.testing.assert_close(scores.grad, gradient * linear.weight.detach(), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(linear.weight.grad, gradient * linear.get_buffer("mask"), atol=1e-6, rtol=1e-4)


def test_what_the_training_moves_away_from_zero_stays(context: Context) -> None:
    """Movement keeps by scores alone, however small the weights, and lets weights come back."""
    model = fresh(context)
    companion = Prune(keep_weights=0.5, by="movement", begin=0.0, end=1.0).accompany(model, context)
    assert isinstance(companion, movement.Weights)
    first, second = torch.randn(2, *companion.learnt[0].shape)
    for scores in companion.learnt:
        scores.data.normal_()
    companion.learnt[0].data.copy_(first)
    companion.step(0.5)
    before = next(iter(companion.linears.values())).get_buffer("mask").clone()
    companion.learnt[0].data.copy_(second)
    companion.step(1.0)
    after = next(iter(companion.linears.values())).get_buffer("mask")
    assert bool((after & ~before).any()), "some came back"
    total = sum(scores.numel() for scores in companion.learnt)
    everything = torch.cat([scores.detach().reshape(-1) for scores in companion.learnt])
    assert sum(int(linear.get_buffer("mask").sum()) for linear in companion.linears.values()) == total // 2
    assert float(second[after].min()) >= float(everything.median())


def test_movement_of_whole_units(context: Context) -> None:
    prune = Prune(keep_heads=0.5, keep_neurons=0.25, by="movement", even=True, multiple_of=8)
    model = short_train([prune], context).run(fresh(context), context)
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(2, 16), (2, 16)]


def test_a_unit_is_scored_by_its_block(context: Context) -> None:
    """The gradient of a unit's score is the sum of dL/dW * W over the columns that read it, closed ones too."""
    model = fresh(context)
    companion = Prune(keep_heads=0.5, keep_neurons=0.5, by="movement").accompany(model, context)
    assert isinstance(companion, movement.Units)
    companion.gates("heads").mask(1)[2] = 0.0
    layer = anatomy_of(model).layers[1]
    batch = next(context.calibration_batches(8))
    context.task.loss(model(**inputs_of(batch)).logits, batch["labels"]).backward()
    for kind, role, width in (("heads", "output", layer.head_size), ("neurons", "down", 1)):
        weight = layer.part(role).weight
        block_U = (weight.grad * weight.detach()).sum(dim=0).unflatten(0, (-1, width)).sum(dim=1)
        scores_U = companion.gates(kind).gates[1]
        open_U = companion.gates(kind).mask(1) > 0
        torch.testing.assert_close(scores_U.grad[open_U], block_U[open_U], atol=1e-6, rtol=1e-3)
        assert bool((scores_U.grad != 0).all())


# Afterwards


def test_quantizing_afterwards_keeps_the_zeros(context: Context, tmp_path: Path) -> None:
    model = Prune(keep_weights=0.1, by="magnitude").apply(fresh(context), context)
    gone = [matrix == 0 for matrix in matrices(model)]
    names = list(anatomy_of(model).linear_names())
    model = Quantize().apply(model, context)
    for name, mask in zip(names, gone, strict=True):
        assert not bool(model.get_submodule(name).weight[mask].any())
    sparse_bytes = (save(model, tmp_path / "sparse") / WEIGHTS).stat().st_size
    dense_bytes = (save(Quantize().apply(fresh(context), context), tmp_path / "dense") / WEIGHTS).stat().st_size
    total = sum(mask.numel() for mask in gone)
    assert dense_bytes - sparse_bytes > 0.6 * total, "of 8 bits a weight stay 1 + 0.8, less what names cost"
    assert torch.equal(logits(load(tmp_path / "sparse"), context), logits(model, context))
