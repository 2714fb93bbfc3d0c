"""The stages of Ray Data that docs/scale.md shows, on two workers: they find what one process finds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import data_section, make_classifier, write_reviews
from datasets import Dataset

import distill

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), flags=re.DOTALL)


def run_on_two_workers(code, folder):
    """Run what the page shows for one worker on a local Ray of three cores; the third is Ray's own."""
    pytest.importorskip("ray")
    changed = code.replace("import ray\n", "import ray\n\nray.init(num_cpus=3, include_dashboard=False)\n", 1)
    changed = changed.replace('"concurrency": 1', '"concurrency": 2')
    assert "num_cpus=3" in changed and '"concurrency": 2' in changed
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", changed], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3_000:]


@pytest.mark.slow
def test_two_workers_label_a_folder_as_one_process_does(tmp_path):
    make_classifier(tmp_path / "distilbert-student" / "export")
    (tmp_path / "texts").mkdir()
    texts = []
    for seed in range(4):
        rows = write_reviews(tmp_path / "rows.csv", 300, seed=seed)
        Dataset.from_dict({"text": [text for text, _ in rows]}).to_parquet(tmp_path / "texts" / f"{seed}.parquet")
        texts += [text for text, _ in rows]
    (label,) = (block for block in BLOCKS if "class Label" in block)
    run_on_two_workers(label, tmp_path)
    rows = [
        row for file in sorted((tmp_path / "labelled").glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    expected = distill.load(tmp_path / "distilbert-student" / "export", "cpu")(texts)
    found = {row["text"]: (row["label"], round(row["score"], 4)) for row in rows}
    assert len(rows) == len(texts)
    assert found == {text: (one["label"], round(one["score"], 4)) for text, one in zip(texts, expected, strict=True)}


@pytest.mark.slow
def test_two_workers_answer_for_a_teacher_what_one_process_answers(tmp_path, data):
    make_classifier(tmp_path / "bert-teacher")
    recipe = {"data": data_section(data), "student": {"layers": 1}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (answer,) = (block for block in BLOCKS if "class Answer" in block)
    # In the workers too.
    small = "from distill.distillation import teacher_logits; teacher_logits.SHARD_ROWS = 16\n"
    start = "    def __init__(self, split):\n"
    assert start in answer
    run_on_two_workers(small + answer.replace(start, f"{start}        {small}"), tmp_path)
    code = f"""
{small}
import numpy as np
from distill import commands
recipe = commands.check("recipe.yaml")
for split, kept in commands.kept_logits(recipe, "bert-teacher", "logits").items():
    alone = commands.kept_logits(recipe, "bert-teacher", "alone")[split]
    assert not kept.missing() and len(alone.missing()) == len(kept.starts) >= (4 if split == "train" else 1)
    alone.answer(alone.missing())
    one, two = alone.read(), kept.read()
    assert one["example_id"][:] == two["example_id"][:]
    # another number of threads sums in another order, and so in the last bits to another logit
    np.testing.assert_allclose(two["teacher_logits"][:], one["teacher_logits"][:], rtol=0, atol=1e-5, err_msg=split)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
