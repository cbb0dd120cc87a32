"""A cut tokenizer reads what it was cut for as before, and everything else without new unknowns."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.checkpoint import load_tokenizer, narrow_tokenizer, tokenizer_record
from niwaki.errors import NiwakiError
from niwaki.vocabulary import check_kind, closed, ids_of, narrowed, parts_of, spelling, staying

KINDS = ("WordPiece", "BPE", "Unigram", "suffixed BPE")
LINES = [
    "the old gardener shapes the old pine tree with a small saw",
    "a tree that is shaped every year stays small and whole",
    "shaping takes patience, and patience takes years",
    "the gardener's patience outlives the saw; the tree outlives the gardener",
    "smaller trees, older saws: whole gardens were shaped again and again",
]
WORDS = sorted({word for line in LINES for word in line.split()})
UNSEEN = ["gardening", "treeless", "unshaped", "treeé", "é", "木", "zzz"]
TEXTS = st.lists(st.sampled_from([*WORDS, *UNSEEN]), min_size=1, max_size=6).map(" ".join)


@functools.cache
def tokenizer_of(kind: str) -> Any:
    """Train a small tokenizer of this kind and dress it as one of Transformers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer: Any
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "suffixed BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
        trainer = trainers.BpeTrainer(
            vocab_size=160, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(LINES, trainer)
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:0 </s>:0", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template]) if kind == "BPE" else template
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    dressed = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    dressed.add_tokens(["<garden>"])  # stands behind the model's own pieces
    return dressed


def tokens_for(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the ids that must stay so that these texts are read as before."""
    record = tokenizer_record(tokenizer)
    used = {index for text in texts for index in tokenizer(text)["input_ids"]}
    return sorted(closed(staying(record) | used, parts_of(record)))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(corpus=st.lists(TEXTS, min_size=1, max_size=4), others=st.lists(TEXTS, max_size=8))
def test_counted_texts_are_read_as_before_and_others_without_new_unknowns(
    kind: str, corpus: list[str], others: list[str]
) -> None:
    from tokenizers import Tokenizer

    dressed = tokenizer_of(kind)
    tokens = tokens_for(dressed, corpus)
    whole = dressed.backend_tokenizer
    assert len(tokens) < whole.get_vocab_size(), "nothing was cut: the test tests nothing"
    cut = Tokenizer.from_str(json.dumps(narrowed(tokenizer_record(dressed), tokens)))
    assert cut.get_vocab_size() == len(tokens)
    for text in corpus:
        assert [tokens[index] for index in cut.encode(text).ids] == whole.encode(text).ids
    for text in [*others, *WORDS]:
        before, after = whole.encode(text).ids, cut.encode(text).ids
        unknown = [ids.count(one.token_to_id("<unk>")) for ids, one in ((before, whole), (after, cut))]
        assert unknown[1] <= unknown[0], f"{text!r} has a new unknown"
        if not unknown[0]:
            assert cut.decode(after) == whole.decode(before)
        if set(before) <= set(tokens):
            assert [tokens[index] for index in after] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_tokenizer_reloads_as_it_is(kind: str, tmp_path: Path) -> None:
    whole = tokenizer_of(kind)
    tokens = tokens_for(whole, LINES[:1])
    cut = narrow_tokenizer(whole, tokens)
    assert whole.get_vocab() == tokenizer_of(kind).get_vocab()
    cut.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == cut.get_vocab()
    assert again.model_max_length == 64 and again.all_special_tokens == whole.all_special_tokens
    for settings_ in ({}, {"text_pair": LINES[2]}):
        assert again(LINES[3], **settings_)["input_ids"] == cut(LINES[3], **settings_)["input_ids"]
    pair = whole(LINES[0], LINES[0])["input_ids"]
    assert [tokens[index] for index in again(LINES[0], LINES[0])["input_ids"]] == pair
    assert again("<garden>")["input_ids"][1] == tokens.index(whole.convert_tokens_to_ids("<garden>"))
    old, new = ids_of(tokenizer_record(whole)), ids_of(tokenizer_record(cut))
    assert {token: tokens[index] for token, index in new.items()} == {token: old[token] for token in new}


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_changes_nothing(kind: str) -> None:
    record = tokenizer_record(tokenizer_of(kind))
    assert narrowed(record, sorted(ids_of(record).values())) == record


def bpe(vocabulary: str, *merges: str, **settings_: Any) -> dict[str, Any]:
    """Return the JSON of a BPE by hand; ids are the order of the words."""
    vocab = {piece: index for index, piece in enumerate(vocabulary.split())}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [merge.split() for merge in merges],
        "unk_token": None,
        **settings_,
    }
    return {"model": {**model, **settings_}, "added_tokens": [], "post_processor": None, "padding": None}


def test_merges_stay_closed() -> None:
    record = bpe("a b c ab bc abc aa", "a b", "b c", "ab c", "a a")
    parts = parts_of(record)
    assert parts == {3: {0, 1}, 4: {1, 2}, 5: {3, 2}, 6: {0}}
    kept = sorted(closed(staying(record) | {5}, parts))
    assert kept == [0, 1, 2, 3, 5]  # "abc" is joined from "ab"; "bc" and "aa" may go
    cut = narrowed(record, kept)["model"]
    assert cut["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    assert cut["merges"] == [["a", "b"], ["ab", "c"]]


def test_bytes_stay_where_the_tokenizer_falls_back_to_them() -> None:
    assert staying(bpe("< 0 x A > <0x0A> <0x", byte_fallback=True)) == {0, 1, 2, 3, 4, 5}
    assert staying(bpe("< 0 x A > <0x0A> <0x")) == {0, 1, 2, 3, 4}


def test_what_cannot_be_spelled_stays() -> None:
    words = ["[UNK]", "a", "b", "##a", "##b", "ab", "##ba", "ac", "##cc", "cab"]
    vocab = {word: index for index, word in enumerate(words)}
    model = {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    record = {"model": model, "added_tokens": [], "post_processor": None, "padding": None}
    gone = {word for word, index in vocab.items() if index not in staying(record)}
    assert gone == {"ab", "##ba"}  # c is no piece by itself, so what has it stays


def test_a_unigram_keeps_the_piece_of_lowest_score() -> None:
    vocab = [["<unk>", 0.0], ["a", -2.0], ["b", -3.0], ["ab", -9.0], ["ba", -1.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    record = {"model": model, "added_tokens": [], "post_processor": None, "padding": {"pad_id": 1}}
    assert staying(record) == {0, 1, 2, 3}
    cut = narrowed(record, [0, 1, 3])
    assert cut["model"]["vocab"] == [["<unk>", 0.0], ["a", -2.0], ["ab", -9.0]]
    assert cut["padding"] == {"pad_id": 1}


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_ids_around_a_text_are_renumbered(kind: str) -> None:
    record = bpe("a b c d")
    record["post_processor"] = {"type": "Sequence", "processors": [{"type": kind, "sep": ["d", 3], "cls": ["b", 1]}]}
    assert staying(record) >= {1, 3}
    cut = narrowed(record, [1, 3])["post_processor"]
    assert cut["processors"] == [{"type": kind, "sep": ["d", 1], "cls": ["b", 0]}]


def test_prefix_and_suffix_mark_the_single_characters() -> None:
    assert spelling("##", prefix="##") == []
    assert spelling("x</w>", suffix="</w>") == ["x</w>"]
    assert spelling("木") == ["木"]


def test_other_kinds_are_refused() -> None:
    with pytest.raises(NiwakiError, match="WordLevel"):
        check_kind({"model": {"type": "WordLevel"}})
    with pytest.raises(NiwakiError, match="written in Python"):
        tokenizer_record(object())


@pytest.mark.parametrize("name", ["BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"])
def test_tokenizers_with_a_class_of_their_own_are_cut(name: str, tmp_path: Path) -> None:
    """These classes build themselves anew from the file's vocabulary; the ids must be those of the file."""
    import transformers

    kind = {"BertTokenizer": "WordPiece", "RobertaTokenizer": "BPE", "XLMRobertaTokenizer": "Unigram"}[name]
    trained = json.loads(tokenizer_of(kind).backend_tokenizer.to_str())["model"]
    if name == "BertTokenizer":
        vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for word in trained["vocab"] if "<" not in word)]
        whole = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(vocab)})
    elif name == "RobertaTokenizer":
        vocab = {**trained["vocab"], "<mask>": len(trained["vocab"])}
        whole = transformers.RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in trained["merges"]])
    else:
        whole = transformers.XLMRobertaTokenizer(vocab=[*(tuple(entry) for entry in trained["vocab"]), ("<mask>", 0.0)])
    tokens = tokens_for(whole, LINES[:2])
    assert len(tokens) < len(whole)
    cut = narrow_tokenizer(whole, tokens)
    cut.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(whole)
    kept = np.array(tokens)
    for text in LINES[:2]:
        assert kept[again(text)["input_ids"]].tolist() == whole(text)["input_ids"]
    assert again.mask_token_id == tokens.index(whole.mask_token_id)
