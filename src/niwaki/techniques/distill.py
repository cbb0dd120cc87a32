"""`distill`: learn from a teacher's logits, hidden states and attention relations."""

# B batch, T tokens, D hidden, P tokens that are not padding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from niwaki.anatomy import anatomy_of, label_names, rows_of
from niwaki.calibrate import inputs_of
from niwaki.checkpoint import load, load_tokenizer
from niwaki.errors import NiwakiError
from niwaki.losses import relation_divergence, scaled_squares, soft_targets
from niwaki.surgery import refuse_dropping
from niwaki.teacher import LOGITS, ROLES, TeacherOutputs, hidden_name, relation_name, teacher_outputs
from niwaki.technique import Companion, Context, Grain, Technique

#: How many teacher layers "nearest" matches.
NEAREST_LAYERS = 4


class Distill(Technique):
    """Train the model to do as its teacher does, not only as the labels say.

    The loss is a weighted sum over what is matched:
    logits: T^2 KL(softmax(z_teacher / T) || softmax(z_student / T));
    hidden: mean over matched layers of |W h_student - h_teacher|^2 / var(h_teacher) at each token, with a learnt W that
    starts as the identity and is gone afterwards;
    relations: KL between softmax(A A^T / sqrt(d)) of teacher and student for A the queries, keys and values of the last
        layer,
    which asks for no map of layers and no equal widths; and labels, the task's own loss.

    The teacher runs over the training rows once. Its outputs are kept on disk and memory-mapped, so that no epoch runs
    it again. Only the logits of a language model, one number a token and word, are too many to keep: there the teacher
    runs beside the model, on each batch.

    Args:
        teacher: folder or hub id; by default the base as it was handed in. It reads the same tokens.
        temperature: T of the logits, above 0. 1 to 8.
        logits: weight of the logits' loss. 1.
        hidden: weight of the hidden states' loss; 0 leaves it out. 0.5 to 20.
        relations: weight of the relations' loss; 0 leaves it out. 1.
        labels: weight of the task's own loss. 0 to 1.
        hidden_layers: "uniform" matches student layer i with teacher layer i L_teacher / L_student; "last" the last
            ones only; "nearest" matches four teacher layers, evenly spread, with the student layers that are nearest to
            them at the moment, in order: for students that lose layers, or parts of them, while they train.
        relation_heads: number of parts the states are split into; by default the teacher's number of attention heads,
            or of key and value heads where those are fewer.
        relation_layer: teacher layer of the relations, from 1; by default its last.

    Raises:
        NiwakiError: the teacher has other labels or another vocabulary, or all weights are 0.

    Composes with: everything that trains. Prefer `relations` when the widths differ, `hidden` when layers were dropped.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, section 2 (logits).
        Jiao et al. 2020, TinyBERT, equation 8 (hidden states).
        Wang et al. 2021, MiniLMv2, equations 4 and 5 (relations).
        Xia, Zhong and Chen 2022, Structured Pruning Learns Compact and Accurate Models, section 3.2 (nearest layers).

    Example:
        >>> Distill(temperature=4, hidden=1).logits
        1.0
    """

    grain: ClassVar[Grain] = Grain.NONE

    teacher: str | None = None
    temperature: float = Field(2.0, gt=0, le=100)
    logits: float = Field(1.0, ge=0)
    hidden: float = Field(0.0, ge=0)
    relations: float = Field(0.0, ge=0)
    labels: float = Field(0.0, ge=0)
    hidden_layers: Literal["uniform", "last", "nearest"] = "uniform"
    relation_heads: int | None = Field(None, ge=1)
    relation_layer: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Distill:
        if self.logits == self.hidden == self.relations == 0:
            raise ValueError("logits, hidden and relations are all 0, expected at least one weight above 0")
        return self

    @property
    def without_dropping(self) -> str:
        """Return what is to be written where states are matched token by token."""
        return "distill: {hidden: 0, relations: 0}" if self.hidden or self.relations else ""

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Compute the teacher's outputs where they are not kept yet, and watch the student's."""
        teacher = self.find_teacher(model, context)
        if self.hidden or self.relations:
            for one in (model, teacher):
                anatomy_of(one).refuse_repeated("distill matches the states of layers", "hidden: 0, relations: 0")
                refuse_dropping(one, "distill of hidden states or relations")
        depths = anatomy_of(model).num_layers, anatomy_of(teacher).num_layers
        pairs = self.layer_pairs(*depths) if self.hidden else []
        layer = (self.relation_layer or anatomy_of(teacher).num_layers) if self.relations else 0
        live = teacher if anatomy_of(model).language_head is not None and self.logits else None
        names = ([] if live else [LOGITS]) + [hidden_name(theirs) for _, theirs in pairs]
        names += [relation_name(role, layer) for role in ROLES] if layer else []
        rows = context.for_base(context.train)
        outputs = teacher_outputs(teacher, rows, names, context.cache, progress=context.progress)
        heads = self.relation_heads or anatomy_of(teacher).layers[-1].key_value_heads
        return Distillation(self, model, outputs, pairs, layer, heads, live, context.base_ids)

    def layer_pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Return the matched (student layer, teacher layer), counted from 1; "nearest" starts from these.

        >>> Distill(hidden=1).layer_pairs(3, 6)
        [(1, 2), (2, 4), (3, 6)]
        >>> Distill(hidden=1, hidden_layers="nearest").layer_pairs(12, 12)
        [(3, 3), (6, 6), (9, 9), (12, 12)]
        """
        if self.hidden_layers == "last":
            return [(student, teacher)]
        if self.hidden_layers == "nearest":
            parts = min(NEAREST_LAYERS, teacher)
            layers = [max(1, round(part * teacher / parts)) for part in range(1, parts + 1)]
            return [(max(1, round(layer * student / teacher)), layer) for layer in layers]
        return [(layer, max(1, round(layer * teacher / student))) for layer in range(1, student + 1)]

    def find_teacher(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the teacher, frozen, or say why it cannot teach this model."""
        if self.teacher is None:
            return context.base
        teacher = load(self.teacher).requires_grad_(False)
        theirs = load_tokenizer(self.teacher).get_vocab()
        ours = context.tokenizer.get_vocab()
        if context.base_ids is not None:  # a step trimmed ours; the teacher reads the ids that the base has
            ours = {token: int(context.base_ids[index]) for token, index in ours.items()}
            theirs = {token: index for token, index in theirs.items() if token in ours}
        if theirs != ours:
            raise NiwakiError(
                f"teacher {self.teacher} has another vocabulary than the model",
                expected="a teacher that reads the same tokens",
                place="distill",
            )
        labels, expected = label_names(teacher), label_names(model)
        if labels != expected:
            raise NiwakiError(
                f"teacher {self.teacher} has labels {labels}", expected=f"{expected}, in this order", place="distill"
            )
        return teacher


class Distillation(Companion):
    """Watch the student's states while it trains and compare them with the teacher's kept ones."""

    def __init__(
        self,
        distill: Distill,
        model: nn.Module,
        outputs: TeacherOutputs,
        pairs: list[tuple[int, int]],
        relation_layer: int,
        relation_heads: int,
        live: nn.Module | None = None,
        base_ids: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.base_ids = None if base_ids is None else torch.from_numpy(base_ids)
        self.live = () if live is None else (live,)  # no submodule: it is neither trained nor kept in checkpoints
        self.distill, self.outputs, self.pairs = distill, outputs, pairs
        self.relation_layer, self.relation_heads = relation_layer, relation_heads
        self.seen: dict[str, Tensor] = {}
        anatomy = anatomy_of(model)
        device = next(model.parameters()).device
        width = rows_of(anatomy.layers[-1].part("down"))
        self.nearest = distill.hidden_layers == "nearest"
        # a student layer whose partner changes needs a map that fits all of them
        self.projections = nn.ModuleList(
            [
                _projection(width, outputs.width(hidden_name(theirs))).to(device)
                for _, theirs in pairs[: 1 if self.nearest else None]
            ]
        )
        self.candidates = range(1, anatomy.num_layers + 1) if self.nearest and pairs else [ours for ours, _ in pairs]
        watched = {hidden_name(ours): anatomy.layers[ours - 1].module for ours in self.candidates}
        if relation_layer:
            watched |= {role: anatomy.layers[-1].part(role) for role in ROLES}
            for role in ROLES:
                self._check_relations(role, rows_of(anatomy.layers[-1].part(role)))
        self._handles = [module.register_forward_hook(self._watch(name)) for name, module in watched.items()]

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            if module.training:
                self.seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def _check_relations(self, role: str, width: int) -> None:
        theirs = self.outputs.width(relation_name(role, self.relation_layer))
        if width % self.relation_heads or theirs % self.relation_heads:
            raise NiwakiError(
                f"relation_heads is {self.relation_heads}",
                expected=f"a number that divides the states' widths, {width} and {theirs}",
                place="distill",
            )

    def task_weight(self) -> float:
        """Return the weight of the labels."""
        return self.distill.labels

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted losses of what is matched."""
        rows, mask_BT = batch["rows"], batch["attention_mask"].bool()
        losses: dict[str, Tensor] = {}
        if self.distill.logits:
            student, teacher = self._logits(output.logits, batch)
            losses["logits"] = self.distill.logits * soft_targets(student, teacher, self.distill.temperature)
        if self.pairs:
            losses["hidden"] = self.distill.hidden * torch.stack(self._hidden(rows, mask_BT)).mean()
        if self.relation_layer:
            losses["relations"] = self.distill.relations * self._relations(rows, mask_BT)
        self.seen.clear()
        return losses

    def _hidden(self, rows: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """Return the loss of each matched teacher layer."""
        students = {ours: self.seen[hidden_name(ours)][mask_BT] for ours in self.candidates}
        teachers = [self.outputs.states(hidden_name(theirs), rows).to(mask_BT.device) for _, theirs in self.pairs]
        if self.nearest:
            (projection,) = self.projections
            matched = nearest_layers([projection(states_PD) for states_PD in students.values()], teachers)
            return [
                scaled_squares(projection(students[ours]), teacher_PD)
                for ours, teacher_PD in zip(matched, teachers, strict=True)
            ]
        return [
            scaled_squares(projection(students[ours]), teacher_PD)
            for projection, (ours, _), teacher_PD in zip(self.projections, self.pairs, teachers, strict=True)
        ]

    def _logits(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's logits: (B, C), or (P, V) of the tokens that are not padding."""
        if not self.live:
            return logits, self.outputs.logits(batch["rows"]).to(logits.device)
        teacher, mask_BT = self.live[0].to(logits.device), batch["attention_mask"].bool()
        inputs, ids_V = inputs_of(dict(batch)), self.base_ids
        if ids_V is not None:  # a step trimmed the student's vocabulary; the teacher knows the tokens by other ids
            ids_V = ids_V.to(logits.device)
            inputs["input_ids"] = ids_V[inputs["input_ids"]]
        with torch.no_grad():
            theirs_PV = teacher(**inputs).logits[mask_BT]
        return logits[mask_BT], theirs_PV if ids_V is None else theirs_PV[:, ids_V]

    def _relations(self, rows: Tensor, mask_BT: Tensor) -> Tensor:
        parts = []
        for role in ROLES:
            teacher_PD = self.outputs.states(relation_name(role, self.relation_layer), rows).to(mask_BT.device)
            teacher_BTD = teacher_PD.new_zeros(*mask_BT.shape, teacher_PD.shape[-1])
            teacher_BTD[mask_BT] = teacher_PD
            parts.append(relation_divergence(self.seen[role], teacher_BTD, mask_BT, self.relation_heads))
        return torch.stack(parts).mean()

    def finish(self, model: nn.Module) -> nn.Module:
        """Stop watching; the projections go with the companion."""
        for handle in self._handles:
            handle.remove()
        for teacher in self.live:
            teacher.cpu()
        return model


@torch.no_grad()
def nearest_layers(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[int]:
    """Return for each teacher layer the nearest student layer, counted from 1, in the order of the layers.

    The last teacher layer chooses first, among all; each before it among those up to the one that was chosen. A student
    layer that has nothing left puts out about what it takes in, and is no nearer than the one before it.

    Args:
        students: states (P, D) of every student layer.
        teachers: states (P, D) of the chosen teacher layers.

    >>> nearest_layers([torch.tensor([[0.0]]), torch.tensor([[5.0]]), torch.tensor([[1.0]])],
    ...                [torch.tensor([[4.0]]), torch.tensor([[1.1]])])
    [2, 3]
    """
    chosen: list[int] = []
    last = len(students)
    for teacher_PD in reversed(teachers):
        distances = torch.stack([functional.mse_loss(each.float(), teacher_PD) for each in students[:last]])
        last = int(distances.argmin()) + 1
        chosen.insert(0, last)
    return chosen


def _projection(student: int, teacher: int) -> nn.Linear:
    """Return a linear from the student's width to the teacher's that starts as the identity where the widths agree."""
    linear = nn.Linear(student, teacher, bias=False)
    if student == teacher:
        nn.init.eye_(linear.weight)
    return linear
