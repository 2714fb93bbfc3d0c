"""Cutting heads, channels and layers out of a model, their importance, and the search for a size within a budget."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CONFIGS, MORE_CONFIGS, make_classifier
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill.distillation.budget import (
    MOST_TRIES,
    choose,
    contradiction,
    estimate,
    grid,
    losses_of,
    search,
    sizes,
    smallest,
    what_to_keep,
)
from distill.errors import ModelError
from distill.export.attention import NODE
from distill.export.onnx_graph import trace
from distill.models.importance import Importance, importance_of
from distill.models.loading import parameter_count
from distill.models.pruning import PARTS, Kept, Size, parts_of, prune, size_of, without_empty_heads

ARCHITECTURES = sorted(set(CONFIGS | MORE_CONFIGS) & set(PARTS))
IDS = torch.randint(5, 28, (3, 12), generator=torch.Generator().manual_seed(1))
BATCH = {
    "input_ids": IDS,
    "attention_mask": torch.ones_like(IDS).index_put_((torch.tensor(2), torch.arange(8, 12)), torch.tensor(0)),
}


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(**BATCH).logits


def all_but(count, removed):
    return tuple(sorted(set(range(count)) - set(removed)))


def without(model, heads, channels):
    """What is kept of a model if every layer loses these heads and channels."""
    size = size_of(model.config)
    return Kept(
        tuple(range(size.layers)),
        (all_but(size.heads, heads),) * size.layers,
        (all_but(size.channels, channels),) * size.layers,
    )


def silence(model, heads, channels):
    """Let nothing read these heads and channels of any layer."""
    size, parts = size_of(model.config), parts_of(model.config)
    with torch.no_grad():
        for layer in (module for name, module in model.named_modules() if name.split(".")[-1].isdigit()):
            layer.get_submodule(parts.heads.reads).weight.unflatten(1, (size.heads, -1))[:, list(heads)] = 0
            layer.get_submodule(parts.channels.reads).weight[:, list(channels)] = 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_and_channels_that_nothing_reads_are_cut_out_without_a_change(architecture, tmp_path):
    model = load(make_classifier(tmp_path / "whole", architecture))
    silence(model, heads=(0, 2), channels=range(3, 40))
    pruned = prune(model, without(model, heads=(0, 2), channels=range(3, 40)))
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-4, atol=1e-5)
    pruned.save_pretrained(tmp_path / "pruned")
    again = load(tmp_path / "pruned")  # with transformers alone
    assert size_of(again.config) == Size(4, 4, 27)  # heads are empty, not gone
    assert torch.equal(logits(again), logits(pruned))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_and_their_parts_are_those_that_were_named(architecture, tmp_path):
    model = load(make_classifier(tmp_path, architecture))
    kept = Kept((0, 3), ((1,), (2,)), (tuple(range(10)), tuple(range(20, 30))))
    pruned, parts = prune(model, kept), parts_of(model.config)
    ours, theirs = (dict(one.named_modules()) for one in (pruned, model))
    (prefix,) = {
        name[: -len(".0." + parts.channels.reads)] for name in ours if name.endswith(".0." + parts.channels.reads)
    }
    for position, layer in enumerate(kept.layers):
        now, then = (
            one[f"{prefix}.{at}.{parts.channels.reads}"].weight for one, at in ((ours, position), (theirs, layer))
        )
        assert torch.equal(now, then[:, list(kept.channels[position])])
        now, then = (
            one[f"{prefix}.{at}.{parts.heads.reads}"].weight for one, at in ((ours, position), (theirs, layer))
        )
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            assert torch.equal(now[:, part], then[:, part] * (head in kept.heads[position]))


def with_other_heads_in_each_layer(model):
    size = size_of(model.config)
    return prune(model, Kept((0, 1, 3), ((0, 3), (1, 2), (2, 3)), (tuple(range(size.channels)),) * 3)).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_empty_heads_are_left_out_without_a_change(architecture, tmp_path):
    model = with_other_heads_in_each_layer(load(make_classifier(tmp_path, architecture)))
    before, weights = logits(model), parameter_count(model)
    smaller = without_empty_heads(model)
    torch.testing.assert_close(logits(smaller), before, rtol=1e-4, atol=1e-5)
    assert parameter_count(smaller) <= weights - 3 * 4 * 16 * 32  # three layers, four products, two heads of eight


MORE = [name for name in ARCHITECTURES if name != "mpnet"]  # whose heads have a bias too


@pytest.mark.parametrize("architecture", ["mpnet", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_graphs_leave_empty_heads_out_and_compute_the_same(architecture, tmp_path):
    model = with_other_heads_in_each_layer(load(make_classifier(tmp_path, architecture)))
    before = logits(model)
    trace(model, tmp_path / "model.onnx")
    assert torch.equal(logits(model), before)  # a copy was traced
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {name: tensor.numpy() for name, tensor in BATCH.items()})[0]
    torch.testing.assert_close(torch.from_numpy(found), before, rtol=1e-4, atol=1e-4)
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == NODE]
    assert [next(a.i for a in node.attribute if a.name == "num_heads") for node in nodes] == [2, 2, 2]


@pytest.mark.parametrize("architecture", sorted(PARTS))
def test_every_architecture_has_its_parts_where_they_are_said_to_be(architecture):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, PARTS[architecture].width: 48}
    config = AutoConfig.for_model(architecture, vocab_size=30, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    pruned = prune(model, without(model, heads=(1,), channels=range(20)))
    shapes = {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    again = AutoModelForSequenceClassification.from_config(pruned.config)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert size_of(pruned.config) == Size(2, 4, 28)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_empty_heads_stay_empty_in_training(architecture, tmp_path):
    model = load(make_classifier(tmp_path, architecture))
    pruned = prune(model, without(model, heads=(1,), channels=())).train()
    before = {name: parameter.detach().clone() for name, parameter in pruned.named_parameters()}
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        pruned(**BATCH, labels=torch.tensor([0, 1, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    reads = parts_of(model.config).heads.reads
    trained = [(name, weight) for name, weight in pruned.named_parameters() if name.endswith(f"{reads}.weight")]
    assert len(trained) == 4
    for name, weight in trained:
        assert not weight[:, 8:16].any()
        assert not torch.equal(weight, before[name])


def test_the_last_head_of_a_layer_stays(tmp_path):
    model = load(make_classifier(tmp_path))
    silence(model, heads=range(4), channels=())
    before = logits(model)
    torch.testing.assert_close(logits(without_empty_heads(model)), before)


def test_another_architecture_is_refused_and_traced_as_it_is(tmp_path):
    model = load(make_classifier(tmp_path, "qwen3"))
    with pytest.raises(ModelError, match=r"student\.prune: qwen3 is no architecture whose heads"):
        parts_of(model.config)
    assert without_empty_heads(model) is model


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_importance_is_half_the_square_of_what_a_factor_on_the_part_changes(problem, tmp_path):
    """Compared with every class in turn, and with the mean over many random vectors."""
    model = load(make_classifier(tmp_path, id2label={0: "a", 1: "b", 2: "c"}, problem_type=problem)).double()
    found = importance_of(model, [{name: tensor.repeat(300, 1) for name, tensor in BATCH.items()}], seed=1)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    reads = model.get_submodule("bert.encoder.layer.1.output.dense")
    step = 1e-4

    def shifted(channel, by):
        def hook(_, inputs):
            values = inputs[0].clone()
            values[..., channel] *= 1 + by
            return (values,)

        handle = reads.register_forward_pre_hook(hook)
        changed = logits(model)
        handle.remove()
        return changed

    for channel in (0, 7, 33):
        slope = (shifted(channel, step) - shifted(channel, -step)) / (2 * step)
        if problem.startswith("single"):
            expected = ((slope - slope.mean(dim=1, keepdim=True)).square().sum(dim=1) / 2).mean()
        else:
            expected = (slope.square().mean(dim=1) / 2).mean()
        assert found.channels[1, channel] == pytest.approx(expected.item(), rel=0.25)


def test_what_nothing_reads_has_no_importance(tmp_path):
    model = load(make_classifier(tmp_path, "distilbert"))
    silence(model, heads=(2,), channels=(5, 6))
    found = importance_of(model, [BATCH], seed=1)
    assert not found.heads[:, 2].any() and not found.channels[:, [5, 6]].any()
    assert found.heads.sum() > 0 and found.channels.sum() > 0
    assert (found.heads >= 0).all() and (found.channels >= 0).all()


FULL = Size(3, 4, 40)
numbers = st.floats(0, 10, allow_nan=False)
importances = st.integers(0, 2**32 - 1).map(
    lambda seed: Importance(*(np.random.default_rng(seed).exponential(size=(3, n)) for n in (4, 40)))
)


@given(importances)
def test_the_loss_of_a_size_is_what_it_does_not_keep(importance):
    for size in (smallest(FULL), Size(2, 3, 20), FULL):
        kept = what_to_keep(importance, size)
        assert kept.size == size
        of_kept = sum(
            importance.heads[layer, list(heads)].sum() + importance.channels[layer, list(channels)].sum()
            for layer, heads, channels in zip(kept.layers, kept.heads, kept.channels, strict=True)
        )
        whole = importance.heads.sum() + importance.channels.sum()
        assert losses_of(importance, [size])[size] == pytest.approx(whole - of_kept, abs=1e-9)


@given(importances)
def test_a_larger_size_keeps_all_that_a_smaller_one_keeps_and_loses_no_more(importance):
    small, large = what_to_keep(importance, Size(2, 1, 8)), what_to_keep(importance, Size(3, 2, 20))
    assert set(small.layers) <= set(large.layers)
    for place, layer in enumerate(small.layers):
        there = large.layers.index(layer)
        assert set(small.heads[place]) <= set(large.heads[there])
        assert set(small.channels[place]) <= set(large.channels[there])
    losses = losses_of(importance, sizes(FULL))
    assert losses[FULL] == pytest.approx(0, abs=1e-9)
    for size in losses:
        for other in (size._replace(layers=size.layers + 1), size._replace(heads=size.heads + 1)):
            assert losses.get(other, 0) <= losses[size] + 1e-9


@given(importances, st.floats(0.5, 20))
def test_the_chosen_size_loses_least_of_those_within_the_budget(importance, budget):
    costs = {size: 0.3 + size.layers * (0.2 + 0.1 * size.heads + 0.02 * size.channels) for size in sizes(FULL)}
    losses = losses_of(importance, costs)
    chosen = choose(costs, losses, budget)
    within = [size for size, cost in costs.items() if cost <= budget]
    if not within:
        assert chosen is None
    else:
        assert costs[chosen] <= budget and losses[chosen] == min(losses[size] for size in within)
        looser = choose(costs, losses, budget * 1.5)
        assert losses[looser] <= losses[chosen]


@given(importances, st.floats(0.5, 20), st.integers(0, 2**32 - 1))
def test_a_search_ends_with_a_size_that_was_measured_within_the_budget(importance, budget, seed):
    """Whatever is measured: here up to half more or less than was guessed."""
    guesses = {size: 0.3 + size.layers * (0.2 + 0.1 * size.heads + 0.02 * size.channels) for size in sizes(FULL)}
    losses, off = losses_of(importance, guesses), np.random.default_rng(seed)
    measured = {smallest(FULL): 0.4, FULL: guesses[FULL]}

    def measure(size):
        assert size not in measured
        measured[size] = guesses[size] * off.uniform(0.5, 1.5)
        return measured[size]

    found = search(losses, guesses, dict(measured), measure, budget)
    assert measured[found] <= budget and len(measured) <= MOST_TRIES + 2
    assert losses[found] == min(losses[size] for size, cost in measured.items() if cost <= budget)


def test_costs_between_measured_ones_are_linear_in_each_number():
    def cost(size):
        return 0.3 + size.layers * (0.2 + 0.1 * size.heads + 0.02 * size.channels)

    estimated = estimate({size: cost(size) for size in grid(FULL)})
    assert len(grid(FULL)) == 12
    for size in sizes(FULL):
        assert estimated(size) == pytest.approx(cost(size))


def test_a_small_model_that_costs_more_than_a_large_one_is_noticed():
    measured = {Size(1, 1, 8): 1.0, Size(2, 1, 8): 2.0, Size(2, 4, 8): 1.9, Size(1, 4, 40): 1.8}
    assert contradiction(measured) is None
    assert contradiction({**measured, Size(1, 1, 8): 2.9}) == (Size(1, 1, 8), Size(1, 4, 40))


@pytest.mark.parametrize("full", [Size(1, 1, 1), Size(1, 12, 3072), Size(12, 1, 20), Size(6, 12, 1536), Size(2, 2, 33)])
def test_every_size_is_between_the_smallest_and_the_whole(full):
    found = list(sizes(full))
    assert len(set(found)) == len(found) and full in found and smallest(full) in found
    for size in (*found, *grid(full)):
        assert all(low <= value <= high for low, value, high in zip(smallest(full), size, full, strict=True))
    estimated = estimate(dict.fromkeys(grid(full), 1.0))
    assert all(estimated(size) == pytest.approx(1) for size in itertools.islice(found, 500))
