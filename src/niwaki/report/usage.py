"""Tell how a run is used and made again: code for each artifact, and the command."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from niwaki.report.folders import RunFolder, number, section

MOST_LABELS = 6


def snippets(run: RunFolder, folder: str) -> list[tuple[str, str]]:
    """Return (title, Python code) for each way to run what lies in a run folder.

    Args:
        run: the run.
        folder: where the reader has it.
    """
    told = []
    onnx = next((file for file in run.artifacts if file.endswith(".onnx")), None)
    chain = next((file for file in run.artifacts if file.endswith("chain.json")), None)
    if chain:
        told.append(("Where rows may leave early, with niwaki's runner", _chain_code(run, folder, chain)))
    elif onnx:
        told.append(("ONNX Runtime, with the tokenizer of the run", _onnx_code(run, folder, onnx)))
    openvino = next((file for file in run.artifacts if file.endswith(".xml")), None)
    if openvino and not chain:
        told.append(("OpenVINO", _openvino_code(run, folder, openvino)))
    if run.journal or run.config:
        told.append(("PyTorch, as a Transformers model", _torch_code(run, folder)))
    return told


def command_of(run: RunFolder) -> str:
    """Return the command that makes the run again, or nothing where the run does not say from what."""
    source = section(run.origin, "data").get("source")
    model = run.origin.get("model")
    if not run.recipe or not model or not source:
        return ""
    task = section(run.origin, "task")
    arguments = [
        "niwaki",
        "compress",
        shown_path(model),
        "--task",
        str(task.get("kind", "text-classification")),
    ]
    arguments += [
        "--data",
        shown_path(source),
        "--recipe",
        f"{run.path.name}/recipe.yaml",
        "--out",
        f"runs/{run.path.name}",
    ]
    seed = number(run.origin, "seed")
    arguments += ["--seed", f"{seed:.0f}"] if seed else []
    return " ".join(shlex.quote(argument) for argument in arguments)


def shown_path(value: Any) -> str:
    """Return a path or hub id as others may see it: of an absolute path, the last name only.

    >>> shown_path("/home/me/models/small"), shown_path("org/model")
    ('small', 'org/model')
    """
    text = str(value)
    absolute = text.startswith(("/", "~")) or bool(re.match(r"[A-Za-z]:[\\/]", text))
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if absolute else text


def _call(run: RunFolder) -> str:
    """Return the tokenizer's arguments for two texts, or for two pairs where the task has pairs."""
    texts = '["a first text", "a second text"]'
    pairs = f'{texts}, ["its pair", "its pair"]' if section(run.origin, "task").get("text_pair") else texts
    length = number(section(run.origin, "task"), "max_length") or number(run.config, "max_position_embeddings") or 512
    if run.config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        length = min(
            length, (number(run.config, "max_position_embeddings") or length) - 2
        )  # two places are the padding's
    return f"{pairs}, padding=True, truncation=True, max_length={length:.0f}"


def _labels_code(run: RunFolder) -> str:
    labels = run.origin.get("labels")
    if isinstance(labels, list) and labels and len(labels) <= MOST_LABELS:
        return f"labels = {json.dumps([str(label) for label in labels], ensure_ascii=False)}"
    return 'labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]'


def _head(run: RunFolder, folder: str, imports: Sequence[str]) -> list[str]:
    labels = _labels_code(run)
    config = 'config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))'
    reads = "config[" in labels
    standard = ["import json", "from pathlib import Path", ""] if reads else []
    return [
        *standard,
        *imports,
        "from transformers import AutoTokenizer",
        "",
        f"folder = {json.dumps(folder, ensure_ascii=False)}",
        *([config] if reads else []),
        labels,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]


def _onnx_code(run: RunFolder, folder: str, file: str) -> str:
    lines = _head(run, folder, ["import numpy as np", "import onnxruntime"])
    lines += [
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{file}")',
        f'inputs = tokenizer({_call(run)}, return_tensors="np")',
        "feed = {value.name: inputs[value.name].astype(np.int64) for value in session.get_inputs()}",
        "(logits,) = session.run(None, feed)",
        "print([labels[index] for index in logits.argmax(-1)])",
    ]
    return "\n".join(lines)


def _chain_code(run: RunFolder, folder: str, file: str) -> str:
    lines = _head(run, folder, ["from niwaki.runtime import open_artifact"])
    runtime = "openvino" if "openvino/" in file else "onnxruntime"
    lines += [
        f'artifact = open_artifact(f"{{folder}}/{file}", "{runtime}", threads=1)',
        f'logits, left_at = artifact.classify(tokenizer({_call(run)}, return_tensors="np"))',
        "print([labels[index] for index in logits.argmax(-1)])",
    ]
    return "\n".join(lines)


def _openvino_code(run: RunFolder, folder: str, file: str) -> str:
    lines = _head(run, folder, ["import openvino"])
    lines += [
        f'model = openvino.Core().compile_model(f"{{folder}}/{file}", "CPU")',
        f'inputs = tokenizer({_call(run)}, return_tensors="np")',
        "logits = model({value.any_name: inputs[value.any_name] for value in model.inputs})[0]",
        "print([labels[index] for index in logits.argmax(-1)])",
    ]
    return "\n".join(lines)


def _torch_code(run: RunFolder, folder: str) -> str:
    if section(run.origin, "task").get("kind") == "language-modelling":
        return _writing_code(folder)
    lines = _head(run, folder, ["import niwaki"])
    lines += [
        "model = niwaki.load(folder)",
        f'inputs = tokenizer({_call(run)}, return_tensors="pt")',
        "print([labels[index] for index in model(**inputs).logits.argmax(-1)])",
    ]
    return "\n".join(lines)


def _writing_code(folder: str) -> str:
    """Return code that lets a language model go on with a text."""
    lines = [
        "import niwaki",
        "from transformers import AutoTokenizer",
        "",
        f"folder = {json.dumps(folder, ensure_ascii=False)}",
        "tokenizer, model = AutoTokenizer.from_pretrained(folder), niwaki.load(folder)",
        'inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)',
        "written = model.generate(**inputs, max_new_tokens=64)",
        "print(tokenizer.decode(written[0], skip_special_tokens=True))",
    ]
    return "\n".join(lines)
