import json

import pytest
import torch
from conftest import LABELS, make_classifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from distill.errors import ModelError
from distill.models import (
    build_from_layers,
    layer_count,
    load_classifier,
    load_tokenizer,
    reorder_classes,
    token_limit,
    weights_fingerprint,
)

IDS = torch.tensor([[2, 6, 7, 8, 9, 3], [2, 10, 11, 3, 0, 0]])
MASK = (IDS != 0).long()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK).logits


def load(folder, **settings):
    defaults = {"seed": 1, "max_tokens": 32, "vocabulary": 29}
    return load_classifier(str(folder), settings.pop("labels", LABELS), **(defaults | settings))


def test_a_student_of_all_layers_computes_what_its_teacher_computes(any_classifier):
    teacher = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    student = build_from_layers(teacher, range(4))
    assert torch.equal(logits(student), logits(teacher))


def test_a_student_of_some_layers_holds_copies_of_just_those(any_classifier):
    teacher = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    student = build_from_layers(teacher, [0, 3])
    assert layer_count(student.config) == 2 and layer_count(teacher.config) == 4
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, tensor in ours.items():
        source = name.replace("layer.1.", "layer.3.")
        assert torch.equal(tensor, theirs[source]), name
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
    assert weights_fingerprint(model.bert) == weights_fingerprint(base)


def test_not_pretrained_means_random_weights_of_the_same_shape(tiny_bert):
    trained, random = load(tiny_bert), load(tiny_bert, pretrained=False)
    assert weights_fingerprint(random) != weights_fingerprint(trained)
    assert weights_fingerprint(random) == weights_fingerprint(load(tiny_bert, pretrained=False))
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
        ({"vocabulary": 30}, "embeds 29 tokens, but the tokenizer knows 30"),
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
