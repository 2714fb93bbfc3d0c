"""Gradients of lookup tables that are summed by row are those that torch sums by table."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from distill.training.embeddings import summed_by_row


class Words(nn.Module):
    """Words and positions, the word table used once more as a matrix, a table as `kept` says, and one for nothing."""

    def __init__(self, padding_idx, kept):
        super().__init__()
        self.words = nn.Embedding(11, 4, padding_idx=padding_idx)
        self.positions = nn.Embedding(6, 4)
        self.other = nn.Embedding(11, 4, **kept)
        self.unused = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        states = self.words(ids) + self.positions(positions) + self.other(ids)
        return self.head(states).tanh().sum() + (self.words.weight[3] ** 2).sum()


def gradients(model, context, passes, again=False):
    model.zero_grad()
    for index in range(passes):
        with context(model):
            model(torch.tensor([[1, 3, 3, index, 0, 0], [5, 3, 10, 1, 1, 0]])).backward()
            if again:
                model(torch.tensor([[index, 3]])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("again", [False, True], ids=["one part", "two parts"])
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("kept", [{}, {"sparse": True}, {"scale_grad_by_freq": True}, {"_freeze": True}], ids=str)
def test_rows_are_summed_as_tables_are(passes, again, padding_idx, kept):
    torch.manual_seed(0)
    if "_freeze" in kept:
        kept = {"_freeze": True, "_weight": torch.randn(11, 4)}
    model = Words(padding_idx, kept)
    sparse = model.other.sparse
    expected = gradients(model, lambda _: contextlib.nullcontext(), passes, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients(model, summed_by_row, passes, again)
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
            continue
        assert found[name].layout == gradient.layout
        torch.testing.assert_close(found[name].to_dense(), gradient.to_dense(), atol=1e-6, rtol=1e-6)
    if padding_idx is not None:
        assert not found["words.weight"][padding_idx].any()
    assert found["unused.weight"] is None  # a gradient of zeros would let weight decay move it
    assert (model.words.sparse, model.positions.sparse, model.other.sparse) == (False, False, sparse)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_a_backward_pass_adds_is_rows():
    model, added = Words(None, {}), []
    model.positions.weight.register_hook(lambda gradient: added.append(gradient.is_sparse))
    with summed_by_row(model):
        model(torch.tensor([[1, 2]])).backward()
    model(torch.tensor([[1, 2]])).backward()
    assert added == [True, False]


def test_an_error_leaves_the_tables_as_they_were():
    model = Words(None, {})
    with pytest.raises(ZeroDivisionError), summed_by_row(model):
        assert model.words.sparse
        raise ZeroDivisionError
    assert not any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding))
