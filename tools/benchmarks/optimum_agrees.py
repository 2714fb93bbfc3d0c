"""Check that an exported ONNX folder loads in Optimum and gives the same labels as in distill.

usage: python3 tools/benchmarks/optimum_agrees.py ENVIRONMENT_PYTHON FOLDER TEXTS.parquet [--texts 2000]

ENVIRONMENT_PYTHON is the Python of another environment with optimum-onnx, which needs transformers 4. The exit status
is 1 if any label differs. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pyarrow.parquet as pq

import distill

# Runs in Optimum's environment, one text at a time, so that padding does not affect the comparison.
THEIRS = """
import json, sys
import pyarrow.parquet as pq
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer
folder, file, count = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
labels = []
for text in pq.read_table(file)["text"].to_pylist()[: int(count)]:
    encoded = tokenizer(text, truncation=True, return_tensors="np", return_token_type_ids=False)
    logits = model(**encoded).logits[0]
    labels.append(model.config.id2label[int(logits.argmax())])
print(json.dumps(labels))
"""


def main() -> None:
    """Compare the labels of both and print how many are equal."""
    parser = argparse.ArgumentParser(description="Compare the labels of an ONNX folder in Optimum and in distill.")
    parser.add_argument("python")
    parser.add_argument("folder")
    parser.add_argument("file")
    parser.add_argument("--texts", type=int, default=2000)
    arguments = parser.parse_args()
    command = [arguments.python, "-c", THEIRS, arguments.folder, arguments.file, str(arguments.texts)]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    texts = pq.read_table(arguments.file)["text"].to_pylist()[: arguments.texts]
    classifier = distill.load(arguments.folder, "cpu")
    ours = [classifier([text])[0]["label"] for text in texts]
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(json.dumps({"texts": len(texts), "equal_labels": equal, "folder": arguments.folder}))
    sys.exit(0 if equal == len(texts) else 1)


if __name__ == "__main__":
    main()
