"""A trimmed vocabulary: the same tokens and logits for the texts it was made for, and fewer bytes."""

import json

import numpy as np
import pytest
import torch
from conftest import BAD, CONFIGS, FILLER, GOOD, MORE_CONFIGS, contents, make_classifier, run
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForSequenceClassification,
)

import distill
from distill.data.encoding import vocabulary_of
from distill.errors import ModelError
from distill.models.vocabulary import most_used, trim_embeddings, trim_tokenizer, unknown_share

WORDS = ["film", "filmed", "filming", "music", "musical", "plot", "plotted", "unplotted", "cast", "casting", "the"]
TEXTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 12)) for seed in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make(kind):
    """A tokenizer of a kind, trained on words of which half are in no text."""
    corpus = [*TEXTS, *(text.upper() for text in TEXTS)] * 3
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(corpus, trainer)
    around = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    if kind == "BPE":
        tokenizer.post_processor = processors.RobertaProcessing(around[1], around[0])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def counts_of(tokenizer, texts):
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in texts]).astype(int)
    return np.bincount(ids, minlength=vocabulary_of(tokenizer))


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_texts_are_cut_into_the_same_tokens_by_a_smaller_tokenizer(kind):
    tokenizer = make(kind)
    trimmed, former = trim_tokenizer(tokenizer, counts_of(tokenizer, TEXTS), 1.0)
    assert len(former) == vocabulary_of(trimmed) < vocabulary_of(tokenizer) and former == sorted(former)
    for text in TEXTS:
        tokens = trimmed(text)["input_ids"]
        assert [former[token] for token in tokens] == tokenizer(text)["input_ids"]
        assert trimmed.convert_ids_to_tokens(tokens) == tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    for name in ("pad", "unk", "cls", "sep"):
        assert former[getattr(trimmed, f"{name}_token_id")] == getattr(tokenizer, f"{name}_token_id")
    assert trimmed.model_max_length == 64


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_rare_tokens_are_spelled_and_new_words_of_the_same_letters_are_known(kind):
    tokenizer = make(kind)
    texts = [*TEXTS, "unplotted musicals"]
    counts = counts_of(tokenizer, texts)
    trimmed, former = trim_tokenizer(tokenizer, counts, 0.9)
    whole, _ = trim_tokenizer(tokenizer, counts, 1.0)
    assert len(former) < vocabulary_of(whole) or kind == "Unigram"  # that one found no pieces longer than a letter
    for text in [*texts, "tingle cameos", "pluck a film"]:
        ids = trimmed(text)["input_ids"]
        if kind == "BPE":  # every byte is kept, so nothing is unknown
            assert trimmed.unk_token_id not in ids and trimmed.decode(ids, skip_special_tokens=True) == text
    assert unknown_share(trimmed, [trimmed(text)["input_ids"] for text in TEXTS]) == 0


def test_the_most_used_tokens_are_a_share_or_a_number():
    counts = np.array([0, 50, 1, 30, 0, 19])
    assert most_used(counts, 1.0) == [1, 2, 3, 5]
    assert most_used(counts, 0.99) == [1, 3, 5]
    assert most_used(counts, 0.8) == [1, 3]
    assert most_used(counts, 0.5) == [1]
    assert most_used(counts, 2) == [1, 3]
    assert most_used(counts, 500) == [1, 2, 3, 5]


def test_an_unknown_token_that_no_text_has_is_kept():
    """Without it, WordPiece ends with an error at the first strange character."""
    words = Tokenizer(models.WordPiece({"film": 0, "plot": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    trimmed, former = trim_tokenizer(tokenizer, np.array([3, 0, 0]), 1.0)
    assert former == [0, 2] and trimmed("film é")["input_ids"] == [0, 1]


@pytest.mark.parametrize(("key", "value"), [("ignore_merges", True), ("continuing_subword_prefix", "##")])
def test_a_vocabulary_that_cannot_be_trimmed_is_named(key, value):
    tokenizer = make("BPE")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"] |= {key: value, "merges": []}  # then a token need not be made by merging characters
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
    with pytest.raises(ModelError, match=r"student.vocabulary: this tokenizer makes tokens in another way"):
        trim_tokenizer(tokenizer, np.ones(3), 1.0)


@pytest.mark.parametrize("architecture", sorted(CONFIGS | MORE_CONFIGS))
def test_the_models_answers_stay_the_same(architecture, tmp_path):
    folder = make_classifier(tmp_path, architecture)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    texts = ["the film was good", "a bad plot and music", "film film"]
    before = logits(model, tokenizer, texts)
    trimmed, former = trim_tokenizer(tokenizer, counts_of(tokenizer, texts), 1.0)
    trim_embeddings(model, former)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(former) < len(tokenizer)
    assert torch.equal(logits(model, trimmed, texts), before)
    model.save_pretrained(tmp_path / "trimmed")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trimmed").eval()
    assert torch.equal(logits(again, trimmed, texts), before)


def logits(model, tokenizer, texts):
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits


def test_a_trimmed_tokenizer_pads_on_the_right_whatever_its_class_prefers():
    """Micro-batches cut the right end of shorter texts off, which must be padding."""
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, [], unk_token="<unk>"))
    llama = LlamaTokenizer(tokenizer_object=tokenizer, pad_token="</s>")
    llama.padding_side = "right"
    assert trim_tokenizer(llama, np.array([1, 1, 1, 5, 0]), 1.0)[0].padding_side == "right"


def test_a_model_that_has_its_table_in_several_places_is_refused():
    config = T5Config(vocab_size=29, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ModelError, match="t5 has no single table of embeddings to trim; leave it out"):
        trim_embeddings(T5ForSequenceClassification(config), [0, 1, 2])


def test_added_tokens_without_an_embedding_stay_without_one(tmp_path):
    folder = make_classifier(tmp_path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])
    trimmed, former = trim_tokenizer(tokenizer, counts_of(tokenizer, ["the film"]), 1.0)
    trim_embeddings(model, former)
    assert trimmed.convert_tokens_to_ids("<beyond>") == model.config.vocab_size == len(former) - 1


def test_a_finished_student_of_a_pretrained_model_is_known_again(recipe_path, tiny_bert, tmp_path):
    command = (
        "student", recipe_path, "--teacher", tiny_bert, "--output", tmp_path / "student", "--force",
        "--set", f"student.model={make_classifier(tmp_path / 'base')}", "--set", "student.layers=null",
        "--set", "student.vocabulary=1.0", "--set", "student.training.max_steps=2",
    )  # fmt: skip
    for more in ((), ("--resume",)):
        code, _, err = run(*command, *more)
        assert code == 0, err


def test_positions_that_are_counted_from_another_padding_token_are_refused(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(make_classifier(tmp_path, "roberta"))
    with pytest.raises(ModelError, match="roberta counts positions from the padding token; leave it out"):
        trim_embeddings(model, [2, 3, 0])


@pytest.mark.slow
def test_a_student_with_a_trimmed_vocabulary_is_trained_exported_and_has_a_control(recipe_path, tiny_bert, tmp_path):
    """The teacher knows a hundred words that are in no text."""
    teacher = make_classifier(tmp_path / "teacher", words=FILLER + GOOD + BAD + [f"unused{i}" for i in range(200)])
    short = ["--set", "student.training.max_steps=2", "--set", "student.control=true", "--force"]
    code, _, err = run(
        "student", recipe_path, "--teacher", teacher, "--output", tmp_path / "student", *short,
        "--set", "student.vocabulary=1.0", "--set", "student.layers=2",
    )  # fmt: skip
    assert code == 0, err
    assert "of 229 tokens (100.00 % of those in its texts)" in err and "unknown tokens in validation: 0.00 %" in err
    student = distill.load(tmp_path / "student")
    assert vocabulary_of(student.tokenizer) < 70
    control = distill.load(tmp_path / "student-control")
    assert vocabulary_of(control.tokenizer) == vocabulary_of(student.tokenizer)
    assert not [path for path, text in contents(tmp_path / "student").items() if text and b"/tmp/tmp" in text]
    code, _, err = run("export", tmp_path / "student", "--onnx", "--set", "export.max_accuracy_drop=1")
    assert code == 0, err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", "wants a share of the texts' tokens"), ("1.5", "wants a share"), ("12", "at least 100; got 12"),
        ("-0.5", "wants a share"), ("true", "student.vocabulary"),
    ],
)  # fmt: skip
def test_what_is_no_share_and_no_number_is_refused(recipe_path, tiny_bert, value, expected):
    code, _, err = run("check", recipe_path, "--set", f"student.vocabulary={value}")
    assert code == 2 and expected in err
