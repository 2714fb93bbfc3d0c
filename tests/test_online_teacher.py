import pytest
import torch
from conftest import make_classifier
from transformers import AutoModelForSequenceClassification

from distill.distillation.online_teacher import OnlineTeacher
from distill.errors import RecipeError
from distill.models.students import build_from_layers


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.fixture
def inputs():
    ids = torch.randint(5, 24, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def losses(online, model, inputs):
    student, teacher = online.student_states(model, inputs), online.teacher_states(inputs, None)
    mask = inputs["attention_mask"]
    return online.hidden_loss(student, teacher, mask), online.relation_loss(student, teacher, mask)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_a_student_that_is_the_teacher_is_at_no_distance(any_classifier, inputs, distance):
    teacher = load(any_classifier)
    student = build_from_layers(teacher, 4).eval()
    online = OnlineTeacher(teacher, student, distance=distance, relations=True)
    assert online.layers == (0, 1, 2, 3)
    for loss in losses(online, student, inputs):
        assert loss.shape == (3,)
        torch.testing.assert_close(loss, torch.zeros(3), atol=1e-5, rtol=0)


def test_fewer_layers_are_at_a_distance_that_training_shortens(any_classifier, inputs):
    teacher = load(any_classifier)
    student = build_from_layers(teacher, [0, 2])
    online = OnlineTeacher(teacher, student, distance="mse", relations=True)
    assert online.layers == (1, 3)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    seen = []
    for _ in range(20):
        hidden, relations = losses(online, student, inputs)
        seen.append((hidden.mean().item(), relations.mean().item()))
        optimizer.zero_grad()
        (hidden + relations).mean().backward()
        optimizer.step()
    assert seen[-1][0] < seen[0][0] and seen[-1][1] < seen[0][1]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_states_are_those_of_the_model_itself(any_classifier, inputs):
    teacher = load(any_classifier)
    with torch.no_grad():
        expected = load(any_classifier)(**inputs, output_hidden_states=True)
    online = OnlineTeacher(teacher, build_from_layers(teacher, 2), distance="mse", relations=True)
    states = online.teacher_states(inputs, None)
    torch.testing.assert_close(states.logits, expected.logits)
    assert len(states.hidden) == 4 and len(states.heads) == 3
    for found, wanted in zip(states.hidden, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(found, wanted)
    assert all(heads.shape == (3, 4, 7, 8) for heads in states.heads)
    assert online.seconds() > 0


def test_the_relations_are_those_of_the_last_layer(tiny_bert, inputs):
    teacher = load(tiny_bert)
    student = build_from_layers(teacher, 4)
    last = student.bert.encoder.layer[-1].attention.self
    with torch.no_grad():
        change = torch.randn(last.query.weight.shape, generator=torch.Generator().manual_seed(1))
        last.query.weight.add_(change)
        student.bert.encoder.layer[-1].output.dense.weight.mul_(2.0)  # after the last attention: of no account
    online = OnlineTeacher(teacher, student.eval(), distance="mse", relations=True)
    _, changed = losses(online, student, inputs)
    with torch.no_grad():
        last.query.weight.sub_(change)
    _, same = losses(online, student, inputs)
    assert (changed > 1e-4).all()
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)


def test_padding_changes_nothing(tiny_bert, inputs):
    teacher = load(tiny_bert)
    student = build_from_layers(teacher, 2).eval()
    online = OnlineTeacher(teacher, student, distance="cosine", relations=True)
    padded = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    for tight, loose in zip(losses(online, student, inputs), losses(online, student, padded), strict=True):
        torch.testing.assert_close(tight, loose, atol=1e-5, rtol=1e-4)


def test_a_narrower_student_is_joined_by_projections_that_do_not_stay(tiny_bert, tmp_path, inputs):
    narrow = make_classifier(tmp_path / "narrow", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    teacher, student = load(tiny_bert), load(narrow)
    names = set(student.state_dict())
    before = student(**inputs).logits
    online = OnlineTeacher(teacher, student, distance="mse", relations=True, heads=4)
    assert set(student.state_dict()) > names
    hidden, relations = losses(online, student, inputs)
    (hidden + relations).sum().backward()
    assert all(parameter.grad is not None for parameter in student.distill_projections.parameters())
    online.close()
    assert set(student.state_dict()) == names
    torch.testing.assert_close(student(**inputs).logits, before)
    student.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"teacher_layers": [0]}, "wants one for each of the student's 2 layers, got [0]"),
        ({"teacher_layers": [0, 4]}, "the teacher has 4 layers (0-3), got 4"),
        ({"relations": True, "heads": 5}, "5 does not divide the hidden sizes"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny_bert, settings, expected):
    teacher = load(tiny_bert)
    with pytest.raises(RecipeError) as caught:
        OnlineTeacher(teacher, build_from_layers(teacher, 2), distance="mse", **settings)
    (problem,) = caught.value.problems
    assert expected in problem


def test_a_student_with_more_layers_needs_a_map(tiny_bert, tmp_path):
    deeper = make_classifier(tmp_path / "deeper", num_hidden_layers=6)
    with pytest.raises(RecipeError, match="more layers than the teacher's 4"):
        OnlineTeacher(load(tiny_bert), load(deeper), distance="mse")
    online = OnlineTeacher(load(tiny_bert), load(deeper), distance="mse", teacher_layers=[0, 0, 1, 1, 2, 3])
    assert online.layers == (0, 0, 1, 1, 2, 3)
