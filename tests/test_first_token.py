import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.models.first_token import first_token_only, last_layer

IDS = torch.randint(5, 24, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 4:] = 0


def logits_and_gradients(model):
    model.zero_grad()
    logits = model(input_ids=IDS, attention_mask=MASK).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_gradients_stay_and_the_model_is_left_as_it_was(any_classifier, attention):
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier, attn_implementation=attention).eval()
    whole, whole_gradients = logits_and_gradients(model)
    with first_token_only(last_layer(model)):
        first, first_gradients = logits_and_gradients(model)
        assert model.base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state.shape[1] == 1
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=1e-4)
    assert first_gradients.keys() == whole_gradients.keys()
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(first_gradients[name], gradient, atol=1e-5, rtol=1e-3)
    after, after_gradients = logits_and_gradients(model)
    assert torch.equal(after, whole)
    assert all(torch.equal(gradient, whole_gradients[name]) for name, gradient in after_gradients.items())


def test_attention_and_query_are_computed_for_one_token_in_the_last_layer_only(any_classifier):
    queries, tokens = [], []

    def spy(module, query, *args, **kwargs):
        queries.append(query.shape[2])
        return sdpa_attention_forward(module, query, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier, attn_implementation="spy").eval()
    linear = torch.nn.functional.linear
    layer = last_layer(model)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), first_token_only(layer):
        seen = {id(layer.query.weight): tokens}
        patch.setattr(
            torch.nn.functional,
            "linear",
            lambda x, weight, bias=None: seen.get(id(weight), []).append(x.shape[1]) or linear(x, weight, bias),
        )
        model(input_ids=IDS, attention_mask=MASK)
    assert queries == [9] * (len(queries) - 1) + [1] and len(queries) > 1
    assert tokens == [1]


def test_an_error_within_leaves_the_model_as_it_was(any_classifier):
    model = AutoModelForSequenceClassification.from_pretrained(any_classifier).eval()
    with torch.no_grad():
        whole = model(input_ids=IDS, attention_mask=MASK).logits
        with pytest.raises(RuntimeError, match="stopped"), first_token_only(last_layer(model)):
            raise RuntimeError("stopped")
        assert model.base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state.shape[1] == 9
        assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, whole)
