"""What makes training steps on a CPU faster: it changes only rounding and the random numbers."""

import copy
from unittest.mock import Mock

import pytest
import torch
from conftest import CONFIGS, make_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForSequenceClassification

import distill.models.unfused_attention as unfused
from distill.inference.classifier import pack
from distill.models.first_token import first_token_only, last_layer
from distill.models.unfused_attention import FUSED, UNFUSED, unfused_attention
from distill.training.dropout import fast_dropout


def gradients(model, ids, mask):
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits
    nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 1])).backward()
    return logits, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def without_dropout(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_unfused_attention_gives_the_same_logits_and_gradients(tmp_path, architecture, padded):
    model = without_dropout(make_classifier(tmp_path, architecture))
    ids = torch.randint(5, 29, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 7:] = mask[2, 1:] = 0
    expected = gradients(model, ids, mask)
    with unfused_attention(model), first_token_only(last_layer(model)):
        assert model.config._attn_implementation == UNFUSED
        torch.testing.assert_close(gradients(model, ids, mask), expected, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == FUSED
    torch.testing.assert_close(gradients(model, ids, mask), expected)


@pytest.mark.parametrize("settings", [{"attn_implementation": "eager"}, {"is_decoder": True}])
def test_attention_that_may_be_more_than_this_stays(tiny_bert, settings):
    """A decoder's mask is None where no text is padded, and torch's attention then hides later tokens by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **settings)
    before = model.config._attn_implementation
    with unfused_attention(model):
        assert model.config._attn_implementation == before


def test_scores_that_would_fill_the_memory_are_left_to_torchs_attention(tiny_bert, monkeypatch):
    fused = Mock(side_effect=unfused.sdpa_attention_forward)
    monkeypatch.setattr(unfused, "sdpa_attention_forward", fused)
    model, ids = without_dropout(tiny_bert), torch.full((3, 12), 5)
    with unfused_attention(model):
        model(input_ids=ids)
        assert not fused.called
        monkeypatch.setattr(unfused, "MOST_PAIRS", 3 * 12 * 12 - 1)
        model(input_ids=ids)
        assert fused.call_count == 4
        monkeypatch.setattr(unfused, "MOST_PAIRS", 10**9)
        model.eval()(input_ids=ids)
        assert fused.call_count == 8


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.sampled_from(["float32", "bfloat16"]))
def test_dropout_zeroes_or_scales_each_element_and_its_gradient_alike(probability, shape, dtype):
    layer = nn.Sequential(nn.Dropout(probability))
    hidden = torch.ones(*shape, dtype=getattr(torch, dtype), requires_grad=True)
    with fast_dropout(layer):
        out = layer(hidden)
        out.sum().backward()
        assert torch.equal(layer.eval()(hidden), hidden)
    assert torch.equal(hidden.grad, out) and out.dtype == hidden.dtype
    if 0 < probability < 0.9:
        scale = torch.tensor(1 / (1 - probability)).to(out.dtype)
        torch.testing.assert_close(out[out != 0], scale.expand(int((out != 0).sum())), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_drops_the_share_that_it_should_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    layer, hidden = nn.Sequential(nn.Dropout(probability)), torch.ones(1_000_003)
    with fast_dropout(layer):
        first, second = layer(hidden), layer(hidden)
    error = 5 * (probability * (1 - probability) / len(hidden)) ** 0.5  # five standard errors
    assert float((first == 0).double().mean()) == pytest.approx(probability, abs=error + 1e-5)
    if probability < 1:
        assert float(first.double().mean()) == pytest.approx(1, abs=(error + 1e-5) / (1 - probability))
    both = float(((first == 0) & (second == 0)).double().mean())  # independent draws
    assert both == pytest.approx(probability**2, abs=5 * 0.25 / len(hidden) ** 0.5)
    neighbours = float(((first[1:] == 0) & (first[:-1] == 0)).double().mean())
    assert neighbours == pytest.approx(probability**2, abs=5 * 0.25 / len(hidden) ** 0.5)


def test_dropout_follows_the_seed_and_is_torchs_again_afterwards():
    layer, hidden = nn.Sequential(nn.Dropout(0.3)), torch.ones(100)
    before = copy.copy(vars(layer[0]))
    with fast_dropout(layer):
        torch.manual_seed(1)
        first = layer(hidden)
        torch.manual_seed(1)
        assert torch.equal(first, layer(hidden))
        assert not torch.equal(first, layer(hidden))
    assert vars(layer[0]) == before
    torch.manual_seed(1)
    expected = nn.functional.dropout(hidden, 0.3)
    torch.manual_seed(1)
    assert torch.equal(layer(hidden), expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 3_000), st.integers(1, 300_000))
def test_packing_keeps_the_pairs_of_tokens_within_their_budget_too(lengths, budget, squares):
    batches = [list(batch) for batch in pack(lengths, budget, squares)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or (len(batch) * longest <= budget and len(batch) * longest**2 <= squares)
