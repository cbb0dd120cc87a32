"""`trim` keeps what the texts use: same answers on them, and everything behind it reads the new ids."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of, rows_of
from niwaki.calibrate import inputs_of
from niwaki.checkpoint import WEIGHTS, load_tokenizer, weights_hash
from niwaki.comparison import compare
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.surgery import is_plain, quantize_embedding
from niwaki.task import Encoded, Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.trim import Trim, check_same, coverage, unchanged_rows
from niwaki.testing import fresh, make_context
from niwaki.train import Train

Bases = Callable[..., Path]

TEXTS = ["a good film", "the film is dull", "good good plot", "the plot was dull"]
UNSEEN = ["a superb film", "the hotel was awful"]


@pytest.fixture
def small_task(tmp_path: Path) -> Task:
    """Return a task whose four training texts use nine words, and whose validation texts use others too."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name, texts in (("train", TEXTS), ("validation", [*TEXTS, *UNSEEN])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [(text, "negative" if "dull" in text or "awful" in text else "positive") for text in texts]
            csv.writer(file).writerows([("text", "label"), *rows])
    return Task("text-classification", data=str(folder))


def rows_left(model: nn.Module) -> int:
    return rows_of(anatomy_of(model).word_embeddings)


def words_left(model: nn.Module, context: Context) -> set[str]:
    """Return the whole words of letters that stayed; the made-up words with digits cannot be spelled, and stay."""
    tokens = context.as_read_by(model).tokenizer.get_vocab()
    return {token for token in tokens if token.isalpha() and token.isascii() and len(token) > 1}


def answers(model: nn.Module, rows: Encoded) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs_of(rows.batch(range(len(rows))))).logits.clone()


def test_counted_texts_are_answered_as_before(family: str, saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), small_task, tmp_path)
    model = Trim().run(fresh(context), context)
    assert words_left(model, context) == {"good", "film", "the", "is", "dull", "plot", "was"}
    reading = context.as_read_by(model)
    assert rows_left(model) == len(reading.tokenizer) == model.config.vocab_size < 200
    assert torch.equal(answers(model, reading.train), answers(context.base, context.train))
    assert reading.for_base(reading.train).fingerprint == context.train.fingerprint
    assert is_plain(model)
    assert model.config.pad_token_id == reading.tokenizer.pad_token_id == reading.train.pad


def test_unseen_words_are_read_in_smaller_pieces(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), small_task, tmp_path)
    events: list[dict[str, object]] = []
    object.__setattr__(context, "log", events.append)
    model = Trim().run(fresh(context), context)
    tokenizer = context.as_read_by(model).tokenizer
    assert tokenizer.tokenize("a superb film") == ["a", "s", "##u", "##p", "##e", "##r", "##b", "film"]
    (note,) = [event for event in events if event["event"] == "note"]
    # validation has 14 + 7 words, of which superb, hotel and awful go; 4 of 6 texts have none of these
    assert note["covered_tokens"] == pytest.approx(18 / 21) and note["covered_rows"] == pytest.approx(4 / 6)
    assert (note["kept"], note["of"]) == (rows_left(model), 200)
    assert note["saved_bytes"] == (200 - rows_left(model)) * 32 * 4


def test_rare_tokens_may_go_too(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), small_task, tmp_path)
    model = Trim(min_count=3).run(fresh(context), context)
    assert words_left(model, context) == {"good"}  # three times; film, the, dull and plot come twice


def test_a_share_keeps_the_most_frequent(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), small_task, tmp_path)
    fixed = rows_left(Trim(min_count=100).run(fresh(context), context))
    model = Trim(keep_tokens=(fixed + 2) / 200).run(fresh(context), context)
    assert rows_left(model) == fixed + 2
    assert "good" in words_left(model, context) and len(words_left(model, context)) == 2
    with pytest.raises(NiwakiError, match=f"room for the {fixed} special") as caught:
        Trim(keep_tokens=0.05).run(fresh(context), context)
    share = float(caught.value.fix.split()[-1])
    Trim(keep_tokens=share).run(fresh(context), context)


def test_more_texts_to_count_on(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), small_task, tmp_path)
    more = tmp_path / "more.txt"
    more.write_text("a superb hotel\n\nthe phone\n", encoding="utf-8")
    assert {"superb", "hotel", "phone"} <= words_left(Trim(corpus=(str(more),)).run(fresh(context), context), context)
    more.write_text("\n", encoding="utf-8")
    with pytest.raises(NiwakiError, match="has no text"):
        Trim(corpus=(str(more),)).run(fresh(context), context)
    with pytest.raises(NiwakiError, match="nowhere"):
        Trim(corpus=("nowhere.txt",)).check(fresh(context))


def test_what_was_cut_off_is_counted(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    task = small_task.model_copy(update={"max_length": 4})
    context = make_context(saved_base("bert"), task, tmp_path)
    assert context.train.truncated == 4
    model = Trim().run(fresh(context), context)
    assert "plot" in words_left(model, context)  # the third word of its texts
    reading = context.as_read_by(model)
    assert np.array_equal(reading.for_base(reading.train).tokens, context.train.tokens)


def test_nothing_to_remove_is_said(saved_base: Bases, small_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), small_task, tmp_path)
    model = Trim().run(fresh(context), context)
    left = rows_left(model)
    with pytest.raises(NiwakiError, match=f"all {left} tokens"):
        Trim().run(model, context.as_read_by(model))
    again = Trim(min_count=3).run(model, context.as_read_by(model))
    assert words_left(again, context) == {"good"} and rows_left(again) < left
    with pytest.raises(NiwakiError, match="min_count is 2"):
        Trim(keep_tokens=0.5, min_count=2)
    for share, expected in ((0, r"\(0, 1\]"), (1.5, r"\(0, 1\]"), ("some", "used, or a number")):
        with pytest.raises(NiwakiError, match=expected):
            Trim(keep_tokens=share)


def test_a_shared_head_needs_a_word(tiny_model: Callable[..., nn.Module]) -> None:
    from transformers import BertForMaskedLM

    classifier = tiny_model("bert")
    masked = BertForMaskedLM(classifier.config)
    with pytest.raises(NiwakiError, match="head: tied"):
        Trim().check(masked)
    Trim(head="tied").check(masked)
    with pytest.raises(NiwakiError, match="no head shares"):
        Trim(head="tied").check(classifier)
    with pytest.raises(NiwakiError, match="packed"):
        Trim().check(quantize_embedding(classifier, module="bert.embeddings.word_embeddings"))
    with pytest.raises(NiwakiError, match="packed"):
        Recipe([Quantize(), Trim()])


def encoded(*rows: list[int]) -> Encoded:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    tokens = np.array([token for row in rows for token in row], np.int32)
    return Encoded("train", tokens, None, offsets, np.zeros(len(rows), np.int64))


def test_a_text_that_is_read_otherwise_is_found() -> None:
    old, tokens = encoded([0, 3, 5], [0, 4], [], [0, 5]), np.array([0, 3, 5])
    assert unchanged_rows(old, np.isin(np.arange(6), tokens)).tolist() == [True, False, True, True]
    check_same(old, encoded([0, 1, 2], [0, 1, 1], [], [0, 2]), tokens, 6)
    for wrong in (encoded([0, 1, 2], [0], [], [0, 1]), encoded([0, 1, 2], [0], [], [0, 2, 2])):
        with pytest.raises(NiwakiError, match="text 3 of train"):
            check_same(old, wrong, tokens, 6)
    assert coverage(old, [0, 3, 5], {0}) == {"covered_tokens": 0.75, "covered_rows": 0.75}


def test_a_whole_run_reads_the_new_ids(
    saved_base: Bases, small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trim, train beside a teacher of the whole vocabulary, pack, export, measure; then resume, and trim the result."""
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    base = saved_base("bert")
    recipe = Recipe([Trim(), Train(together=(Distill(hidden=1.0),), epochs=2, batch_size=2), Quantize()])
    run = compress(base, recipe, small_task, tmp_path / "small", runtimes=["onnxruntime"], progress=False)
    tokenizer, model = load_tokenizer(run.folder), run.load()
    assert len(tokenizer) == rows_left(model) < 200
    before, after = run.comparison.rows
    assert before.quality.count == after.quality.count == 6
    # the trimmed model reads "superb", "hotel" and "awful" in 6, 5 and 5 pieces: 16 tokens where the base has 3
    assert after.conditions.lengths.mean - before.conditions.lengths.mean == pytest.approx(13 / 6)
    card = (run.folder / "README.md").read_text()
    assert f"{len(tokenizer)} of 200 tokens kept" in card and "85.7% of the tokens" in card
    weights = (run.folder / WEIGHTS).stat().st_mtime_ns
    compress(base, recipe, small_task, run.folder, runtimes=["onnxruntime"], progress=False)
    assert (run.folder / WEIGHTS).stat().st_mtime_ns == weights


def test_an_interrupted_run_goes_on_with_the_new_ids(
    saved_base: Bases, small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    base, train = saved_base("bert"), Train(together=(Distill(hidden=1.0),), epochs=2, batch_size=2)
    settings = {"export": (), "measure": False, "progress": False}
    once = compress(base, Recipe([Trim(), train]), small_task, tmp_path / "once", **settings)
    compress(base, Recipe([Trim()]), small_task, tmp_path / "twice", **settings)
    twice = compress(base, Recipe([Trim(), train]), small_task, tmp_path / "twice", **settings)
    notes = [json.loads(line).get("note") for line in (twice.folder / "log.jsonl").read_text().splitlines()]
    assert "00-trim was done before" in notes
    assert weights_hash(once.load()) == weights_hash(twice.load())
    again = compress(once.folder, Recipe([Trim(min_count=3)]), small_task, tmp_path / "again", **settings)
    assert rows_left(again.load()) == len(load_tokenizer(again.folder)) < rows_left(once.load())
    assert load_tokenizer(again.folder).tokenize("good plot") == ["good", "p", "##l", "##o", "##t"]
    with pytest.raises(NiwakiError, match="another vocabulary"):
        teacher = Distill(teacher=str(again.folder))
        compress(base, Recipe([Trim(), Train(together=(teacher,), epochs=1)]), small_task, tmp_path / "no", **settings)
    teacher = Distill(teacher=str(saved_base("bert", folder=tmp_path / "teacher", layers=3)))
    compress(base, Recipe([Trim(), Train(together=(teacher,), epochs=1)]), small_task, tmp_path / "yes", **settings)


def test_unlike_vocabularies_are_compared_on_the_same_texts(
    saved_base: Bases, small_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trimmed alone, a model answers the counted texts as its base does: no answer has changed."""
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    base = saved_base("bert")
    seen = Path(small_task.data) / "validation.csv"
    seen.write_text((Path(small_task.data) / "train.csv").read_text())
    run = compress(base, Recipe([Trim()]), small_task, tmp_path / "small", export=(), measure=False, progress=False)
    before, after = compare(base, run, task=small_task, runtimes=["torch"], quick=True, progress=False).rows
    assert after.quality.changed == 0 and after.quality.count == 4
    assert before.conditions.lengths == after.conditions.lengths
    assert after.size_bytes < before.size_bytes
