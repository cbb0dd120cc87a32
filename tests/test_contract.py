"""Every technique against every check: a new technique adds one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from niwaki import techniques
from niwaki.anatomy import FAMILIES
from niwaki.task import Task
from niwaki.technique import Grain, Technique
from niwaki.techniques.attend import Attend
from niwaki.techniques.cluster import Cluster
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.drop_tokens import DropTokens
from niwaki.techniques.exit import Exit
from niwaki.techniques.factor import Factor
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.replace import Replace
from niwaki.techniques.share import Share
from niwaki.techniques.trim import Trim
from niwaki.testing import check_technique, check_together, make_context

# technique, neutral setting, whether fewer bytes are promised
ROWS: list[tuple[Technique, Technique | None, bool]] = [
    (Attend(window=4, end=0.5, allow_slower=True), Attend(window=64, end=0.5, allow_slower=True), False),
    (Attend(by="linear", examples=16, allow_slower=True), None, False),
    (Attend(by="linear", features="t2r", match="outputs", examples=16, allow_slower=True), None, False),
    (Attend(by="nystrom", landmarks=4, end=0.5, allow_slower=True), None, False),
    (Distill(hidden=1.0, relations=1.0), None, False),
    (Drop(keep_layers=1), Drop(keep_layers=2), True),
    (DropTokens(keep=0.6), DropTokens(keep=1.0), False),
    (DropTokens(by="share", keep=0.6), DropTokens(by="share", keep=1.0), False),
    (Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8), Prune(), True),
    (Prune(keep_hidden=0.5, multiple_of=8), None, True),
    (
        Prune(by="hard-concrete", keep={"parameters": 0.4}, multiple_of=8),
        Prune(by="hard-concrete", keep={"parameters": 1.0}),
        True,
    ),
    (Prune(keep_weights=0.5, by="magnitude"), Prune(by="magnitude"), True),
    (Prune(pattern="2:4", by="magnitude"), None, True),
    (Prune(keep_weights=0.5, examples=32), Prune(), True),
    (Prune(keep_weights=0.5, by="wanda", examples=32), Prune(by="wanda"), True),
    (Prune(keep_weights=0.5, by="sparsegpt", examples=32), Prune(by="sparsegpt"), True),
    (Prune(keep_weights=0.5, by="movement"), Prune(by="movement"), True),
    (Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8, by="movement"), None, True),
    (Prune(keep={"macs": 0.6}, by="mask-search", multiple_of=8, examples=32), None, True),
    (Prune(keep_heads=0.5, keep_neurons=0.5, by="second-order", multiple_of=8, examples=32), None, True),
    (Cluster(bits=4), None, True),
    (Cluster(bits=3, group_rows=16, entropy=True), None, True),
    (Exit(after=1, allowed_drop=100), None, False),
    (Factor(keep=0.5, embedding=8, examples=32), Factor(), True),
    (Factor(keep=0.6, even=False, by="asvd", examples=32), None, True),
    (Quantize(), None, True),
    (Quantize(activations="static"), None, True),
    (Quantize(activations="none", embeddings=False), None, True),
    (Quantize(smooth=0.5, examples=32), None, True),
    (Quantize(allowed_drop=60.0), None, True),
    (Quantize(preset="int4", group=16), None, True),
    (Quantize(preset="int4-gptq", group=16, examples=32), None, True),
    (Quantize(preset="int4-awq", bits=3, group=16, examples=32), None, True),
    (
        Replace(keep_layers=1, keep_neurons=0.5, multiple_of=8, coin="example", examples=32),
        Replace(keep_layers=2),
        True,
    ),
    (Share(), Share(groups=2), True),
    (Share(groups="all", start="least-squares", rank=4, examples=32, end=1.0), None, True),
    (Trim(), Trim(keep_tokens=1.0), True),
]


def test_every_technique_has_a_row() -> None:
    assert {row[0].name for row in ROWS} == set(techniques.names())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row[0]))
def test_technique(
    row: tuple[Technique, Technique | None, bool],
    saved_base: Callable[..., Path],
    toy_task: Task,
    tmp_path: Path,
) -> None:
    technique, neutral, smaller = row
    check_technique(
        technique,
        neutral=neutral,
        base=saved_base("bert"),
        task=toy_task,
        folder=tmp_path,
        smaller=smaller,
        before=[technique] if technique.fits else [],
    )


# Of language models nothing is exported yet, a word table that is the head is trimmed otherwise, and what reads from
# left to right attends to the past alone, in a way of its own, and has no first token that says what the text is.
ON_LANGUAGE_MODELS = [row for row in ROWS if row[0].name not in ("attend", "drop-tokens", "exit", "trim")]
ON_LANGUAGE_MODELS += [
    (
        Attend(by="hybrid", window=2, end=0.5, examples=16, allow_slower=True),
        Attend(by="hybrid", window=64, examples=16, allow_slower=True),
        False,
    ),
]


@pytest.mark.parametrize("row", ON_LANGUAGE_MODELS, ids=lambda row: repr(row[0]))
def test_technique_on_a_language_model(
    row: tuple[Technique, Technique | None, bool],
    saved_base: Callable[..., Path],
    toy_data: Callable[..., Path],
    tmp_path: Path,
) -> None:
    technique, neutral, smaller = row
    task = Task("language-modelling", data=str(toy_data()))
    check_technique(
        technique,
        neutral=neutral,
        base=saved_base("llama"),
        task=task,
        folder=tmp_path,
        smaller=smaller,
        beside=[Distill()] if technique.name in ("attend", "prune") and technique.can_accompany else [],
        exports=(),
    )


def divides(one: Technique, two: Technique) -> bool:
    """Say whether the groups of one can divide the ranks that the other leaves; here they cannot, and it is refused."""
    grouped = any(isinstance(each, Quantize) and isinstance(each.group, int) for each in (one, two))
    return not (grouped and any(isinstance(each, Factor) for each in (one, two)))


def leaves_room(one: Technique, two: Technique) -> bool:
    """Say whether a layer is left that an exit can stand before, or that reads fewer tokens; else it is refused."""
    single = any(isinstance(each, Replace) and each.keep_layers == 1 for each in (one, two))
    return not (single and any(isinstance(each, Exit | DropTokens) for each in (one, two)))


def finds_its_tokens(one: Technique, two: Technique) -> bool:
    """Say whether neither lets go of tokens that the other looks for, or lets go of too; a recipe refuses that."""
    drops = [each.drops_tokens for each in (one, two)]
    return not (all(drops) or (any(drops) and (one.without_dropping or two.without_dropping)))


COMPANIONS = [row[0] for row in ROWS if row[0].can_accompany]
PAIRS = [
    (one, two)
    for index, one in enumerate(COMPANIONS)
    for two in COMPANIONS[index + 1 :]
    if one.cuts != two.cuts or one.cuts == Grain.NONE  # two that cut the same never stand together
    if divides(one, two) and leaves_room(one, two) and finds_its_tokens(one, two)
    if not (one.ties and not two.cuts_tied(meanwhile=True)) and not (two.ties and not one.cuts_tied(meanwhile=True))
]


# Of a family that repeats one layer not every technique makes sense: see test_albert.
ENCODERS = [name for name, family in FAMILIES.items() if family.first_token and not family.config_uses]
# Distillation stands beside everything in every family; of the other pairs each meets one family, in turn.
TOGETHER = [
    (pair, family)
    for index, pair in enumerate(PAIRS)
    for place, family in enumerate(ENCODERS)
    if any(isinstance(one, Distill) for one in pair) or index % len(ENCODERS) == place
]


@pytest.mark.parametrize(
    ("pair", "family"), TOGETHER, ids=lambda one: one if isinstance(one, str) else "-".join(each.name for each in one)
)
def test_together(
    pair: tuple[Technique, Technique],
    family: str,
    saved_base: Callable[..., Path],
    toy_task: Task,
    tmp_path: Path,
) -> None:
    """Every pair that may stand together trains two steps, finishes and reloads equal."""
    check_together(*pair, make_context(saved_base(family), toy_task, tmp_path))
