"""Examples per second in distillation: niwaki's loop against the Hugging Face `Trainer` with an online teacher.

    make bench CASE=training-throughput

The same student, teacher, rows, batch size, optimizer and loss (KL of the logits at temperature 2), in turns, in one
process. Niwaki's time holds the one pass of the teacher that fills the cache. The teacher is MiniLM with a head that is
not trained: what it says costs the same.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import data_folder, write_result
from torch import nn

from niwaki.anatomy import longest_input
from niwaki.checkpoint import load, load_tokenizer
from niwaki.demo import find_base
from niwaki.losses import soft_targets
from niwaki.measure.conditions import machine, versions
from niwaki.surgery import keep_layers
from niwaki.task import Dataset, Encoded, Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.train import Train

ROWS, EPOCHS, BATCH, ROUNDS = 4096, 3, 64, 2
RATE, TEMPERATURE = 1e-4, 2.0


def main() -> None:
    source = find_base()
    task = Task("text-classification", data=str(data_folder() / "sst2"))
    tokenizer = load_tokenizer(source)
    teacher = load(source, labels=["0", "1"]).requires_grad_(False)
    student = keep_layers(copy.deepcopy(teacher), layers=[1, 3, 5]).requires_grad_(True)
    data = task.encode(tokenizer, longest_input(teacher, tokenizer), ["0", "1"])
    assert data.train is not None
    rows = data.train.select(np.random.default_rng(0).permutation(len(data.train))[:ROWS])
    speeds: dict[str, list[float]] = {"trainer": [], "niwaki": []}
    for _ in range(ROUNDS):
        speeds["trainer"].append(trainer_speed(student, teacher, tokenizer, rows))
        speeds["niwaki"].append(niwaki_speed(student, teacher, tokenizer, task, data, rows))
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    figures = {
        "examples_per_second_ratio": medians["niwaki"] / medians["trainer"],
        "niwaki_examples_per_second": medians["niwaki"],
        "trainer_examples_per_second": medians["trainer"],
    }
    setting = {"rows": ROWS, "epochs": EPOCHS, "batch_size": BATCH, "threads": torch.get_num_threads()}
    write_result("training-throughput", figures, speeds, {**setting, **machine(), "versions": versions()})


def niwaki_speed(
    student: nn.Module, teacher: nn.Module, tokenizer: Any, task: Task, data: Dataset, rows: Encoded
) -> float:
    """Return rows a second of niwaki's loop, the teacher's pass and the making of the optimizer included."""
    folder = Path(tempfile.mkdtemp())
    small = Dataset(rows, data.validation, data.test, data.labels)
    context = Context(task, small, tokenizer, teacher, 0, folder / "workspace", folder / "cache")
    train = Train(
        together=(Distill(temperature=TEMPERATURE),),
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        precision="fp32",
    )
    begin = time.perf_counter()
    train.run(copy.deepcopy(student), context)
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder)
    return len(rows) * EPOCHS / seconds


def trainer_speed(student: nn.Module, teacher: nn.Module, tokenizer: Any, rows: Encoded) -> float:
    """Return rows a second of the Trainer, as its documentation shows distillation: the teacher runs at every step."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    class Distilling(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            inputs.pop("labels", None)
            output = model(**inputs)
            with torch.no_grad():
                target = teacher(**inputs).logits
            loss = soft_targets(output.logits, target, TEMPERATURE)
            return (loss, output) if return_outputs else loss

    items = [
        {"input_ids": rows.tokens_of(index).tolist(), "labels": int(rows.labels[index])} for index in range(len(rows))
    ]
    folder = tempfile.mkdtemp()
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Distilling(
        model=copy.deepcopy(student),
        args=arguments,
        train_dataset=items,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder)
    return len(rows) * EPOCHS / seconds


if __name__ == "__main__":
    main()
