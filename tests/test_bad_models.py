"""Model folders from strangers: what is missing, damaged or dangerous is one line, and nothing of theirs is run."""

import json
import os
import pickle
import resource
import shutil
import time

import onnx
import pytest
import torch
from conftest import LABELS, check_refused, run, write_reviews
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from distill.storage.checksums import SEAL, seal

WEIGHTS = "model.safetensors"


def config(name="config.json", **changes):
    """The folder with keys of its config.json changed, or gone where the value is None."""

    def change(folder):
        values = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def tokenizer_config(**changes):
    return config("tokenizer_config.json", **changes)


def token_id(**ids):
    """The folder with other ids for these tokens."""

    def change(folder):
        values = json.loads((folder / "tokenizer.json").read_text())
        values["model"]["vocab"].update(ids)
        (folder / "tokenizer.json").write_text(json.dumps(values))

    return change


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def weights(change):
    def changed(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def indexed(**weight_map):
    def change(folder):
        shutil.copyfile(folder / WEIGHTS, folder.parent / "elsewhere.safetensors")
        (folder / WEIGHTS).unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def elsewhere(folder):
    shutil.copyfile(folder / WEIGHTS, folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"classifier.bias": "../elsewhere.safetensors"}}'
    )
    config(transformers_weights="model.safetensors.index.json")(folder)


class Harm:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def as_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def pickled(**tensors):
    """The folder with a pickle of these tensors for weights."""

    def change(folder):
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return change


def raw_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harm(folder.parent / "harmed")}))
    (folder / WEIGHTS).unlink()


def harmful_pickle(folder):
    torch.save({"weight": Harm(folder.parent / "harmed")}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def harmful_code(**settings):
    """A model that comes with code of its own, as its config.json or its tokenizer says."""

    def change(folder):
        (folder / "theirs.py").write_text(f"import os\nos.system('touch {folder.parent / 'harmed'}')\n")
        for name, keys in settings.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def heads(outputs):
    """Weights whose head has this number of outputs."""
    shapes = {"classifier.weight": torch.zeros(outputs, 32), "classifier.bias": torch.zeros(outputs)}
    return weights(lambda found: found.update(shapes))


def pad_id_null(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": None}))


MULTI_LABEL = "{model}: gives a text any number of labels, but data.task is single_label: a text has one label"
REGRESSION = "config.json: gives a text a number (regression: problem_type, or a single output); distill supports"
ONE_OUTPUT = {"id2label": {"0": "score"}, "label2id": {"score": 0}}
THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
GAPS = "config.json: id2label: wants a name for each of 0 to 1, got names for 0, 2"
EVERY = ("teacher", "predict", "student", "report", "export")
THEIRS = {"AutoConfig": "theirs.Config", "AutoModelForSequenceClassification": "theirs.Model"}
BOTH = ("teacher", "predict")
# Of each: how the folder is changed, the commands that refuse it, and what the one line says.
CASES = {
    "no folder": (shutil.rmtree, BOTH, "{model}: no such folder"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), BOTH, "{model}: no such folder"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), BOTH, "it has no config.json"),
    "no configuration": (without("config.json"), BOTH, "{model}: not a model folder: it has no config.json"),
    "a folder of models": (
        lambda folder: (shutil.copytree(folder, folder / "latency_ms-1"), without("config.json")(folder)), BOTH,
        "it has no config.json; name a model in it, such as {model}/latency_ms-1",
    ),
    "half a configuration": (cut("config.json", 100), BOTH, "{model}: no"),
    "a list for a configuration": (content("config.json", b"[]"), BOTH, "{model}: no"),
    "an unknown architecture": (config(model_type="wombat"), BOTH, "has model type `wombat`"),
    "no architecture": (config(model_type=None), BOTH, "Should have a `model_type` key in its config.json"),
    "an architecture that is no encoder": (config(model_type="t5"), ("predict",), "weights"),
    "an architecture without layers to take": (config(model_type="t5"), ("teacher",), "cannot tell which modules of"),
    "no classifier": (config(architectures=["BertForMaskedLM"]), ("predict",), "not a text classifier, but BertFor"),
    "a size that is a word": (config(hidden_size="x"), BOTH, "Validation error for field 'hidden_size'"),
    "sizes that do not go together": (config(hidden_size=33), BOTH, "The hidden size (33) is not a multiple"),
    "weights of other sizes": (config(intermediate_size=32), BOTH, "its weights do not fit its config.json: bert.enc"),
    "too few positions for its weights": (config(max_position_embeddings=32), BOTH, "do not fit its config.json"),
    "fewer positions than max_tokens": (config(max_position_embeddings=8), ("teacher",), "takes at most 8 tokens, but"),
    "fewer embeddings than tokens": (config(vocab_size=5), BOTH, "embeds 5 tokens, but the tokenizer's ids go up to"),
    "an id above the embeddings": (
        token_id(good=1_000_000), ("predict", "student", "report", "export"),
        "embeds 29 tokens, but the tokenizer's ids go up to 1000000: they do not fit together",
    ),
    "another number of classes": (
        config(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2}), ("teacher",),
        "classifies into 3 classes, the data has 2: negative, positive",
    ),
    "two classes of one name": (config(id2label={"0": "a", "1": "a"}), ("predict",), "two classes have the same name"),
    "several labels a text": (
        config(problem_type="multi_label_classification"), ("teacher", "student", "report", "export"), MULTI_LABEL,
    ),
    "a number for a text": (config(problem_type="regression"), EVERY, REGRESSION),
    "a single output": (lambda folder: (config(**ONE_OUTPUT)(folder), heads(1)(folder)), EVERY, REGRESSION),
    "class names with a gap": (config(id2label={"0": "negative", "2": "positive"}), EVERY, GAPS),
    "more outputs than class names": (
        heads(3), EVERY, "{model}: has 3 outputs, but its config.json (id2label) names 2 classes",
    ),
    "fewer outputs than class names": (
        config(**THREE), ("predict",), "{model}: has 2 outputs, but its config.json (id2label) names 3 classes",
    ),
    "one class for several": (config(architectures=5), BOTH, "architectures: wants a list of names of classes, got 5"),
    "a list of no classes": (config(architectures=[5]), BOTH, "wants a list of names of classes, got [5]"),
    "a class and no list": (config(architectures="BertFor"), ("predict",), "names of classes, got 'BertFor'"),
    "no layers": (config(num_hidden_layers=0), BOTH, "num_hidden_layers: wants a number above 0, got 0"),
    "positions from no padding": (
        lambda folder: (config(model_type="roberta")(folder), pad_id_null(folder)), ("predict",), "positions from it",
    ),
    "a pair of tokenizers": (tokenizer_config(tokenizer_class="RagTokenizer"), BOTH, "no fast tokenizer"),
    "numbers of a module": (config(dtype="os"), BOTH, "dtype: wants a floating-point type such as float32, got 'os'"),
    "whole numbers": (config(torch_dtype="int8"), ("predict",), "torch_dtype: wants a floating-point type"),
    "numbers of a part": (config(dtype={"": "__class__"}), ("predict",), "such as float32, got '__class__'"),
    "an activation of nobody": (config(hidden_act="foo"), BOTH, "config.json: hidden_act: 'foo' is not known"),
    "an activation that is a number": (config(hidden_act=5), ("predict",), "Field 'hidden_act' expected str, got int"),
    **{
        f"a class named {name!r}": (
            config(id2label={"0": "negative", "1": name}), ("predict", "student"),
            f"config.json: id2label: wants text for the name of class 1, got {name!r}",
        )
        for name in (None, "", 1.5, ["a"], True)
    },
    "no padding": (tokenizer_config(pad_token=None), BOTH, "{model}: its tokenizer has no padding token"),
    **{
        f"a longest text of {value!r} tokens": (
            tokenizer_config(model_max_length=value), ("predict",),
            f"tokenizer_config.json: model_max_length: wants a whole number of tokens, at least 3 (one plus the "
            f"special tokens), got {value!r}",
        )
        for value in (-1, 2, 1.5, float("nan"), "many", [3], True)
    },
    "a temperature in its configuration": (config(calibration_temperature=1.7), BOTH, "an earlier version of distill"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), BOTH, "has no tokenizer (tokenizer.json"),
    "half a tokenizer": (cut("tokenizer.json", 300), BOTH, "{model}: no tokenizer can be loaded"),
    "a tokenizer that is none": (content("tokenizer.json", b'{"model": 3}'), BOTH, "no tokenizer can be loaded"),
    "no weights": (without(WEIGHTS), BOTH, "{model}: holds no weights (model.safetensors"),
    "half downloaded": (cut(WEIGHTS, 3_000), BOTH, "its weights cannot be loaded: damaged or half downloaded"),
    "no weights in it": (content(WEIGHTS, b""), BOTH, "damaged or half downloaded"),
    "a header that is too large": (content(WEIGHTS, b"\xff" * 8 + bytes(100)), BOTH, "damaged or half downloaded"),
    "weights of another model": (content(WEIGHTS, b"\x02\0\0\0\0\0\0\0{}"), ("predict",), "weights are missing, first"),
    "part of the encoder missing": (
        weights(lambda found: found.pop("bert.encoder.layer.2.output.dense.weight")), ("teacher",),
        "the weights lack 1 tensors of the encoder, first bert.encoder.layer.2",
    ),
    "weights that are no numbers": (
        weights(lambda found: found["classifier.bias"].fill_(float("nan"))), ("predict",), "are not finite",
    ),
    "a shard that is not there": (indexed(a="model-00001-of-00002.safetensors"), BOTH, "is not there; half down"),
    "a shard outside the folder": (indexed(a="../elsewhere.safetensors"), BOTH, "names weights outside its folder"),
    "an index that is none": (
        lambda folder: (indexed()(folder), content("model.safetensors.index.json", b"[1]")(folder)), BOTH, "no",
    ),
    "no graph": (content("model.onnx", b"not a graph"), ("predict",), "ONNX Runtime cannot load it"),
    "an export for a teacher": (content("model.onnx", b"x"), ("teacher",), "an export, which can only predict"),
    "a pickle": (
        as_pickle, BOTH, "its weights are a pickle, which can run code when it is read; only safetensors are loaded",
    ),
    "weights named elsewhere": (elsewhere, BOTH, "transformers_weights: names other weight files"),
    "a pickle that does harm": (harmful_pickle, BOTH, "its weights are a pickle"),
    "code of its own": (harmful_code(config={"auto_map": THEIRS, "model_type": "theirs"}), BOTH, "custom code"),
}  # fmt: skip
ATTACKS = ("a shard outside the folder", "weights named elsewhere", "a pickle that does harm", "code of its own")


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in CASES for command in CASES[name][1]])
def test_a_model_that_cannot_be_used_is_one_line(name, command, tmp_path, tiny_bert, recipe_path, record_property):
    change, _, expected = CASES[name]
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    change(model)
    arguments = {
        "predict": ["predict", model, "a good film"],
        "teacher": ["teacher", recipe_path, "--set", f"teacher.model={model}", "--set", "teacher.pretrained=true"],
        "student": ["student", recipe_path, "--teacher", model, "--force"],
        "report": ["report", model, "--recipe", recipe_path, "--output", tmp_path / "report"],
        "export": ["export", model, "--recipe", recipe_path, "--onnx", "--output", tmp_path / "export"],
    }[command]
    check_refused(tmp_path, [expected.format(model=model)], *arguments)
    assert not (tmp_path / "harmed").exists()
    record_property("attacks refused" if name in ATTACKS else "bad models", 1)


# What says how an answer is handed over or computed, not what it is: such a folder answers as the one without.
SETTINGS = {
    "tuples for answers": config(return_dict=False),
    "a text in pieces": config(chunk_size_feed_forward=7),
    "hidden states too": config(output_hidden_states=True, output_attentions=True),
    "weights in float64": lambda folder: (
        weights(lambda found: found.update({name: tensor.double() for name, tensor in found.items()}))(folder),
        config(dtype="float64")(folder),
    ),
    "padding by the end of a text": tokenizer_config(pad_token=None, eos_token="[SEP]"),
    "no longest text": tokenizer_config(model_max_length=1e30),
    "an endless longest text": tokenizer_config(model_max_length=float("inf")),
    "other inputs": tokenizer_config(model_input_names=["wombat"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_changes_no_answer_is_no_misfit(name, tmp_path, tiny_bert):
    from distill.models.loading import load_tokenizer

    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    SETTINGS[name](model)
    texts = ("a good film", "bad", "")  # of different lengths
    assert run("predict", model, *texts)[:2] == run("predict", tiny_bert, *texts)[:2]
    rows = {"input_ids": [[2, 3], [3]], "attention_mask": [[1, 1], [1]]}
    assert load_tokenizer(str(model)).pad(rows)["attention_mask"] == [[1, 1], [1, 0]]  # as training pads


@pytest.mark.parametrize(
    "change",
    [
        harmful_code(config={"auto_map": THEIRS}),
        harmful_code(
            tokenizer_config={"auto_map": {"AutoTokenizer": ["theirs.T", "theirs.T"]}, "tokenizer_class": "T"}
        ),
    ],
    ids=["model", "tokenizer"],
)
def test_code_beside_a_model_of_a_known_kind_is_not_run(change, tmp_path, tiny_bert, record_property):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    expected = run("predict", model, "a good film")[1]
    change(model)
    assert run("predict", model, "a good film", stdin="y\n")[1] == expected
    assert not (tmp_path / "harmed").exists()
    record_property("attacks refused", 1)


def test_a_pickle_is_converted_only_when_asked_and_answers_as_before(tmp_path, tiny_bert):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    found = load_file(model / WEIGHTS)
    # Two names of one tensor, as pickles have them, of which the other comes first in the alphabet.
    found["a.tied.weight"] = found["bert.embeddings.word_embeddings.weight"]
    torch.save(found, model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    assert "distill convert" in run("predict", model, "a good film")[2]
    code, out, _ = run("convert", model, "--output", tmp_path / "converted")
    assert (code, out.strip()) == (0, str(tmp_path / "converted"))
    assert not list((tmp_path / "converted").glob("*.bin"))
    assert run("predict", tmp_path / "converted", "a good film") == run("predict", tiny_bert, "a good film")
    check_refused(tmp_path, ["already exists"], "convert", model, "--output", tmp_path / "converted")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (harmful_pickle, "holds more than tensors, and was not run"),
        (lambda folder: (without(WEIGHTS)(folder), content("pytorch_model.bin", b"x")(folder)), "pytorch_model.bin: "),
        (lambda folder: torch.save([1], folder / "pytorch_model.bin"), "not a table of named tensors"),
        (lambda folder: None, "there is nothing to convert"),
        (raw_pickle, "damaged or half downloaded, or a pickle that torch.save did not write"),
        (pickled(big=torch.zeros(1).expand(2**40)), "would expand to weights of 4398046511104 bytes"),
        (pickled(weight=torch.eye(3).to_sparse()), "weight: wants a dense tensor of a type that safetensors has"),
        (pickled(weight=torch.eye(3).to_sparse_csr()), "weight: wants a dense tensor of a type that safetensors has"),
        (pickled(weight=torch.empty(3, device="meta")), "weight: wants a dense tensor of a type that safetensors has"),
        (pickled(weight=torch.zeros(3, dtype=torch.complex128)), "weight: wants a dense tensor of a type that saf"),
        (pickled(**{"\ud800": torch.zeros(3)}), "wants names of letters and digits for its tensors, got '\\ud800'"),
        (lambda folder: torch.save({5: torch.zeros(3)}, folder / "pytorch_model.bin"), "for its tensors, got 5"),
        (
            content("pytorch_model.bin.index.json", b'{"weight_map": {"a": "../x.bin"}}'),
            "names weights outside",
        ),
        (shutil.rmtree, "no such folder"),
    ],
    ids=[
        "harm",
        "no pickle",
        "a list",
        "nothing to convert",
        "a raw pickle",
        "endless",
        "sparse",
        "sparse rows",
        "no data",
        "complex",
        "half a character",
        "a number for a name",
        "outside the folder",
        "no folder",
    ],
)
def test_what_cannot_be_converted_is_one_line_and_not_run(change, expected, tmp_path, tiny_bert, record_property):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    change(model)
    check_refused(tmp_path, [expected], "convert", model, "--output", tmp_path / "converted")
    assert not (tmp_path / "harmed").exists()
    record_property("attacks refused" if change is harmful_pickle or "outside" in expected else "bad models", 1)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny_bert):
    """A run that was stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    write_reviews(folder / "train.csv", 64, seed=1)
    write_reviews(folder / "test.csv", 16, seed=2)
    files = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    recipe = {
        "data": {"files": files, "label_names": LABELS, "max_tokens": 32},
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": {"num_train_epochs": 2}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert run("teacher", folder / "recipe.yaml", "--output", folder / "out")[0] == 0
    for name in ("manifest.json", "checksums.json", WEIGHTS):
        (folder / "out" / name).unlink()
    return folder


def checkpoint(folder):
    return min((folder / "out" / "checkpoints").glob("checkpoint-*"))  # one from which there is still work to do


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_resuming_runs_nothing_that_a_checkpoint_may_hold(name, stopped, tmp_path, record_property):
    shutil.copytree(stopped, tmp_path / "x")
    last = max((tmp_path / "x" / "out" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(last)
    kept = checkpoint(tmp_path / "x")
    state = json.loads((kept / "trainer_state.json").read_text())
    (kept / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": str(kept)}))
    torch.save(Harm(tmp_path / "harmed"), kept / name)
    seal(kept)  # as who puts it there would
    code, _, err = run("teacher", tmp_path / "x" / "recipe.yaml", "--output", tmp_path / "x" / "out", "--resume")
    assert not (tmp_path / "harmed").exists()
    assert (code == 0) == (name == "training_args.bin"), err  # which nobody reads
    if code:
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and f"{kept}: holds more than tensors, and was not run" in line
        record_property("attacks refused", 1)


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00X", b"\x80\x04\x95", b"PK\x03\x04 half a zip", b"(lp0\nI1", bytes(40)]
)
def test_a_damaged_pickle_is_one_line(content, tmp_path, tiny_bert, record_property):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(content)
    check_refused(tmp_path, ["damaged or half downloaded"], "convert", model, "--output", tmp_path / "converted")
    record_property("bad models", 1)


def test_a_model_of_another_task_is_a_teacher_with_a_new_head(tmp_path, tiny_bert, recipe_path):
    """Its head has another shape; that is no misfit of its own."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    tags = {str(index): f"tag {index}" for index in range(9)}
    config(
        architectures=["BertForTokenClassification"], id2label=tags, label2id={name: int(i) for i, name in tags.items()}
    )(model)
    heads = {"classifier.weight": torch.zeros(9, 32), "classifier.bias": torch.zeros(9)}
    weights(lambda found: found.update(heads))(model)
    settings = (f"teacher.model={model}", "teacher.pretrained=true", "teacher.training.max_steps=1")
    sets = [part for setting in settings for part in ("--set", setting)]
    code, _, err = run("teacher", recipe_path, *sets, "--output", tmp_path / "out")
    assert code == 0, err


def test_a_base_of_several_labels_whose_head_is_not_kept_is_one_of_single_labels(tmp_path, tiny_bert, recipe_path):
    """Of `pretrained: false` the sizes count, and what is saved says what it is."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    config(problem_type="multi_label_classification")(model)
    settings = (f"teacher.model={model}", "teacher.training.max_steps=1")
    sets = [part for setting in settings for part in ("--set", setting)]
    code, _, err = run("teacher", recipe_path, *sets, "--output", tmp_path / "out")
    assert code == 0, err
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["problem_type"] == "single_label_classification"


# Of each graph: the shape of its output, the output's name, and what the one line says; None opens and answers.
GRAPHS = {
    "as many outputs as class names": (("batch", 2), "logits", None),
    "one output for two class names": (("batch", 1), "logits", "has 1 outputs, but its config.json (id2label) names 2"),
    "more outputs than class names": (("batch", 3), "logits", "has 3 outputs, but its config.json (id2label) names 2"),
    "another number, left open": (
        ("batch", "classes"),
        "logits",
        ": has 3 outputs, but its config.json (id2label)",
    ),
    "another name": (("batch", 2), "scores", "has no output named logits, but scores"),
    "an output of three sizes": (("batch", 2, 1), "logits", "its output has the shape any x 2 x 1, but logits need"),
    "an output for one text": ((1, 2), "logits", "its output has the shape 1 x 2, but logits need any x classes"),
}


def graph_of(shape, output):
    """A graph that answers each class with the sum of a text's ids; a number of classes that is a name is found as it
    runs (3)."""
    node = helper.make_node
    nodes = [
        node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        node("ReduceSum", ["ids", "axis"], ["sum"], keepdims=1),
        node("ReduceMin", ["attention_mask"], ["one"], keepdims=0),  # every text has a token
        node("Unsqueeze", ["one", "first"], ["ones"]),
        node("Mul", ["ones", "count"], ["classes"]),
        node("Concat", ["row", "classes" if isinstance(shape[1], str) else "count"], ["size"], axis=0),
        node("ConstantOfShape", ["size"], ["weights"], value=helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])),
        node("MatMul", ["sum", "weights"], [output]),
    ]
    numbers = {"axis": 1, "first": 0, "row": 1, "count": 3 if isinstance(shape[1], str) else shape[1]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in numbers.items()]
    if len(shape) == 3:
        nodes[-1].output[0] = "flat"
        nodes.append(node("Unsqueeze", ["flat", "last"], [output]))
        constants.append(helper.make_tensor("last", TensorProto.INT64, [1], [2]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_graph_has_as_many_outputs_as_class_names(name, runtime, tmp_path, tiny_bert, record_property):
    shape, output, expected = GRAPHS[name]
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    (model / WEIGHTS).unlink()
    onnx.save(graph_of(shape, output), model / "model.onnx")
    if runtime == "openvino":
        if output != "logits" or shape[0] == 1:
            pytest.skip("OpenVINO reads the first output, whatever its name, and finds its shape by itself")
        openvino = pytest.importorskip("openvino")
        openvino.save_model(openvino.Core().read_model(model / "model.onnx"), model / "openvino_model.xml")
        (model / "model.onnx").unlink()
    if expected is None:
        code, out, err = run("predict", model, "a good film")
        assert code == 0 and out.startswith("negative\t0.5000"), err
        return
    check_refused(tmp_path, [expected], "predict", model, "a good film")
    record_property("bad models", 1)


def edited(change):
    def write(folder):
        graph = graph_of(("batch", 2), "logits")
        change(graph.graph)
        onnx.save(graph, folder / "model.onnx")

    return write


def of_inputs(kind, *names, shape=("batch", "tokens")):
    """The graph with inputs of this type and shape, of which it reads the first two."""

    def change(graph):
        del graph.input[:]
        graph.input.extend(helper.make_tensor_value_info(name, kind, shape) for name in names)
        if kind == TensorProto.INT32:  # the mask is computed with as int64
            graph.node.insert(0, helper.make_node("Cast", ["attention_mask"], ["wide"], to=TensorProto.INT64))
            next(node for node in graph.node if node.op_type == "ReduceMin").input[0] = "wide"

    return edited(change)


def without_its_data(folder):
    graph = graph_of(("batch", 2), "logits")
    for tensor in graph.graph.initializer:  # as bytes, which alone can lie elsewhere
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(graph, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data",
                    size_threshold=0)  # fmt: skip
    (folder / "model.onnx_data").unlink()


IDS, MASK, INT64 = "input_ids", "attention_mask", TensorProto.INT64
ONNX, OPENVINO = "ONNX Runtime cannot load it: ", "OpenVINO cannot load it: "
# Of each: how model.onnx is written, and what is said of it by ONNX Runtime and by OpenVINO; None answers.
BROKEN_GRAPHS = {
    "an operation of nobody": (
        edited(lambda graph: setattr(graph.node[1], "op_type", "Wombat")),
        f"{ONNX}This is an invalid model. In Node, (\"\", Wombat", f"{OPENVINO}No conversion rule found for",
    ),
    "an edge from nowhere": (
        edited(lambda graph: graph.node[0].input.__setitem__(0, "nothing")),
        f"{ONNX}Invalid model. Node input 'nothing' is", f"{OPENVINO}Input tensor isn't found for node \"nothing\"",
    ),
    "no operations": (
        edited(lambda graph: graph.ClearField("node")), f"{ONNX}This is an invalid model. Graph output (logits)",
        f"{OPENVINO}Output tensor \"logits\" was declared",
    ),
    "an empty file": (content("model.onnx", b""), f"{ONNX}No graph was found in the protobuf", OPENVINO),
    "data that is not there": (without_its_data, ONNX, OPENVINO),
    "half of the inputs": (of_inputs(INT64, IDS), ONNX, OPENVINO),
    "an input of others": (
        of_inputs(INT64, IDS, MASK, "position_ids"), *["wants the input position_ids, but distill feeds only"] * 2,
    ),
    "one shape": (
        of_inputs(INT64, IDS, MASK, shape=(1, 128)),
        *["its input input_ids has the shape 1 x 128, but texts need any x any"] * 2,
    ),
    "one length": (of_inputs(INT64, IDS, MASK, shape=("batch", 128)), *["the shape any x 128, but texts need"] * 2),
    "inputs in 32 bits": (of_inputs(TensorProto.INT32, IDS, MASK), None, None),
    "token types too": (of_inputs(INT64, IDS, MASK, "token_type_ids"), None, None),
    "inputs that are fractions": (
        edited(lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT)),
        "its input input_ids wants tensor(float), but distill", "its input input_ids wants f32, but distill feeds",
    ),
    "an id that it does not know": (
        edited(lambda graph: (graph.node.insert(0, helper.make_node("Gather", ["few", IDS], ["known"], axis=0)),
                              graph.node[1].input.__setitem__(0, "known"),
                              graph.initializer.append(helper.make_tensor("few", INT64, [1], [1])))),
        "ONNX Runtime cannot run it: Non-zero status code returned while running Gather node", ...,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_GRAPHS)
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_graph_that_cannot_be_run_is_one_line(name, runtime, tmp_path, tiny_bert, record_property):
    write, *said = BROKEN_GRAPHS[name]
    expected = said[runtime == "openvino"]
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    (model / WEIGHTS).unlink()
    write(model)
    if runtime == "openvino":  # which reads ONNX too, so that a graph that it cannot write can be refused by it
        pytest.importorskip("openvino")
        (model / "model.onnx").rename(model / "openvino_model.xml")
    if expected is ...:
        pytest.skip("OpenVINO answers")
    if expected is None:
        code, out, err = run("predict", model, "a good film", "bad")
        assert code == 0 and out.count("negative\t0.5000") == 2, err
        return
    check_refused(tmp_path, [expected], "predict", model, "a good film", "bad")
    record_property("bad models", 1)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("openvino_model.bin", None, "Empty weights data in bin file or bin file cannot be found!"),
        ("openvino_model.bin", b"few", "Incorrect weights in bin file!"),
        ("openvino_model.xml", b"<net", "Unable to read the model"),
    ],
)
def test_half_an_openvino_model_is_one_line(name, data, said, tmp_path, tiny_bert, record_property):
    openvino = pytest.importorskip("openvino")
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    onnx.save(graph_of(("batch", 2), "logits"), tmp_path / "model.onnx")
    openvino.save_model(openvino.Core().read_model(tmp_path / "model.onnx"), model / "openvino_model.xml")
    (model / name).unlink()
    if data is not None:
        (model / name).write_bytes(data)
    check_refused(tmp_path, [f"openvino_model.xml: OpenVINO cannot load it: {said}"], "predict", model, "a good film")
    record_property("bad models", 1)


def test_a_label_does_not_steer_the_terminal(tmp_path, tiny_bert):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    config(id2label={"0": "\x1b[2Jbad\t", "1": "\x1b[2Jgood\n"}, label2id={})(model)
    code, out, _ = run("predict", model, "a good film")
    assert code == 0 and "\x1b" not in out and len(out.splitlines()) == 1 and len(out.split("\t")) == 3


def linked_out(name):
    """The file moved out of the folder, and a link to it in its place."""

    def change(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def sealed(**names):
    """A checksums.json that says these digests of these names, besides those of the files that are there."""

    def change(folder):
        seal(folder)
        found = json.loads((folder / SEAL).read_text())
        (folder / SEAL).write_text(json.dumps(names | found))

    return change


def sealed_pipe(folder):
    (folder / "vocab.pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "vocab.pipe")
    sealed(**{"vocab.pipe": "0"})(folder)


def sealed_link(folder):
    seal(folder)
    linked_out(WEIGHTS)(folder)


def linked_shard(folder):
    indexed(**dict.fromkeys(load_file(folder / WEIGHTS), "a.safetensors"))(folder)
    (folder / "a.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def test_constants_that_older_versions_saved_are_no_layers_left_out(tmp_path, tiny_bert):
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(model / WEIGHTS)
    weights["bert.encoder.layer.0.attention.masked_bias"] = torch.zeros(1)
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    assert run("predict", model, "a good film")[0] == 0


def test_a_shard_in_a_hubs_cache_may_be_a_link_and_so_may_its_folder(tmp_path, tiny_bert):
    snapshot = shutil.copytree(tiny_bert, tmp_path / "models--x" / "snapshots" / "abc")
    indexed(**dict.fromkeys(load_file(snapshot / WEIGHTS), "a.safetensors"))(snapshot)
    (tmp_path / "models--x" / "blobs").mkdir()
    (snapshot.parent / "elsewhere.safetensors").rename(tmp_path / "models--x" / "blobs" / "1")
    (snapshot / "a.safetensors").symlink_to("../../blobs/1")
    (tmp_path / "link").symlink_to(snapshot)
    for model in (snapshot, tmp_path / "link"):
        assert run("predict", model, "a good film")[0] == 0


def test_a_users_own_file_beside_a_sealed_model_has_no_say(tmp_path, tiny_bert):
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    seal(model)
    for name in ("tokenizer.json.bak", "tokenizer_notes.md", "fasttext.model", "vocab.csv"):
        (model / name).write_text("mine")
    assert run("predict", model, "a good film")[0] == 0


def outside_weights(location):
    """A graph whose weights lie in the file `location`."""

    def change(folder):
        (folder / WEIGHTS).unlink()
        (folder.parent / "secret").write_bytes(bytes(64))
        graph = graph_of(("batch", 2), "logits")
        tensor = graph.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.ClearField("int64_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            tensor.external_data.add(key=key, value=value)
        if location == "link":
            (folder / "link").symlink_to(folder.parent / "secret")
        (folder / "model.onnx").write_bytes(graph.SerializeToString())

    return change


TOO_LARGE = "its config.json makes a larger model than its weights hold: 73 tensors with"
KERNEL = "may be code from the Hub, which is not run"
# Of each: how a stranger made the folder, and the one line of `predict`, in seconds.
STRANGERS = {
    "checksums of a device behind a name that counts": (
        sealed(**{f"tokenizer/{'../' * 12}dev/zero": "0"}), "checksums.json names a file outside the folder: tokenizer",
    ),
    "checksums of a pipe": (sealed_pipe, "vocab.pipe is not a regular file"),
    "checksums of a link that leaves": (sealed_link, f"checksums.json names a file outside the folder: {WEIGHTS}"),
    "checksums that are no table": (content("checksums.json", b"[[1, 2]]"), "checksums.json is damaged"),
    "more layers than weights": (config(num_hidden_layers=100_000_000), "num_hidden_layers: wants at most 100000, got"),
    "some more layers than weights": (config(num_hidden_layers=90_000), TOO_LARGE),
    "more words than weights": (config(vocab_size=10**10), TOO_LARGE),
    "wider than its weights": (config(hidden_size=4_000_000), TOO_LARGE),
    "an inner layer wider than its weights": (config(intermediate_size=10**9), TOO_LARGE),
    "more positions than weights": (config(max_position_embeddings=10**12), TOO_LARGE),
    "more types than weights": (config(type_vocab_size=10**10), TOO_LARGE),
    "fewer layers than weights": (config(num_hidden_layers=1), "hold layers that its config.json leaves out"),
    "weights beside those that are vouched for": (
        lambda folder: (seal(folder), content("model.onnx", b"x")(folder)), "model.onnx is not in checksums.json",
    ),
    "checksums of nothing": (content("checksums.json", b"{}"), "json is not in checksums.json: it was added later"),
    "no types at all": (config(type_vocab_size=0), "its config.json makes a layer (Embedding) whose weight is empty"),
    "layers without a width": (config(intermediate_size=0), "makes a layer (Linear) whose weight is empty"),
    "more classes than can be named": (
        config(num_labels=10**9, id2label=None, label2id=None), "num_labels: wants at most 100000, got 1000000000",
    ),
    "layers of a kind that lists them": (
        config(model_type="modernbert", num_hidden_layers=10**9), "num_hidden_layers: wants at most",
    ),
    "groups of layers without end": (config(model_type="albert", num_hidden_groups=10**8), TOO_LARGE),
    "a kernel of a hub": (config(attn_implementation="them/kernel"), f"attn_implementation: 'them/kernel' {KERNEL}"),
    "a function of a kernel": (config(_attn_implementation="a/kernel:run"), KERNEL),
    "a revision of a kernel": (config(attn_implementation="mallory/kernel@main:run"), KERNEL),
    "a kernel by another way": (config(attn_implementation="paged|mallory/kernel"), KERNEL),
    "a kernel that transformers fetches": (config(attn_implementation="flash_attention_2"), KERNEL),
    "a kernel for a part": (config(attn_implementation={"": "sdpa", "text_config": "mallory/kernel"}), KERNEL),
    "a kernel of a part": (config(text_config={"_attn_implementation": "mallory/kernel"}), KERNEL),
    "a kernel within": (config(_attn_implementation_internal="mallory/kernel"), KERNEL),
    "experts by a kernel": (config(experts_implementation="mallory/kernel"), KERNEL),
    "a quantiser": (config(quantization_config={"quant_method": "fp8"}), "quantization_config: quantized weights"),
    "an adapter of a model elsewhere": (
        content("adapter_config.json", b'{"base_model_name_or_path": "mallory/model"}'), "an adapter, not a model",
    ),
    "a tokenizer that names a file": (
        harmful_code(tokenizer_config={"init_inputs": ["/dev/zero"]}), "init_inputs: names a file, which is not read",
    ),
    "a tokenizer whose words are a file": (
        harmful_code(tokenizer_config={"vocab": "/dev/zero"}), "vocab: names a file, which is not read: /dev/zero",
    ),
    "a vocabulary elsewhere": (
        harmful_code(tokenizer_config={"vocab_file": "/dev/zero"}), "vocab_file: names a file elsewhere: /dev/zero",
    ),
    "other tokenizers elsewhere": (
        harmful_code(tokenizer_config={"fast_tokenizer_files": ["../tokenizer.4.0.json"]}), "_tokenizer_files: names",
    ),
    "a shard that is a link": (linked_shard, "a.safetensors is a link to a file outside its folder"),
    "a graph with weights elsewhere": (outside_weights("../secret"), "ONNX Runtime cannot load it"),
    "a graph with weights behind a link": (outside_weights("link"), "ONNX Runtime cannot load it"),
    "a graph with a device for weights": (outside_weights("/dev/zero"), "ONNX Runtime cannot load it"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_stranger_may_not_ask_for_is_one_line_at_once(name, tmp_path, tiny_bert, record_property):
    change, expected = STRANGERS[name]
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    change(model)
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = run("predict", model, "a good film")
    assert (code, out) == (2, ""), err
    (problem,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(model) in problem and expected in problem and len(problem) < 600, problem
    assert time.monotonic() - began < 20  # most take a tenth of a second; a hang or an endless list would not
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # KiB: a GB
    record_property("attacks refused", 1)


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_an_attention_of_transformers_own_is_taken(name, tmp_path, tiny_bert):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    config(attn_implementation=name)(model)
    assert run("predict", model, "a good film")[0] == 0


EXPORTED = {"passed": True, "reason": "", "device": "cpu", "texts_per_second": 1.0}


@pytest.mark.parametrize(
    ("proofs", "said"),
    [
        ({"../model": EXPORTED}, "none of its formats that run here"),
        ({"onnx-fp32": EXPORTED | {"texts_per_second": "many"}}, "export.json: not as distill writes it"),
        ([1], "export.json: not as distill writes it"),
    ],
)
def test_proofs_name_formats_and_nothing_else(proofs, said, tmp_path, tiny_bert, record_property):
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "export.json").write_text(json.dumps(proofs))
    shutil.copytree(tiny_bert, tmp_path / "model")
    check_refused(tmp_path, [said], "predict", tmp_path / "exports", "a good film")
    record_property("attacks refused", 1)


def test_what_is_converted_takes_no_files_of_others_along(tmp_path, tiny_bert, record_property):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    as_pickle(model)
    (tmp_path / "secret").write_text("{}")
    (model / "notes.json").symlink_to(tmp_path / "secret")
    (model / "noise.txt").symlink_to("/dev/zero")
    assert run("convert", model, "--output", tmp_path / "converted")[0] == 0
    assert not {"notes.json", "noise.txt"} & {path.name for path in (tmp_path / "converted").iterdir()}
    record_property("attacks refused", 1)
