"""Which modules a sharded model is gathered by, and what is refused before anything is sharded."""

import pytest
from conftest import run
from transformers import AlbertConfig, AutoModelForSequenceClassification, TrainingArguments

from distill.errors import RecipeError
from distill.training.fsdp import check_launch, gather_weights, set_wrapped_layers


def arguments(tmp_path, **config):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, fsdp=True, fsdp_config=config)


def test_a_model_is_gathered_layer_by_layer(any_classifier, tmp_path):
    """Also where transformers does not name its layers, and none of the units holds the embeddings, which are one."""
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier)
    settled = arguments(tmp_path / "out")
    set_wrapped_layers(model, settled, "teacher")
    (name,) = settled.fsdp_plugin_args["transformer_cls_names_to_wrap"].split(",")
    assert sum(type(module).__name__ == name for module in model.modules()) == 4
    assert gather_weights(model) is model  # which has not been cut


def test_a_unit_that_is_none_and_layers_that_are_not_told_are_refused(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    for name in ("LlamaDecoderLayer", "BertEmbeddings", "BertModel"):
        with pytest.raises(RecipeError, match=f"has no {name}, or it holds the embeddings; it has BertLayer"):
            set_wrapped_layers(model, arguments(tmp_path, transformer_layer_cls_to_wrap=[name]), "teacher")
    shared = AutoModelForSequenceClassification.from_config(
        AlbertConfig(vocab_size=9, hidden_size=8, embedding_size=8, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(RecipeError, match="missing, and the layers of AlbertForSequenceClassification are not known"):
        set_wrapped_layers(shared, arguments(tmp_path), "teacher")
    set_wrapped_layers(shared, arguments(tmp_path, auto_wrap_policy="NO_WRAP"), "teacher")


def test_one_process_has_nobody_to_share_a_model_with(recipe_path, tmp_path):
    for command, stage in (("teacher", "teacher"), ("run", "student")):
        options = ["--output", tmp_path / "out", "--set", f"{stage}.training.fsdp=true"]
        code, _, err = run(command, recipe_path, *options)
        assert code == 2 and f"error: {stage}.training.fsdp: shares the model among several processes" in err
        assert "hint: torchrun --nproc-per-node N" in err and not (tmp_path / "out").exists()


def test_what_the_launcher_was_told_cannot_differ_from_the_recipe(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for training in ({}, {"fsdp": True}):
        with pytest.raises(RecipeError, match="--use_fsdp: the recipe sets sharding"):
            check_launch(training, "teacher")


def test_nothing_is_offloaded_from_a_cpu(recipe_path, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sets = ["--set", "teacher.training.fsdp=true", "--set", "teacher.training.fsdp_config.cpu_offload=true"]
    code, _, err = run("teacher", recipe_path, "--device", "cpu", "--output", tmp_path / "out", *sets)
    assert code == 2 and "fsdp_config.cpu_offload: needs a GPU" in err
