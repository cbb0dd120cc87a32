"""Generate reviews whose verdict a bag of words cannot see, from frames, words and a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from niwaki.demo.frames import AFTER, BEFORE, GROUPS
from niwaki.demo.lexicon import BY_DOMAIN, DOMAINS, SHARED

LABELS = ("negative", "positive")
SIDES = ("bad", "good")
ASIDES = 0.3  # share of reviews with a clause that is beside the point
UNSEEN_FRAMES = 0.15  # share of validation reviews built on a held-out frame
UNSEEN_WORDS = 0.3  # chance that a slot of a validation review is filled with a held-out word

Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """Hold one sentence frame: its text, the labels and domains it fits, and whether it is held out."""

    text: str
    labels: tuple[int, ...]
    domains: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True)
class Review:
    """Hold one generated row; `group` names the construction that carries the verdict."""

    text: str
    label: int
    domain: str
    group: str


def pick(items: Sequence[Item], chance: random.Random) -> Item:
    """Return one of `items`, evenly.

    Only `Random.random` is promised to give the same numbers in every Python version, so nothing else is used.

    >>> pick("abcdefghij", random.Random(0))  # the first number is 0.844
    'i'
    """
    return items[int(chance.random() * len(items))]


def shuffle(items: Sequence[Item], chance: random.Random) -> list[Item]:
    """Return `items` in random order (Fisher and Yates), by `Random.random` alone."""
    shuffled = list(items)
    for last in range(len(shuffled) - 1, 0, -1):
        other = int(chance.random() * (last + 1))
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    return shuffled


def parse_frame(line: str) -> Frame:
    """Read one line of `frames.py`.

    >>> parse_frame("* - [film book] I wish I could call {thing} {-noun}.")
    Frame(text='I wish I could call {thing} {-noun}.', labels=(0,), domains=('film', 'book'), held_out=True)
    """
    match = re.fullmatch(r"([*+\- ]*)(?:\[([a-z ]+)\] )?(.+)", line.strip())
    assert match is not None  # the last group matches anything
    marks, domains, text = match.groups()
    labels = (1,) if "+" in marks else (0,) if "-" in marks else (0, 1)
    return Frame(text, labels, tuple(domains.split()) if domains else DOMAINS, "*" in marks)


@cache
def frames_of(block: str, domain: str, label: int, held_out: bool) -> tuple[Frame, ...]:
    """Return the frames of a block of lines that fit a domain and a label, the held-out ones or the others."""
    frames = [parse_frame(line) for line in block.strip().splitlines()]
    return tuple(f for f in frames if domain in f.domains and label in f.labels and f.held_out is held_out)


@cache
def words_of(domain: str, pool: str, held_out: bool) -> tuple[str, ...]:
    """Return the words of a pool, the held-out ones or the others."""
    text = BY_DOMAIN[domain].get(pool) or SHARED[pool]
    parts = (text.split("||") + [""])[: 2]
    return tuple(word.strip() for word in parts[held_out].split("|") if word.strip())


def fill(frame: Frame, domain: str, label: int, unseen: float, chance: random.Random) -> tuple[str, bool]:
    """Fill the slots of a frame; return the text and whether a held-out word is in it.

    Args:
        frame: its text has slots `{pool}`, `{+pool}`, `{-pool}` and `{?pool}`.
        domain: whose words to take.
        label: 1 praises (`+` takes from the good pool), 0 blames (`+` takes from the bad one).
        unseen: chance that a slot takes a held-out word, in [0, 1].
        chance: where the randomness comes from.
    """
    used: set[str] = set()
    novel = False

    def word(match: re.Match[str]) -> str:
        nonlocal novel
        sign, pool = match.group(1), match.group(2)
        if sign:
            side = {"+": label, "-": 1 - label, "?": int(chance.random() * 2)}[sign]
            pool = f"{SIDES[side]} {pool}"
        held_out = chance.random() < unseen and bool(words_of(domain, pool, True))
        novel = novel or held_out
        pool_words = words_of(domain, pool, held_out)
        chosen = pick([w for w in pool_words if w not in used] or pool_words, chance)
        used.add(chosen)
        return chosen

    return re.sub(r"\{([+\-?]?)([a-z ]+)\}", word, frame.text), novel


def polish(text: str) -> str:
    """Write sentences with capitals, and `an` where a vowel follows.

    >>> polish("what a awful film. I left.")
    'What an awful film. I left.'
    """
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)


def compose(label: int, domain: str, validation: bool, chance: random.Random) -> Review | None:
    """Build one review; None if it came out as one that training could have met."""
    threshold, group = chance.random(), "plain"
    for name, (share, _) in GROUPS.items():
        group, threshold = name, threshold - share
        if threshold < 0:
            break
    unseen = UNSEEN_WORDS if validation else 0.0
    new_frame = validation and chance.random() < UNSEEN_FRAMES
    frame = pick(frames_of(GROUPS[group][1], domain, label, new_frame) or frames_of(GROUPS[group][1], domain, label, False), chance)
    text, new_word = fill(frame, domain, label, unseen, chance)
    if validation and not (frame.held_out or new_word):
        return None
    if chance.random() < ASIDES:
        before = chance.random() < 0.5 and not frame.text.startswith(("it ", "{visit}", "beside"))
        new_aside = validation and chance.random() < UNSEEN_FRAMES
        aside = pick(frames_of(BEFORE if before else AFTER, domain, label, new_aside) or frames_of(BEFORE if before else AFTER, domain, label, False), chance)
        words, _ = fill(aside, domain, label, unseen, chance)
        text = f"{words} {text}" if before else f"{text} {words}"
    return Review(polish(text), label, domain, group)


def reviews(count: int, validation: bool, seed: int) -> list[Review]:
    """Return `count` distinct reviews, labels and domains in equal shares, in random order.

    Args:
        count: above 0; a few thousand is far below what the grammar can say.
        validation: build each review on a frame or with a word that is never in training.
        seed: of everything random.
    """
    chance = random.Random(seed * 2 + validation)
    found: dict[str, Review] = {}
    while len(found) < count:
        label, domain = len(found) % 2, DOMAINS[len(found) // 2 % len(DOMAINS)]
        review = compose(label, domain, validation, chance)
        if review is not None:
            found.setdefault(review.text, review)
    return shuffle(list(found.values()), chance)
