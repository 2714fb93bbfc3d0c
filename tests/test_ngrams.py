"""The n-gram student: what it computes, that transformers knows it, that its graph hashes alike, and a whole run."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import BAD, FILLER, GOOD, LABELS, make_classifier, run, write_reviews
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline, set_seed

import distill
from distill import commands
from distill.distillation.ngram_start import SCALE, start_from_counts
from distill.errors import ModelError
from distill.export.int8 import TABLES_ONLY, quantise
from distill.export.ngram_graph import with_even_columns
from distill.export.onnx_graph import trace
from distill.models.ngram_config import NgramConfig
from distill.models.ngrams import NgramForSequenceClassification
from distill.recipe.file import load_recipe
from distill.storage.run_folder import RunFolder

VOCABULARY, TABLE = 50, 97
TRAINING = {"num_train_epochs": 4, "per_device_train_batch_size": 16, "learning_rate": 3e-2}


def make(longest=3):
    set_seed(0)
    config = NgramConfig(vocab_size=VOCABULARY, table=TABLE, width=8, longest=longest, num_labels=3)
    return NgramForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def model():
    return make()


def logits(model, texts, *, left=False):
    """The logits of texts of unequal lengths, padded with a token that no text has."""
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), VOCABULARY - 1), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def rows_of(text, longest):
    """The rows of a text's n-grams in plain Python, where whole numbers have no end."""
    rows = list(text)
    for length in range(2, longest + 1):
        for start in range(len(text) - length + 1):
            hashed = text[start]
            for token in text[start + 1 : start + length]:
                hashed = (hashed * 1_000_003_019 + token) % (2**31 - 1)
            rows.append(VOCABULARY + hashed * 48_271 % (2**31 - 1) % TABLE)
    return rows


texts = st.lists(st.lists(st.integers(0, VOCABULARY - 2), min_size=1, max_size=12), min_size=1, max_size=4)


@given(texts, st.integers(1, 4))
def test_logits_are_those_of_the_average_row_of_all_n_grams(batch, longest):
    model = make(longest)
    table = model.get_submodule("ngrams.embeddings").weight.detach()
    averages = torch.stack([table[rows_of(text, longest)].mean(dim=0) for text in batch])
    torch.testing.assert_close(logits(model, batch), model.classifier(averages).detach())
    torch.testing.assert_close(logits(model, batch, left=True), model.classifier(averages).detach())


def test_the_hash_spreads_the_pairs_of_common_tokens_evenly():
    common, table = torch.arange(1_000, 2_000), 2**18
    model = NgramForSequenceClassification(NgramConfig(vocab_size=30_522, table=table, width=1, num_labels=2))
    pairs = torch.cartesian_prod(common, common)
    rows, _ = model.ngrams.rows(pairs, torch.ones_like(pairs))
    counts = torch.bincount(rows[:, 2] - 30_522, minlength=table)
    # Thrown at random, a million balls in 262,144 bins have a variance as large as their mean.
    assert len(counts) == table and counts.double().var() <= counts.double().mean()


def test_in_fp16_the_number_of_n_grams_of_a_long_text_does_not_overflow():
    """65,504 is fp16's largest number, and 40,000 tokens have twice as many n-grams."""
    half = make(longest=2).half()
    with torch.no_grad():
        half.classifier.bias.zero_()
    long, short = ([token for token in (3, 7) for _ in range(count)] for count in (20_000, 2_000))
    found, wanted = logits(half, [long]), logits(half, [short])
    assert found.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    "order",
    [
        "import distill, transformers",
        "import transformers.models.auto, distill",
        "import distill, importlib.util; importlib.util.find_spec('transformers.models.auto.modeling_auto')",
    ],
)
def test_transformers_loads_it_once_distill_is_imported(model, tmp_path, order):
    model.save_pretrained(tmp_path)
    code = (
        f"import sys\n{order}\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification as Auto\n"
        f"print(type(AutoConfig.from_pretrained({str(tmp_path)!r})).__name__)\n"
        f"print(type(Auto.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["NgramConfig", "NgramForSequenceClassification"], done.stderr


def test_importing_distill_does_not_import_transformers():
    code = "import sys, distill; print('transformers' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("sizes", [{"table": 0}, {"longest": 0}, {"longest": 9}, {"width": "8"}])
def test_a_configuration_with_impossible_sizes_is_one_line(model, tmp_path, sizes):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(Path(__file__), tmp_path / "tokenizer.json")  # never read
    with pytest.raises(ModelError) as caught:
        distill.load(tmp_path)
    assert next(iter(sizes)) in str(caught.value) and "\n" not in str(caught.value)


def test_even_columns_change_nothing_but_the_scale_of_columns():
    model = make()
    with torch.no_grad():
        model.ngrams.embeddings.weight *= torch.logspace(-3, 3, 8)
    even = with_even_columns(model)
    batch = [[1, 2, 3], [7], [4, 4, 4, 9, 1]]
    torch.testing.assert_close(logits(even, batch), logits(model, batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(even.ngrams.embeddings.weight.abs().amax(dim=0), torch.ones(8))


def test_counts_start_it_from_log_count_ratios():
    """Two labeled texts, and one that the teacher takes for class 2 with a probability of 0.8."""
    model = make(longest=2)
    rows = Dataset.from_dict({
        "input_ids": [[1, 2, 1], [2, 3], [3]],
        "labels": [0, 1, -1],
        "teacher_logits_0": np.log([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).tolist(),
    })  # fmt: skip
    start_from_counts(model, rows, [1.0])
    counts = np.ones((VOCABULARY + TABLE, 3))
    for row in set(rows_of([1, 2, 1], 2)):
        counts[row, 0] += 1
    for row in rows_of([2, 3], 2):
        counts[row, 1] += 1
    counts[3] += [0.1, 0.1, 0.8]
    ratios = np.log(counts / counts.sum(axis=0))
    ratios -= ratios.mean(axis=1, keepdims=True)
    ratios[(counts == 1).all(axis=1)] = 0
    table = model.ngrams.embeddings.weight.detach()
    torch.testing.assert_close(table[:, :3], torch.tensor(ratios).float(), rtol=1e-4, atol=1e-5)
    assert not table[:, 3:].any()
    # The logits are the text's average ratios, scaled.
    average = ratios[rows_of([1, 2], 2)].mean(axis=0)
    np.testing.assert_allclose(logits(model, [[1, 2]])[0], SCALE * average, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    trace(with_even_columns(model), path)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 17), (2, 1_300)])
def test_the_graph_computes_what_torch_computes_at_any_shape(model, graph, shape):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape)
    mask = np.ones(shape, np.int64)
    mask[0, (shape[1] + 1) // 2 :] = 0
    session = onnxruntime.InferenceSession(str(graph))
    assert {item.name for item in session.get_inputs()} == {"input_ids", "attention_mask"}
    (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_int8_graph_has_its_table_in_int8_and_nearly_the_same_logits(model, graph, tmp_path):
    path = tmp_path / "model.onnx"
    quantise(graph, path, TABLES_ONLY, {})
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (4, 30))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (found,) = onnxruntime.InferenceSession(str(path)).run(["logits"], feed)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    # No other text of a batch changes an answer, however large its average is.
    padded = {"input_ids": np.zeros((5, 30), np.int64), "attention_mask": np.zeros((5, 30), np.int64)}
    padded["input_ids"][:4], padded["attention_mask"][:4], padded["attention_mask"][4, :1] = ids, 1, 1
    padded["input_ids"][4, 0] = model.ngrams.embeddings.weight[:VOCABULARY].abs().amax(dim=1).argmax()
    (beside,) = onnxruntime.InferenceSession(str(path)).run(["logits"], padded)
    np.testing.assert_allclose(beside[:4], found, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_bert):
    """A finished run of teacher, n-gram student, its control, exports and report."""
    folder = tmp_path_factory.mktemp("ngrams")
    for name, count, seed in (("train", 300, 0), ("test", 100, 1), ("transfer", 200, 2)):
        write_reviews(folder / f"{name}.csv", count, seed=seed)
    recipe = {
        "data": {
            "files": {name: str(folder / f"{name}.csv") for name in ("train", "test", "transfer")},
            "label_names": LABELS, "max_tokens": 16,
        },
        "teacher": {"model": str(tiny_bert), "training": {**TRAINING, "learning_rate": 3e-3}},
        "student": {"ngrams": {"table": 512, "width": 8}, "control": True, "training": TRAINING},
        "export": {"formats": ["torch-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8"]},
        "benchmark": {"shapes": ["1x16"], "rounds": 5},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.run(load_recipe(folder / "recipe.yaml"), folder / "out", device="cpu", force=True)
    return folder


def test_a_run_distills_exports_and_reports_an_n_gram_student(world):
    student = RunFolder(world / "out" / "student")
    assert student.read_metrics()["test"]["accuracy"] > 0.9
    assert student.read_metrics()["training"]["truncation"]["texts_cut"] == 0
    report = json.loads((world / "out" / "report" / "report.json").read_text())
    found = {(item["role"], item["format"]): item for item in report["measurements"]}
    formats = ("torch-fp32", "onnx-fp32", "onnx-int8")
    assert {("student", name) for name in formats} | {("control", "torch-fp32")} <= set(found)
    assert found["student", "onnx-int8"]["agreement"] >= 0.95
    assert found["student", "onnx-int8"]["size_bytes"] < found["student", "onnx-fp32"]["size_bytes"] / 2
    assert found["student", "onnx-int8"]["max_tokens"] is None and found["teacher", "torch-fp32"]["max_tokens"] == 16
    assert "It reads all of a text" in student.card.read_text() and "import distill" in student.card.read_text()


@pytest.mark.parametrize("start", ["counts", "random"])
def test_a_student_of_five_classes_learns_all_of_them(tmp_path, start):
    names = ["one", "two", "three", "four", "five"]
    for split, count in (("train", 200), ("test", 50)):
        rows = "".join(f"the film {names[row % 5]} {split} x{row},{names[row % 5]}\n" for row in range(count))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    teacher = make_classifier(tmp_path / "bert", words=FILLER + names, id2label=dict(enumerate(names)))
    recipe = {
        "data": {"files": {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")},
                 "label_names": names, "max_tokens": 16},
        "student": {"ngrams": {"table": 512, "width": 8, "start": start}, "loss": {"soft_weight": 0.0},
                    "training": {**TRAINING, "num_train_epochs": 8}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    student = commands.student(recipe, [teacher], tmp_path / "student", device="cpu", force=True)
    found = distill.load(student.path)([f"the film {name}" for name in names])
    assert [answer["label"] for answer in found] == names


def test_it_reads_the_end_of_a_text_that_the_teacher_never_sees(world):
    text = " ".join(["film"] * 1_000 + GOOD * 40)
    other = " ".join(["film"] * 1_000 + BAD * 40)
    for model in ("student", "student/export/onnx-int8", "student/export/torch-fp16"):
        found = distill.load(world / "out" / model)([text, other])
        assert [answer["label"] for answer in found] == ["positive", "negative"], model
    # transformers' own pipeline reads as much.
    classify = pipeline("text-classification", model=str(world / "out" / "student"), device="cpu")
    assert [answer["label"] for answer in classify([text, other])] == ["positive", "negative"]


def test_what_it_reads_can_be_limited(world, tmp_path):
    path = str(world / "recipe.yaml")
    recipe = load_recipe(path, ["student.ngrams.max_tokens=12", "student.control=false", "data.truncation=tail"])
    folder = commands.student(recipe, [world / "out" / "teacher"], tmp_path / "student", device="cpu", force=True)
    classifier = distill.load(folder.path)
    words = FILLER * 3
    assert np.array_equal(
        classifier.logits([" ".join([*words, "good", "film"])]),
        classifier.logits([" ".join([*words[-20:], "good", "film"])]),
    )
    assert AutoConfig.from_pretrained(folder.path).distill_truncation == "tail"


def test_its_weights_are_an_ordinary_folder_of_transformers(world):
    model = AutoModelForSequenceClassification.from_pretrained(world / "out" / "student")
    assert isinstance(model, NgramForSequenceClassification) and model.config.id2label == dict(enumerate(LABELS))
    exported = json.loads((world / "out" / "student" / "export" / "onnx-int8" / "config.json").read_text())
    assert exported["model_type"] == "bert" and exported["id2label"] == {"0": "negative", "1": "positive"}


def test_a_learning_rate_of_a_transformer_is_reported(world, tmp_path):
    recipe = load_recipe(
        world / "recipe.yaml",
        ["student.training.learning_rate=5.0e-5", "student.training.max_steps=1", "student.control=false"],
    )
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("distill"), "warning", lambda text, *values: said.append(text % values))
        commands.student(recipe, [world / "out" / "teacher"], tmp_path / "s", device="cpu", force=True)
    assert any("student.training.learning_rate: 5e-05 suits a transformer" in line for line in said)


def test_a_sweep_starts_each_trial_from_the_counts(world, tmp_path):
    sweep = {"keys": {"student.training.learning_rate": [1.0e-9, 2.0e-9]}, "trials": 2}
    recipe = load_recipe(world / "recipe.yaml", [f"sweep={json.dumps(sweep)}"])
    commands.sweep(recipe, [world / "out" / "teacher"], tmp_path / "sweep", device="cpu", force=True)
    trials = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert min(trial["objective"] for trial in trials) > 0.9  # at that rate it learns nothing beyond them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["student.ngrams.longest=9"], "student.ngrams.longest"),
        (["student.ngrams.width=1"], "student.ngrams.width: wants at least 2, one for each class, got 1"),
        (["student.loss.hidden_states={}"], "need layers, but ngrams has none"),
        (["student.attention_dropout=0.1"], "attention_dropout: ngrams has no attention"),
        (["student.training.gradient_checkpointing=true"], "training.gradient_checkpointing: works layer by layer"),
        (["student.ngrams.table=268435456", "student.ngrams.width=4096"], "this machine has memory for"),
        (["data.padding=max_length"], "data.padding: max_length, but student.ngrams reads whole texts"),
        (["export.formats=[openvino-int8]"], "OpenVINO computes whole numbers in 32 bits"),
    ],
)
def test_what_does_not_go_with_n_grams_is_one_line_before_any_training(world, tmp_path, change, message):
    settings = [word for one in change for word in ("--set", one)]
    code, _, said = run(
        "student", world / "recipe.yaml", "--teacher", world / "out" / "teacher", "--output", tmp_path / "s", *settings
    )
    assert code == 2 and message in said and not (tmp_path / "s").exists()
