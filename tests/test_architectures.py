"""What must hold for every architecture that people bring: its head, its layers, its limits and its graph."""

import numpy as np
import onnxruntime
import pytest
import sentencepiece
import torch
from conftest import CONFIGS, GOOD, LABELS, MORE_CONFIGS, SIZES, SPECIAL_IDS, make_classifier, run
from transformers import (
    CONFIG_MAPPING,
    AlbertConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    set_seed,
)

import distill
from distill.data.encoding import Truncation
from distill.errors import ModelError
from distill.export.attention import ONE_NODE
from distill.export.formats import Bounds, export_formats
from distill.export.fusion import count_fused_nodes, missing_fusions
from distill.export.onnx_graph import check_architecture, trace
from distill.models.config import token_limit
from distill.models.first_token import ARCHITECTURES, first_token_only, last_layer
from distill.models.loading import classification_head, load_tokenizer, reorder_classes
from distill.models.saving import save
from distill.models.students import build_from_config, build_from_layers
from distill.storage.files import read_json, write_json

ALL = sorted(CONFIGS | MORE_CONFIGS)
MORE = sorted(MORE_CONFIGS)


def configs_elsewhere():
    return [make(vocab_size=29) for make in (CONFIGS | MORE_CONFIGS).values()]


IDS = torch.tensor([[2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 3], [2, 16, 17, 3] + [0] * 8])
MASK = (IDS != 0).long()


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def logits(model, ids=IDS, mask=MASK):
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("architecture", ALL)
def test_reordered_classes_are_the_same_classes(architecture, tmp_path):
    three = {0: "bad", 1: "so so", 2: "good"}
    model = load(make_classifier(tmp_path, architecture, id2label=three))
    before = logits(model)
    assert classification_head(model).out_features == 3
    reorder_classes(model, [2, 0, 1], ["good", "bad", "so so"])
    torch.testing.assert_close(logits(model), before[:, [2, 0, 1]])
    assert model.config.id2label == {0: "good", 1: "bad", 2: "so so"}


def test_a_model_without_a_known_head_is_refused():
    with pytest.raises(ModelError, match="has no linear layer with an output for each class in classifier, score"):
        classification_head(load_headless())


def load_headless():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"](vocab_size=29))
    del model.classifier
    return model


@pytest.mark.parametrize("architecture", MORE)
@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [0, 3], [1, 2], [3, 0]])
def test_a_student_of_any_layers_is_saved_and_answers_the_same_when_loaded(architecture, layers, tmp_path):
    teacher = load(make_classifier(tmp_path / "teacher", architecture))
    student = build_from_layers(teacher, layers)
    if layers == [0, 1, 2, 3]:
        torch.testing.assert_close(logits(student), logits(teacher))
    save(student, AutoTokenizer.from_pretrained(tmp_path / "teacher"), tmp_path / "student")
    torch.testing.assert_close(logits(load(tmp_path / "student")), logits(student))


@pytest.mark.parametrize("architecture", MORE)
def test_the_architecture_can_be_made_smaller(architecture, tmp_path):
    teacher = load(make_classifier(tmp_path, architecture))
    student = build_from_config(teacher.config, {"num_hidden_layers": 2}, seed=1)
    assert student.config.num_hidden_layers == 2 and logits(student).shape == (2, 2)


def test_layers_that_are_shared_are_refused_with_what_to_use_instead():
    config = AlbertConfig(vocab_size=29, hidden_size=32, num_attention_heads=4)
    shared = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"cannot tell which modules .* give student.model or student.config instead"):
        build_from_layers(shared, 2)


@pytest.mark.parametrize("architecture", ["mpnet", "xlm-roberta"])
def test_the_positions_that_a_model_takes(architecture, tmp_path):
    model = load(make_classifier(tmp_path, architecture))
    limit = token_limit(model.config)
    assert limit == 64
    model(input_ids=torch.full((1, limit), 6))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 6))


@pytest.mark.parametrize("architecture", ALL)
def test_a_texts_answer_does_not_depend_on_its_batch(architecture, tmp_path):
    classifier = distill.load(make_classifier(tmp_path, architecture), "cpu")
    texts = ["a film", "the music was really very good and the cast is superb", "", "bad", "dull plot " * 15]
    alone = np.concatenate([classifier.logits([text]) for text in texts])
    np.testing.assert_allclose(classifier.logits(texts), alone, atol=1e-4)


def test_a_decoders_answer_is_read_at_the_last_token_whatever_its_folder_says_of_padding(tmp_path):
    """A configuration with another padding token than the tokenizer's would let the head read the padding."""
    folder = make_classifier(tmp_path, "qwen3")
    texts = ["a film", "the music was really very good and the cast is superb"]
    expected = distill.load(folder, "cpu").logits(texts)
    config = read_json(folder / "config.json")
    settings = read_json(folder / "tokenizer_config.json")
    for token, side in ((7, "right"), (None, "right"), (0, "left"), (-1, "left")):
        write_json(folder / "config.json", config | {"pad_token_id": token})
        write_json(folder / "tokenizer_config.json", settings | {"padding_side": side})
        classifier = distill.load(folder, "cpu")
        assert classifier.tokenizer.padding_side == "right"
        np.testing.assert_allclose(classifier.logits(texts), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", [name for name in MORE if name in ARCHITECTURES])
def test_the_last_layer_on_the_first_token_changes_no_logit(architecture, tmp_path):
    model = load(make_classifier(tmp_path, architecture))
    whole = logits(model)
    for _ in range(2):
        with first_token_only(last_layer(model)):
            torch.testing.assert_close(logits(model), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(model), whole, atol=0, rtol=0)


def test_the_kinds_of_modernberts_layers_are_saved_for_transformers_4(tmp_path):
    """It knows only a period, and would take other orders for that without a word."""
    teacher = load(make_classifier(tmp_path / "teacher", "modernbert"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    for layers, every in (([0, 1, 2, 3], 3), ([0, 3], 1), ([0, 1], 2), ([1, 2], None), ([0, 3, 1], None)):
        student = build_from_layers(teacher, layers)
        save(student, tokenizer, tmp_path / "student")
        config = read_json(tmp_path / "student" / "config.json")
        assert config["global_attn_every_n_layers"] == every, layers
        assert (config["global_rope_theta"], config["local_rope_theta"]) == (160_000, 10_000)
        torch.testing.assert_close(logits(load(tmp_path / "student")), logits(student))


def test_a_smaller_model_can_be_made_of_a_teacher_whose_layers_have_no_order(tmp_path):
    teacher = load(make_classifier(tmp_path / "teacher", "modernbert"))
    save(build_from_layers(teacher, [1, 2]), AutoTokenizer.from_pretrained(tmp_path / "teacher"), tmp_path / "saved")
    student = build_from_config(load(tmp_path / "saved").config, {"num_hidden_layers": 1}, seed=1)
    assert logits(student).shape == (2, 2)


def test_a_token_that_the_model_does_not_embed_is_named(tmp_path):
    folder = make_classifier(tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    classifier = distill.load(folder, "cpu")
    assert classifier.logits(["a film"]).shape == (1, 2)
    with pytest.raises(ModelError, match="a text has the token '<beyond>', which the model does not embed"):
        classifier.logits(["a film", "a <beyond> film"])


def test_rotary_positions_are_saved_for_transformers_4(tmp_path):
    folder = make_classifier(
        tmp_path / "model", "qwen3", rope_parameters={"rope_type": "default", "rope_theta": 5_000.0}
    )
    model = load(folder)
    save(model, AutoTokenizer.from_pretrained(folder), tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json")["rope_theta"] == 5_000
    torch.testing.assert_close(logits(load(tmp_path / "saved")), logits(model))


def test_a_deberta_as_it_lies_on_the_hub_is_converted_and_loaded(tmp_path):
    """Its weights are a pickle, and its tokenizer is only a SentencePiece model."""
    hub = tmp_path / "hub"
    words = [f"{good} {film}" for good in GOOD for film in ("film", "plot", "music")]
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    model = load(make_classifier(hub, "deberta-v2", vocab_size=60))
    for path in (*hub.glob("tokenizer*"), hub / "model.safetensors"):
        path.unlink()
    torch.save(model.state_dict(), hub / "pytorch_model.bin")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 5), model_prefix=str(hub / "spm"), vocab_size=50, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2, **names,
    )  # fmt: skip
    write_json(hub / "tokenizer_config.json", {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False})
    code, _, err = run("convert", hub, "--output", tmp_path / "converted")
    assert code == 0, err
    tokenizer = load_tokenizer(str(tmp_path / "converted"))
    assert tokenizer.decode(tokenizer("superb film")["input_ids"], skip_special_tokens=True) == "superb film"
    torch.testing.assert_close(logits(load(tmp_path / "converted")), logits(model))


@pytest.mark.parametrize("kind", ["model", "ngrams"])
def test_a_decoder_teaches_students_of_another_architecture(kind, recipe_path, tiny_bert, tmp_path):
    teacher = make_classifier(tmp_path / "decoder", "qwen3")
    made = {"model": f"student.model={tiny_bert}", "ngrams": "student.ngrams={}"}[kind]
    code, _, err = run(
        "student", recipe_path, "--teacher", teacher, "--output", tmp_path / "student", "--force",
        "--set", "student.layers=null", "--set", made, "--set", "student.training.max_steps=2",
    )  # fmt: skip
    assert code == 0, err
    assert distill.load(tmp_path / "student").label_names == ("negative", "positive")


def test_a_tokenizer_is_saved_under_the_names_that_transformers_4_reads(tmp_path):
    folder = make_classifier(tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>", "<b>"]})
    for _ in range(2):
        save(load(folder), tokenizer, tmp_path / "saved")
        settings = read_json(tmp_path / "saved" / "tokenizer_config.json")
        assert settings["additional_special_tokens"] == ["<a>", "<b>"] and "extra_special_tokens" not in settings
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not {"is_local", "local_files_only"} & set(settings)
        tokenizer = load_tokenizer(str(tmp_path / "saved"))
        assert {"<a>", "<b>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MORE)
def test_graphs_take_any_shape_and_ignore_padding(architecture, tmp_path):
    check_graph(load(make_classifier(tmp_path / "model", architecture)), tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ONE_NODE - {config.model_type for config in configs_elsewhere()}))
def test_every_other_architecture_whose_attention_is_one_node_agrees_too(model_type, tmp_path):
    settings = {**SIZES, **SPECIAL_IDS, "vocab_size": 29, "max_position_embeddings": 66, "type_vocab_size": 2}
    settings |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "embedding_size": 32}
    config = CONFIG_MAPPING[model_type]()
    config = CONFIG_MAPPING[model_type](**{name: value for name, value in settings.items() if hasattr(config, name)})
    set_seed(7)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    check_graph(model, tmp_path / "m.onnx")


def check_graph(model, path):
    trace(model, path)
    counts = count_fused_nodes(path, model, "cpu")
    assert (missing_fusions(counts) is None) == (model.config.model_type in ONE_NODE), counts
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, tokens in ((1, 1), (1, 7), (3, 64), (8, 21)):
        ids = rng.integers(5, 29, (batch, tokens))
        mask = np.ones_like(ids)
        mask[-1, tokens // 2 + 1 :] = 0
        ids = np.where(mask, ids, 0)
        expected = logits(model, torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(found, expected, atol=2e-4 * max(1, np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MORE)
def test_every_format_agrees_with_torch(architecture, tmp_path):
    pytest.importorskip("nncf")
    folder = make_classifier(tmp_path / "model", architecture)
    formats = ["torch-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-bf16", "openvino-int8"]
    texts = [
        " ".join(words) for words in np.random.default_rng(0).choice(["good", "bad", "film", "plot", "a"], (60, 9))
    ]
    gold = distill.load(folder).logits(texts).argmax(axis=1)
    proofs = export_formats(
        load(folder), AutoTokenizer.from_pretrained(folder), LABELS, texts, gold, tmp_path / "export", formats,
        truncation=Truncation(64), bounds=Bounds(0.1, 0.9), device="cpu", card=lambda proof: "",
    )  # fmt: skip
    for proof in proofs:
        assert proof.passed, proof
        assert (proof.note is None) == (architecture in ONE_NODE or not proof.format.startswith("onnx")), proof


def test_an_encoder_with_a_decoder_is_refused_before_it_is_trained():
    with pytest.raises(ModelError, match=r"t5: an encoder with a decoder, which distill does not export"):
        check_architecture(T5Config())
