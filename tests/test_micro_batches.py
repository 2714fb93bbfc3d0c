"""Batches, and the micro-batches that they are computed in."""

import torch
from conftest import make_tokenizer

from distill.training.micro_batches import Collator, Limits, micro_batches_of


def test_a_part_holds_its_texts_and_nothing_wider():
    tokenizer = make_tokenizer(["good", "bad"])
    rows = [
        {"input_ids": [2, *[5] * length, 3], "attention_mask": [1] * (length + 2), "labels": length, "length": length}
        for length in (1, 6, 2, 5, 0)
    ]
    for row in rows:
        row["teacher_logits_0"] = [float(row["labels"]), 0.0]
    batch = Collator(tokenizer, "longest", 8, Limits(16))(rows)
    parts = micro_batches_of(batch)
    assert [part["labels"].tolist() for part in parts] == [[6, 5], [2, 1, 0]]
    assert [tuple(part["input_ids"].shape) for part in parts] == [(2, 8), (3, 4)]
    for part in parts:
        assert part["teacher_logits"][:, 0, 0].tolist() == part["labels"].tolist()
        for ids, mask, label in zip(part["input_ids"], part["attention_mask"], part["labels"], strict=True):
            assert ids[mask.bool()].tolist() == [2, *[5] * int(label), 3]


def test_a_batch_that_is_not_to_be_cut_is_its_only_part():
    tokenizer = make_tokenizer(["good", "bad"])
    rows = [{"input_ids": [2, 3], "attention_mask": [1, 1], "labels": 0, "length": 2}]
    batch = Collator(tokenizer, "longest", 8)(rows)
    (part,) = micro_batches_of(batch)
    assert set(part) == set(batch) and all(torch.equal(part[name], batch[name]) for name in batch)


def test_the_collator_pads_to_the_batch_or_to_the_limit():
    tokenizer = make_tokenizer(["good", "bad"])
    rows = [
        {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "labels": 1, "length": 3},
        {"input_ids": [2, 3], "attention_mask": [1, 1], "labels": 0, "length": 2},
    ]
    assert set(Collator(tokenizer, "longest", 8)(rows)) == {"input_ids", "attention_mask", "labels"}
    for row, (first, second) in zip(rows, (([0.5, -0.5], [3.0, 4.0]), ([1.0, 2.0], [5.0, 6.0])), strict=True):
        row |= {"teacher_logits_0": first, "teacher_logits_1": second}
    batch = Collator(tokenizer, "longest", 8)(rows)
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["teacher_logits"].tolist() == [[[0.5, -0.5], [3.0, 4.0]], [[1.0, 2.0], [5.0, 6.0]]]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "teacher_logits"}
    assert Collator(tokenizer, "max_length", 8)(rows)["input_ids"].shape == (2, 8)
    many = {f"teacher_logits_{teacher}": [float(teacher), 0.0] for teacher in range(11)}
    row = {"input_ids": [2, 3], "attention_mask": [1, 1], "labels": 0, **many}
    answers = Collator(tokenizer, "longest", 8)([row])["teacher_logits"]
    assert answers[0, :, 0].tolist() == list(range(11))  # in order, not as text: 1, 10, 2
