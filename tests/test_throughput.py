"""What a training step costs in operations, and the share of the device's peak that is made of it."""

import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from distill.machine.devices import GpuWatch
from distill.models.first_token import first_token_only, last_layer
from distill.training.throughput import FORWARD_AND_BACKWARD, Throughput, forward_flops


@pytest.fixture
def model(tiny_bert):
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert)


def counted(model, batch, tokens, *, first_token, backward=False):
    ids = torch.ones(batch, tokens, dtype=torch.long)
    layer = last_layer(model) if first_token else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), first_token_only(layer):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("first_token", [False, True])
def test_three_numbers_tell_the_operations_of_any_length(model, first_token):
    constant, linear, square = forward_flops(model, first_token=first_token)
    for tokens in (5, 17, 32):
        expected = counted(model, 3, tokens, first_token=first_token)
        assert 3 * (constant + linear * tokens + square * tokens**2) == expected


def test_a_step_costs_three_forward_passes(model):
    """But for the table of embeddings, which is no product."""
    forward = counted(model, 2, 16, first_token=False)
    assert counted(model, 2, 16, first_token=False, backward=True) == FORWARD_AND_BACKWARD * forward


def test_the_last_layer_on_one_token_costs_less(model):
    whole, first = (sum(forward_flops(model, first_token=flag)) for flag in (False, True))
    assert first <= whole
    assert forward_flops(model, first_token=True)[1] < forward_flops(model, first_token=False)[1]


def test_counting_leaves_the_model_and_what_is_random_as_they_were(model):
    model.train()
    state = torch.get_rng_state()
    forward_flops(model, first_token=True)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_padding_is_no_work_done():
    """The same texts, padded to 8 and to 32, are the same operations; only the padding that is reported differs."""
    lengths = [3, 8, 5]
    found = []
    for width in (8, 32):
        throughput = Throughput("cpu", (7, 100, 3), peak=1e6)
        throughput.add(torch.tensor([[1] * length + [0] * (width - length) for length in lengths]))
        found.append(throughput.figures(2.0, throughput.counts(), ranks=1))
    narrow, wide = found
    operations = FORWARD_AND_BACKWARD * sum(7 + 100 * length + 3 * length**2 for length in lengths)
    assert narrow["flops_per_second"] == wide["flops_per_second"] == pytest.approx(operations / 2)
    assert narrow["model_flop_utilisation"] == pytest.approx(operations / 2 / 1e6)
    assert narrow["padding_fraction"] == pytest.approx(1 - 16 / 24) and wide["padding_fraction"] > 0.8


def test_evaluations_are_not_training():
    throughput = Throughput("cpu", (0, 1, 0), peak=1.0)
    throughput.add(torch.ones(2, 5))
    with throughput.evaluating():
        time.sleep(0.05)
    figures = throughput.figures(1.0, throughput.counts(), ranks=1)
    assert figures["evaluation_seconds"] >= 0.05
    trained = 1.0 - figures["evaluation_seconds"]
    assert figures["flops_per_second"] == pytest.approx(FORWARD_AND_BACKWARD * 10 / trained)
    assert figures["samples_per_second"] == 2.0  # of the whole time: what a user waits for


def test_a_model_whose_texts_share_work_or_cannot_be_so_short_has_no_such_figures(model):
    class Shares(torch.nn.Module):
        """Beside the model a product of each batch, whatever is in it."""

        def __init__(self):
            super().__init__()
            self.inner, self.config, self.device = model, model.config, model.device

        def forward(self, input_ids, attention_mask):
            torch.ones(8, 8) @ torch.ones(8, 8)
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    assert forward_flops(model, first_token=False) is not None
    assert forward_flops(Shares(), first_token=False) is None
    model.forward = lambda **_: [][1]
    assert forward_flops(model, first_token=False) is None
    throughput = Throughput("cpu", None, peak=1.0)
    throughput.add(torch.ones(2, 5))
    figures = throughput.figures(1.0, throughput.counts(), ranks=1)
    assert figures["model_flop_utilisation"] is None and figures["samples_per_second"] == 2.0
    assert "of peak" not in throughput.shown()


def test_an_evaluation_that_comes_first_is_no_training_either():
    throughput = Throughput("cpu", (0, 1, 0), peak=1e3)
    with throughput.evaluating():
        time.sleep(0.05)
    assert throughput.shown()["of peak"] == "0 %"
    throughput.add(torch.ones(2, 5))
    time.sleep(0.05)
    assert 0 < float(throughput.shown()["of peak"].split()[0]) < 100


@pytest.mark.parametrize(
    ("peak", "share"),
    [(30.0, 0.5), (15.0, 1.0), (14.9, None), (1.84, None)],  # of 15 operations a second
)
def test_a_share_above_one_is_a_peak_that_was_mistimed_and_no_figure(peak, share):
    throughput = Throughput("cpu", (0, 1, 0), peak=peak)
    found = throughput.figures(2.0, [2, 10, 10, 50], ranks=1)
    assert (found["flops_per_second"], found["model_flop_utilisation"]) == (15.0, share)
    assert found["peak_flops_per_second"] == (None if share is None else peak)
    throughput.add(torch.ones(2, 5))
    throughput.peak = 1e-9
    assert "of peak" not in throughput.shown()


def test_two_ranks_have_two_peaks():
    throughput = Throughput("cpu", (0, 1, 0), peak=100.0)
    one, two = (throughput.figures(1.0, [2, 10, 10, 50], ranks=ranks) for ranks in (1, 2))
    assert two["model_flop_utilisation"] == pytest.approx(one["model_flop_utilisation"] / 2)


def test_a_gpu_is_watched_while_the_block_runs(monkeypatch):
    busy = iter([50, 100] + [75] * 1_000)
    monkeypatch.setattr("distill.machine.devices.GPU_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: next(busy))
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda: 1_000)
    with GpuWatch("cuda") as gpu:
        time.sleep(0.2)
    assert 0.7 <= gpu.figures()["gpu_utilisation"] <= 0.8 and gpu.figures()["gpu_memory_bytes"] == 1_000


def test_a_gpu_that_nvml_does_not_know_is_said_and_stops_nothing(monkeypatch, caplog):
    def unknown():
        from pynvml import NVMLError_NotSupported

        raise NVMLError_NotSupported

    monkeypatch.setattr("distill.machine.devices.GPU_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(torch.cuda, "utilization", unknown)
    with caplog.at_level("WARNING"), GpuWatch("cuda") as gpu:
        time.sleep(0.1)
    assert gpu.figures() == {} and "GPU utilization is not recorded" in caplog.text


def test_a_gpu_whose_memory_nvml_does_not_know_has_no_figures(monkeypatch):
    def unknown():
        from pynvml import NVMLError_NotSupported

        raise NVMLError_NotSupported

    monkeypatch.setattr("distill.machine.devices.GPU_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 50)
    monkeypatch.setattr(torch.cuda, "device_memory_used", unknown)
    with GpuWatch("cuda") as gpu:
        time.sleep(0.1)
    assert gpu.figures() == {}


def test_a_cpu_has_no_such_figures():
    with GpuWatch("cpu") as gpu:
        pass
    assert gpu.figures() == {}
