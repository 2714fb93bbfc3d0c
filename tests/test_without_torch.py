"""An export answers in an environment that holds neither torch nor transformers, with the answers of one that does."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, FILLER, GOOD, LABELS, MORE_CONFIGS, make_classifier, run, write_reviews
from packaging.requirements import Requirement

import distill
from distill.data.encoding import Truncation, encode, vocabulary_of
from distill.errors import ModelError
from distill.export.onnx_graph import trace
from distill.inference.exported import read_config, read_tokenizer
from distill.models.config import class_names, embeddings_of, is_classifier, task_of, token_limit
from distill.models.loading import load_config, load_tokenizer
from distill.models.thresholds import thresholds_of
from distill.models.truncation import kept_part, reads_of

ROOT = Path(__file__).parent.parent
TEXTS = ["good film", "the plot was bad and the cast was awful", "", "unknownword", "good " * 200]
# Refuses every module of a distribution that the small environment lacks.
BLOCKED = """
import importlib.abc, json, sys
refused = set(json.loads(sys.argv.pop(1)))
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from distill.cli import main
main()
"""


def installed_with(extra):
    """The distributions that `distill`, or `distill[extra]`, brings, with all that they need themselves."""
    found, waiting = set(), [("distill", extra)]
    while waiting:
        name, extra = waiting.pop()
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for one in map(Requirement, needed):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                plain = re.sub(r"[-_.]+", "-", one.name).lower()
                if plain not in found and plain != "distill":
                    waiting.append((plain, ""))
    return found


@pytest.fixture(scope="module")
def refused():
    """The modules that come with `distill[train]` and not with `distill`."""
    small, modules = installed_with(""), importlib.metadata.packages_distributions()
    plain = {name: {re.sub(r"[-_.]+", "-", one).lower() for one in owners} for name, owners in modules.items()}
    lacking = {name for name, owners in plain.items() if not owners & small}
    assert {"torch", "transformers", "datasets", "scipy", "sklearn", "safetensors", "onnx"} <= lacking
    assert not {"numpy", "tokenizers", "onnxruntime", "typer", "pyarrow"} & lacking
    return lacking


def without_torch(refused, *arguments):
    command = [sys.executable, "-c", BLOCKED, json.dumps(sorted(refused)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def exported(tiny_bert, tmp_path_factory):
    """The tiny BERT as an ONNX file beside its configuration and tokenizer, as Optimum too leaves it."""
    folder = tmp_path_factory.mktemp("exported") / "onnx-fp32"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, folder)
    trace(distill.load(tiny_bert).session.model, folder / "model.onnx")
    return folder


def test_texts_and_files_get_the_answers_of_the_full_environment(exported, refused, tmp_path):
    code, out, _ = run("predict", exported, *TEXTS)
    assert code == 0
    found = without_torch(refused, "predict", exported, *TEXTS)
    assert (found.returncode, found.stdout) == (0, out), found.stderr
    write_reviews(tmp_path / "reviews.csv", 30, seed=3)
    code, out, _ = run("predict", exported, "--file", tmp_path / "reviews.csv", "--json")
    found = without_torch(refused, "predict", exported, "--file", tmp_path / "reviews.csv", "--json")
    assert (found.returncode, found.stdout) == (0, out), found.stderr
    answers = tmp_path / "answers.parquet"
    found = without_torch(refused, "predict", exported, "--file", tmp_path / "reviews.csv", "--output", answers)
    assert found.returncode == 0 and answers.is_file(), found.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["predict", "{bert}", "a text"], "a model that is not exported needs torch"),
        (["check", "imdb"], "this command needs transformers"),
        (["teacher", "imdb"], "this command needs"),
        (["report", "{bert}"], "this command needs"),
    ],
    ids=["a model of torch", "check", "teacher", "report"],
)
def test_what_needs_more_says_what_to_install(tiny_bert, refused, arguments, what):
    found = without_torch(refused, *(str(one).format(bert=tiny_bert) for one in arguments))
    assert found.returncode == 2 and found.stdout == ""
    error, hint = found.stderr.splitlines()
    assert what in error and "not installed" in error and hint == "hint: pip install 'distill[train]'"


def test_help_and_recipes_need_nothing_more(refused):
    for arguments in (["--help"], ["recipes"], ["predict", "--help"]):
        assert without_torch(refused, *arguments).returncode == 0


@pytest.mark.parametrize("kind", sorted(CONFIGS | MORE_CONFIGS))
def test_an_export_is_read_as_transformers_reads_it(kind, tmp_path):
    several = {
        "problem_type": "multi_label_classification", "label_thresholds": [0.3, 0.6], "distill_truncation": "tail",
        "id2label": {0: "food", 1: "price"},
    }  # fmt: skip
    for more in ({}, several):
        folder = make_classifier(tmp_path / f"{kind}{len(more)}", kind, **more)
        ours, theirs = read_config(folder), load_config(str(folder))
        name = str(folder)
        assert class_names(ours, name) == class_names(theirs, name) and is_classifier(ours)
        assert task_of(ours, name) == task_of(theirs, name)
        assert thresholds_of(ours) == thresholds_of(theirs)
        assert (token_limit(ours), embeddings_of(ours)) == (token_limit(theirs), embeddings_of(theirs))
        tokenizer, their_tokenizer = read_tokenizer(folder), load_tokenizer(name)
        assert kept_part(ours, tokenizer) == kept_part(theirs, their_tokenizer)
        assert reads_of(ours) == reads_of(theirs)
        for field in ("model_max_length", "pad_token_id", "eos_token_id", "unk_token_id", "split_special_tokens"):
            assert getattr(tokenizer, field) == getattr(their_tokenizer, field), field
        for added in (True, False):
            assert vocabulary_of(tokenizer, added=added) == vocabulary_of(their_tokenizer, added=added)
        texts = [*TEXTS, "[MASK] good[SEP]", " ".join(FILLER + GOOD)]
        assert encode(tokenizer, texts, Truncation(16)) == encode(their_tokenizer, texts, Truncation(16))


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("config.json", {"id2label": ["a", "b"]}, "id2label: wants the name of each class by its number"),
        ("config.json", {"id2label": {"zero": "a"}}, "id2label: wants the name of each class by its number"),
        ("config.json", {"id2label": {"1": "a", "2": "b"}}, "id2label: wants a name for each of 0 to 1"),
        ("config.json", {"id2label": None, "num_labels": 10**9}, "num_labels: wants a number from 1 to 100000"),
        ("config.json", {"model_type": None}, "model_type: wants the name of an architecture"),
        ("config.json", {"vocab_size": "many"}, "vocab_size: wants a whole number"),
        ("config.json", {"max_position_embeddings": 1.5}, "max_position_embeddings: wants a whole number"),
        ("config.json", {"vocab_size": 7}, "embeds 7 tokens"),
        ("config.json", {"architectures": "BertForSequenceClassification"}, "architectures: wants a list"),
        ("config.json", {"architectures": ["BertModel"]}, "not a text classifier, but BertModel"),
        ("config.json", {"problem_type": "regression"}, "regression"),
        ("tokenizer_config.json", {"model_max_length": 0.5}, "model_max_length: wants a whole number of tokens"),
        ("tokenizer_config.json", {"do_lower_case": False}, "do_lower_case: tokenizer.json gives other tokens"),
        ("tokenizer_config.json", {"strip_accents": True}, "strip_accents: tokenizer.json gives other tokens"),
        ("tokenizer_config.json", {"cls_token": "[MASK]"}, "cls_token: tokenizer.json gives other tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"99": {"content": "[NEW]"}}}, "gives other tokens"),
        ("tokenizer.json", {"post_processor": None}, "cls_token: tokenizer.json gives other tokens"),
        ("config.json", {"id2label": {"9" * 5_000: "a", "0": "b"}}, "id2label: wants the name of each class"),
        ("tokenizer.json", {"model": {"type": "Nonsense"}}, "no tokenizer can be loaded"),
    ],
)
def test_a_wrong_value_in_a_file_of_an_export_is_one_line(exported, tmp_path, file, change, problem):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    settings = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    with pytest.raises(ModelError) as caught:
        distill.load(folder)
    (line,) = caught.value.problems
    assert problem in line and "\n" not in line


def test_a_padding_token_need_not_be_named_because_the_mask_hides_it(exported, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({one: value for one, value in settings.items() if one != key}))
    np.testing.assert_allclose(distill.load(folder).logits(TEXTS), distill.load(exported).logits(TEXTS), atol=1e-5)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '"text"'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_of_an_export_is_one_line(exported, tmp_path, file, content):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    (folder / file).write_text(content)
    code, out, err = run("predict", folder, "a text")
    assert (code, out) == (2, "") and len(err.splitlines()) <= 2 and str(folder) in err


def test_the_labels_of_a_configuration_that_names_none_are_those_of_transformers(exported, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["id2label"], settings["label2id"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert distill.load(folder).label_names == ("LABEL_0", "LABEL_1")
    assert distill.load(exported).label_names == tuple(LABELS)


@pytest.mark.slow
def test_an_environment_with_the_small_set_answers(exported, tmp_path):
    """`pip install distill`, without the extra, in an environment of its own."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    source = tmp_path / "source"
    shutil.copytree(ROOT / "distill", source / "distill", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "tools" / "constraints.txt", source], check=True, timeout=600)
    absent = "import importlib.util as u; print([m for m in ('torch', 'transformers', 'datasets') if u.find_spec(m)])"
    assert subprocess.run([python, "-c", absent], capture_output=True, text=True).stdout.strip() == "[]"
    ask = f"import distill; print(distill.load({str(exported)!r}).logits({TEXTS!r}).tolist())"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, cwd=tmp_path, check=True)
    np.testing.assert_allclose(json.loads(found.stdout), distill.load(exported).logits(TEXTS), atol=1e-5)
