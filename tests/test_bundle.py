"""A bundle: the files of a run and its exports under the names that other runtimes look for, and nothing else."""

import json
import os
import re
import shutil
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import BAD, FILLER, GOOD, LABELS, check_refused, contents, make_classifier, run
from test_hub import api as api
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import distill
from distill import commands
from distill.data.encoding import Truncation
from distill.errors import UserError
from distill.export import bundle as bundling
from distill.export import formats as exporting
from distill.export.card import bundle_card
from distill.export.formats import export_formats, keep_proofs
from distill.export.proofs import Bounds
from distill.models.config import NGRAMS
from distill.models.ngram_config import NgramConfig
from distill.models.ngrams import NgramForSequenceClassification
from distill.storage.checksums import SEAL, damage_of

TEXTS = [" ".join((FILLER * 3)[i : i + 3 + i % 20] + [(GOOD if i % 2 else BAD)[i % 5]] * 2) for i in range(24)]
TEXTS += [" ".join((FILLER + GOOD) * 5)]  # longer than the model reads
ONNX = ["onnx-fp32", "onnx-fp16", "onnx-int8"]
FILES = {
    "README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentence_bert_config.json",
    "model.safetensors", "learning_curve.png", "onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx",
    "onnx/model_quantized.onnx",
}  # fmt: skip
PRIVATE = ("recipe.yaml", "manifest.json", "started.json", "metrics.json", "metrics.jsonl", "predictions.parquet")


def export(folder, formats=ONNX):
    """Export the classifier in a folder as `distill export` does, with bounds that every format keeps."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    proofs = export_formats(
        model, AutoTokenizer.from_pretrained(folder), LABELS, TEXTS, distill.load(folder).logits(TEXTS).argmax(axis=1),
        folder / "export", formats, truncation=Truncation(64), bounds=Bounds(1.0, 0.0), device="cpu",
        card=lambda proof: f"# {proof.format}",
    )  # fmt: skip
    assert all(proof.passed for proof in keep_proofs(proofs, folder / "export"))


@pytest.fixture(scope="module")
def student(tiny_bert, tmp_path_factory):
    """A folder such as a run leaves, with exports, and with files that nobody else is to see.

    Its graph is traced once, because that takes seconds: the fp16 graph has fp32's weights, but in the slow tests.
    """
    folder = tmp_path_factory.mktemp("run") / "student"
    shutil.copytree(tiny_bert, folder)
    export(folder, ["onnx-fp32"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace", lambda model, path: shutil.copy(folder / "export/onnx-fp32/model.onnx", path))
        export(folder, ONNX[1:])
    (folder / "README.md").write_text("# student\n\nmade with distill\n")
    (folder / "learning_curve.png").write_bytes(b"a picture")
    for name in PRIVATE:
        (folder / name).write_text(f"private: {folder}")
    return folder


@pytest.fixture
def own(student, tmp_path):
    """A copy of the student that a test may change."""
    shutil.copytree(student, tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(scope="module")
def bundle(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "mine"
    found = commands.bundle(student, folder, triton=True)
    assert found["formats"] == ONNX and set(found["missing"]) == {"openvino-bf16", "openvino-int8"}
    return folder


def answers(graph, tokenizer):
    """The logits of a graph, one text at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], dict(tokenizer(text)))[0] for text in TEXTS])


def exported_answers(folder):
    """The logits of an export in distill, one text at a time, because int8 depends on the batch."""
    classifier = distill.load(folder, threads=1)
    return np.concatenate([classifier.logits([text]) for text in TEXTS])


def plain(path):
    """Tokenize as a program without transformers does."""
    backend = Tokenizer.from_file(str(path))
    backend.enable_truncation(64)

    def encode(text):
        ids = np.asarray([backend.encode(text).ids], np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return encode


@pytest.mark.parametrize(
    ("file", "format"),
    [
        ("model", "onnx-fp32"),
        ("model_fp16", "onnx-fp16"),
        ("model_int8", "onnx-int8"),
        ("model_quantized", "onnx-int8"),
    ],
)
def test_each_graph_gives_the_labels_of_its_export(bundle, student, file, format):
    expected = exported_answers(student / "export" / format)
    found = answers(bundle / "onnx" / f"{file}.onnx", plain(bundle / "tokenizer.json"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    whole = partial(AutoTokenizer.from_pretrained(bundle), truncation=True, return_tensors="np")
    np.testing.assert_allclose(answers(bundle / "onnx" / f"{file}.onnx", lambda text: whole([text])), found, atol=1e-4)


def test_transformers_and_distill_load_the_root(bundle, student):
    expected = distill.load(student)(TEXTS)
    assert distill.load(bundle)(TEXTS) == expected
    for mine, theirs in zip(
        pipeline("text-classification", model=bundle)(TEXTS, truncation=True), expected, strict=True
    ):
        assert mine == {"label": theirs["label"], "score": pytest.approx(theirs["score"], abs=1e-5)}
    code, out, err = run("predict", bundle, TEXTS[0])
    assert code == 0 and out.startswith(expected[0]["label"]), err


def test_it_holds_the_files_of_the_layout_and_nothing_private(bundle, student):
    triton = {f"triton/mine/{name}" for name in ("1/model.onnx", "config.pbtxt", "labels.txt")}
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == FILES | triton | {SEAL}
    for path in bundle.rglob("*"):
        if path.is_file():
            for told in (str(student.parent), str(bundle.parent), "recipe.yaml"):
                assert told.encode() not in path.read_bytes(), f"{path} says {told}"
    assert damage_of(bundle) is None


def test_the_files_about_texts_say_what_the_model_reads(bundle):
    settings = json.loads((bundle / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"] and settings["model_max_length"] == 64
    assert json.loads((bundle / "sentence_bert_config.json").read_text()) == {
        "max_seq_length": 64,
        "do_lower_case": False,
    }
    ids = AutoTokenizer.from_pretrained(bundle).get_vocab()
    words = (bundle / "vocab.txt").read_text().splitlines()
    assert words == sorted(ids, key=ids.get) and len(words) == len(ids)


def test_the_card_is_the_models_own_and_names_each_file_once(bundle):
    card = (bundle / "README.md").read_text()
    assert card.startswith("# student\n\nmade with distill\n") and card.endswith("\n") and "\n\n\n" not in card
    for name in FILES:
        if name.startswith("onnx/"):
            assert len(re.findall(rf"`{name}`", card.split("How to load")[0])) == 1
    assert 'pipeline("text-classification", model="FOLDER", truncation=True)' in card
    assert "longer than 64 tokens" in card and "openvino" not in card and "/triton" in card


def test_weights_are_links_that_neither_side_can_change_for_the_other(own, student, tmp_path, monkeypatch):
    traced = student / "export/onnx-fp32/model.onnx"
    monkeypatch.setattr(exporting, "trace", lambda model, path: shutil.copy(traced, path))
    bundle = tmp_path / "bundle"
    commands.bundle(own, bundle)
    linked = {path for path in bundle.rglob("*") if path.is_file() and path.stat().st_nlink > 1}
    assert {path.suffix for path in linked} == {".safetensors", ".onnx"} and len(linked) == 5
    assert (bundle / "model.safetensors").samefile(own / "model.safetensors")
    assert (bundle / "onnx/model_quantized.onnx").samefile(own / "export/onnx-int8/model.onnx")
    assert all(path.stat().st_mode & 0o222 == 0 for path in linked)  # whoever writes through the link is refused
    before = contents(bundle)
    export(own, ["onnx-int8"])  # a later export, and a later model
    AutoModelForSequenceClassification.from_pretrained(own).half().save_pretrained(own)
    assert contents(bundle) == before and damage_of(bundle) is None


def test_without_links_files_are_copied(student, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    commands.bundle(student, tmp_path / "bundle")
    files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert all(path.stat().st_nlink == 1 and path.stat().st_mode & 0o200 for path in files)
    assert (tmp_path / "bundle/model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()


def test_weights_in_a_second_file_are_found_under_every_name(own, student, tmp_path):
    for name in ONNX:
        graph = own / "export" / name / "model.onnx"
        whole = onnx.load(graph)
        graph.unlink()
        onnx.save(whole, graph, save_as_external_data=True, location="model.onnx.data", size_threshold=256)
        (graph.parent / SEAL).unlink()
    commands.bundle(own, tmp_path / "mine", triton=True)
    graphs = [*(tmp_path / "mine/onnx").glob("*.onnx"), tmp_path / "mine/triton/mine/1/model.onnx"]
    assert len(graphs) == 5
    for graph in graphs:
        onnx.load(graph)  # it refuses a second file that has several names
        format = "onnx-fp16" if "fp16" in graph.name else "onnx-int8" if "_" in graph.name else "onnx-fp32"
        expected = exported_answers(student / "export" / format)
        np.testing.assert_allclose(answers(graph, plain(tmp_path / "mine/tokenizer.json")), expected, atol=1e-4)


def test_triton_is_told_the_inputs_and_output_of_the_graph(bundle):
    model = bundle / "triton" / "mine"
    settings = (model / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = re.findall(r'name: "(\w+)" data_type: TYPE_INT64 dims: \[ -1 \]', settings)
    assert inputs == [value.name for value in session.get_inputs()]
    assert {(value.type, len(value.shape)) for value in session.get_inputs()} == {("tensor(int64)", 2)}
    (output,) = session.get_outputs()
    assert f'name: "{output.name}" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt"' in settings
    assert output.type == "tensor(float)" and 'platform: "onnxruntime_onnx"' in settings
    assert (model / "labels.txt").read_text().splitlines() == LABELS


def test_the_log_says_which_formats_are_missing_and_how_to_make_them(own, tmp_path):
    shutil.rmtree(own / "export" / "onnx-fp16")
    proofs = json.loads((own / "export" / "export.json").read_text())
    proofs["onnx-int8"] |= {"passed": False, "reason": "it is too bad"}
    (own / "export" / "export.json").write_text(json.dumps(proofs))
    shutil.rmtree(own / "export" / "onnx-int8")
    code, out, err = run("bundle", own, "--output", tmp_path / "mine", "--json")
    found = json.loads(out)
    assert (
        code == 0
        and found["formats"] == ["onnx-fp32"]
        and set(found["missing"]) == {*ONNX[1:], "openvino-bf16", "openvino-int8"}
    )
    assert "without onnx-int8, which failed its proof: it is too bad" in err
    (command,) = re.findall(r"to make them: (distill export .*)", err)
    assert command.endswith("'export.formats=[onnx-fp16,openvino-bf16,openvino-int8]'")
    assert not list((tmp_path / "mine" / "onnx").glob("*int8*"))


def _without_exports(own):
    shutil.rmtree(own / "export")


def _all_failed(own):
    proofs = json.loads((own / "export" / "export.json").read_text())
    for name in proofs:
        shutil.rmtree(own / "export" / name)
        proofs[name] |= {"passed": False, "reason": "bad"}
    (own / "export" / "export.json").write_text(json.dumps(proofs))


def _damaged_export(own):
    with open(own / "export" / "onnx-int8" / "model.onnx", "ab") as file:
        file.write(b"x")


def _unfinished(own):
    (own / "manifest.json").unlink()


def _other_order(own):
    for place in ("onnx-fp32", "onnx-int8"):
        path = own / "export" / place / "config.json"
        config = json.loads(path.read_text())
        config["id2label"] = dict(enumerate(LABELS[::-1]))
        path.write_text(json.dumps(config))
        (path.parent / SEAL).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_exports, "has no ONNX or OpenVINO export that passed its proof"),
        (_all_failed, "has no ONNX or OpenVINO export that passed its proof"),
        (_damaged_export, "model.onnx is damaged"),
        (_unfinished, "holds an unfinished run"),
        (_other_order, "has the classes in another order than the model: positive, negative"),
    ],
)
def test_what_cannot_be_bundled_is_one_line_and_leaves_nothing(own, tmp_path, spoil, said):
    spoil(own)
    check_refused(tmp_path, [said], "bundle", own, "--output", tmp_path / "mine")


def test_a_place_that_holds_something_else_is_left_alone(student, bundle, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    shutil.copytree(bundle, tmp_path / "earlier")
    shutil.copytree(bundle, tmp_path / "noted")
    (tmp_path / "noted" / "notes.txt").write_text("mine")
    for place, said, *options in (
        ("notes", "holds other files than a bundle's (notes.txt)"),
        ("notes", "holds other files than a bundle's (notes.txt)", "--overwrite"),
        ("earlier", "holds a bundle"),
        ("noted", "holds other files than a bundle's (notes.txt)", "--overwrite"),
        ("link", "a link, so it cannot be replaced in one step"),
        ("a b", "--triton: the model is called as its folder", "--triton"),
    ):
        check_refused(tmp_path, [said], "bundle", student, "--output", tmp_path / place, *options)
    monkeypatch.chdir(tmp_path / "empty")
    check_refused(tmp_path, ["where you are"], "bundle", student, "--output", ".")
    for model, said in (
        (tmp_path / "nothing", "no such folder"),
        (student / "export", "holds exports"),
        (student / "export" / "onnx-fp32", "holds exports"),
    ):
        check_refused(tmp_path, [said], "bundle", model, "--output", tmp_path / "new")


def test_an_earlier_bundle_is_replaced_whole(own, tmp_path):
    commands.bundle(own, tmp_path / "mine", triton=True)
    shutil.rmtree(own / "export" / "onnx-fp16")
    commands.bundle(own, tmp_path / "mine", overwrite=True)
    files = {
        path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*") if path.is_file()
    }
    assert files == FILES - {"onnx/model_fp16.onnx"} | {SEAL}
    assert {path.name for path in tmp_path.iterdir()} == {"student", "mine"}


@pytest.mark.parametrize("there", [False, True])
def test_a_bundle_that_is_stopped_leaves_what_was_there(student, tmp_path, monkeypatch, there):
    if there:
        commands.bundle(student, tmp_path / "mine")
    before = contents(tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundling, "seal", stop)
    with pytest.raises(KeyboardInterrupt):
        commands.bundle(student, tmp_path / "mine", overwrite=True)
    assert contents(tmp_path) == before


def test_exactly_the_bundle_is_uploaded(student, tmp_path, api):
    found = commands.bundle(student, tmp_path / "mine", triton=True, push_to_hub="mine")
    assert api["sent"] == {f"someone/mine/./{name}" for name in found["files"]}
    assert set(found["files"]) > FILES and SEAL not in found["files"]
    with pytest.raises(UserError, match="wants NAME or OWNER/NAME"):
        commands.bundle(student, tmp_path / "other", push_to_hub="a b")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_an_ngram_student_is_bundled_with_a_word_about_its_architecture(tmp_path):
    folder = make_classifier(tmp_path / "student")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = NgramConfig(
        vocab_size=size, table=64, width=4, pad_token_id=0, id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)}, problem_type="single_label_classification",
    )  # fmt: skip
    NgramForSequenceClassification(config).save_pretrained(folder)
    export(folder, ["onnx-fp32"])
    found = commands.bundle(folder, tmp_path / "mine")
    assert set(found["missing"]) == {"onnx-fp16", "onnx-int8"}  # OpenVINO cannot compute it
    assert json.loads((tmp_path / "mine/config.json").read_text())["model_type"] == NGRAMS
    expected = distill.load(folder).logits(TEXTS)
    np.testing.assert_allclose(distill.load(tmp_path / "mine").logits(TEXTS), expected)
    np.testing.assert_allclose(
        answers(tmp_path / "mine/onnx/model.onnx", plain(tmp_path / "mine/tokenizer.json")), expected, atol=1e-5
    )
    card = (tmp_path / "mine/README.md").read_text()
    assert "after `import distill`" in card and "transformers.js" not in card


@pytest.mark.parametrize(
    ("kept", "said"),
    [("tail", "cut the end off instead"), ("head_tail", "None of these can cut a text in its middle")],
)
def test_the_card_says_what_others_cut_differently(kept, said):
    card = bundle_card(
        "mine", "", places={"onnx-int8": ("onnx/model_int8.onnx",)},
        proofs={"onnx-int8": {"agreement": 0.99, "size_bytes": 1}}, weights=["model.safetensors"], architecture="bert",
        several=True, truncation=Truncation(64, kept), triton=None,
    )  # fmt: skip
    assert card.startswith("# `mine`\n") and said in card and 'dtype: "q8"' in card and "label_thresholds" in card


@pytest.mark.slow
def test_fp16_and_openvino_read_their_files_under_their_new_names(student, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    own = tmp_path / "student"
    shutil.copytree(student, own)
    export(own, ["onnx-fp16", "openvino-bf16", "openvino-int8"])
    commands.bundle(own, tmp_path / "mine")
    encode = plain(tmp_path / "mine/tokenizer.json")
    half = answers(tmp_path / "mine/onnx/model_fp16.onnx", encode)
    np.testing.assert_allclose(half, distill.load(own).logits(TEXTS), atol=0.05)
    for name, format in (
        ("openvino_model", "openvino-bf16"),
        ("openvino_model_qint8_quantized", "openvino-int8"),
    ):
        model = openvino.Core().compile_model(tmp_path / "mine" / "openvino" / f"{name}.xml", "CPU")
        found = np.concatenate([model(encode(text))["logits"] for text in TEXTS])
        expected = exported_answers(own / "export" / format)
        np.testing.assert_allclose(found, expected, atol=0.05)
