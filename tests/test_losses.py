import pytest
import torch
from torch.nn import functional

from distill.losses import distillation_loss, soft_target_loss


def logits(seed, shape=(6, 5), scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_soft_target_loss_is_zero_at_equality_and_positive_elsewhere(temperature):
    teacher = logits(1)
    assert torch.allclose(soft_target_loss(teacher, teacher, temperature), torch.zeros(6), atol=1e-6)
    assert (soft_target_loss(logits(2), teacher, temperature) > 0).all()


def test_soft_target_loss_is_the_divergence_from_student_to_teacher():
    student, teacher, temperature = logits(1).double(), logits(2).double(), 3.0
    p = torch.softmax(teacher / temperature, -1)
    q = torch.softmax(student / temperature, -1)
    expected = (p * (p / q).log()).sum(-1) * temperature**2
    assert torch.allclose(soft_target_loss(student, teacher, temperature).double(), expected, rtol=1e-4)


def test_a_constant_added_to_either_logits_changes_nothing():
    student, teacher = logits(1), logits(2)
    expected = soft_target_loss(student, teacher, 2.0)
    assert torch.allclose(soft_target_loss(student + 5, teacher - 7, 2.0), expected, atol=1e-4)


def test_gradient_keeps_its_scale_as_the_temperature_grows():
    """Hinton et al. 2015, section 2.1: at high T the gradient tends to that of logit matching, whatever T is."""
    teacher = logits(2)
    norms = []
    for temperature in (20.0, 40.0):
        student = logits(1).requires_grad_()
        soft_target_loss(student, teacher, temperature).sum().backward()
        norms.append(student.grad.norm())
    assert norms[1] / norms[0] == pytest.approx(1, rel=0.1)


def test_half_precision_logits_lose_nothing_more_than_their_rounding():
    student, teacher = logits(1), logits(2)
    half = soft_target_loss(student.half(), teacher.half(), 2.0)
    assert half.dtype == torch.float32
    assert torch.allclose(half, soft_target_loss(student.half().float(), teacher.half().float(), 2.0))


def test_soft_weight_goes_from_labels_alone_to_teacher_alone():
    student, teacher, gold = logits(1), logits(2), torch.tensor([0, 1, 2, 3, 4, 0])
    hard = functional.cross_entropy(student, gold, reduction="none")
    soft = soft_target_loss(student, teacher, 2.0)
    for weight in (0.0, 0.3, 1.0):
        loss = distillation_loss(student, teacher, gold, temperature=2.0, soft_weight=weight)
        assert torch.allclose(loss, weight * soft + (1 - weight) * hard)
