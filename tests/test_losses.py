import math

import pytest
import torch
from torch.nn import functional

from distill.distillation.losses import (
    attention_relation_loss,
    decoupled_loss,
    distillation_loss,
    hidden_cosine_loss,
    hidden_mse_loss,
    logit_mse_loss,
    mean_of_teachers,
    soft_target_loss,
)

GOLD = torch.tensor([0, 1, 2, 3, 4, 0])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
HIDDEN_SHAPE = (3, 7, 8)
HEADS_SHAPE = (3, 4, 7, 6)

# Each a function of student, teacher and target classes.
LOGIT_LOSSES = {
    "soft_target": lambda student, teacher, targets: soft_target_loss(student, teacher, 2.0),
    "logit_mse": lambda student, teacher, targets: logit_mse_loss(student, teacher),
    "decoupled": lambda student, teacher, targets: decoupled_loss(student, teacher, targets, 2.0),
}
# Each a function of student, teacher and attention mask, and its shape; tokens are the last dimension but one of all.
TOKEN_LOSSES = {
    "hidden_cosine": (hidden_cosine_loss, HIDDEN_SHAPE),
    "hidden_mse": (hidden_mse_loss, HIDDEN_SHAPE),
    "attention_relation": (lambda *arguments: attention_relation_loss(*arguments, relation_heads=2), HEADS_SHAPE),
}
# A function of student and teacher alone, and its shape.
LOSSES = {
    name: (lambda student, teacher, loss=loss: loss(student, teacher, GOLD), (6, 5))
    for name, loss in LOGIT_LOSSES.items()
} | {
    name: (lambda student, teacher, loss=loss: loss(student, teacher, MASK), shape)
    for name, (loss, shape) in TOKEN_LOSSES.items()
}
every_loss = pytest.mark.parametrize("loss, shape", LOSSES.values(), ids=LOSSES.keys())
logit_losses = pytest.mark.parametrize("loss", LOGIT_LOSSES.values(), ids=LOGIT_LOSSES.keys())
token_losses = pytest.mark.parametrize("loss, shape", TOKEN_LOSSES.values(), ids=TOKEN_LOSSES.keys())


def logits(seed, shape=(6, 5), scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def states(seed, shape):
    return logits(seed, shape, scale=1.0)


def gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    loss(student, teacher).sum().backward()
    return student.grad


@every_loss
def test_a_loss_is_one_number_an_example_zero_at_equality_and_positive_elsewhere(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    assert torch.allclose(loss(teacher, teacher), torch.zeros(shape[0]), atol=1e-6)
    different = loss(student, teacher)
    assert different.shape == shape[:1]
    # An example of one token relates to nothing but itself.
    assert (different[: 2 if len(shape) == 4 else None] > 1e-2).all()


@every_loss
def test_the_gradient_is_zero_at_equality_and_only_there(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    assert gradient(loss, teacher, teacher).abs().max() < 1e-5
    assert gradient(loss, student, teacher).abs().max() > 1e-2


@every_loss
def test_a_step_against_the_gradient_lowers_the_loss(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    step = 1e-2 * gradient(loss, student, teacher)
    assert loss(student - step, teacher).sum() < loss(student, teacher).sum()


@every_loss
def test_an_example_does_not_depend_on_the_others(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    expected = loss(student, teacher)
    student[0], teacher[0] = states(3, shape)[0], states(4, shape)[0]
    changed = loss(student, teacher)
    assert torch.allclose(changed[1:], expected[1:])
    assert not torch.allclose(changed[0], expected[0])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_more_than_its_rounding(loss, shape, dtype):
    student, teacher = states(1, shape).to(dtype), states(2, shape).to(dtype)
    half = loss(student, teacher)
    assert half.dtype == torch.float32
    assert torch.allclose(half, loss(student.float(), teacher.float()))


@every_loss
def test_autocast_does_not_reach_into_a_loss(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    expected = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher), expected)


# Logits


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


@logit_losses
def test_a_constant_added_to_either_logits_changes_nothing(loss):
    student, teacher = logits(1), logits(2)
    expected = loss(student, teacher, GOLD)
    constants = logits(3, (6, 1), scale=5.0)
    assert torch.allclose(loss(student + constants, teacher - 7, GOLD), expected, atol=1e-4)


@logit_losses
def test_the_order_of_the_classes_does_not_matter(loss):
    student, teacher = logits(1), logits(2)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = loss(student[:, order], teacher[:, order], order.argsort()[GOLD])
    assert torch.allclose(permuted, loss(student, teacher, GOLD), rtol=1e-4)


@logit_losses
def test_extreme_logits_have_finite_losses_and_gradients(loss):
    student, teacher = 80 * logits(1).sign(), 80 * logits(2).sign()
    assert torch.isfinite(loss(student, teacher, GOLD)).all()
    assert torch.isfinite(gradient(lambda *both: loss(*both, GOLD), student, teacher)).all()


@pytest.mark.parametrize(
    "loss",
    [soft_target_loss, lambda student, teacher, temperature: decoupled_loss(student, teacher, GOLD, temperature)],
    ids=["soft_target", "decoupled"],
)
def test_gradient_keeps_its_scale_as_the_temperature_grows(loss):
    """Hinton et al. 2015, section 2.1: at high T the gradient tends to that of logit matching, whatever T is."""
    norms = [gradient(lambda *both, t=t: loss(*both, t), logits(1), logits(2)).norm() for t in (20.0, 40.0)]
    assert norms[1] / norms[0] == pytest.approx(1, rel=0.1)


def test_soft_targets_become_logit_matching_as_the_temperature_grows():
    """Hinton et al. 2015, section 2.1, equation 4: the gradient tends to that of centred logits over their number."""
    student, teacher = logits(1), logits(2)
    soft = gradient(lambda *both: soft_target_loss(*both, 1000.0), student, teacher)
    matching = gradient(logit_mse_loss, student, teacher)
    assert torch.allclose(soft * student.shape[-1], matching, rtol=0.02, atol=0.02)


def test_logit_mse_is_half_the_squared_distance_but_for_the_mean():
    teacher = logits(1)
    raised = teacher + 2 * functional.one_hot(GOLD, 5)  # centred: 2 * (1 - 1/5) once, 2 * (-1/5) four times
    assert torch.allclose(logit_mse_loss(raised, teacher), torch.full((6,), (1.6**2 + 4 * 0.4**2) / 2), rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_loss_with_the_teachers_own_weights_is_the_soft_target_loss(temperature):
    """Zhao et al. 2022, equation 6: the soft-target loss, taken apart."""
    student, teacher = logits(1), logits(2)
    target_probability = torch.softmax(teacher / temperature, -1)[torch.arange(6), GOLD]
    decoupled = decoupled_loss(student, teacher, GOLD, temperature, other_weight=1 - target_probability)
    assert torch.allclose(decoupled, soft_target_loss(student, teacher, temperature), rtol=1e-4, atol=1e-5)


def test_decoupled_weights_weigh_the_target_and_the_other_classes_apart():
    student, teacher = logits(1), logits(2)
    others_moved = torch.where(functional.one_hot(GOLD, 5).bool(), teacher, teacher[:, [1, 2, 3, 4, 0]])
    target_moved = teacher + functional.one_hot(GOLD, 5)

    def loss(student, target_weight, other_weight):
        return decoupled_loss(student, teacher, GOLD, 2.0, target_weight=target_weight, other_weight=other_weight)

    assert torch.allclose(loss(student, 3.0, 5.0), 3 * loss(student, 1.0, 0.0) + 5 * loss(student, 0.0, 1.0), rtol=1e-4)
    assert (loss(others_moved, 0.0, 1.0) > 1e-2).all()
    assert torch.allclose(loss(target_moved, 0.0, 1.0), torch.zeros(6), atol=1e-6)
    assert (loss(target_moved, 1.0, 0.0) > 1e-3).all()


@pytest.mark.parametrize("scale", [3.0, 80.0])
def test_decoupled_loss_of_two_classes_is_the_soft_target_loss_whatever_the_other_weight(scale):
    student, teacher = logits(1, (6, 2), scale), logits(2, (6, 2), scale)
    targets = torch.tensor([0, 1, 0, 1, 0, 1])
    decoupled = decoupled_loss(student, teacher, targets, 2.0, other_weight=1e6)
    assert torch.allclose(decoupled, soft_target_loss(student, teacher, 2.0), rtol=1e-4, atol=1e-5)
    slope = gradient(lambda *both: decoupled_loss(*both, targets, 2.0, other_weight=1e6), student, teacher)
    expected = gradient(lambda *both: soft_target_loss(*both, 2.0), student, teacher)
    assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-5)


# Hidden states and attention


@token_losses
@pytest.mark.parametrize("garbage", [1e3, math.nan])
def test_padding_changes_neither_loss_nor_gradient(loss, shape, garbage):
    student, teacher = states(1, shape), states(2, shape)
    padding = torch.full((*shape[:-2], 3, shape[-1]), garbage)
    padded_mask = functional.pad(MASK, (0, 3))

    def padded_loss(student, teacher):
        return loss(torch.cat([student, padding], -2), torch.cat([teacher, -padding], -2), padded_mask)

    assert torch.allclose(padded_loss(student, teacher), loss(student, teacher, MASK), atol=1e-6)
    expected = gradient(lambda *both: loss(*both, MASK), student, teacher)
    assert torch.allclose(gradient(padded_loss, student, teacher), expected, atol=1e-6)


@token_losses
def test_a_padded_example_has_the_loss_of_the_example_alone(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    batched = loss(student, teacher, MASK)
    for row, length in enumerate(MASK.sum(-1).tolist()):
        alone = loss(
            student[row : row + 1, ..., :length, :], teacher[row : row + 1, ..., :length, :], torch.ones(1, length)
        )
        assert torch.allclose(batched[row], alone[0], atol=1e-6)


@token_losses
def test_the_order_of_the_tokens_does_not_matter(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    order = torch.tensor([5, 2, 6, 0, 3, 1, 4])
    permuted = loss(student[..., order, :], teacher[..., order, :], MASK[:, order])
    assert torch.allclose(permuted, loss(student, teacher, MASK), atol=1e-6)


@token_losses
def test_an_example_without_real_tokens_has_no_loss_and_a_finite_gradient(loss, shape):
    student, teacher = states(1, shape), states(2, shape)
    mask = MASK * torch.tensor([[1], [1], [0]])
    losses = loss(student, teacher, mask)
    assert losses[2] == 0 and (losses[:2] > 0).all()
    slope = gradient(lambda *both: loss(*both, mask), student, teacher)
    assert torch.isfinite(slope).all() and (slope[2] == 0).all()


def test_hidden_cosine_loss_measures_directions_alone():
    teacher = states(1, HIDDEN_SHAPE)
    turned = torch.stack([-teacher[..., 1::2], teacher[..., ::2]], -1).flatten(-2)  # a right angle in every plane
    for student, expected in ((3 * teacher, 0.0), (turned, 1.0), (-teacher, 2.0)):
        assert torch.allclose(hidden_cosine_loss(student, teacher, MASK), torch.full((3,), expected), atol=1e-5)


def test_hidden_mse_loss_is_the_squared_difference_of_a_number():
    teacher = states(1, HIDDEN_SHAPE)
    assert torch.allclose(hidden_mse_loss(teacher + 2, teacher, MASK), torch.full((3,), 4.0), rtol=1e-4)
    one_token = teacher.clone()
    one_token[:, 0, 0] += 2
    assert torch.allclose(hidden_mse_loss(one_token, teacher, MASK), 4 / 8 / MASK.sum(-1), rtol=1e-4)


def test_attention_relation_loss_is_the_divergence_of_the_relations():
    """Wang et al. 2021, equations 3 to 5, one token of one relation head at a time."""
    student, teacher = states(1, (1, 2, 5, 6)).double(), states(2, (1, 3, 5, 8)).double()

    def relations(heads, relation_heads):
        tokens = [torch.cat([head[token] for head in heads]) for token in range(5)]
        size = len(tokens[0]) // relation_heads
        for head in range(relation_heads):
            for one in tokens:
                part = slice(head * size, (head + 1) * size)
                yield torch.softmax(torch.stack([one[part] @ other[part] / size**0.5 for other in tokens]), -1)

    divergences = [(p * (p / q).log()).sum() for p, q in zip(relations(teacher[0], 4), relations(student[0], 4))]
    loss = attention_relation_loss(student, teacher, torch.ones(1, 5), 4)
    assert loss.item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)


def test_attention_relations_do_not_change_when_a_relation_head_is_rotated():
    student, teacher = states(1, HEADS_SHAPE), states(2, HEADS_SHAPE)
    rotations = torch.linalg.qr(states(3, (4, 6, 6))).Q
    expected = attention_relation_loss(student, teacher, MASK, 4)
    assert torch.allclose(attention_relation_loss(student @ rotations, teacher, MASK, 4), expected, atol=1e-5)
    # In twice as many relation heads the same rotations mix two of them.
    finer = attention_relation_loss(student, teacher, MASK, 8)
    assert not torch.allclose(attention_relation_loss(student @ rotations, teacher, MASK, 8), finer, atol=1e-3)


def test_attention_relations_do_not_depend_on_how_the_width_was_cut_into_heads():
    student, teacher = states(1, HEADS_SHAPE), states(2, (3, 3, 7, 16))
    width = student.transpose(1, 2).flatten(2)
    expected = attention_relation_loss(student, teacher, MASK, 8)
    for heads in (1, 2, 12):
        recut = width.unflatten(2, (heads, -1)).transpose(1, 2)
        assert torch.allclose(attention_relation_loss(recut, teacher, MASK, 8), expected, atol=1e-6)


def test_attention_relations_of_a_wider_teacher_can_be_met():
    """The relations are scaled by the root of each model's own size, so four times the width asks for root 2 more."""
    student = states(1, HEADS_SHAPE)
    teacher = functional.pad(student * math.sqrt(2), (0, 18))
    assert torch.allclose(attention_relation_loss(student, teacher, MASK, 4), torch.zeros(3), atol=1e-5)


def test_a_width_that_does_not_divide_by_the_relation_heads_is_refused_by_name():
    narrow, wide = states(1, (3, 2, 7, 6)), states(2, (3, 2, 7, 10))
    with pytest.raises(ValueError, match="teacher's width 20 is not divisible by 6"):
        attention_relation_loss(narrow, wide, MASK, 6)
    with pytest.raises(ValueError, match="student's width 12 is not divisible by 5"):
        attention_relation_loss(narrow, wide, MASK, 5)


# Several teachers


def test_the_mean_of_teachers_has_the_weighted_mean_of_their_probabilities():
    teachers = logits(1, (6, 3, 5))
    for weights in ([1.0, 1.0, 1.0], [0.2, 0.5, 0.3], [7.0, 1.0, 2.0]):
        shares = torch.tensor(weights) / sum(weights)
        expected = (torch.softmax(teachers, -1) * shares[:, None]).sum(1)
        assert torch.allclose(torch.softmax(mean_of_teachers(teachers, weights), -1), expected, atol=1e-6)


def test_only_the_ratios_of_the_teachers_weights_count():
    teachers = logits(1, (6, 3, 5))
    expected = mean_of_teachers(teachers, [1.0, 2.0, 5.0])
    assert torch.allclose(mean_of_teachers(teachers, [10.0, 20.0, 50.0]), expected, atol=1e-5)
    assert not torch.allclose(mean_of_teachers(teachers, [5.0, 2.0, 1.0]), expected, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_teacher_comes_back_unchanged(dtype):
    teacher = logits(1, (6, 1, 5)).to(dtype)
    for weight in (1.0, 0.3):
        mean = mean_of_teachers(teacher, [weight])
        assert mean.dtype == dtype and torch.equal(mean, teacher[:, 0])


def test_sure_teachers_who_disagree_have_a_finite_mean():
    teachers = torch.tensor([[[80.0, -80.0, -80.0], [-80.0, 80.0, -80.0]]])
    mean = mean_of_teachers(teachers, [3.0, 1.0])
    assert torch.isfinite(mean).all()
    assert torch.allclose(torch.softmax(mean, -1), torch.tensor([[0.75, 0.25, 0.0]]))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, 0.0], [1.0, -1.0], []])
def test_weights_that_do_not_fit_the_teachers_are_refused(weights):
    with pytest.raises(ValueError, match="2 positive numbers"):
        mean_of_teachers(logits(1, (6, 2, 5)), weights)


# With gold labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_soft_weight_goes_from_labels_alone_to_the_soft_loss_alone(label_smoothing):
    student, soft = logits(1), soft_target_loss(logits(1), logits(2), 2.0)
    hard = functional.cross_entropy(student, GOLD, reduction="none", label_smoothing=label_smoothing)
    for weight, expected in ((0.0, hard), (0.3, 0.3 * soft + 0.7 * hard), (1.0, soft)):
        loss = distillation_loss(student, soft, GOLD, soft_weight=weight, label_smoothing=label_smoothing)
        assert torch.allclose(loss, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_examples_without_a_label_keep_their_share_of_the_soft_loss_alone(label_smoothing):
    student, soft = logits(1), soft_target_loss(logits(1), logits(2), 2.0)
    unlabelled = torch.tensor([True, False, False, True, False, True])
    mixed = distillation_loss(student, soft, GOLD, ~unlabelled, soft_weight=0.3, label_smoothing=label_smoothing)
    labelled = distillation_loss(student, soft, GOLD, soft_weight=0.3, label_smoothing=label_smoothing)
    assert torch.allclose(mixed, torch.where(unlabelled, 0.3 * soft, labelled))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_without_any_label_learns_from_the_soft_loss(label_smoothing):
    nobody = torch.zeros(6, dtype=torch.bool)

    def loss(student, teacher):
        soft = soft_target_loss(student, teacher, 2.0)
        return distillation_loss(student, soft, GOLD, nobody, soft_weight=0.3, label_smoothing=label_smoothing)

    expected = gradient(lambda *both: 0.3 * soft_target_loss(*both, 2.0), logits(1), logits(2))
    assert torch.allclose(gradient(loss, logits(1), logits(2)), expected)
    assert expected.abs().max() > 1e-2


def test_weights_multiply_the_cross_entropy_alone():
    logits, soft = torch.randn(6, 5), torch.rand(6)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
    hard = functional.cross_entropy(logits, GOLD, reduction="none")
    found = distillation_loss(logits, soft, GOLD, soft_weight=0.25, class_weights=weights)
    torch.testing.assert_close(found, 0.25 * soft + 0.75 * hard * weights[GOLD])
