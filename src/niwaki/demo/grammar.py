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
HUNDRED = [name for name, (percent, _) in GROUPS.items() for _ in range(percent)]
ASIDES = 0.3  # share of reviews with a clause that is beside the point
UNSEEN_FRAMES = 0.1  # share of validation reviews built on a held-out frame
UNSEEN_WORDS = 0.2  # chance that a slot of a validation review takes a held-out word

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

    Only `Random.random` is promised to give the same numbers in every Python version; nothing else is used.

    >>> pick("abcdefghij", random.Random(0))  # whose first number is 0.844
    'i'
    """
    return items[int(chance.random() * len(items))]


def shuffle(items: Sequence[Item], chance: random.Random) -> list[Item]:
    """Return `items` in random order (Fisher and Yates)."""
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
    """Return the frames of a block that fit a domain and a label, the held-out ones or the others."""
    frames = [parse_frame(line) for line in block.strip().splitlines()]
    return tuple(f for f in frames if domain in f.domains and label in f.labels and f.held_out is held_out)


@cache
def words_of(domain: str, pool: str, held_out: bool) -> tuple[str, ...]:
    """Return the words of a pool, the held-out ones or the others.

    >>> words_of("film", "bad hope", held_out=True)
    ('longed for',)
    """
    known, _, rare = (BY_DOMAIN[domain].get(pool) or SHARED[pool]).partition("||")
    return tuple(word.strip() for word in (rare if held_out else known).split("|") if word.strip())


class Writer:
    """Write reviews in one domain with one verdict, and take note of what in them training never meets.

    Args:
        domain: whose words to take.
        label: 1 praises, 0 blames.
        validation: also take held-out frames and words.
        chance: where the randomness comes from.
    """

    def __init__(self, domain: str, label: int, validation: bool, chance: random.Random) -> None:
        self.domain, self.label, self.validation, self.chance = domain, label, validation, chance
        self.used: set[str] = set()
        self.unseen = False

    def write(self) -> Review:
        """Write one review: the verdict, and sometimes a clause that is beside the point."""
        group = pick(HUNDRED, self.chance)
        frame = self.frame(GROUPS[group][1])
        text, unseen = self.fill(frame), self.unseen
        if self.chance.random() < ASIDES:
            # Nothing comes before a verdict on "it", which would then be the weather.
            after = self.chance.random() < 0.5 or frame.text.startswith(("it ", "{visit}"))
            aside = self.fill(self.frame(AFTER if after else BEFORE))
            text = f"{text} {aside}" if after else f"{aside} {text}"
        self.unseen = unseen  # it is the verdict that has to be new
        return Review(polish(text), self.label, self.domain, group)

    def frame(self, block: str) -> Frame:
        """Pick a frame, in validation sometimes a held-out one."""
        held_out = self.validation and self.chance.random() < UNSEEN_FRAMES
        frames = frames_of(block, self.domain, self.label, held_out)
        return pick(frames or frames_of(block, self.domain, self.label, not held_out), self.chance)

    def fill(self, frame: Frame) -> str:
        """Put words into the slots `{pool}`, `{+pool}`, `{-pool}` and `{?pool}` of a frame."""
        self.unseen = self.unseen or frame.held_out
        return re.sub(r"\{([+\-?]?)([a-z ]+)\}", self.word, frame.text)

    def word(self, slot: re.Match[str]) -> str:
        """Pick a word: `+` is the verdict's side, `-` is the other, `?` is either by chance."""
        sign, pool = slot.groups()
        if sign:
            side = {"+": self.label, "-": 1 - self.label, "?": int(self.chance.random() * 2)}[sign]
            pool = f"{SIDES[side]} {pool}"
        rare = words_of(self.domain, pool, True) if self.validation else ()
        held_out = bool(rare) and self.chance.random() < UNSEEN_WORDS
        words = rare if held_out else words_of(self.domain, pool, False)
        chosen = pick([word for word in words if word not in self.used] or words, self.chance)
        self.used.add(chosen)
        self.unseen = self.unseen or held_out
        return chosen


def polish(text: str) -> str:
    """Begin sentences with capitals, and write `an` before a vowel.

    >>> polish("what a awful film. I left.")
    'What an awful film. I left.'
    """
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)


def reviews(count: int, *, validation: bool = False, seed: int = 0) -> list[Review]:
    """Return distinct reviews in random order, labels and domains in equal shares.

    Args:
        count: how many, above 0. The grammar can tell some hundred thousand apart.
        validation: build every review on a frame or with a word that training never meets.
        seed: of everything random.
    """
    chance = random.Random(2 * seed + validation)
    found: dict[str, Review] = {}
    while len(found) < count:
        label, domain = len(found) % 2, DOMAINS[len(found) // 2 % len(DOMAINS)]
        writer = Writer(domain, label, validation, chance)
        review = writer.write()
        if writer.unseen or not validation:
            found.setdefault(review.text, review)
    return shuffle(list(found.values()), chance)
