"""The redundancy report: each part alone, paired with the whole, and a verdict that the numbers bear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import niwaki
from niwaki.anatomy import anatomy_of
from niwaki.calibrate import predict
from niwaki.checkpoint import load, load_tokenizer, save
from niwaki.errors import NiwakiError
from niwaki.measure import paired_quality
from niwaki.measure.ablation import Ablation
from niwaki.measure.ends import Contrast, ends_against_middle, verdict
from niwaki.report.redundancy import redundancy_picture
from niwaki.surgery import keep_layers
from niwaki.task import Task

Base = Callable[..., Path]


# Ends against the middle


def answers(*wrong: int) -> np.ndarray:
    """Return what 100 rows of class 0 are called by each layer's model, of which the first `wrong` are called 1."""
    return np.array([[int(row < count) for row in range(100)] for count in wrong])


def test_contrasts_by_hand() -> None:
    """Without layer 0, 50 of 100 are wrong, without the middle 0 and 20, without the last 5."""
    first, last = ends_against_middle(answers(50, 0, 20, 5), np.zeros(100, dtype=int), "accuracy", 2)
    assert (first.layer, first.difference, last.layer, last.difference) == (0, 40.0, 3, -5.0)
    # a row of the 20 counts 1 - 0.5, one of the other 30 counts 1: variance 20 * 0.25 + 30 - 100 * 0.4**2 = 19
    assert first.interval == pytest.approx((40 - 1.96 * 19**0.5, 40 + 1.96 * 19**0.5), abs=1.0)
    # 5 rows count 1 - 0.5, 15 count -0.5: variance 20 * 0.25 - 100 * 0.05**2 = 4.75
    assert last.interval == pytest.approx((-5 - 1.96 * 4.75**0.5, -5 + 1.96 * 4.75**0.5), abs=0.7)
    assert first.side == 1 and last.side == -1


def test_contrasts_are_those_of_the_metric() -> None:
    labels = np.array([0, 1] * 50)
    always = np.zeros((3, 100), dtype=int)
    always[1] = labels  # without the middle layer all is right: F1 of class 1 is 100, else 0
    first, last = ends_against_middle(always, labels, "f1", 2)
    assert (first.difference, last.difference) == (100.0, 100.0)


def contrast(layer: int, low: float, high: float) -> Contrast:
    return Contrast(layer=layer, difference=(low + high) / 2, interval=(low, high))


MORE, LESS, OPEN = (1.0, 3.0), (-3.0, -1.0), (-1.0, 2.0)


@pytest.mark.parametrize(
    ("first", "last", "finding", "words"),
    [
        (MORE, MORE, "shown", "These 512 rows show that"),
        (MORE, LESS, "refuted", "These 512 rows refute that"),
        (LESS, OPEN, "refuted", "These 512 rows refute that"),
        (MORE, OPEN, "open", "These 512 rows neither show nor refute that"),
        (OPEN, OPEN, "open", "These 512 rows neither show nor refute that"),
    ],
)
def test_verdicts(first: Any, last: Any, finding: str, words: str) -> None:
    judged = verdict(contrast(0, *first), contrast(5, *last), [(-4.0, -0.5), (-1.5, 0.0), (-0.25, 0.5)], count=512)
    assert judged.finding == finding and judged.sentence.startswith(words)
    assert judged.sentence.count("too close to tell") == [first, last].count(OPEN)
    assert "Of the 3 layers in the middle, 2 can each be removed alone" in judged.sentence
    assert judged.sentence.endswith("; by their intervals it may still be up to 1.50 points.")
    assert (judged.middle, judged.redundant) == (3, 2)


def test_words_of_a_contrast() -> None:
    told = "removing layer 5 costs 2.00 points less than removing a middle layer does on average (95%: -3.00..-1.00)"
    assert str(contrast(5, *LESS)) == told


# The verb


@pytest.fixture
def task(toy_data: Callable[..., Path]) -> Task:
    return Task("text-classification", data=str(toy_data(test=24)))


def test_every_part_beside_the_whole(saved_base: Base, task: Task, tmp_path: Path) -> None:
    """The record of a layer is what comparing with a model that lost it says; an idle part loses nothing."""
    base = saved_base("bert", layers=3, heads=2)
    model = load(base)
    torch.nn.init.zeros_(anatomy_of(model).layers[1].part("down").weight)  # this feed-forward does nothing as it is
    folder = tmp_path / "idle"
    save(model, folder, load_tokenizer(base))
    ablation = niwaki.ablate(folder, task, progress=False, out=tmp_path / "picture.svg")
    kinds = ["layer", "attention", "feed-forward", "head", "head"]
    assert [(part.layer, part.kind) for part in ablation.parts] == [
        (layer, kind) for layer in range(3) for kind in kinds
    ]
    rows = task.encode(load_tokenizer(base), 64).validation
    assert (ablation.split, ablation.count, ablation.seed) == ("validation", 48, 0)
    whole = predict(model, rows)
    assert ablation.quality == pytest.approx(100 * np.mean(whole.argmax(-1) == rows.labels))
    assert ablation.loss == pytest.approx(float(task.loss(torch.tensor(whole), torch.tensor(rows.labels))), abs=1e-5)
    idle = ablation.of_kind("feed-forward")[1]
    assert (idle.quality.difference, idle.quality.interval, idle.quality.changed) == (0.0, (0.0, 0.0), 0.0)
    assert idle.loss_difference == pytest.approx(0.0, abs=1e-6)
    without = predict(keep_layers(model, layers=[0, 1]), rows)
    last = ablation.of_kind("layer")[2]
    expected = paired_quality(whole.argmax(-1), without.argmax(-1), rows.labels, "accuracy", num_classes=2)
    quality = last.quality.model_dump()
    assert quality == {**quality, **expected, "split": "validation"}
    loss = float(task.loss(torch.tensor(without), torch.tensor(rows.labels)))
    assert last.loss == pytest.approx(loss, abs=1e-5)
    assert last.loss_difference == pytest.approx(loss - ablation.loss, abs=1e-5)
    assert ElementTree.fromstring((tmp_path / "picture.svg").read_text("utf-8")).tag.endswith("svg")
    assert Ablation(**json.loads(ablation.to_json())) == ablation


def test_selection_rows_unless_asked_for_others(saved_base: Base, toy_task: Task) -> None:
    """Without a test split they come from train, and the table says so."""
    base = saved_base("bert", layers=2, heads=2)
    ablation = niwaki.ablate(base, toy_task, heads=False, progress=False)
    assert (ablation.split, ablation.count) == ("selection", 5) and len(ablation.parts) == 6
    assert "a model that learnt from them knows them" in str(ablation)
    assert ablation.verdict.finding == "none" and "Of 2 layers none is in the middle" in str(ablation)
    seen = niwaki.ablate(base, toy_task, examples=20, heads=False, split="evaluation", progress=False)
    assert (seen.split, seen.count) == ("validation", 20) and "learnt" not in str(seen)


def test_table_and_picture(saved_base: Base, task: Task, tmp_path: Path) -> None:
    ablation = niwaki.ablate(saved_base("bert", layers=3, heads=2), task, progress=False)
    text = str(ablation)
    part = ablation.of_kind("attention")[2]
    low, high = part.quality.interval
    cell = f"{part.quality.difference:+.2f} ({low:+.2f}..{high:+.2f}) {part.loss_difference:+.4f}"
    (line,) = [line for line in text.splitlines() if cell in " ".join(line.split())]
    assert line.split()[0] == "2"
    assert "One head alone" in text and text.endswith(ablation.verdict.sentence)
    words = {element.text for element in ElementTree.parse(redundancy_picture(ablation, tmp_path / "a.svg")).iter()}
    assert {
        "What base-bert loses without each part",
        "whole layer",
        "its attention",
        "its feed-forward",
        "head",
    } <= words
    assert redundancy_picture(ablation, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    bare = ablation.model_copy(update={"parts": tuple(p for p in ablation.parts if p.kind != "head")})
    assert "One head alone" not in str(bare)
    redundancy_picture(bare, tmp_path / "bare.svg")


def test_a_star_where_the_interval_leaves_out_zero(saved_base: Base, task: Task) -> None:
    ablation = niwaki.ablate(saved_base("bert", layers=1, heads=2), task, progress=False)
    heads = ablation.of_kind("head")
    clear = heads[0].quality.model_copy(update={"difference": -5.0, "interval": (-9.0, -1.0)})
    vague = heads[1].quality.model_copy(update={"difference": 0.5, "interval": (-1.0, 2.0)})
    parts = tuple(p.model_copy(update={"quality": q}) for p, q in zip(heads, (clear, vague), strict=True))
    layer = tuple(part for part in ablation.parts if part.kind != "head")
    lines = str(ablation.model_copy(update={"parts": layer + parts})).splitlines()
    assert any(line.split() == ["0", "-5.00*", "+0.50"] for line in lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "evaluation"),
        ({"examples": 1}, "examples is 1"),
        ({"out": "picture.jpeg"}, "picture.jpeg"),
    ],
)
def test_refused_before_any_work(options: dict[str, Any], words: str, task: Task) -> None:
    with pytest.raises(NiwakiError, match=words):
        niwaki.ablate("there/is/no/such/model", task, **options)


def test_no_train_split_no_selection(saved_base: Base, toy_data: Callable[..., Path], tmp_path: Path) -> None:
    data = toy_data()
    (data / "train.csv").unlink()
    task = Task("text-classification", data=str(data))
    with pytest.raises(NiwakiError, match="--split evaluation"):
        niwaki.ablate(saved_base("bert"), task, progress=False)
    assert niwaki.ablate(saved_base("bert"), task, split="evaluation", heads=False, progress=False).count == 48


def test_texts_that_are_read_in_windows_are_not_ablated(saved_base, toy_task):
    task = toy_task.model_copy(update={"long": "mean"})
    with pytest.raises(NiwakiError, match="read in windows"):
        niwaki.ablate(saved_base("bert"), task, split="evaluation", progress=False)
