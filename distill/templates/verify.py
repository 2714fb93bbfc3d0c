"""Does this machine compute the logits that this model was proved with? It needs onnxruntime and numpy."""

import hashlib
import json
import pathlib
import sys

import numpy as np
import onnxruntime

folder = pathlib.Path(__file__).parent
wanted = json.loads((folder / "verification.json").read_text())
for name, digest in wanted["files"].items():
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
        print(f"{name} is not the file that was proved: fetch it again", file=sys.stderr)
        sys.exit(2)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
types, inputs = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}, session.get_inputs()
difference = []
for one in wanted["sets"]:
    values = {**one, "attention_mask": [1] * len(one["input_ids"])}
    feed = {item.name: np.asarray([values[item.name]], types[item.type]) for item in inputs}
    logits = np.asarray(session.run(["logits"], feed)[0], np.float64)
    difference.append(logits[0] - one["torch"])
error = float(np.sqrt(np.mean(np.square(difference))))
print(f"error {error:.3g} on {len(difference)} texts; at most {wanted['allowed_error']:.3g} is allowed")
if not error <= wanted["allowed_error"]:
    print("this machine computes other logits: use the fp32 model, or export on this kind of machine", file=sys.stderr)
    sys.exit(2)
