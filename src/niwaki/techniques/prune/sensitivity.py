"""What the loss says of each block: gradients by gates on its units, by what it puts out, and by single weights."""

# B batch, T tokens, D hidden, U units, P tokens that are not padding, O outputs, I inputs

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from niwaki.anatomy import UNITS, Layer, anatomy_of
from niwaki.calibrate import frozen, inputs_of
from niwaki.technique import Context

#: Rows in a batch: a backward pass holds the activations of all layers.
BATCH = 16


def gate_fisher(model: nn.Module, context: Context, examples: int) -> dict[str, list[Tensor]]:
    """Return for each kind and layer the empirical Fisher information (U, U) by gates g_u = 1 on its units.

    F = sum over examples of (dL/dg) (dL/dg)^T, each example with its own gradient; 1/2 (1 - m)^T F (1 - m) estimates
    what a mask m costs.

    Source: Kwon et al. 2022, A Fast Post-Training Pruning Framework for Transformers, section 4.
    """
    layers = anatomy_of(model).layers
    fisher = {kind: [torch.zeros(layer.units(kind), layer.units(kind)) for layer in layers] for kind in UNITS}
    gates: list[tuple[str, int, Tensor]] = []

    def stand(layer: Layer, kind: str) -> Callable[..., tuple[Tensor, ...]]:
        count, width = layer.units(kind), layer.unit_width(kind)

        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            inputs_BTI = inputs[0]
            gate_BU = torch.ones(len(inputs_BTI), count, device=inputs_BTI.device, requires_grad=True)
            gates.append((kind, layer.index, gate_BU))
            gate_BI = gate_BU.repeat_interleave(width, dim=1)
            return (inputs_BTI * gate_BI[:, None].to(inputs_BTI.dtype), *inputs[1:])

        return multiply

    handles = [layer.reader(kind).register_forward_pre_hook(stand(layer, kind)) for layer in layers for kind in UNITS]
    try:
        for _ in _backward(model, context, examples):
            for kind, index, gate_BU in gates:
                assert gate_BU.grad is not None
                fisher[kind][index].addmm_(gate_BU.grad.T, gate_BU.grad)
            gates.clear()
    finally:
        for handle in handles:
            handle.remove()
    return fisher


def output_fisher(model: nn.Module, context: Context, examples: int) -> dict[str, list[Tensor]]:
    """Return for each kind and layer the empirical Fisher information (D, D) by what the block puts out.

    M = sum over tokens of g g^T with g = dL/dy; with the inputs' Hessian it prices an error of the block in the loss.

    Source: Martens and Grosse 2015, Optimizing Neural Networks with Kronecker-factored Approximate Curvature.
    """
    layers = anatomy_of(model).layers
    fisher: dict[str, list[Tensor]] = {kind: [] for kind in UNITS}
    handles = []

    def watch(total_DD: Tensor) -> Callable[..., None]:
        def see(gradient_BTD: Tensor) -> None:
            gradient_PD = gradient_BTD.flatten(0, -2).float()
            total_DD.addmm_(gradient_PD.T, gradient_PD)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.requires_grad_(True)
            output.register_hook(see)

        return hook

    for layer in layers:
        for kind in UNITS:
            linear = layer.reader(kind)
            fisher[kind].append(torch.zeros(linear.out_features, linear.out_features))
            handles.append(linear.register_forward_hook(watch(fisher[kind][-1])))
    try:
        for _ in _backward(model, context, examples):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return fisher


def _backward(model: nn.Module, context: Context, examples: int) -> Iterator[None]:
    """Run the calibration rows forward and the sum of their losses backward, with the model's own weights frozen."""
    with frozen(model):
        for batch in context.calibration_batches(examples, batch_size=BATCH):
            loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
            (loss * len(batch["labels"])).backward()  # the task's loss is a mean
            yield


def weight_importances(
    model: nn.Module, matrices: Sequence[nn.Linear], context: Context, examples: int
) -> list[Tensor]:
    """Return |W| times the sum over batches of |dL/dW| for each matrix, L the loss of the task.

    Args:
        model: of a known family.
        matrices: its linears.
        context: with training rows.
        examples: of them to look at.

    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, section 3.1.
    """
    own = [linear.weight for linear in matrices]
    sums = [torch.zeros_like(weight_OI) for weight_OI in own]
    with frozen(model):
        for weight_OI in own:
            weight_OI.requires_grad_(True)
        for batch in context.calibration_batches(examples, batch_size=BATCH):
            loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
            for one, slope_OI in zip(sums, torch.autograd.grad(loss, own), strict=True):
                one += slope_OI.abs()
    return [weight_OI.detach().abs() * one for weight_OI, one in zip(own, sums, strict=True)]
