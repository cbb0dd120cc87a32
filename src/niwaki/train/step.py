"""The step of a recipe in which techniques work together, and the loop that it runs."""

# B batch, T tokens

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.calibrate import predict
from niwaki.checkpoint import WEIGHTS, put_tensors, tensors_of, write_tensors, written_aside
from niwaki.dropout import dropout_of
from niwaki.errors import NiwakiError
from niwaki.moving_average import MovingAverage
from niwaki.parameters import Parameters
from niwaki.runtime import OUTCOMES
from niwaki.schedules import warmup_constant, warmup_linear
from niwaki.task import Encoded, higher_is_better, outcome_of, score
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.train.bar import bar_of
from niwaki.train.batches import length_bucketed
from niwaki.train.joint import Joint

LOG_EVERY = 25
#: Tokens up to which attention on a CPU trains faster by plain products: 1.5 times at 14, and 1.15 at 128.
PLAIN_ATTENTION = 256

#: How the learning rate goes, from progress and warm-up to a factor.
SCHEDULES = {"linear": warmup_linear, "constant": warmup_constant}


class Train(Parameters):
    """Train the model on the task, with techniques that work together.

    Batches are drawn from buckets of like length, so that little of a batch is padding. An interrupted training goes on
    from its last checkpoint and ends with the weights it would have had.

    Args:
        together: techniques that accompany the training, from coarse to fine.
        epochs: passes over the training rows; a fraction is allowed. 3 to 10 for distillation.
        learning_rate: highest rate of AdamW. 2e-5 to 2e-4.
        batch_size: rows in one optimizer step, over all processes. 16 to 128.
        warmup: share of the steps in which the rate rises, in [0, 1).
        schedule: after that the rate falls in a line to 0 (linear) or stays (constant, which wants an `average`).
        weight_decay: of the matrices; norms and biases have none.
        gradient_clip: greatest norm of the gradient; 0 is no clipping.
        best: keep the weights of the best epoch on the selection rows instead of the last. The rows come from the
            validation split where there is a test split, else they are held out of the training rows.
        average: decay of a moving average of the weights, a step; the average is the result, and what `best` judges. 0
            keeps the last weights. 0.99 to 0.999, with 1 / (1 - average) well below the number of steps.
        dropout: chance of every dropout of the model, in [0, 1); null leaves them as the model came. What is distilled
            has less need of it than what learns from labels, and on a CPU 0 is quicker.
        precision: "auto" takes bf16 where the CPU or GPU has it in hardware.
        checkpoint_seconds: time between two checkpoints.

    References:
        Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
        Tarvainen and Valpola 2017, Mean Teachers Are Better Role Models, section 2 (average).

    Example:
        >>> Train(epochs=2).batch_size
        32
    """

    name: ClassVar[str] = "train"

    together: tuple[SerializeAsAny[Technique], ...] = ()
    epochs: float = Field(3.0, gt=0, le=1000)
    learning_rate: float = Field(5e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=65536)
    warmup: float = Field(0.06, ge=0, lt=1)
    schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = Field(0.01, ge=0, le=1)
    gradient_clip: float = Field(1.0, ge=0)
    best: bool = False
    average: float = Field(0.0, ge=0, lt=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_seconds: float = Field(60.0, gt=0)

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work begins, what cannot be done to this model."""
        for technique in self.together:
            technique.check(model)

    def run(self, model: nn.Module, context: Context) -> nn.Module:
        """Put up the companions, fit, take them down."""
        torch.manual_seed(context.seed)
        if self.best or any(technique.fits for technique in self.together):
            context = replace(context, data=context.data.holding_out(context.seed))
        selection = context.data.held if self.best else None
        # who cuts nothing watches what trains: it attaches when those that cut have put up what they put up
        places = sorted(range(len(self.together)), key=lambda place: self.together[place].cuts == Grain.NONE)
        attached = {place: self.together[place].accompany(model, context) for place in places}
        companions = [attached[place] for place in range(len(places))]
        with dropout_of(model, self.dropout):
            fit(self, model, companions, context.train, selection, context)
        for place in places:  # and it comes down when the others have, and the model is what it will be
            model = attached[place].finish(model)
        return model.eval()


def fit(
    train: Train,
    model: nn.Module,
    companions: Sequence[Companion],
    rows: Encoded,
    selection: Encoded | None,
    context: Context,
) -> None:
    """Run the loop to its end, from the last checkpoint where there is one."""
    from accelerate import Accelerator

    # its precision holds for a whole process, and two trainings in one may differ: `Fit` sees to it
    training = Fit(train, Accelerator(mixed_precision="no"), model, companions, rows, context)
    training.restore()
    model.train()
    is_shown = context.progress and training.accelerator.is_main_process
    with bar_of(is_shown, training.place.step, training.steps) as advance:
        for epoch, indices, ends_epoch in training.batches():
            parts = training.step(indices)
            advance(training.place.step, parts)
            if ends_epoch and selection is not None:
                training.judge(selection, epoch)
            training.checkpoint_when_due()
    training.take_result()
    training.accelerator.free_memory()


class Fit:
    """Hold one training while it lasts: joint module, optimizer, place."""

    def __init__(
        self,
        train: Train,
        accelerator: Any,
        model: nn.Module,
        companions: Sequence[Companion],
        rows: Encoded,
        context: Context,
    ) -> None:
        self.train, self.accelerator, self.model, self.rows, self.context = train, accelerator, model, rows, context
        self.companions = companions
        self.is_bf16 = is_bf16(train.precision, accelerator.device)
        joint = Joint(model, companions, context.task)
        groups = _groups(model, train) + [
            group for companion in companions for group in companion.parameter_groups(train.learning_rate)
        ]
        optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.joint, self.optimizer = accelerator.prepare(joint, optimizer)
        self.place = Place()
        accelerator.register_for_checkpointing(self.place)
        self.average: MovingAverage | None = None
        if train.average:
            learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.average = MovingAverage(learnt, train.average)
            accelerator.register_for_checkpointing(self.average)
        self.per_epoch = math.ceil(len(rows) / train.batch_size)
        self.steps = max(1, round(train.epochs * self.per_epoch))
        self.folder = context.workspace / "checkpoint"
        self.best_file = context.workspace / f"best-{WEIGHTS}"
        self.saved_at = time.monotonic()
        self.seen = 0
        self.clock = time.monotonic()

    @property
    def progress(self) -> float:
        """Return the share of the training that is done, in [0, 1]."""
        return self.place.step / self.steps

    def told(self, step: int) -> float:
        """Return the progress that companions are told at a step, from 0: what is done before it, and 1 at the last."""
        return 1.0 if step + 1 == self.steps else step / self.steps

    def batches(self) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Yield (epoch, row indices, whether the epoch ends here) from the current place on."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        while self.place.step < self.steps:
            epoch, done = divmod(self.place.step, self.per_epoch)
            plan = length_bucketed(self.rows.lengths, self.train.batch_size, self.context.seed, epoch)
            for index in range(done, min(self.per_epoch, self.steps - epoch * self.per_epoch)):
                last = index + 1 == self.per_epoch or self.place.step + 1 == self.steps
                share = np.array_split(plan[index], ranks)[rank] if ranks > 1 else plan[index]
                yield epoch, share if len(share) else plan[index][:1], last

    def step(self, indices: np.ndarray) -> dict[str, float]:
        """Do one optimizer step and return the parts of the loss where they are logged, else nothing."""
        for companion in self.companions:
            companion.step(self.told(self.place.step))
        rise_and_fall = SCHEDULES[self.train.schedule]
        factor = rise_and_fall(self.progress, self.train.warmup) if self.place.step else 1.0 / max(1, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        batch = {name: value.to(self.accelerator.device) for name, value in self.rows.batch(indices).items()}
        batch["rows"] = torch.from_numpy(np.ascontiguousarray(indices))
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.is_bf16), _attention_for(batch):
            total, parts = self.joint(batch)
        self.accelerator.backward(total)
        if self.train.gradient_clip:
            self.accelerator.clip_grad_norm_(self.learnt, self.train.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.place.step += 1
        if self.average is not None:
            self.average.update(self.place.step)
        self.seen += len(indices)
        return self._log(float(total.detach()), parts, factor) if self._logs() else {}

    def _logs(self) -> bool:
        return self.place.step % LOG_EVERY == 0 or self.place.step == self.steps or self.place.step == 1

    def _log(self, total: float, parts: dict[str, Tensor], factor: float) -> dict[str, float]:
        values = {name: float(value) for name, value in parts.items()}
        if not math.isfinite(total):
            raise _diverged(self.place.step, values)
        self.context.log(
            {
                "event": "train",
                "optimizer_step": self.place.step,
                "steps": self.steps,
                "epoch": round(self.place.step / self.per_epoch, 4),
                "loss": total,
                "parts": values,
                "learning_rate": self.train.learning_rate * factor,
                "examples_per_second": self.seen / max(1e-9, time.monotonic() - self.clock),
            }
        )
        return values

    def judge(self, selection: Encoded, epoch: int) -> None:
        """Score the model on the selection rows; keep its weights when they are the best so far."""
        metric = self.context.task.metric
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            quality = score(metric, predict(self.model, selection, keep=OUTCOMES[outcome_of(metric)]), selection.labels)
            ready = all(companion.ready(self.told(self.place.step - 1)) for companion in self.companions)
            rank = quality if higher_is_better(metric) else -quality
            best = ready and rank >= self.place.best and self.accelerator.is_main_process
            if best:
                write_tensors(self.best_file, tensors_of(self.model))
        self.context.log({"event": "evaluate", "epoch": epoch + 1, "rows": len(selection), "selection": quality})
        if best:
            self.place.best = rank
            self.checkpoint()  # place and best weights belong together

    def take_result(self) -> None:
        """Put the best weights in place where they were kept, else the average where there is one."""
        if self.average is not None:
            self.average.take()
        if self.train.best and self.best_file.is_file():
            from safetensors.torch import load_file

            put_tensors(self.model, load_file(self.best_file), assign=False)

    def checkpoint_when_due(self) -> None:
        """Write a checkpoint when the last one is old."""
        if time.monotonic() - self.saved_at > self.train.checkpoint_seconds and self.place.step < self.steps:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write everything the rest of the training depends on, aside, and rename it."""
        with written_aside(self.folder) as aside, _hushed():
            self.accelerator.save_state(str(aside))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Take up the last checkpoint, where there is one."""
        if self.folder.is_dir():
            self.accelerator.load_state(str(self.folder))
            self.context.log({"event": "note", "note": f"went on from step {self.place.step} of {self.steps}"})


class Place:
    """Know how far a training is; saved with each checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.best = -math.inf
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.__dict__.update(state)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep Accelerate from warning, at each checkpoint, that weights are shared: they are written once, and found."""
    logger = logging.getLogger("accelerate.utils.other")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _attention_for(batch: dict[str, Tensor]) -> contextlib.AbstractContextManager[Any]:
    """Return, on a CPU and for short texts, plain products: the backward pass of fused attention is slow there."""
    ids_BT = batch["input_ids"]
    is_short = ids_BT.device.type == "cpu" and ids_BT.shape[1] <= PLAIN_ATTENTION
    return sdpa_kernel(SDPBackend.MATH) if is_short else contextlib.nullcontext()


def is_bf16(precision: str, device: torch.device) -> bool:
    """Say whether a training computes in bf16 where that is safe: as asked, or where the hardware has it."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 in hardware; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Split the model's parameters: matrices decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _diverged(step: int, parts: dict[str, float]) -> NiwakiError:
    shown = ", ".join(f"{name} {value:g}" for name, value in parts.items())
    return NiwakiError(
        f"the loss is not a number at step {step} ({shown})", expected="a finite loss", fix="a lower learning_rate"
    )
