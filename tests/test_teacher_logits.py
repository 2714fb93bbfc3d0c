import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS, make_classifier, write_reviews
from datasets import Dataset

from distill.data.encoding import Truncation
from distill.data.splits import load_splits
from distill.distillation import teacher_logits as module
from distill.distillation.teacher_logits import LogitCache, identify_teacher, with_teacher_logits
from distill.errors import FolderError, ModelError
from distill.inference.classifier import load
from distill.models.loading import load_tokenizer
from distill.recipe.schema import Data, Files
from distill.storage.run_folder import RunFolder
from distill.training.tokens import tokenise


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 16)


@pytest.fixture
def rows(data):
    files = Files(train=str(data / "train.csv"), test=str(data / "test.csv"))
    return load_splits(Data(files=files, label_names=tuple(LABELS))).train.select(range(50))


@pytest.fixture
def teacher(tiny_bert, tmp_path):
    # Another test may have let it teach.
    return shutil.copytree(tiny_bert, tmp_path / "teacher", ignore=shutil.ignore_patterns("teacher_logits"))


class Teacher:
    """Loads the teacher when called, counts how often and what it was asked, and can be told to die on the way."""

    def __init__(self, folder, dies_after=None):
        self.folder, self.dies_after, self.loaded, self.texts = folder, dies_after, 0, 0

    def __call__(self):
        self.loaded += 1
        self.classifier = load(self.folder, "cpu")
        return self

    def logits(self, texts, progress):
        if self.dies_after is not None and self.texts >= self.dies_after:
            raise KeyboardInterrupt
        self.texts += len(texts)
        return self.classifier.logits(texts, progress=progress)


def teacher_logits(folder, rows, label_names, load_teacher, **options):
    return module.load_or_compute(logit_cache(folder, rows, label_names, load_teacher, **options))


def logit_cache(folder, rows, label_names, load_teacher, **options):
    return LogitCache(identify_teacher(str(folder), label_names), rows, load_teacher, **options)


def answers(logits):
    return np.asarray(logits["teacher_logits"])


def test_the_logits_are_the_teachers_row_by_row(teacher, rows):
    logits = teacher_logits(teacher, rows, LABELS, Teacher(teacher))
    assert logits["example_id"] == rows["example_id"]
    np.testing.assert_allclose(answers(logits), load(teacher, "cpu").logits(rows["text"]), atol=1e-5)


def test_shards_that_others_answered_in_any_order_are_found(teacher, rows):
    """As the workers of a cluster do: each knows nothing but the folder and the shards that are its own."""
    asked = logit_cache(teacher, rows, LABELS, Teacher(teacher))
    assert asked.missing() == [0, 16, 32, 48]
    with pytest.raises(FolderError, match="shard 0 was written but is not there"):
        asked.read()
    for starts in ([48, 16], [32, 0]):
        logit_cache(teacher, rows, LABELS, Teacher(teacher)).answer(starts)
    idle = Teacher(teacher)
    assert asked.missing() == []
    found = teacher_logits(teacher, rows, LABELS, idle)
    assert idle.loaded == 0
    np.testing.assert_allclose(answers(found), load(teacher, "cpu").logits(rows["text"]), atol=1e-5)


def test_classes_are_put_in_the_datas_order(teacher, rows):
    forward = answers(teacher_logits(teacher, rows, LABELS, Teacher(teacher)))
    backward = answers(teacher_logits(teacher, rows, LABELS[::-1], Teacher(teacher)))
    np.testing.assert_allclose(forward, backward[:, ::-1], atol=1e-6)


def test_the_teacher_is_loaded_once_and_then_never_again(teacher, rows):
    first, second = Teacher(teacher), Teacher(teacher)
    made = answers(teacher_logits(teacher, rows, LABELS, first))
    read = answers(teacher_logits(teacher, rows, LABELS, second))
    assert (first.loaded, first.texts, second.loaded) == (1, 50, 0)
    assert (made == read).all()


def test_an_interrupted_pass_goes_on_and_equals_an_uninterrupted_one(teacher, rows, tmp_path):
    dying, living = Teacher(teacher, dies_after=32), Teacher(teacher)
    with pytest.raises(KeyboardInterrupt):
        teacher_logits(teacher, rows, LABELS, dying)
    resumed = teacher_logits(teacher, rows, LABELS, living)
    assert dying.texts + living.texts == 50 and living.texts == 18
    whole = teacher_logits(teacher, rows, LABELS, Teacher(teacher), cache=tmp_path / "other")
    assert (answers(resumed) == answers(whole)).all()


@pytest.mark.parametrize("change", ["weights", "texts", "max_tokens", "tokenizer", "classes"])
def test_what_the_logits_depend_on_makes_another_cache(teacher, rows, change):
    before = answers(teacher_logits(teacher, rows, LABELS, Teacher(teacher)))
    if change == "weights":
        shutil.rmtree(teacher)
        make_classifier(teacher, "bert", hidden_act="relu")
    elif change == "texts":
        rows = rows.map(lambda row: {"text": f"{row['text']} awful"})
    elif change == "classes":  # the weights stay the same
        path = Path(teacher, "config.json")
        classes = {"id2label": {"0": LABELS[1], "1": LABELS[0]}, "label2id": {LABELS[1]: 0, LABELS[0]: 1}}
        path.write_text(json.dumps(json.loads(path.read_text()) | classes))
    else:
        path = Path(teacher, "tokenizer_config.json" if change == "max_tokens" else "tokenizer.json")
        settings = json.loads(path.read_text())
        if change == "max_tokens":
            settings["model_max_length"] = 8
        else:
            settings["normalizer"] = None
        path.write_text(json.dumps(settings))
    asked = Teacher(teacher)
    after = teacher_logits(teacher, rows, LABELS, asked)
    assert asked.texts == 50
    if change != "tokenizer":  # the reviews are all lower case
        assert not np.allclose(before, answers(after))
    columns = [1, 0] if change == "classes" else [0, 1]
    np.testing.assert_allclose(answers(after), load(teacher, "cpu").logits(rows["text"])[:, columns], atol=1e-5)


def test_a_cache_of_something_else_is_refused_by_name(teacher, rows):
    teacher_logits(teacher, rows, LABELS, Teacher(teacher))
    (folder,) = RunFolder(teacher).teacher_logits.iterdir()
    origin = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps(origin | {"texts": "of others", "teacher_weights": "of another"}))
    with pytest.raises(FolderError, match=r"made with another teacher_weights, texts") as caught:
        teacher_logits(teacher, rows, LABELS, Teacher(teacher))
    assert str(folder) in caught.value.problems[0]


def test_shards_of_other_rows_are_refused_by_name(teacher, rows):
    teacher_logits(teacher, rows, LABELS, Teacher(teacher))
    (folder,) = RunFolder(teacher).teacher_logits.iterdir()
    first, second = sorted(folder.glob("shard-*"))[:2]
    second.write_bytes(first.read_bytes())
    second.rename(second.with_name(second.name.replace(second.stem[-16:], first.stem[-16:])))
    with pytest.raises(FolderError, match="shard 1 is of other rows"):
        teacher_logits(teacher, rows, LABELS, Teacher(teacher))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_shard_is_answered_again(teacher, rows, damage):
    whole = answers(teacher_logits(teacher, rows, LABELS, Teacher(teacher)))
    shard = sorted(RunFolder(teacher).teacher_logits.glob("*/shard-*"))[1]
    content = bytearray(shard.read_bytes())
    if damage == "gone":
        shard.unlink()
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content[:-8] if damage == "truncated" else content)
    again = Teacher(teacher)
    assert (answers(teacher_logits(teacher, rows, LABELS, again)) == whole).all()
    assert again.texts == 16


def test_a_teacher_that_answers_nonsense_is_named(teacher, rows):
    class Broken(Teacher):
        def logits(self, texts, progress):
            return np.full((len(texts), 2), np.nan, np.float32)

    with pytest.raises(ModelError, match=f"row {rows[0]['example_id']} are not finite"):
        teacher_logits(teacher, rows, LABELS, Broken(teacher))
    assert not list(RunFolder(teacher).teacher_logits.glob("*/shard-*"))


def test_a_cache_that_cannot_be_written_is_one_line(teacher, rows, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FolderError, match="cannot be written"):
        teacher_logits(teacher, rows, LABELS, Teacher(teacher), cache=tmp_path / "file")


def test_five_logits_of_650_000_texts_stay_under_30_mb(tmp_path, monkeypatch):
    monkeypatch.undo()
    ids = [f"transfer/{row}" for row in range(645_000, 645_000 + module.SHARD_ROWS)]
    module._write_shard(tmp_path, 0, ids, np.zeros((len(ids), 5), np.float32))
    (shard,) = tmp_path.iterdir()
    assert shard.stat().st_size / module.SHARD_ROWS * 650_000 < 30e6


def test_columns_join_the_tokens_row_by_row(teacher, rows):
    tokenised = tokenise(rows, load_tokenizer(str(teacher)), Truncation(32))
    logits = teacher_logits(teacher, rows, LABELS, Teacher(teacher))
    joined = with_teacher_logits(tokenised, [logits, logits])
    assert joined["input_ids"] == tokenised["input_ids"]
    assert joined["teacher_logits_0"] == joined["teacher_logits_1"] == logits["teacher_logits"]


RANK = """
import sys
from accelerate import PartialState
from datasets import Dataset
sys.path[:0] = [sys.argv[4]]
import torch
torch.set_num_threads(1)
import test_teacher_logits as tests
from distill.distillation import teacher_logits as module
module.SHARD_ROWS = 16
teacher = tests.Teacher(sys.argv[1])
rows = Dataset.from_csv(sys.argv[2])
logits = tests.teacher_logits(sys.argv[1], rows, ["negative", "positive"], teacher)
state = PartialState()
logits.to_json(f"{sys.argv[3]}/{state.process_index}.json")
sys.stdout.write(f"asked {state.process_index} {teacher.texts}\\n")  # in one piece: two ranks share the pipe
state.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_split_the_work_and_all_read_the_whole(teacher, tmp_path):
    write_reviews(tmp_path / "rows.csv", 50, seed=9)
    rows = Dataset.from_csv(str(tmp_path / "rows.csv"))
    rows.add_column("example_id", [f"train/{index}" for index in range(50)]).to_csv(tmp_path / "rows.csv")
    (tmp_path / "rank.py").write_text(RANK)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", tmp_path / "rank.py",
            teacher, tmp_path / "rows.csv", tmp_path, Path(__file__).parent,
        ],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "asked" in line) == ["asked 0 32", "asked 1 18"]
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in range(2))
    assert first == second and len(first.splitlines()) == 50
