"""A transformers Trainer that trains a student on its teachers' logits and hidden states, by a recipe's losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distill.distillation.losses import (
    decoupled_loss,
    distillation_loss,
    label_mse_loss,
    label_target_loss,
    logit_mse_loss,
    mean_of_teachers,
    soft_target_loss,
)
from distill.distillation.online_teacher import OnlineTeacher
from distill.models.config import inputs_of
from distill.recipe.schema import Loss
from distill.training.tokens import UNLABELLED
from distill.training.trainer import ClassificationTrainer


class DistillationTrainer(ClassificationTrainer):
    """Trains with a recipe's `loss` section: soft targets, labels, hidden states and attention relations.

    `teacher_logits` (batch, teachers, classes) in each batch are computed beforehand, so teacher and student may have
    different tokenizers. Only hidden states and attention relations need `online`, the teacher itself.
    """

    def __init__(
        self,
        *args: Any,
        loss: Loss,
        teacher_weights: Sequence[float],
        online: OnlineTeacher | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.teacher_weights = teacher_weights
        self.earlier_teacher_seconds = 0.0
        self.set_loss(loss, online)

    def set_loss(self, loss: Loss, online: OnlineTeacher | None) -> None:
        """Use `loss` from now on, and the teacher that it runs beside the student, if it needs one."""
        self.loss = loss
        self.loss_is_scheduled = loss.is_scheduled
        self.online = online
        self.reads_all_tokens = online is not None

    def training_losses(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (batch, classes) and the distillation loss of each example, shape (batch,)."""
        progress = self.state.global_step / max(1, self.state.max_steps)
        if self.online is None:
            logits = model(**inputs_of(self.model.config, inputs)).logits
            return logits, self.logit_losses(logits, inputs, progress)
        student_states = self.online.student_states(model, inputs)
        teacher_states = self.online.teacher_states(inputs, self._autocast_dtype())
        losses = self.logit_losses(student_states.logits, inputs, progress)
        mask = inputs["attention_mask"]
        if self.loss.hidden_states:
            weight = self.loss.hidden_states.weight.at(progress)
            losses = losses + weight * self.online.hidden_loss(student_states, teacher_states, mask)
        if self.loss.attention_relations:
            weight = self.loss.attention_relations.weight.at(progress)
            losses = losses + weight * self.online.relation_loss(student_states, teacher_states, mask)
        return student_states.logits, losses

    def logit_losses(
        self, student_logits: torch.Tensor, inputs: Mapping[str, torch.Tensor], progress: float
    ) -> torch.Tensor:
        """Return the weighted sum of soft loss and cross-entropy, shape (batch,), at `progress` (0 to 1)."""
        several = inputs["labels"].ndim == 2
        teacher_logits = mean_of_teachers(inputs["teacher_logits"], self.teacher_weights, several=several)
        labelled, temperature = inputs["labels"] != UNLABELLED, self.loss.temperature.at(progress)
        # Only the teacher has a class for an unlabelled text.
        gold_labels = torch.where(labelled, inputs["labels"], 0 if several else teacher_logits.argmax(dim=-1))
        match self.loss.soft:  # for a name without a case, pyright says that `soft` may be unbound
            case "soft_targets":
                divergence = label_target_loss if several else soft_target_loss
                soft = divergence(student_logits, teacher_logits, temperature)
            case "logit_mse":
                soft = (label_mse_loss if several else logit_mse_loss)(student_logits, teacher_logits)
            case "decoupled":  # a recipe with several labels cannot have it: no class is the target
                weights = self.loss.decoupled.model_dump()
                soft = decoupled_loss(student_logits, teacher_logits, gold_labels, temperature, **weights)
        return distillation_loss(
            student_logits,
            soft,
            gold_labels,
            labelled.all(dim=-1) if several else labelled,
            soft_weight=self.loss.soft_weight.at(progress),
            **self.gold_settings(student_logits.device),
        )

    def finish(self) -> dict[str, Any]:
        """Remove what only training needed; return how long the teacher ran beside the student, in seconds."""
        if self.online is None:
            return {}
        self.online.close()
        return {"teacher_seconds": self._teacher_seconds()}

    def totals(self) -> dict[str, Any]:
        """Return the totals of a checkpoint, with the seconds that the teacher has run."""
        return {**super().totals(), "teacher_seconds": self._teacher_seconds()}

    def go_on_from(self, totals: Mapping[str, Any]) -> None:
        """Continue from the `totals` of a checkpoint, with the teacher's seconds."""
        super().go_on_from(totals)
        self.earlier_teacher_seconds = totals["teacher_seconds"]

    def _teacher_seconds(self) -> float:
        return self.earlier_teacher_seconds + (self.online.seconds() if self.online else 0.0)

    def _autocast_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
