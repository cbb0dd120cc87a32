"""The demo: what its grammar promises, where its model comes from, and the whole job on a tiny one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from niwaki.demo import Review, demo, find_base, reviews, write_reviews
from niwaki.demo.files import TRAIN_ROWS, VALIDATION_ROWS, as_csv
from niwaki.demo.frames import AFTER, BEFORE, GROUPS
from niwaki.demo.grammar import Frame, Writer, frames_of, parse_frame, shuffle, words_of
from niwaki.demo.lexicon import BY_DOMAIN, DOMAINS, SHARED
from niwaki.demo.weights import HUB_ID, check_weights
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.runtime import installed

BLOCKS = [*(block for _, block in GROUPS.values()), BEFORE, AFTER]
FRAMES = [parse_frame(line) for block in BLOCKS for line in block.strip().splitlines()]
DIGEST = "5676e689047336308b27fc8baae830a06819489cf1bcf6fb302915db7af8e2c7"
SLOT = re.compile(r"\{([+\-?]?)([a-z ]+)\}")


@pytest.fixture(scope="module")
def train() -> list[Review]:
    return reviews(TRAIN_ROWS)


@pytest.fixture(scope="module")
def validation() -> list[Review]:
    return reviews(VALIDATION_ROWS, validation=True)


# the grammar and its words


def pools(domain: str) -> list[str]:
    return [*BY_DOMAIN[domain], *SHARED]


def test_all_domains_have_the_same_pools():
    assert set(BY_DOMAIN) == set(DOMAINS)
    assert len({frozenset(BY_DOMAIN[domain]) for domain in DOMAINS}) == 1
    for domain in DOMAINS:
        signed = {pool.partition(" ")[2] for pool in pools(domain) if pool.startswith("good ")}
        assert signed == {pool.partition(" ")[2] for pool in pools(domain) if pool.startswith("bad ")}


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.text)
def test_every_slot_names_a_pool(frame: Frame):
    assert set(frame.domains) <= set(DOMAINS)
    for sign, pool in SLOT.findall(frame.text):
        for domain in frame.domains:
            for name in [f"good {pool}", f"bad {pool}"] if sign else [pool]:
                assert words_of(domain, name, held_out=False)
    assert not re.search(r"[{}]", SLOT.sub("", frame.text))
    assert frame.text[-1] in ".!?"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_held_out_word_is_met_nowhere_in_training(domain: str):
    known = {word for where in DOMAINS for pool in pools(where) for word in words_of(where, pool, False)}
    for pool in pools(domain):
        assert not known & set(words_of(domain, pool, True)), pool


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_word_is_on_both_sides_or_twice_on_one(domain: str):
    for pool in pools(domain):
        words = words_of(domain, pool, False) + words_of(domain, pool, True)
        assert len(set(words)) == len(words), pool
        if pool.startswith("good "):
            other = pool.replace("good", "bad")
            assert not set(words) & set(words_of(domain, other, False) + words_of(domain, other, True)), pool


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("label", [0, 1])
def test_every_construction_fits_every_domain_and_label(domain: str, label: int):
    assert all(frames_of(block, domain, label, False) for block in BLOCKS)
    assert sum(percent for percent, _ in GROUPS.values()) == 100


def test_a_frame_is_read_by_its_marks():
    assert parse_frame("  + [phone] not bad, {thing}.") == Frame("not bad, {thing}.", (1,), ("phone",), False)
    assert parse_frame("* {+noun}!") == Frame("{+noun}!", (0, 1), DOMAINS, True)


@pytest.mark.parametrize(("label", "verdict"), [(1, "superb"), (0, "awful")])
def test_signs_follow_the_verdict(label: int, verdict: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SHARED, "good quality", "superb")
    monkeypatch.setitem(SHARED, "bad quality", "awful")
    words_of.cache_clear()
    writer = Writer("film", label, False, random.Random(0))
    other = {"superb": "awful", "awful": "superb"}[verdict]
    assert writer.fill(parse_frame("it is {+quality}, not {-quality}.")) == f"it is {verdict}, not {other}."
    assert {writer.fill(parse_frame("{?quality}")) for _ in range(20)} == {"superb", "awful"}
    words_of.cache_clear()


def test_shuffle_by_hand():
    class Chance(random.Random):
        def random(self) -> float:
            return 0.5

    # The last of 4 changes places with int(0.5 * 4) = 2, the last of 3 with 1, the last of 2 with 1: itself.
    assert shuffle("abcd", Chance()) == ["a", "d", "b", "c"]


# the rows


def test_rows_are_balanced_and_none_stands_in_both_splits(train: list[Review], validation: list[Review]):
    assert set(Counter((row.label, row.domain) for row in train).values()) == {480}
    assert set(Counter((row.label, row.domain) for row in validation).values()) == {100}
    assert {row.group for row in train} == {row.group for row in validation} == set(GROUPS)
    texts = [row.text for row in train + validation]
    assert len(set(texts)) == len(texts)


def test_every_validation_row_has_what_training_never_meets(train: list[Review], validation: list[Review]):
    rare = {word for domain in DOMAINS for pool in pools(domain) for word in words_of(domain, pool, True)}
    texts = [re.split(r"\{.*?\}", frame.text) for frame in FRAMES if frame.held_out]
    held_out = [".+".join(re.escape(part) for part in parts) for parts in texts]
    unseen = re.compile("|".join([*(rf"\b{re.escape(word)}\b" for word in rare), *held_out]), re.IGNORECASE)
    assert all(unseen.search(row.text) for row in validation)


def test_sentences_look_like_sentences(train: list[Review], validation: list[Review]):
    for row in train + validation:
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:.?!'\-]+[.!?]", row.text), row.text
        assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]|  |[{}]|[.?!] [a-z]", row.text), row.text
    assert 8 < sum(len(row.text.split()) for row in train) / len(train) < 14


def test_the_rows_are_the_same_everywhere(train: list[Review], validation: list[Review]):
    # Every figure of the demo hangs on these rows: a new digest is a new data set, and wants new figures.
    text = as_csv(train) + as_csv(validation)
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST
    assert reviews(20, seed=1) != reviews(20, seed=0)


def test_python_of_another_hash_seed_writes_the_same():
    code = "from niwaki.demo import reviews; print(reviews(3, validation=True)[2].text)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }
    assert said == {reviews(3, validation=True)[2].text + "\n"}


@pytest.mark.parametrize("counting", ["CountVectorizer", "TfidfVectorizer"])
def test_a_bag_of_words_stays_under_85(train: list[Review], validation: list[Review], counting: str):
    from sklearn.feature_extraction import text
    from sklearn.linear_model import LogisticRegression

    vectorizer = getattr(text, counting)()
    seen = vectorizer.fit_transform([row.text for row in train])
    new = vectorizer.transform([row.text for row in validation])
    for strength in (0.1, 1.0, 10.0):
        model = LogisticRegression(C=strength, max_iter=1000).fit(seen, [row.label for row in train])
        assert model.score(new, [row.label for row in validation]) < 0.75


def test_files_are_written_once(tmp_path: Path):
    folder = write_reviews(tmp_path / "data", train_rows=40, validation_rows=20)
    lines = (folder / "train.csv").read_text().splitlines()
    assert lines[0] == "text,label" and len(lines) == 41
    assert {line.rpartition(",")[2] for line in lines[1:]} == {"negative", "positive"}
    before = (folder / "train.csv").stat().st_mtime_ns
    (folder / "validation.csv").write_text("text,label\n")
    write_reviews(folder, train_rows=40, validation_rows=20)
    assert (folder / "train.csv").stat().st_mtime_ns == before
    assert len((folder / "validation.csv").read_text().splitlines()) == 21
    assert sorted(path.name for path in folder.iterdir()) == ["train.csv", "validation.csv"]


# the model


def test_weights_are_checked(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    check_weights(file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # FIPS 180-2, B.1
    with pytest.raises(NiwakiError, match="sha256 is ba7816bf"):
        check_weights(file, "0" * 64)
    with pytest.raises(NiwakiError, match="no such file"):
        check_weights(tmp_path / "none", "0" * 64)


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_base() == HUB_ID


def test_a_package_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"abc")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(NiwakiError, match=r"expected: 53aa51172d.*\n *write: pip install"):
        find_base()


# the whole job


def test_a_missing_package_is_told_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NiwakiError, match=r"needs jinja2, .*\n.*\n *write: pip install 'niwaki\[demo\]'"):
        demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_whole_job_and_again(saved_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "demo"
    steps = ("drop: {keep_layers: 1}", "train: {epochs: 1, together: [distill: {}]}", "quantize: {}")
    (tmp_path / "recipe.yaml").write_text("steps:\n" + "".join(f"  - {step}\n" for step in steps))

    def run() -> str:
        return demo(
            out,
            model=saved_base("bert"),
            recipe=tmp_path / "recipe.yaml",
            train_rows=60,
            validation_rows=40,
            progress=False,
            threads=1,
        ).to_json()

    first = run()
    record = json.loads((out / "comparison.json").read_text())
    assert record == json.loads(first)
    assert record["base"] == "base"
    assert [(row["name"], row["runtime"]) for row in record["rows"]] == [
        (name, runtime) for name in ("base", "small") for runtime in installed()
    ]
    for file in ("data/train.csv", "base/model.safetensors", "small/README.md", "small/artifacts/model.onnx"):
        assert (out / file).is_file(), file
    assert "<html" in (out / "report.html").read_text()
    assert run() == first  # the very measurement, not a new one


def test_the_recipe_is_shipped_and_whole():
    names = [step.name for step in Recipe.read("demo").steps]
    assert names[0] == "drop" and "train" in names and names[-1] == "quantize"
