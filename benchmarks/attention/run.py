"""Long inputs: attention below the square of the length, and fewer tokens, by the clock and by what they lose.

    make bench CASE=attention                          everything
    python benchmarks/attention/run.py growth sst2     these stages alone, with their dates and conditions
    python benchmarks/attention/run.py --quick         all of it on a few rows and short inputs; nothing is written
    python benchmarks/attention/picture.py             docs/images/attention.svg alone, of what was measured last

`growth` times models whose attention was swapped and not trained: only the clock and the memory are asked. Lengths go
beyond what the base reads, so all of them, the exact one too, have its positions copied up to the longest. In 8 bits
exact attention stands beside the others in 8 bits.

On two cores growth takes about 10 minutes (half of it the exact attention at 8,192 tokens), floor 1, sst2 about 15,
long about 30, joined about 45, tokens and tokens-learnt about 10 and 20, stories about 5.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from common import (
    FINE_TUNING,
    data_folder,
    fine_tuned,
    halved,
    models_folder,
    records_of,
    run_stages,
    runs_folder,
    sentiment,
    stories,
)
from floor import share_outside
from picture import draw

from niwaki.anatomy import anatomy_of, label_names
from niwaki.artifacts import export
from niwaki.checkpoint import load, load_tokenizer, reaching, save
from niwaki.comparison import compare
from niwaki.finetune import finetune
from niwaki.measure.timing import time_in_turns
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.runtime import default_threads, open_worker
from niwaki.surgery import extend_positions, swap_attention
from niwaki.task import Task
from niwaki.techniques.attend import Attend
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop_tokens import DropTokens
from niwaki.techniques.quantize import Quantize
from niwaki.token_shares import token_shares
from niwaki.train import Train

CASE = "attention"
WINDOW = {"by": "window", "window": 128, "global_tokens": 1}
KINDS: dict[str, dict[str, Any]] = {"exact": {}, "window": WINDOW, "linear": {"by": "linear"}}
#: Runtime and bits of the weights; in 8 bits ONNX Runtime alone.
FORMS = {"torch": ("torch", 32), "onnxruntime": ("onnxruntime", 32), "onnxruntime_int8": ("onnxruntime", 8)}
#: Tokens of a long review that the longer models read; the base reads half.
LONG, SHORT = 1024, 512
#: Tokens of reviews joined that the longest models read.
JOINED = 2048


@dataclass(frozen=True)
class Scale:
    """Say how much is done.

    Attributes:
        lengths: that are timed; the longest is compared with an eighth of it.
        rounds: in turns, at each length.
        phrases: of SST-2, to make linear attention learn on.
        reviews: of any length, to make the model of phrases one of reviews.
        long: reviews of more than 512 tokens, to learn on; the others of these are what is measured on.
        joined: texts of 2,000 tokens, to learn on.
        stories: to make the decoder learn on.
        steps: tokens that are written one by one, in the middle of such a text and at its end.
    """

    lengths: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192)
    rounds: int = 3
    phrases: int = 32_000
    reviews: int = 1_500
    long: int = 550
    joined: int = 300
    stories: int = 800
    steps: int = 2048


FULL = Scale()
QUICK = Scale(lengths=(64, 128, 256, 512), rounds=1, phrases=64, reviews=24, long=24, joined=4, stories=16, steps=256)


def growth(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Time exact, window and linear attention at each length, batch 1, in turns, in each runtime and data type."""
    base = base_of_phrases(scale)
    floats = {name: swapped(base, name, settings, scale) for name, settings in KINDS.items()}
    packed = {name: quantized(folder) for name, folder in floats.items()}
    records = [
        {
            "form": form,
            "runtime": runtime,
            "bits": bits,
            "attention": name,
            "length": length,
            "seconds": seconds,
            "memory_peak_bytes": peak,
        }
        for form, (runtime, bits) in FORMS.items()
        for length in scale.lengths
        for name, (seconds, peak) in zip(
            KINDS, timed([*(packed if bits == 8 else floats).values()], runtime, length, scale), strict=True
        )
    ]
    seconds = {(one["form"], one["attention"], one["length"]): one["seconds"] for one in records}
    peaks = {(one["form"], one["attention"], one["length"]): one["memory_peak_bytes"] for one in records}
    return {
        **growth_figures(seconds, scale.lengths[-1]),
        **speedup_figures(seconds, scale.lengths),
        **memory_figures(peaks, scale.lengths),
    }, records


def growth_figures(seconds: dict[tuple[str, str, int], float], longest: int) -> dict[str, float]:
    """Return a token's time at the longest input over that at an eighth of it, for each kind: in the worst form."""
    figures, short = {}, longest // 8
    for name in ("linear", "window"):
        ratios = {form: seconds[form, name, longest] / seconds[form, name, short] / 8 for form in FORMS}
        figure = f"{name}_growth_{longest}_over_{short}"
        figures |= {f"{figure}_{form}": ratio for form, ratio in ratios.items()}
        figures[figure] = max(ratios.values())
    return figures


def speedup_figures(seconds: dict[tuple[str, str, int], float], lengths: tuple[int, ...]) -> dict[str, float]:
    """Return how many times faster than exact attention in the same form each is; in short, the faster one's.

    That without a suffix is of floats in ONNX Runtime.
    """
    figures = {}
    for length in lengths:
        ratios = {
            (form, name): seconds[form, "exact", length] / seconds[form, name, length]
            for form in FORMS
            for name in ("window", "linear")
        }
        figures |= {f"speedup_{length}_{name}_{form}": ratio for (form, name), ratio in ratios.items()}
        for suffix, form in (("", "onnxruntime"), ("_int8", "onnxruntime_int8")):
            figures[f"speedup_{length}{suffix}"] = max(ratios[form, name] for name in ("window", "linear"))
    return figures


def memory_figures(peaks: dict[tuple[str, str, int], int], lengths: tuple[int, ...]) -> dict[str, float]:
    """Return the peak at the longest input, and how what it adds to that of the shortest grows from half its length.

    About 2 is a peak that grows with the length, 4 one that grows with its square. What the model takes cancels.
    """
    figures = {}
    for form in FORMS:
        for name in KINDS:
            least, half, whole = (peaks[form, name, length] for length in (lengths[0], lengths[-1] // 2, lengths[-1]))
            figures[f"{name}_memory_peak_{lengths[-1]}_{form}_mb"] = whole / 1e6
            if half > least:  # else the peak was that of loading
                figures[f"{name}_memory_growth_{lengths[-1]}_{form}"] = (whole - least) / (half - least)
    return figures


def quantized(folder: Path) -> Path:
    """Save the model of a folder in 8 bits, and its ONNX file beside it."""
    out = folder.with_name(f"{folder.name}-int8")
    compress(folder, Recipe([Quantize(preset="int8")]), sentiment(), out, measure=False, progress=False, export=())
    export(out, "onnx", out / "model.onnx", task=sentiment())
    return out


def swapped(base: Path, name: str, settings: dict[str, Any], scale: Scale) -> Path:
    """Save the base with positions for the longest input, its attention swapped, and its ONNX file beside it."""
    folder = longer(base, max(SHORT + 1, *scale.lengths), runs_folder(CASE) / name)
    if settings:
        model = load(folder)
        for layer in anatomy_of(model).layers:
            swap_attention(model, layer=layer.index, **settings)
        save(model, folder)
    export(folder, "onnx", folder / "model.onnx", task=sentiment())
    return folder


def longer(base: Path, tokens: int, folder: Path) -> Path:
    """Save the base with copied positions for so many tokens."""
    model = load(base)
    extend_positions(model, tokens=tokens)
    return save(model, folder, reaching(load_tokenizer(base), tokens))


def timed(folders: list[Path], runtime: str, length: int, scale: Scale) -> list[tuple[float, int]]:
    """Return the median seconds of one input of this length in each model, in turns, and the peak bytes."""
    batch = one_text(length)
    paths = [folder if runtime == "torch" else folder / "model.onnx" for folder in folders]
    repeats = max(1, scale.lengths[-1] // 2 // length)
    workers = []
    try:
        workers += [open_worker(path, runtime, threads=default_threads()) for path in paths]
        seconds_SRI = time_in_turns(workers, [[[batch] * repeats] * scale.rounds] * len(workers), seed=0, warm=1)
        peaks = [worker.peak_memory() for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    print(runtime, length, [f"{value:.4f}" for value in np.median(seconds_SRI, axis=(1, 2))], flush=True)
    return [(float(value), peak) for value, peak in zip(np.median(seconds_SRI, axis=(1, 2)), peaks, strict=True)]


def one_text(length: int) -> dict[str, Any]:
    """Return a batch of one text of random words."""
    return {
        "input_ids": np.random.default_rng(0).integers(1000, 2000, (1, length)),
        "attention_mask": np.ones((1, length), np.int64),
    }


def floor(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Tell what would be left if attention cost nothing, as a share of the time of the model with a linear one."""
    linear = swapped(base_of_phrases(scale), "linear", KINDS["linear"], scale) / "model.onnx"
    return {
        f"linear_{length}_share_outside_attention": share_outside(linear, one_text(length), threads=default_threads())
        for length in scale.lengths[-2:]
    }, []


def sst2(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Make every layer linear and train it with the base as teacher: points lost on short texts."""
    base = base_of_phrases(scale)
    task = phrases(scale)
    teacher = Distill(temperature=2, logits=1, hidden=1)
    attend = Attend(by="linear", allow_slower=True)
    steps = [Train(epochs=2, learning_rate=5e-5, batch_size=64, together=(teacher, attend))]
    run = compress(base, Recipe(steps), task, runs_folder(CASE) / "linear-sst2", measure=False, progress=False)
    rows = measured(base, [run.folder], task)
    return {"linear_sst2_drop": -rows["linear-sst2"].quality.difference}, records_of(rows)


def long(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Read reviews of more than 512 tokens."""
    base, _, task = base_of_reviews(scale)
    return read_beyond(base, task, LONG, "long")


def joined(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Read reviews of one label, joined until there are 2,000 tokens; those learnt on are new to the base too."""
    base, _, _ = base_of_reviews(scale)
    return read_beyond(base, joined_reviews(scale), JOINED, "joined")


def read_beyond(base: Path, task: Task, tokens: int, name: str) -> tuple[dict[str, Any], list[Any]]:
    """Read texts of up to so many tokens: with a window, with exact attention, cut, and cut into windows.

    From one model of reviews, which reads 512 tokens, four are made. Exact: more positions, an epoch on these texts.
    Window: the exact one with a window, and one more epoch with it as the teacher, of its states too. Cut: two epochs
    on the first 512 tokens. And the latter as it is, with the mean of the logits of overlapping windows, where the text
    is longer.
    """
    folder = runs_folder(CASE)
    whole = longer(base, tokens, folder / f"reviews-{name}")
    more = Train(epochs=1, learning_rate=3e-5, batch_size=4 * LONG // tokens, dropout=0.0)
    make = partial(compress, task=task, measure=False, progress=False)
    exact = make(whole, Recipe([more]), out=folder / f"exact-{name}").folder
    twice = more.model_copy(update={"epochs": 2.0, "batch_size": 4})
    cut = make(base, Recipe([twice]), out=folder / f"cut-{name}").folder
    taught = more.model_copy(update={"together": (Distill(temperature=2, logits=1, hidden=1),)})
    steps = [Attend(**WINDOW, allow_slower=True), taught]
    window = make(exact, Recipe(steps), out=folder / f"window-{name}").folder
    rows = measured(base, [exact, cut, window], task)
    pooled = measured(cut, [], task.model_copy(update={"long": "mean"}))[cut.name]
    quality = {row.removesuffix(f"-{name}"): rows[row].quality.value for row in rows}
    quality["pooled"] = pooled.quality.value
    figures = {
        f"{name}_drop": quality["exact"] - quality["window"],
        f"{name}_gain_over_truncation": quality["window"] - quality["cut"],
        f"{name}_gain_over_pooled_windows": quality["window"] - quality["pooled"],
        **{f"{name}_accuracy_{way}": value for way, value in quality.items()},
    }
    return figures, records_of(rows) + records_of({"pooled": pooled})


def tokens(scale: Scale, learn: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """Let tokens of long reviews go, as many as cost a point: at once, or after an epoch in which they learn to.

    Thresholds are fitted on every second review that nothing has learnt from, and judged on those between.
    """
    base, _, long_ones = base_of_reviews(scale)
    task = halved(long_ones, 0, runs_folder(CASE) / "data" / "reviews").model_copy(update={"max_length": SHORT})
    name, steps = "at-once", [DropTokens(allowed_drop=1.0)]
    if learn:
        together = (Distill(temperature=2, logits=1), DropTokens(penalty=0.1))
        train = Train(epochs=1, learning_rate=3e-5, batch_size=16, dropout=0.0, together=together)
        name, steps = "learnt", [train, *steps]
    make = partial(compress, base, task=task, measure=False, progress=False)
    folder = make(Recipe(steps), out=runs_folder(CASE) / f"tokens-{name}").folder
    rows = measured(base, [folder], task, quick=False)
    whole, row, word = next(iter(rows.values())), rows[folder.name], name.replace("-", "_")
    return {
        f"tokens_{word}_drop": -row.quality.difference,
        f"tokens_{word}_left": left_of(folder, task),
        f"tokens_{word}_latency_ratio": row.latency_ratio.median,
        f"tokens_{word}_throughput_ratio": row.throughput_per_second / whole.throughput_per_second,
    }, records_of(rows)


def left_of(folder: Path, task: Task) -> float:
    """Return of the tokens of the rows that are judged, in all layers, the share that is left."""
    model, tokenizer = load(folder), load_tokenizer(folder)
    return token_shares(model, task.encode(tokenizer, SHORT, label_names(model)).evaluation).mean


def decoder(scale: Scale) -> tuple[dict[str, Any], list[Any]]:
    """Let stories260k remember all but its last 64 tokens in sums: nats lost, and the time of a token more."""
    task = subset(stories(), "stories", range(scale.stories), None if scale == FULL else range(16))
    base = models_folder() / "stories260k"
    steps = [
        Attend(by="hybrid", window=64, examples=scale.stories, length=512, passes=2, allow_slower=True),
        Train(epochs=4, learning_rate=5e-4, batch_size=16, together=(Distill(temperature=1),)),
    ]
    run = compress(base, Recipe(steps), task, runs_folder(CASE) / "hybrid", measure=False, progress=False)
    rows = compare(base, run.folder, task=task, runtimes=["torch"], quick=True, progress=False).rows
    return {
        "hybrid_nats_difference": rows[1].quality.difference,
        **step_figures(load(run.folder), scale.steps),
    }, records_of({row.name: row for row in rows})


def step_figures(model: torch.nn.Module, tokens: int) -> dict[str, float]:
    """Write tokens one by one, with either cache: the time of one at the end over that at an eighth, and the bytes."""
    from transformers import DynamicCache

    from niwaki.layers.recurrent import recurrent_cache

    figures = {}
    caches: dict[str, Callable[[], Any]] = {"recurrent": lambda: recurrent_cache(model), "growing": DynamicCache}
    for name, cache in caches.items():
        seconds, past = np.zeros(tokens), cache()
        with torch.inference_mode():
            for place in range(tokens):
                begin = time.perf_counter()
                model(torch.full((1, 1), 5), past_key_values=past, use_cache=True)
                seconds[place] = time.perf_counter() - begin
        early, late = np.median(seconds[tokens // 8 : tokens // 4]), np.median(seconds[-tokens // 8 :])
        figures[f"hybrid_step_growth_{tokens}_{name}"] = float(late / early)
        figures[f"hybrid_cache_{tokens}_{name}_bytes"] = float(bytes_of(past))
    return figures


def bytes_of(cache: Any) -> int:
    """Return the bytes of all that a cache keeps."""
    kept = [
        tensor
        for layer in cache.layers
        for tensor in (layer.past.tensors if hasattr(layer, "past") else (layer.keys, layer.values))
    ]
    return sum(tensor.nbytes for tensor in kept)


def base_of_phrases(scale: Scale) -> Path:
    """Return MiniLM fine-tuned on SST-2; in a quick run, on a few phrases of it."""
    if scale == FULL:
        return fine_tuned(sentiment())
    from niwaki.demo import find_base

    return finetune(find_base(), phrases(scale), runs_folder(CASE) / "base", epochs=1, progress=False).folder


def base_of_reviews(scale: Scale) -> tuple[Path, Task, Task]:
    """Return the model of phrases made one of reviews, and its tasks: reviews cut at 512 tokens, and long ones."""
    any_length, long_ones = reviews(scale)
    step = Train(epochs=1, learning_rate=5e-5, batch_size=16, dropout=0.0)
    folder = runs_folder(CASE) / "reviews"
    run = compress(base_of_phrases(scale), Recipe([step]), any_length, folder, measure=False, progress=False)
    return run.folder, any_length, long_ones


def phrases(scale: Scale) -> Task:
    """Return SST-2 with fewer phrases to learn on."""
    return subset(sentiment(), "phrases", range(scale.phrases), None if scale == FULL else range(16))


def reviews(scale: Scale) -> tuple[Task, Task]:
    """Return reviews of any length, cut at 512 tokens, and those that are longer than that, uncut.

    What is measured on are the long reviews of the validation split, and those of the train split that nothing learns
    on.
    """
    imdb, train, validation = imdb_and_lengths(scale)
    short, to_learn, to_judge = short_and_long(train, scale)
    judged = np.flatnonzero(validation > SHORT)
    if scale != FULL:
        to_judge, judged = to_judge[:8], judged[:8]
    any_length = subset(imdb, "reviews-any", [*short[: scale.reviews], *to_learn], judged, {"max_length": SHORT})
    return any_length, subset(imdb, "reviews-long", to_learn, judged, also=to_judge)


def joined_reviews(scale: Scale) -> Task:
    """Return reviews of one label each joined until there are 2,000 tokens: short ones that the base has not learnt.

    What is measured on is all of the validation split, joined.
    """
    imdb, train, validation = imdb_and_lengths(scale)
    short, _, _ = short_and_long(train, scale)
    read = imdb.read()
    assert read.train is not None
    groups = grouped(train, read.train.labels, short[scale.reviews :])[: scale.joined]
    judged = grouped(validation, read.validation.labels, range(len(validation)))
    return subset(imdb, "reviews-joined", groups, judged if scale == FULL else judged[:8])


def grouped(lengths: Any, labels: Any, rows: Any) -> list[list[int]]:
    """Return rows of one label in groups of at least 2,000 tokens, in their order; what is left over is left out."""
    groups: list[list[int]] = []
    open_groups: dict[int, list[int]] = {}
    for row in map(int, rows):
        group = open_groups.setdefault(int(labels[row]), [])
        group.append(row)
        if lengths[group].sum() >= 2000:
            groups.append(open_groups.pop(int(labels[row])))
    return groups


def imdb_and_lengths(scale: Scale) -> tuple[Task, Any, Any]:
    """Return all reviews, and how many tokens those to learn on and those to measure on have."""
    imdb = Task("text-classification", data=str(data_folder() / "imdb"))
    tokens = imdb.encode(load_tokenizer(base_of_phrases(scale)), sys.maxsize)
    assert tokens.train is not None
    return imdb, tokens.train.lengths, tokens.validation.lengths


def short_and_long(lengths: Any, scale: Scale) -> tuple[Any, Any, Any]:
    """Return the rows of short reviews, of long ones to learn on, and of the long ones that are left."""
    long_ones = np.flatnonzero(lengths > SHORT)
    return np.flatnonzero(lengths <= SHORT), long_ones[: scale.long], long_ones[scale.long :]


def subset(
    task: Task,
    name: str,
    train: Any,
    validation: Any = None,
    update: dict[str, Any] | None = None,
    also: Any = (),
) -> Task:
    """Write these rows of a task's splits as CSV and return the task on them; `also` moves train rows to validation.

    In place of a row there may be a group of rows of one label: their texts are joined.
    """
    read = task.read()
    assert read.train is not None
    validation = range(len(read.validation)) if validation is None else validation
    folder = runs_folder(CASE) / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {
        "train": [(read.train, row) for row in train if np.max(row) < len(read.train)],
        "validation": [(read.validation, row) for row in validation] + [(read.train, row) for row in also],
    }
    for split, rows in chosen.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label") if read.labels else ("text",))
            for source, row in rows:
                group = np.atleast_1d(row)
                label = (read.labels[int(source.labels[group[0]])],) if read.labels else ()
                writer.writerow((" ".join(source.texts[one] for one in group), *label))
    return task.model_copy(update={"data": str(folder), **(update or {})})


def measured(base: Path, folders: list[Path], task: Task, quick: bool = True) -> dict[str, Any]:
    """Measure base and runs in one session; return the rows by name, the base's first."""
    rows = compare(base, *folders, task=task, runtimes=["onnxruntime"], quick=quick, progress=False).rows
    return {row.name: row for row in rows}


STAGES: dict[str, Callable[[Scale], tuple[dict[str, Any], list[Any]]]] = {
    "growth": growth,
    "floor": floor,
    "sst2": sst2,
    "long": long,
    "joined": joined,
    "tokens": tokens,
    "tokens-learnt": partial(tokens, learn=True),
    "stories": decoder,
}


def main(words: list[str]) -> None:
    """Carry out the stages that are named, or all."""
    scale = QUICK if "--quick" in words else FULL
    names = [word for word in words if word != "--quick"]
    if scale == QUICK:
        for name in names or STAGES:
            print(name, STAGES[name](scale)[0], flush=True)
        return
    stages = {name: partial(stage, scale) for name, stage in STAGES.items()}
    conditions = {
        "fine_tuning": FINE_TUNING,
        "tokens_of_long": LONG,
        "tokens_of_joined": JOINED,
        "window": WINDOW,
        **asdict(scale),
    }
    run_stages(CASE, stages, names, conditions)
    draw()


if __name__ == "__main__":
    main(sys.argv[1:])
