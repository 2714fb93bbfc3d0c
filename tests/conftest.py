"""Small models and data that the tests make: nothing is downloaded, nothing is committed."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)
from typer.testing import CliRunner

from distill.cli import app

settings.register_profile("deep", max_examples=4_000)
torch.set_num_threads(1)  # models this small only lose by a second thread, and lose badly on a busy machine

# torch 2.13's gloo sometimes crashes in trainings with shards, in its own threads (docs/scale.md).
# Once, a rank that had finished was aborted while torch ended its threads.
CRASHES = [r"Signal 11 \(SIGSEGV\) received", "terminate called without an active exception"]
GLOO_MAY_CRASH = pytest.mark.flaky(reruns=2, only_rerun=CRASHES)

# The files that take longest, in either tier: no worker is to begin one when the others are about to end.
LONGEST = (
    "test_kills", "test_ranks", "test_cli", "test_documentation", "test_training", "test_distilling", "test_export",
    "test_sweep", "test_disk_full", "test_gpu_visit", "test_private", "test_damage",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


GOOD = ["good", "great", "lovely", "superb", "fine"]
BAD = ["bad", "awful", "poor", "dull", "weak"]
FILLER = ["the", "film", "plot", "and", "was", "a", "really", "very", "cast", "music", "it", "is", "of", "this"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ["negative", "positive"]
# A training that learns the words of GOOD and BAD in seconds and keeps no checkpoint.
BRIEFLY = {
    "num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "save_strategy": "no",
    "eval_strategy": "no", "load_best_model_at_end": False, "bf16": False,
}  # fmt: skip

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "bert": lambda **kw: BertConfig(**{**SIZES, "max_position_embeddings": 64, **kw}),
    "distilbert": lambda **kw: DistilBertConfig(
        dim=32, n_layers=4, n_heads=4, hidden_dim=64, max_position_embeddings=64, **kw
    ),
    "roberta": lambda **kw: RobertaConfig(**SIZES, max_position_embeddings=65, pad_token_id=0, **kw),
    "electra": lambda **kw: ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=64, **kw),
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# Others that people bring. They differ in how positions and masks enter the attention, which test_architectures tests;
# CONFIGS are what all else is tested on.
MORE_CONFIGS = {
    "xlm-roberta": lambda **kw: XLMRobertaConfig(**SIZES, max_position_embeddings=65, pad_token_id=0, **kw),
    "mpnet": lambda **kw: MPNetConfig(**SIZES, max_position_embeddings=66, **kw),  # a bias for each distance
    "modernbert": lambda **kw: ModernBertConfig(  # rotary positions, and windows in most layers
        **SIZES, **SPECIAL_IDS, max_position_embeddings=64, local_attention=8, **kw
    ),
    "gte": lambda **kw: transformers.GteConfig(**SIZES, **SPECIAL_IDS, max_position_embeddings=64, **kw),
    "deberta-v2": lambda **kw: DebertaV2Config(  # attention that is no single node
        **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, max_position_embeddings=64,
        position_biased_input=False, type_vocab_size=0, pad_token_id=0, **kw,
    ),
    "qwen3": lambda **kw: Qwen3Config(  # causal: the head reads the last token
        **SIZES, pad_token_id=0, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, **kw
    ),
}  # fmt: skip


def write_reviews(path: Path, count: int, seed: int, *, mislabelled: int = 0) -> list[tuple[str, str]]:
    """Reviews that any model learns at once: each has opinion words of one side only. Lengths vary from 4 to 30.

    The first `mislabelled` have the other label: on them whoever is sure is wrong.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        words = rng.choices(FILLER, k=rng.randint(2, 26)) + rng.choices(GOOD if index % 2 else BAD, k=rng.randint(2, 4))
        rng.shuffle(words)
        rows.append((" ".join(words), LABELS[(index + (index < mislabelled)) % 2]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    return rows


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's, of which every word is a token of its own."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_classifier(folder: Path, architecture: str = "bert", words: list[str] | None = None, **config) -> Path:
    """A small classifier with random weights, saved as transformers saves one."""
    words = words or FILLER + GOOD + BAD
    settings = {"vocab_size": len(SPECIAL) + len(words), "id2label": dict(enumerate(LABELS))} | config
    settings["label2id"] = {name: index for index, name in settings["id2label"].items()}
    set_seed(7)
    model = AutoModelForSequenceClassification.from_config((CONFIGS | MORE_CONFIGS)[architecture](**settings))
    with torch.no_grad():  # weights as small as a new model's make every text look the same
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    make_tokenizer(words).save_pretrained(folder)
    return folder


def run(*arguments, stdin=None) -> tuple[int, str, str]:
    """The command in this process: its exit code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def contents(*folders: Path) -> dict[Path, bytes | None]:
    """What the files in folders hold, locks aside, which are made where a folder is held for a moment."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.name != ".lock"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def check_refused(folder: Path, expected: list[str], *arguments, stdin=None, also: Sequence[Path] = ()) -> None:
    """The command exits 2 with a line for each of `expected`, which it holds, and changes nothing in these folders."""
    before = contents(folder, *also)
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, out) == (2, ""), err
    problems = [line[6:].strip() for line in err.splitlines() if line.lower().startswith("error:")]
    assert len(problems) == len(expected), err
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem and len(problem) < 600, problem
    assert "Traceback" not in err and not [c for c in err if ord(c) < 32 and c not in "\n\r\t"]
    assert contents(folder, *also) == before, "something was written"


def data_section(data: Path) -> dict:
    """A recipe's section for the reviews in the folder `data`."""
    files = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
    return {"files": files, "label_names": LABELS, "max_tokens": 32}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with train.csv (160 rows) and test.csv (40 rows)."""
    folder = tmp_path_factory.mktemp("data")
    write_reviews(folder / "train.csv", 160, seed=1)
    write_reviews(folder / "test.csv", 40, seed=2)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A folder with a four-layer BERT classifier over negative and positive, random weights."""
    return make_classifier(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(params=sorted(CONFIGS))
def any_classifier(request, tmp_path) -> Path:
    """A classifier of each architecture in turn."""
    return make_classifier(tmp_path / request.param, request.param)


@pytest.fixture
def recipe_path(tmp_path, data, tiny_bert) -> Path:
    """A recipe that trains in seconds: the tiny BERT from scratch, a student of two of its layers."""
    training = {
        "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 5,
    }  # fmt: skip
    recipe = {
        "data": data_section(data),
        "teacher": {
            "model": str(tiny_bert), "pretrained": False, "output": str(tmp_path / "teacher"), "training": training,
        },
        "student": {"layers": [0, 2], "output": str(tmp_path / "student"), "training": training},
        "export": {"max_accuracy_drop": 0.05},
        "benchmark": {"shapes": ["1x8", "2x16"], "rounds": 5, "threads": 1},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path
