import hashlib
import itertools
import json
import re
import shutil

import pytest
import torch
from conftest import CONFIGS, LABELS, make_classifier
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    ModernBertConfig,
    PretrainedConfig,
)

from distill.errors import ModelError
from distill.models.config import align_labels, token_limit
from distill.models.loading import layer_count, load_classifier, load_tokenizer, reorder_classes, with_attention_dropout
from distill.models.students import build_from_config, build_from_layers, choose_layers
from distill.models.weights import weights_fingerprint

IDS = torch.tensor([[2, 6, 7, 8, 9, 3], [2, 10, 11, 3, 0, 0]])
MASK = (IDS != 0).long()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK).logits


def load(folder, **settings):
    defaults = {"task": "single_label", "seed": 1, "max_tokens": 32, "vocabulary": 29}
    return load_classifier(str(folder), settings.pop("labels", LABELS), **(defaults | settings))


def same_weights(left, right):
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def token_types(model):
    """The embeddings of the token types, of the architectures that have them."""
    return next((table for name, table in model.state_dict().items() if "token_type_embeddings" in name), None)


def test_a_number_of_layers_is_spread_evenly():
    assert choose_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert choose_layers(12, 3) == (0, 6, 11)
    assert choose_layers(6, 1) == (0,)
    for count in range(1, 25):
        assert choose_layers(count, count) == tuple(range(count))
        for number in range(2, count):
            chosen = choose_layers(count, number)
            gaps = [after - before for before, after in itertools.pairwise(chosen)]
            assert (len(chosen), chosen[0], chosen[-1]) == (number, 0, count - 1)
            assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
            assert choose_layers(count, chosen) == chosen  # a number and its list are the same choice


def test_layers_that_a_teacher_lacks_are_named():
    for layers, expected in (
        (7, "student.layers: the teacher has 6 layers, got 7"),
        ([0, 7], "student.layers: the teacher has 6 layers (0-5), got 7"),
        ([-1], "student.layers: the teacher has 6 layers (0-5), got -1"),
        (0, "student.layers: wants one layer or more, got 0"),
        ([], "student.layers: wants one layer or more, got 0"),
    ):
        with pytest.raises(ModelError) as caught:
            choose_layers(6, layers)
        assert caught.value.problems == (expected,)


def test_a_student_of_all_layers_computes_what_its_teacher_computes(any_classifier):
    teacher = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    expected = logits(teacher)
    for layers in (range(4), 4):
        student = build_from_layers(teacher, layers)
        assert torch.allclose(logits(student), expected, atol=1e-5)
    assert torch.equal(logits(teacher), expected)  # and the teacher is as it was


@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("architecture", sorted(set(CONFIGS) - {"distilbert"}))
def test_the_token_type_is_folded_into_the_words(architecture, types, tmp_path):
    folder = make_classifier(tmp_path / "model", architecture, type_vocab_size=types)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder)
    token_types(teacher).add_(1)  # far from nothing
    before = logits(teacher)
    student = build_from_layers(teacher, 4)
    assert torch.allclose(logits(student), before, atol=1e-5)
    assert not torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    types = token_types(teacher)
    assert torch.equal(token_types(student), types - types[0])  # the others still tell the texts of a pair apart
    assert teacher.config.type_vocab_size == len(types) and token_types(teacher).abs().min() > 0


def test_an_architecture_that_names_the_kind_of_each_layer_keeps_the_names():
    config = ModernBertConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    teacher = AutoModelForSequenceClassification.from_config(config)
    assert torch.allclose(logits(build_from_layers(teacher, 4)), logits(teacher), atol=1e-5)
    student = build_from_layers(teacher, [0, 3])
    assert student.config.layer_types == [config.layer_types[0], config.layer_types[3]]
    assert len(build_from_config(config, {"num_hidden_layers": 6}, seed=1).config.layer_types) == 6


def test_a_student_of_some_layers_holds_copies_of_just_those(any_classifier):
    teacher = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    student = build_from_layers(teacher, [0, 3])
    assert layer_count(student.config) == 2 and layer_count(teacher.config) == 4
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, tensor in ours.items():
        if "token_type_embeddings" in name:
            continue
        source = theirs[name.replace("layer.1.", "layer.3.")]
        if name.endswith("word_embeddings.weight") and token_types(teacher) is not None:
            source = source + token_types(teacher)[0]
        assert torch.equal(tensor, source), name
    next(student.parameters()).data.add_(1)
    assert not torch.equal(logits(student), logits(teacher))  # copies, not views


def test_a_built_student_saves_and_loads(any_classifier, tmp_path):
    student = build_from_layers(AutoModelForSequenceClassification.from_pretrained(any_classifier), [1, 2])
    student.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert torch.equal(logits(again), logits(student))


def test_layers_beyond_the_teacher_are_an_error(tiny_bert):
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    with pytest.raises(ModelError, match=r"the teacher has 4 layers \(0-3\), got 4"):
        build_from_layers(teacher, [0, 4])


def test_a_student_from_sizes_has_them_and_the_teachers_classes(any_classifier, tmp_path):
    config = AutoConfig.from_pretrained(any_classifier)
    student = build_from_config(config, {"num_hidden_layers": 2, "hidden_size": 16}, seed=3)
    assert layer_count(student.config) == 2 and layer_count(config) == 4
    assert student.config.hidden_size == 16 and config.hidden_size == 32
    assert student.config.num_attention_heads == 4  # as in the teacher
    assert student.config.id2label == config.id2label == dict(enumerate(LABELS))
    assert student.config.vocab_size == config.vocab_size and student.config.model_type == config.model_type
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    student.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert torch.equal(logits(again), logits(student))


def test_a_student_from_sizes_is_drawn_with_its_seed(tiny_bert):
    config = AutoConfig.from_pretrained(tiny_bert, dtype="float16")  # a teacher in half precision; its student is not
    first, again, other = (build_from_config(config, {"num_hidden_layers": 1}, seed=seed) for seed in (1, 1, 2))
    assert same_weights(first, again) and not same_weights(first, other)
    assert first.dtype == torch.float32


def test_each_mistake_in_sizes_is_one_line(tiny_bert):
    config = AutoConfig.from_pretrained(tiny_bert)
    for sizes, expected in (
        ({"hiden_size": 16}, ["student.config.hiden_size: bert has no such key; did you mean hidden_size?"]),
        ({"qqq": 1}, ["student.config.qqq: bert has no such key"]),
        ({"hidden_size": "16"}, ["student.config.hidden_size: wants int, as the teacher's 32, got '16'"]),
        ({"hidden_size": True}, ["student.config.hidden_size: wants int, as the teacher's 32, got True"]),
        ({"hidden_act": 3}, ["student.config.hidden_act: wants str, as the teacher's 'gelu', got 3"]),
        ({"num_hidden_layers": 1.5}, ["student.config.num_hidden_layers: .* expected int, got float"]),
        ({"num_hidden_layers": -1}, ["student.config.num_hidden_layers: wants a number above 0, got -1"]),
        ({"vocab_size": 7}, ["student.config.vocab_size: cannot be changed"]),
        ({"num_labels": 3}, ["student.config.num_labels: cannot be changed"]),
        ({"pad_token_id": 3}, ["student.config.pad_token_id: cannot be changed"]),
        ({"hidden_size": 30}, [r"student.config: no bert model has these sizes: .*\(30\) is not a multiple"]),
        ({"hidden_act": "glue"}, ["student.config: no bert model has these sizes: .*glue"]),
        ({"hidden_dropout_prob": 2.0}, ["student.config: no bert model has these sizes: .*between 0 and 1"]),
        ({"model_type": "roberta", "depth": 2}, ["student.config.model_type: cannot", "student.config.depth: bert"]),
    ):
        with pytest.raises(ModelError) as caught:
            build_from_config(config, sizes, seed=1)
        assert len(caught.value.problems) == len(expected)
        for problem, pattern in zip(caught.value.problems, expected, strict=True):
            assert re.match(pattern, problem) and "\n" not in problem, problem
    build_from_config(config, {"hidden_dropout_prob": 0, "classifier_dropout": 0.2}, seed=1)  # these are no mistakes


def test_sizes_that_can_be_built_but_not_run_are_refused():
    config = DebertaV2Config(vocab_size=29, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(ModelError, match=r"student\.config: no deberta-v2 model has these sizes"):
        build_from_config(config, {"hidden_size": 16}, seed=1)  # the pooler's size is a key of its own
    assert build_from_config(config, {"hidden_size": 16, "pooler_hidden_size": 16}, seed=1).config.hidden_size == 16


def test_labels_are_aligned_by_name():
    assert align_labels(["bad", "good"], ["good", "bad"], teacher="t") == [1, 0]
    assert align_labels(["LABEL_0", "LABEL_1"], ["good", "bad"], teacher="t") == [0, 1]
    for names in (["bad", "fine"], ["bad"], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        with pytest.raises(ModelError, match="t: its classes"):
            align_labels(names, ["good", "bad"], teacher="t")


def test_a_teacher_may_call_the_classes_otherwise():
    assert align_labels(["NEGATIVE", " Positive"], ["positive", "negative"], teacher="t") == [1, 0]
    label_map = {"label_1": "good", "LABEL_0": "bad"}
    assert align_labels(["LABEL_0", "LABEL_1"], ["good", "bad"], label_map, teacher="t") == [1, 0]
    assert align_labels(["a", "A"], ["A", "a"], teacher="t") == [1, 0]
    swapped = {"good": "bad", "bad": "good"}  # of labels in files; our own model has the new names
    assert align_labels(["good", "bad"], ["good", "bad"], swapped, teacher="t") == [0, 1]
    for names, label_map in ((["POS", "NEG"], {"POS": "good"}), (["POS", "NEG"], {"POS": "good", "NEG": "good"})):
        with pytest.raises(ModelError, match="t: its classes"):
            align_labels(names, ["good", "bad"], label_map, teacher="t")


def test_reordered_classes_keep_their_meaning(any_classifier):
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    before = logits(model)
    after = logits(reorder_classes(model, [1, 0], LABELS[::-1]))
    assert torch.equal(after, before[:, [1, 0]])
    assert model.config.id2label == {0: "positive", 1: "negative"}


def test_a_head_that_knows_the_names_in_another_order_is_put_in_order(tiny_bert):
    model, reversed_ = load(tiny_bert), load(tiny_bert, labels=LABELS[::-1])
    assert torch.equal(logits(reversed_), logits(model)[:, [1, 0]])
    assert torch.equal(logits(load(tiny_bert, labels=["no", "yes"])), logits(model))  # new names: the task is new


def test_label_names_reach_the_configuration_and_the_head_is_seeded(tmp_path, tiny_bert):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert).bert
    base.save_pretrained(tmp_path / "base")
    stars = ["one", "two", "three"]
    model = load(tmp_path / "base", labels=stars)
    assert model.config.id2label == {0: "one", 1: "two", 2: "three"}
    assert model.config.label2id["three"] == 2
    assert torch.equal(model.classifier.weight, load(tmp_path / "base", labels=stars).classifier.weight)
    assert not torch.equal(model.classifier.weight, load(tmp_path / "base", labels=stars, seed=2).classifier.weight)
    assert same_weights(model.bert, base)


def test_not_pretrained_means_random_weights_of_the_same_shape(tiny_bert):
    trained, random = load(tiny_bert), load(tiny_bert, pretrained=False)
    assert not same_weights(random, trained)
    assert same_weights(random, load(tiny_bert, pretrained=False))
    assert [p.shape for p in random.parameters()] == [p.shape for p in trained.parameters()]


def test_the_positions_that_a_model_takes(any_classifier):
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier).eval()
    limit = token_limit(model.config)
    assert limit == 64
    model(input_ids=torch.full((1, limit), 6))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 6))


def test_misfits_are_named(tmp_path, tiny_bert):
    for settings, expected in (
        ({"labels": ["a", "b", "c"]}, "classifies into 2 classes, the data has 3: a, b, c"),
        ({"max_tokens": 65}, "takes at most 64 tokens, but data.max_tokens is 65"),
        ({"vocabulary": 30}, "embeds 29 tokens, but the tokenizer's ids go up to 29"),
    ):
        with pytest.raises(ModelError, match=expected):
            load(tiny_bert, **settings)
    for name, expected in (("./nowhere", "no such folder"), (str(tmp_path), "no config.json")):
        with pytest.raises(ModelError, match=expected):
            load(name)
        with pytest.raises(ModelError, match=expected):
            load_tokenizer(name)
    with pytest.raises(ModelError, match="no-such-org/no-such-model"):
        load("no-such-org/no-such-model")


def test_weights_that_lack_part_of_the_encoder_are_refused(tmp_path):
    folder = make_classifier(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.2.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors of the encoder, first bert\.encoder\.layer\.2"):
        load(folder)


def test_weights_in_a_pickle_are_refused(tmp_path):
    folder = make_classifier(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_a_damaged_configuration_or_weights_file_is_one_line(tmp_path):
    folder = make_classifier(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in caught.value.problems[0]
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(ModelError):
        load(folder)


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_fingerprint_is_that_of_the_weight_files_alone(tmp_path, tiny_bert):
    expected = weights_fingerprint(str(tiny_bert))
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    assert weights_fingerprint(str(copy)) == expected
    for path in copy.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    (copy / "config.json").write_text("{}")
    (copy / "notes.safetensors").write_bytes(b"no weights")
    assert weights_fingerprint(str(copy)) == expected
    change_a_byte(copy / "model.safetensors")
    assert weights_fingerprint(str(copy)) != expected


def test_a_fingerprint_is_that_of_the_files_that_are_loaded(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    seen = [weights_fingerprint(str(folder))]
    (folder / "model.onnx").write_bytes(b"graph")
    seen.append(weights_fingerprint(str(folder)))
    (folder / "model.onnx_data").write_bytes(b"weights")
    seen.append(weights_fingerprint(str(folder)))
    change_a_byte(folder / "model.onnx_data")
    seen.append(weights_fingerprint(str(folder)))
    assert len(set(seen)) == 4
    change_a_byte(folder / "model.safetensors")  # what runs is model.onnx
    assert weights_fingerprint(str(folder)) == seen[-1]


def test_a_fingerprint_is_what_sha256sum_says(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = ""
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
        lines += f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
    assert weights_fingerprint(str(tmp_path)) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("shard", [None, "100KB"])
def test_a_model_of_the_hub_has_the_fingerprint_of_its_files(shard, tmp_path, tiny_bert, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached, revision = tmp_path / "hub" / "models--someone--reviews", "0" * 40
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.save_pretrained(cached / "snapshots" / revision, **({"max_shard_size": shard} if shard else {}))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    files = list((cached / "snapshots" / revision).glob("*.safetensors"))
    assert len(files) > 1 if shard else len(files) == 1
    expected = weights_fingerprint(str(cached / "snapshots" / revision))
    assert weights_fingerprint("someone/reviews") == expected


def test_no_weights_no_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"holds no weights \(model\.safetensors, model\.onnx or openvino_model\.xml\)"
    ):
        weights_fingerprint(str(tmp_path))
    with pytest.raises(ModelError, match="no-such-org/no-such-model: holds no weights"):
        weights_fingerprint("no-such-org/no-such-model")
    with pytest.raises(ModelError, match="no such folder"):
        weights_fingerprint("./nowhere")


def test_a_model_without_attention_dropout_has_none_to_take_away():
    config = PretrainedConfig(model_type="plain")
    assert with_attention_dropout(config, 0.0) is config
    with pytest.raises(ModelError, match="plain has no such setting"):
        with_attention_dropout(config, 0.1)
