"""Cutting heads, channels and layers out of a model, their importance, and the search for a size within a budget."""

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CONFIGS, MORE_CONFIGS, make_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill.distillation.budget import (
    MOST_TRIES,
    PARTS_OF_BUDGET,
    choose,
    contradiction,
    estimate,
    grid,
    loss_of,
    most_important,
    search,
    smallest,
    what_to_keep,
    widths,
)
from distill.errors import ModelError
from distill.export.attention import NODE
from distill.export.onnx_graph import trace
from distill.models.importance import Importance, importance_of
from distill.models.loading import parameter_count
from distill.models.pruning import PARTS, Kept, Size, even, parts_of, prune, size_of, used_size, without_empty_parts

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
        tuple(all_but(count, heads) for count in size.heads),
        tuple(all_but(count, channels) for count in size.channels),
    )


def readers(model, units) -> list[Any]:
    """The modules that read these units, of each layer."""
    layers = (module for name, module in model.named_modules() if name.split(".")[-1].isdigit())
    return [layer.get_submodule(units.reads) for layer in layers]


def silence(model, heads, channels):
    """Let nothing read these heads and channels of any layer."""
    size, parts = size_of(model.config), parts_of(model.config)
    with torch.no_grad():
        for reads in readers(model, parts.heads):
            reads.weight.unflatten(1, (size.heads[0], -1))[:, list(heads)] = 0
        for reads in readers(model, parts.channels):
            reads.weight[:, list(channels)] = 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_and_channels_that_nothing_reads_are_cut_out_without_a_change(architecture, tmp_path):
    model = load(make_classifier(tmp_path / "whole", architecture))
    silence(model, heads=(0, 2), channels=range(3, 40))
    pruned = prune(model, without(model, heads=(0, 2), channels=range(3, 40)))
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-4, atol=1e-5)
    pruned.save_pretrained(tmp_path / "pruned")
    again = load(tmp_path / "pruned")  # with transformers alone
    assert size_of(again.config) == even(4, 4, 27)  # heads are empty, not gone
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


def uneven(model):
    """A pruned model whose layers keep other heads, and other numbers of channels."""
    channels = (tuple(range(24)), (0, *range(5, 20)), tuple(range(8, 40)))
    return prune(model, Kept((0, 1, 3), ((0, 3), (1, 2), (2, 3)), channels)).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_empty_parts_are_left_out_without_a_change(architecture, tmp_path):
    model = uneven(load(make_classifier(tmp_path / "whole", architecture)))
    assert size_of(model.config) == even(3, 4, 32)
    model.save_pretrained(tmp_path / "pruned")
    assert used_size(model) == Size((2, 2, 2), (24, 16, 32))
    before, weights = logits(model), parameter_count(model)
    torch.testing.assert_close(logits(load(tmp_path / "pruned")), before)  # with transformers alone
    smaller = without_empty_parts(model)
    torch.testing.assert_close(logits(smaller), before, rtol=1e-4, atol=1e-5)
    found = [module.in_features for module in readers(smaller, parts_of(model.config).channels)]
    assert found == [24, 16, 32]
    # Three layers have four products with two heads of eight, and two of them two products with 8 and 16 channels.
    assert parameter_count(smaller) <= weights - 3 * 4 * 16 * 32 - 2 * (8 + 16) * 32


MORE = [name for name in ARCHITECTURES if name != "mpnet"]  # whose heads have a bias too


@pytest.mark.parametrize("architecture", ["mpnet", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_graphs_leave_empty_parts_out_and_compute_the_same(architecture, tmp_path):
    model = uneven(load(make_classifier(tmp_path, architecture)))
    before = logits(model)
    trace(model, tmp_path / "model.onnx")
    assert torch.equal(logits(model), before)  # a copy was traced
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {name: tensor.numpy() for name, tensor in BATCH.items()})[0]
    torch.testing.assert_close(torch.from_numpy(found), before, rtol=1e-4, atol=1e-4)
    graph = onnx.load(tmp_path / "model.onnx").graph
    nodes = [node for node in graph.node if node.op_type == NODE]
    assert [next(a.i for a in node.attribute if a.name == "num_heads") for node in nodes] == [2, 2, 2]
    shapes = [tuple(weight.dims) for weight in graph.initializer]
    assert all((channels, 32) in shapes for channels in (24, 16))


@pytest.mark.parametrize("architecture", sorted(PARTS))
def test_every_architecture_has_its_parts_where_they_are_said_to_be(architecture):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, PARTS[architecture].width: 48}
    config = AutoConfig.for_model(architecture, vocab_size=30, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    pruned = prune(model, without(model, heads=(1,), channels=range(20)))
    shapes = {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    again = AutoModelForSequenceClassification.from_config(pruned.config)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert size_of(pruned.config) == even(2, 4, 28)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_empty_parts_stay_empty_in_training(architecture, tmp_path):
    pruned = uneven(load(make_classifier(tmp_path, architecture))).train()
    parts = parts_of(pruned.config)
    modules = {units: readers(pruned, units) for units in (parts.heads, parts.channels)}
    before = {units: [module.weight.detach().clone() for module in found] for units, found in modules.items()}
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        pruned(**BATCH, labels=torch.tensor([0, 1, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for units, empty in ((parts.heads, [16, 16, 16]), (parts.channels, [8, 16, 0])):
        assert [int((~weight.any(dim=0)).sum()) for weight in before[units]] == empty
        for module, then in zip(modules[units], before[units], strict=True):
            assert not module.weight[:, ~then.any(dim=0)].any()
            assert not torch.equal(module.weight, then)


def test_the_last_head_and_channel_of_a_layer_stay(tmp_path):
    model = load(make_classifier(tmp_path))
    silence(model, heads=range(4), channels=range(40))
    before = logits(model)
    torch.testing.assert_close(logits(without_empty_parts(model)), before)


def test_another_architecture_is_refused_and_traced_as_it_is(tmp_path):
    model = load(make_classifier(tmp_path, "qwen3"))
    with pytest.raises(ModelError, match=r"student\.prune: qwen3 is no architecture whose heads"):
        parts_of(model.config)
    assert without_empty_parts(model) is model


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


WHOLE = even(3, 4, 40)
budgets = st.floats(0.5, 20)
importances = st.integers(0, 2**32 - 1).map(
    lambda seed: Importance(*(np.random.default_rng(seed).exponential(size=(3, n)) for n in (4, 40)))
)


def cost(size):
    """What a model is said to cost: its last layer a fifth of the others."""
    of_layers = [0.2 + 0.1 * heads + 0.02 * channels for heads, channels in zip(*size, strict=True)]
    return 0.3 + sum(of_layers[:-1]) + of_layers[-1] / 5


COSTS = estimate({size: cost(size) for size in grid(WHOLE)}, WHOLE)
LEAST = cost(smallest(WHOLE))


@given(importances)
def test_the_loss_of_what_is_kept_is_the_share_that_is_cut(importance):
    assert loss_of(importance, what_to_keep(importance, WHOLE)) == pytest.approx(0, abs=1e-12)
    for size in (smallest(WHOLE), even(2, 3, 20), Size((1, 4), (2, 40))):
        kept = what_to_keep(importance, size)
        assert kept.size == size
        heads, channels = (values.copy() for values in importance)
        for layer, some, others in zip(kept.layers, kept.heads, kept.channels, strict=True):
            heads[layer, list(some)] = 0
            channels[layer, list(others)] = 0
        whole = importance.heads.sum() + importance.channels.sum()
        assert loss_of(importance, kept) == pytest.approx((heads.sum() + channels.sum()) / whole, abs=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.45, 2.5))
def test_what_is_chosen_is_within_the_budget_and_loses_least(seed, budget):
    """Compared with all that can be kept of a small model; costs are rounded up, so with a little less."""
    whole = even(3, 2, 4)
    importance = Importance(*(np.random.default_rng(seed).exponential(size=(3, n)) for n in (2, 4)))
    costs = estimate({size: cost(size) for size in grid(whole)}, whole)
    chosen = choose(importance, costs, whole, budget)
    choices = [None, *itertools.product((1, 2), (1, 2, 3, 4))]
    losses = [1.0]
    for choice in itertools.product(choices, repeat=3):
        layers = {layer: numbers for layer, numbers in enumerate(choice) if numbers}
        if layers and cost(Size(*zip(*layers.values(), strict=True))) <= budget - 3 * budget / PARTS_OF_BUDGET:
            losses.append(loss_of(importance, most_important(importance, layers)))
    if chosen:
        assert cost(chosen.size) <= budget + 1e-9
        assert loss_of(importance, chosen) <= min(losses) + 1e-9
    else:
        assert losses == [1.0]


@given(importances, budgets)
def test_what_is_chosen_for_more_loses_no_more(importance, budget):
    small, large = (choose(importance, COSTS, WHOLE, budget * factor) for factor in (1, 1.5))
    assert not small or (large and loss_of(importance, large) <= loss_of(importance, small) + 1e-9)
    for kept in filter(None, (small, large)):
        heads, channels = map(set, kept.size)
        assert heads <= set(widths(WHOLE)[0]) and channels <= set(widths(WHOLE)[1])


def test_no_layer_keeps_more_than_is_used_in_it():
    importance = Importance(np.ones((3, 4)), np.ones((3, 40)))
    importance.heads[1, 2:] = importance.channels[1, 7:] = 0
    used = Size((4, 2, 4), (40, 7, 40))
    kept = choose(importance, COSTS, used, 100.0)
    assert kept == what_to_keep(importance, used)


def test_a_cheap_last_layer_keeps_more():
    importance = Importance(np.ones((3, 4)), np.ones((3, 40)))
    chosen = choose(importance, COSTS, WHOLE, 1.7)
    assert len(chosen.layers) > 1
    assert chosen.size.heads[-1] == 4 and chosen.size.channels[-1] == 40
    assert chosen.size.heads[0] < 4


@given(importances, budgets, st.integers(0, 2**32 - 1))
def test_a_search_finds_only_what_was_measured_within_the_budget(importance, budget, seed):
    """Whatever is measured: here up to half more or less than was estimated."""
    off, measured = np.random.default_rng(seed), {}

    def measure(kept):
        assert kept.size not in measured
        measured[kept.size] = cost(kept.size) * off.uniform(0.5, 1.5)
        return measured[kept.size]

    found = search(lambda most: choose(importance, COSTS, WHOLE, most), COSTS.of, {}, measure, budget, LEAST)
    assert len(measured) <= MOST_TRIES
    assert {kept.size for kept in found} == {size for size, value in measured.items() if value <= budget}


@given(importances, budgets, st.floats(0.7, 1.4))
def test_a_search_corrects_estimates_that_are_all_wrong_by_one_ratio(importance, budget, ratio):
    def measure(kept):
        return ratio * cost(kept.size)

    found = search(lambda most: choose(importance, COSTS, WHOLE, most), COSTS.of, {}, measure, budget, LEAST)
    best = choose(importance, COSTS, WHOLE, 0.9 * budget / ratio)
    if best and choose(importance, COSTS, WHOLE, budget):
        assert ratio * cost(found[0].size) <= budget
        assert min(loss_of(importance, kept) for kept in found) <= loss_of(importance, best) + 1e-9


def test_costs_of_all_sizes_are_found_from_twelve():
    assert len(grid(WHOLE)) == 12
    heads, channels = widths(WHOLE)
    numbers = list(itertools.product(heads.tolist(), channels.tolist()))
    for one, other in zip(numbers, reversed(numbers), strict=True):
        for size in (Size(*zip(one, strict=True)), Size(*zip(one, other, one, strict=True))):
            assert COSTS.of(size) == pytest.approx(cost(size))


def test_a_small_model_that_costs_more_than_a_large_one_is_noticed():
    measured = {even(1, 1, 8): 1.0, even(2, 1, 8): 2.0, even(2, 4, 8): 1.9, even(1, 4, 40): 1.8}
    assert contradiction(measured) is None
    assert contradiction({**measured, even(1, 1, 8): 2.9}) == (even(1, 1, 8), even(1, 4, 40))


@pytest.mark.parametrize("numbers", [(1, 1, 1), (1, 12, 3072), (12, 1, 20), (6, 12, 1536), (2, 2, 33)])
def test_every_model_has_its_smallest_and_whole_size_among_those_measured(numbers):
    whole = even(*numbers)
    heads, channels = widths(whole)
    assert smallest(whole) in grid(whole) and whole in grid(whole)
    assert (heads[-1], channels[-1]) == numbers[1:] and np.all(np.diff(heads) > 0) and np.all(np.diff(channels) > 0)
    costs = estimate({size: 1.0 + size.layers for size in grid(whole)}, whole)
    assert costs.of(whole) == pytest.approx(1 + whole.layers)
    assert costs.last == pytest.approx(2)
