"""Tiny random models of each family, their tokenizers and a toy task; nothing is downloaded."""

from __future__ import annotations

import os

# Set before anything reads them: no hub, no telemetry (openvino's stays silent where CI is true), one thread.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "true")

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from niwaki.task import Task
    from niwaki.technique import Context
    from niwaki.train import Train

torch.set_num_threads(1)

FAMILIES = ("bert", "roberta", "distilbert", "electra")
DECODERS = ("llama", "mistral", "qwen2")
MAX_LENGTH = 64
LABELS = ("negative", "positive")

POSITIVE = "good great lovely superb charming fresh bright moving clever warm".split()
NEGATIVE = "bad awful dull stale weak clumsy boring cold messy bland".split()
PLAIN = (
    "the a this that film story plot actor scene ending music book meal room hotel phone is was seems feels "
    "looks and but with of in on at for from very quite rather really never not always often today again "
    "here there we they he"
).split()


def vocabulary(family: str) -> list[str]:
    """Return about 200 word pieces; RoBERTa and decoders have other special tokens, and pad with 1."""
    special = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if family in ("roberta", *DECODERS)
        else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = letters + [f"##{letter}" for letter in letters] + list("0123456789.,!?'-")
    words = [*POSITIVE, *NEGATIVE, *PLAIN]
    fill = [f"word{number}" for number in range(200 - len(special) - len(pieces) - len(words))]
    return special + pieces + words + fill


def build_tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """Build a fast WordPiece tokenizer with the special tokens, pair form and pad id of the family."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary(family)
    ids = {word: index for index, word in enumerate(words)}
    if family in ("roberta", *DECODERS):
        start, pad, end, unknown, mask = words[:5]
        single, pair = f"{start} $A {end}", f"{start} $A {end} {end} $B:0 {end}:0"
        if family in DECODERS:
            single = f"{start} $A"
    else:
        pad, unknown, start, end, mask = words[:5]
        single, pair = f"{start} $A {end}", f"{start} $A {end} $B:1 {end}:1"
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=50))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=None if family in DECODERS else pair, special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=names if family in ("bert", "electra", "albert") else [names[0], names[2]],
        bos_token=start,
        eos_token=end,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
    )


def build_config(family: str, layers: int, hidden: int, heads: int, neurons: int, labels: int) -> Any:
    """Build the configuration of a tiny model; weights are drawn wide, so that outputs differ visibly."""
    from transformers import AlbertConfig, BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

    names = dict(enumerate(LABELS if labels == 2 else (f"class-{index}" for index in range(labels))))
    common = {
        "vocab_size": len(vocabulary(family)),
        "initializer_range": 0.3,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }
    usual = {
        **common,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": neurons,
        "max_position_embeddings": MAX_LENGTH,
    }
    if family == "bert":
        return BertConfig(**usual, pad_token_id=0)
    if family == "roberta":  # positions start after the pad id, hence two more rows
        special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
        return RobertaConfig(**{**usual, "max_position_embeddings": MAX_LENGTH + 2}, **special)
    if family == "albert":  # one layer that runs `layers` times
        return AlbertConfig(**usual, embedding_size=hidden // 2, pad_token_id=0)
    if family == "electra":
        return ElectraConfig(**usual, embedding_size=hidden // 2, pad_token_id=0)
    if family == "distilbert":
        return DistilBertConfig(
            **common,
            n_layers=layers,
            dim=hidden,
            n_heads=heads,
            hidden_dim=neurons,
            max_position_embeddings=MAX_LENGTH,
            pad_token_id=0,
        )
    if family in DECODERS:  # two heads share a key and value head, and the head is the word table
        from transformers import AutoConfig

        sizes = {"num_key_value_heads": heads // 2, "tie_word_embeddings": True}
        special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        return AutoConfig.for_model(family, **usual, **sizes, **special)
    raise ValueError(f"no tiny {family}; there are {', '.join((*FAMILIES, *DECODERS))}")


def build_model(
    family: str = "bert",
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    neurons: int = 64,
    labels: int = 2,
    seed: int = 0,
) -> nn.Module:
    """Build a tiny random classifier (of a decoder, a language model) in eval mode.

    Biases and norms are random too: a lost one is seen.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = build_config(family, layers, hidden, heads, neurons, labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = AutoModelForCausalLM if family in DECODERS else AutoModelForSequenceClassification
        model = kind.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if family in DECODERS:
                return model
            # Centre the logits on the toy sentences, so that no class is predicted for all of them.
            head = next(module for module in model.modules() if getattr(module, "out_features", 0) == labels)
            head.bias.sub_(model(**build_batch(family)).logits.mean(dim=0))
    return model


def build_batch(family: str, count: int = 16) -> dict[str, torch.Tensor]:
    """Build one padded batch of toy sentences."""
    chance = random.Random(0)
    texts = [sentence(LABELS[index % 2], chance) for index in range(count)]
    return dict(build_tokenizer(family)(texts, padding=True, return_tensors="pt"))


def sentence(label: str, chance: random.Random) -> str:
    """Write a sentence of 3 to 12 words that one word decides."""
    words = chance.choices(PLAIN, k=chance.randint(2, 11))
    decisive = chance.choice(POSITIVE if label == "positive" else NEGATIVE)
    words.insert(chance.randrange(len(words) + 1), decisive)
    return " ".join(words)


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write `count` rows of text and label, half of each label."""
    chance = random.Random(seed)
    rows = [(sentence(LABELS[index % 2], chance), LABELS[index % 2]) for index in range(count)]
    chance.shuffle(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Run the test once for each family."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., nn.Module]:
    """Return the factory tiny_model(family, layers=2, hidden=32, heads=4, neurons=64, labels=2, seed=0)."""
    return build_model


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Return the factory tiny_batch(family, count=16): one padded batch of toy sentences."""
    return build_batch


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Return the factory tiny_tokenizer(family)."""
    return build_tokenizer


@pytest.fixture
def saved_base(tmp_path: Path) -> Callable[..., Path]:
    """Return saved_base(family="bert", folder=None, **sizes): a folder with a tiny model and tokenizer."""

    def save(family: str = "bert", folder: Path | None = None, **sizes: int) -> Path:
        where = folder or tmp_path / f"base-{family}"
        build_model(family, **sizes).save_pretrained(where)
        build_tokenizer(family).save_pretrained(where)
        return where

    return save


@pytest.fixture
def toy_data(tmp_path: Path) -> Callable[..., Path]:
    """Return toy_data(folder=None, train=96, validation=48, test=0): a folder of separable CSV files."""

    def write(folder: Path | None = None, train: int = 96, validation: int = 48, test: int = 0) -> Path:
        where = folder or tmp_path / "reviews"
        where.mkdir(parents=True, exist_ok=True)
        counts = {"train": train, "validation": validation, "test": test}
        for seed, (name, count) in enumerate(counts.items()):
            if count:
                write_rows(where / f"{name}.csv", count, seed)
        return where

    return write


@pytest.fixture
def toy_task(toy_data: Callable[..., Path]) -> Task:
    """Return the toy sentiment task on a data folder of its own."""
    from niwaki.task import Task

    return Task("text-classification", data=str(toy_data()))


@pytest.fixture
def batch(family: str) -> dict[str, torch.Tensor]:
    """Return one padded batch of 16 toy sentences for the family of the test."""
    return build_batch(family)


class Killed(Exception):
    """Stand for a process that dies."""


@pytest.fixture
def run_until(monkeypatch: pytest.MonkeyPatch) -> Callable[[Train, Context, int], None]:
    """Return what runs a training on a fresh model until it dies, before the step after so many."""

    def run(train: Train, context: Context, step: int) -> None:
        from niwaki.testing import fresh
        from niwaki.train.step import Fit

        original = Fit.step

        def dying(self: Any, indices: Any) -> dict[str, float]:
            if self.place.step == step:
                raise Killed
            return original(self, indices)

        with monkeypatch.context() as patch:
            patch.setattr(Fit, "step", dying)
            with pytest.raises(Killed):
                train.run(fresh(context), context)

    return run


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


@pytest.fixture(scope="session")
def largest_tensor() -> Callable[[], Largest]:
    """Return what notes the `numbers` of the largest tensor made while it lasts."""
    return Largest
