"""An export verifies itself where it runs: random tokens and the logits they should get, with and without distill."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import FILLER, LABELS, make_classifier, run
from onnx import helper, numpy_helper

import distill
from distill.data.encoding import Truncation
from distill.errors import ModelError
from distill.export.formats import export_formats
from distill.export.proofs import Bounds
from distill.inference.verification_sets import SETS, VERIFICATION
from distill.models.loading import divide_logits
from distill.storage.checksums import SEAL

TEXTS = [" ".join((FILLER * 3)[i : i + 4 + i % 20]) for i in range(20)]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A classifier of random weights with logits of some size, as onnx-fp32, onnx-int8 and torch-fp16."""
    folder = tmp_path_factory.mktemp("verified")
    made = distill.load(make_classifier(folder / "bert"), "cpu")
    divide_logits(made.session.model, 0.1)
    formats = ["onnx-fp32", "onnx-int8", "torch-fp16"]
    proofs = export_formats(
        made.session.model, made.tokenizer, LABELS, TEXTS, np.zeros(len(TEXTS), int), folder / "export", formats,
        truncation=Truncation(64), bounds=Bounds(1.0, 0.0), device="cpu", card=lambda proof: "card",
    )  # fmt: skip
    assert all(proof.passed for proof in proofs)
    return folder / "export"


@pytest.fixture
def copied(exports, tmp_path):
    """A copy that may be changed, without its seal, which would be noticed first."""
    shutil.copytree(exports, tmp_path / "export")
    for seal in (tmp_path / "export").rglob(SEAL):
        seal.unlink()
    return tmp_path / "export"


def script(folder):
    return subprocess.run([sys.executable, folder / "verify.py"], capture_output=True, text=True, cwd="/")


def saturate(path, share):
    """Clip the whole-number products of an int8 graph as 16 bits would, at a level that few reach."""
    model = onnx.load(path)
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    for index, node in enumerate(products):
        (name,), node.output[0] = node.output, f"whole_{index}"
        for end, value in (("low", -share), ("high", share)):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int32), f"{end}_{index}"))
        at = list(model.graph.node).index(node)
        model.graph.node.insert(
            at + 1, helper.make_node("Clip", [f"whole_{index}", f"low_{index}", f"high_{index}"], [name])
        )
    assert products
    onnx.save(model, path)


def rewritten(folder):
    """Let verification.json name the present files, as if an attacker or a tool had changed the graph before."""
    import hashlib

    found = json.loads((folder / VERIFICATION).read_text())
    found["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in found["files"]}
    (folder / VERIFICATION).write_text(json.dumps(found))


def test_exports_are_verified_where_they_were_made_and_by_the_script_too(exports):
    code, out, err = run("verify", exports)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["onnx-fp32", "onnx-int8", "torch-fp16"]
    assert all("verified: " in line and f"of {SETS} answers as in PyTorch" in line for line in lines)
    code, out, _ = run("verify", exports / "onnx-int8", "--json")
    verdict = json.loads(out)["onnx-int8"]
    assert code == 0 and verdict["reason"] is None and verdict["sets"] == SETS
    assert verdict["error"] == pytest.approx(verdict["proved_error"]) and verdict["error"] > 0
    assert verdict["error"] < verdict["allowed_error"]
    verdict = json.loads(run("verify", exports / "onnx-fp32", "--json")[1])["onnx-fp32"]
    assert verdict["proved_error"] < 1e-4 and verdict["same_answers"] == SETS  # it computes what torch computes
    for name in ("onnx-fp32", "onnx-int8"):
        done = script(exports / name)
        assert done.returncode == 0 and f"on {SETS} texts" in done.stdout, done.stderr
    assert not (exports / "torch-fp16" / "verify.py").exists()


def test_products_that_saturate_are_noticed_by_the_command_the_script_and_the_first_prediction(copied, monkeypatch):
    folder = copied / "onnx-int8"
    saturate(folder / "model.onnx", 2_000)
    rewritten(folder)
    code, out, err = run("verify", folder)
    assert code == 2 and "FAILED: this machine computes other logits" in out and "onnx-fp32" in err
    done = script(folder)
    assert done.returncode == 2 and "this machine computes other logits" in done.stderr
    distill.load(folder)  # on the kind of CPU that proved it, nothing is computed again
    monkeypatch.setattr("distill.inference.verification_sets.cpu_kind", lambda: "another CPU")
    with pytest.raises(ModelError, match="this machine computes other logits"):
        distill.load(folder)
    code, out, err = run("predict", folder, "good film")
    assert (code, out) == (2, "") and "distill verify" in err


def test_a_single_weight_that_changed_is_noticed(copied):
    folder = copied / "onnx-fp32"
    model = onnx.load(folder / "model.onnx")
    weights = next(one for one in model.graph.initializer if len(one.dims) == 2)
    values = numpy_helper.to_array(weights).copy()
    values[0, 0] += 1e-3
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, folder / "model.onnx")
    code, out, _ = run("verify", folder)
    assert code == 2 and "FAILED: model.onnx is not the file that was proved" in out
    assert script(folder).returncode == 2


def test_another_cpu_that_computes_the_same_is_welcome(exports, monkeypatch):
    before = distill.load(exports / "onnx-int8").logits(TEXTS)
    monkeypatch.setattr("distill.inference.verification_sets.cpu_kind", lambda: "another CPU")
    np.testing.assert_array_equal(distill.load(exports / "onnx-int8").logits(TEXTS), before)


def test_the_sets_say_nothing_about_the_texts(exports):
    """They are the same for two models that were proved on different texts."""
    found = json.loads((exports / "onnx-fp32" / VERIFICATION).read_text())["sets"]
    lengths = [len(one["input_ids"]) for one in found]
    assert lengths == sorted(lengths) and lengths[0] <= 5 and lengths[-1] == 64
    tokenizer = distill.load(exports / "onnx-fp32").tokenizer
    assert all((one["input_ids"][0], one["input_ids"][-1]) == (2, 3) for one in found)  # [CLS] and [SEP]
    assert all(tokenizer.pad_token_id not in one["input_ids"] for one in found)


DAMAGE = {
    "no sets": lambda found: found["sets"].clear(),
    "ragged logits": lambda found: found["sets"][3]["torch"].append(1.0),
    "an endless id": lambda found: found["sets"][3]["input_ids"].append(2**70),
    "unequal types": lambda found: found["sets"][3]["token_type_ids"].append(0),
    "no ids": lambda found: found["sets"][3].update(input_ids=[], token_type_ids=[]),
}


@pytest.mark.parametrize("damage", ["{", "[]", '{"sets": []}', *DAMAGE])
def test_damaged_sets_are_one_line(copied, damage, monkeypatch):
    folder = copied / "onnx-fp32"
    found = json.loads((folder / VERIFICATION).read_text())
    if damage in DAMAGE:
        DAMAGE[damage](found)
    (folder / VERIFICATION).write_text(json.dumps(found) if damage in DAMAGE else damage)
    monkeypatch.setattr("distill.inference.verification_sets.cpu_kind", lambda: "another CPU")
    for command in (("verify", folder), ("predict", folder, "a text")):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and VERIFICATION in err and "Traceback" not in err


def test_a_bound_in_the_file_that_allows_all_is_not_believed(copied):
    folder = copied / "onnx-int8"
    saturate(folder / "model.onnx", 2_000)
    rewritten(folder)
    found = json.loads((folder / VERIFICATION).read_text())
    (folder / VERIFICATION).write_text(json.dumps(found | {"allowed_error": 1e9}))
    assert run("verify", folder)[0] == 2


def test_sets_that_were_changed_after_sealing_are_noticed(exports, tmp_path):
    shutil.copytree(exports / "onnx-fp32", tmp_path / "onnx-fp32")
    path = tmp_path / "onnx-fp32" / VERIFICATION
    path.write_text(path.read_text().replace("0", "1", 1))
    code, _, err = run("verify", tmp_path / "onnx-fp32")
    assert code == 2 and VERIFICATION in err


def test_what_is_no_export_is_one_line(tmp_path, tiny_bert):
    for folder, problem in ((tmp_path, "holds no export"), (tiny_bert, f"has no {VERIFICATION}")):
        code, out, err = run("verify", folder)
        assert (code, out) == (2, "") and problem in err
