"""The stage of Ray Data that docs/scale.md shows, on two workers: every row of every file labelled as here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import make_classifier, write_reviews
from datasets import Dataset

import distill

ROOT = Path(__file__).parent.parent
LABEL = re.search(r"```python\n(.*?class Label.*?)```", (ROOT / "docs" / "scale.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_two_workers_label_a_folder_as_one_process_does(tmp_path):
    pytest.importorskip("ray")
    make_classifier(tmp_path / "distilbert-student" / "export")
    (tmp_path / "texts").mkdir()
    texts = []
    for seed in range(4):
        rows = write_reviews(tmp_path / "rows.csv", 300, seed=seed)
        Dataset.from_dict({"text": [text for text, _ in rows]}).to_parquet(tmp_path / "texts" / f"{seed}.parquet")
        texts += [text for text, _ in rows]
    assert LABEL
    code = LABEL[1].replace("import ray\n", "import ray\n\nray.init(num_cpus=3, include_dashboard=False)\n", 1)
    code = code.replace('"concurrency": 1', '"concurrency": 2')
    assert "num_cpus=3" in code and '"concurrency": 2' in code
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    rows = [
        row for file in sorted((tmp_path / "labelled").glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    expected = distill.load(tmp_path / "distilbert-student" / "export", "cpu")(texts)
    found = {row["text"]: (row["label"], round(row["score"], 4)) for row in rows}
    assert len(rows) == len(texts)
    assert found == {text: (one["label"], round(one["score"], 4)) for text, one in zip(texts, expected, strict=True)}
