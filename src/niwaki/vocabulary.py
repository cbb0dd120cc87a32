"""Cut the vocabulary of a tokenizer of the library `tokenizers`, as its JSON describes it; nothing here knows a model.

Why a cut tokenizer reads a text as before, when every token that it had in the text stays:
WordPiece takes the longest piece at each place, and the longest of all is still the longest of those that stay.
BPE joins the pair of lowest rank. Whatever it joined on the way to a token of the text is a part of that token, and
the parts of tokens that stay, and the joins of parts that stay, stay with their ranks (`closed`).
Unigram takes the segmentation of highest score. That one is still possible, and every other one was there before;
the piece of lowest score stays, for the score of the unknown token hangs on it.

Why what goes can still be spelled: single characters and bytes stay, and so does a piece with a character that is no
piece by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from niwaki.errors import NiwakiError

Record = dict[str, Any]
"""A tokenizer as its JSON describes it."""

KINDS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def check_kind(record: Record) -> None:
    """Refuse a tokenizer whose pieces cannot be told from its JSON.

    Raises:
        NiwakiError: it is none of `KINDS`.
    """
    kind = record["model"]["type"]
    if kind not in KINDS:
        raise NiwakiError(f"the tokenizer is a {kind}", expected=f"one of {', '.join(KINDS)}")


def ids_of(record: Record) -> dict[str, int]:
    """Return the id of each token, the added ones included.

    >>> ids_of({"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": [{"content": "<s>", "id": 2}]})
    {'<unk>': 0, 'a': 1, '<s>': 2}
    """
    return {**_pieces(record), **{token["content"]: token["id"] for token in record["added_tokens"]}}


def staying(record: Record) -> set[int]:
    """Return the ids of what stays whatever is counted: special and added tokens, bytes, and what spells the rest.

    Raises:
        NiwakiError: as `check_kind`.
    """
    check_kind(record)
    model, pieces = record["model"], _pieces(record)
    stay = {token["id"] for token in record["added_tokens"]} | _named(record)
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        stay.add(scores.index(min(scores)))
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    for piece, index in pieces.items():
        letters = spelling(piece, prefix, suffix)
        is_byte = model.get("byte_fallback") and BYTE.fullmatch(piece)
        if is_byte or len(letters) < 2 or any(letter not in pieces for letter in letters):
            stay.add(index)
    return stay


def spelling(piece: str, prefix: str = "", suffix: str = "") -> list[str]:
    """Return the pieces of one character that spell a piece.

    Args:
        piece: as it stands in the vocabulary.
        prefix: what marks a piece that continues a word ("##" in WordPiece).
        suffix: what marks a piece that ends a word ("</w>" in some BPE).

    >>> spelling("##ing", prefix="##"), spelling("low</w>", suffix="</w>"), spelling("cat", prefix="##")
    (['##i', '##n', '##g'], ['l', 'o', 'w</w>'], ['c', '##a', '##t'])
    """
    begins, ends = not (prefix and piece.startswith(prefix)), bool(suffix) and piece.endswith(suffix)
    text = piece.removeprefix(prefix).removesuffix(suffix)
    letters = [letter if begins and place == 0 else prefix + letter for place, letter in enumerate(text)]
    return [*letters[:-1], letters[-1] + suffix] if letters and ends else letters


def parts_of(record: Record) -> dict[int, set[int]]:
    """Return the ids of the tokens that the merges of a BPE join to each token; nothing for the other kinds."""
    pieces, parts = _pieces(record), dict[int, set[int]]()
    for left, right, joined in _merges(record):
        parts.setdefault(pieces[joined], set()).update((pieces[left], pieces[right]))
    return parts


def closed(tokens: Iterable[int], parts: Mapping[int, set[int]]) -> set[int]:
    """Return tokens with their parts, and the parts of these.

    >>> sorted(closed({5}, {5: {4, 1}, 4: {2, 3}, 9: {7, 8}}))
    [1, 2, 3, 4, 5]
    """
    found: set[int] = set()
    waiting = list(tokens)
    while waiting:
        token = waiting.pop()
        if token not in found:
            found.add(token)
            waiting.extend(parts.get(token, ()))
    return found


def narrowed(record: Record, tokens: Sequence[int]) -> Record:
    """Return the tokenizer with these tokens alone, numbered from 0 in their order.

    Args:
        record: a tokenizer's JSON.
        tokens: ids that stay, ascending; `staying` and `closed` tell what must be among them.
    """
    new = {old: index for index, old in enumerate(tokens)}
    model, pieces = dict(record["model"]), _pieces(record)
    if isinstance(model["vocab"], list):  # Unigram, where the place in the list is the id
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = {piece: new[old] for piece, old in pieces.items() if old in new}
    if "merges" in model:
        kept = model["vocab"].keys()
        model["merges"] = [[left, right] for left, right, joined in _merges(record) if kept >= {left, right, joined}]
    changed = {
        "model": model,
        "added_tokens": [{**token, "id": new[token["id"]]} for token in record["added_tokens"]],
        "post_processor": _with_ids(record["post_processor"], new.__getitem__),
    }
    if record["padding"]:
        changed["padding"] = {**record["padding"], "pad_id": new[record["padding"]["pad_id"]]}
    return {**record, **changed}


def _pieces(record: Record) -> dict[str, int]:
    """Return the id of each piece of the model; of a piece that a Unigram lists twice, the last."""
    vocab = record["model"]["vocab"]
    return {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab


def _merges(record: Record) -> list[tuple[str, str, str]]:
    """Return left part, right part and result of each merge of a BPE, by rank."""
    prefix = record["model"].get("continuing_subword_prefix") or ""
    return [(left, right, left + right.removeprefix(prefix)) for left, right in record["model"].get("merges", ())]


def _named(record: Record) -> set[int]:
    """Return the ids that the tokenizer names: its unknown token, its padding, and what it puts around a text."""
    model, named = record["model"], set[int]()
    unknown = model.get("unk_id") if model["type"] == "Unigram" else ids_of(record).get(model.get("unk_token"))
    if unknown is not None:
        named.add(unknown)
    if record["padding"]:
        named.add(record["padding"]["pad_id"])

    def note(index: int) -> int:
        named.add(index)
        return index

    _with_ids(record["post_processor"], note)
    return named


def _with_ids(processor: Record | None, change: Callable[[int], int]) -> Record | None:
    """Return what puts special tokens around a text, with each of its ids changed."""
    if processor is None:
        return None
    kind, changed = processor["type"], dict(processor)
    if kind == "Sequence":
        changed["processors"] = [_with_ids(one, change) for one in processor["processors"]]
    elif kind == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**token, "ids": [change(index) for index in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            content, index = processor[name]
            changed[name] = [content, change(index)]
    return changed
