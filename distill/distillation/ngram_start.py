"""The start of an n-gram student: how much oftener each n-gram stands in texts of one class than of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch.nn import functional

from distill.distillation.losses import mean_of_teachers
from distill.inference.classifier import pad
from distill.machine.progress import progress_line
from distill.models.ngrams import NgramForSequenceClassification
from distill.models.thresholds import thresholds_of
from distill.training.tokens import UNLABELLED

AT_ONCE = 256  # texts
SMOOTHING = 1.0  # added to each count; alpha in the paper
SCALE = 10.0  # of the head, because an average of ratios is small; with 3 or 30, IMDb's students learned less


@torch.no_grad()
def start_from_counts(
    model: NgramForSequenceClassification, rows: Dataset, teacher_weights: Sequence[float] = ()
) -> None:
    """Set the table of `model` to the log-count ratios of the tokenized `rows`, and its head to their sum.

    The ratios are those of NB-SVM (Wang and Manning 2012, section 2.1): presence in a text counts, not frequency. With
    more than two classes, a ratio is against the geometric mean of all; if a text may have several labels, against the
    texts without the label. A text whose labels are unknown counts for each class with the probability that the
    teachers give it. A row that no n-gram uses becomes zero. The table must be at least as wide as there are classes.
    """
    weight, classes = model.ngrams.embeddings.weight, len(model.config.id2label)
    several = thresholds_of(model.config) is not None
    counts = torch.full((len(weight), 2 * classes if several else classes), SMOOTHING)  # several: with, then without
    teachers = range(sum(name.startswith("teacher_logits_") for name in rows.column_names))
    with progress_line("counting n-grams", len(rows), "text") as bar:
        for batch in rows.iter(batch_size=AT_ONCE):
            ids, mask = map(torch.from_numpy, pad(batch["input_ids"], 0))
            found, present = model.ngrams.rows(ids, mask)
            texts = torch.arange(len(ids)).unsqueeze(1).expand_as(found)
            pairs = torch.unique((texts * len(weight) + found)[present.bool()])
            labels = torch.tensor(batch["labels"])
            known = labels.clamp(min=0)
            shares = known.float() if several else functional.one_hot(known, classes).float()
            if teachers:
                logits = torch.tensor([batch[f"teacher_logits_{teacher}"] for teacher in teachers]).transpose(0, 1)
                guess = mean_of_teachers(logits, teacher_weights, several=several).float()
                guessed = guess.sigmoid() if several else guess.softmax(dim=-1)
                shares = torch.where((labels == UNLABELLED).view(len(ids), -1), guessed, shares)
            if several:
                shares = torch.cat([shares, 1 - shares], dim=1)
            counts.index_add_(0, pairs % len(weight), shares[pairs // len(weight)])
            bar.update(len(ids))
    seen = (counts > SMOOTHING).any(dim=1, keepdim=True)
    logs = (counts / counts.sum(dim=0)).log()
    weight.zero_()
    if several:  # each label and its absence are two classes
        logs = logs.view(len(weight), 2, classes)
    ratios = logs - logs.mean(dim=1, keepdim=True)
    weight[:, :classes] = torch.where(seen, ratios[:, 0] if several else ratios, 0.0)
    model.classifier.weight[:, :classes] = SCALE * torch.eye(classes)
    model.classifier.bias.zero_()
