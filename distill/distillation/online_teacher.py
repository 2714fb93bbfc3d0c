"""Run the teacher beside the student, and compare their hidden states and attention relations."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.distillation.losses import attention_relation_loss, hidden_cosine_loss, hidden_mse_loss
from distill.errors import RecipeError
from distill.models.config import inputs_of
from distill.models.loading import layer_count, normalized_config

PROJECTIONS = "distill_projections"
RECORDING = "distill_recording"
DISTANCES = {"cosine": hidden_cosine_loss, "mse": hidden_mse_loss}


class States(NamedTuple):
    """The results of a forward pass: logits (batch, classes), the layers' outputs and the last layer's attention.

    `hidden` has a (batch, tokens, width) tensor for each layer. `heads` has the last layer's queries, keys and values
    (batch, heads, tokens, size). Each is empty if it was not asked for.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    heads: tuple[torch.Tensor, ...] = ()


class OnlineTeacher:
    """Computes the teacher's hidden states and attention relations for each batch, and the student's losses on them.

    If the two widths differ, each student layer gets a linear projection. The projections are a submodule of the
    student while it trains, so that optimizer, checkpoints and DDP include them; `close` removes them. Both models must
    read the same tokens. Raises `RecipeError` if layers or relation heads do not fit the two models.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        *,
        distance: Literal["cosine", "mse"] | None,
        teacher_layers: Sequence[int] | None = None,
        relations: bool = False,
        heads: int | None = None,
    ):
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = student
        self.distance = DISTANCES[distance] if distance else None
        self.relations = relations
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        widths = [normalized_config(model.config).hidden_size for model in (teacher, student)]
        self.heads = relation_heads(teacher.config, student.config, heads) if relations else 0
        self.layers: tuple[int, ...] = ()
        if distance:
            self.layers = map_layers(layer_count(teacher.config), layer_count(student.config), teacher_layers)
        self.projects = distance is not None and widths[0] != widths[1]
        if self.projects:
            projections = nn.ModuleList(nn.Linear(widths[1], widths[0]) for _ in self.layers)
            student.add_module(PROJECTIONS, projections)
        self._attention = student.config._attn_implementation
        if relations:
            _record_attention(self.teacher)
            _record_attention(student)

    def student_states(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> States:
        """Return the student's states; `model` is the student, perhaps wrapped by DDP or autocast."""
        return self._forward(model, self.student, inputs)

    @torch.no_grad()
    def teacher_states(self, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> States:
        """Return the teacher's states for the same tokens, computed under autocast to `dtype`; None is fp32."""
        self.teacher.to(inputs["input_ids"].device)  # Trainer has moved the student there
        device = self.teacher.device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None), self._timed(device):
            return self._forward(self.teacher, self.teacher, inputs)

    def _forward(self, model: nn.Module, modules: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> States:
        tokens = inputs_of(modules.config, inputs)
        output = model(**tokens, output_hidden_states=self.distance is not None)
        recorded = ()
        if self.relations:  # modules come in the order of the layers, so the last layer's heads remain
            for module in modules.modules():
                recorded = module.__dict__.pop("recorded_heads", recorded)
        return States(output.logits, tuple(output.hidden_states[1:]) if self.distance else (), recorded)

    def seconds(self) -> float:
        """Return how long the teacher has run so far, in seconds."""
        if self._events:
            torch.cuda.synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3

    @contextlib.contextmanager
    def _timed(self, device: str) -> Iterator[None]:
        if device == "cuda":  # with events, since waiting for the GPU at each step would slow the run
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin

    def hidden_loss(self, student: States, teacher: States, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of the mapped layers' outputs, shape (batch,)."""
        assert self.distance is not None
        hidden: Sequence[torch.Tensor] = student.hidden
        if self.projects:
            projections = getattr(self.student, PROJECTIONS)
            hidden = [project(states) for project, states in zip(projections, hidden, strict=True)]
        distances = [
            self.distance(states, teacher.hidden[layer], attention_mask)
            for states, layer in zip(hidden, self.layers, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)

    def relation_loss(self, student: States, teacher: States, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the sum of the divergences of the last layers' query, key and value relations, shape (batch,)."""
        pairs = zip(student.heads, teacher.heads, strict=True)
        losses = [attention_relation_loss(own, its, attention_mask, self.heads) for own, its in pairs]
        return torch.stack(losses).sum(dim=0)

    def close(self) -> None:
        """Restore the student: remove the projections and set its own attention again."""
        if hasattr(self.student, PROJECTIONS):
            delattr(self.student, PROJECTIONS)
        if self.relations:
            self.student.set_attn_implementation(self._attention)


def map_layers(teacher_layers: int, student_layers: int, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the teacher layer that each student layer learns from: those given, or evenly spread up to the last.

    The even spread is TinyBERT's (Jiao et al. 2020, section 3.1). Raises `RecipeError` if the layers do not fit.
    """
    key = "student.loss.hidden_states.teacher_layers"
    if given is None:
        if student_layers > teacher_layers:
            raise RecipeError(f"{key}: missing, and the student has more layers than the teacher's {teacher_layers}")
        return tuple(math.ceil((layer + 1) * teacher_layers / student_layers) - 1 for layer in range(student_layers))
    if len(given) != student_layers:
        raise RecipeError(f"{key}: wants one for each of the student's {student_layers} layers, got {list(given)}")
    if max(given) >= teacher_layers:
        raise RecipeError(f"{key}: the teacher has {teacher_layers} layers (0-{teacher_layers - 1}), got {max(given)}")
    return tuple(given)


def relation_heads(teacher: PretrainedConfig, student: PretrainedConfig, given: int | None) -> int:
    """Return the number of relation heads: the given one, or the number of the teacher's attention heads.

    Raises `RecipeError` if a width is not divisible by it.
    """
    sizes = [normalized_config(config) for config in (teacher, student)]
    heads = given or sizes[0].num_attention_heads
    if any(size.hidden_size % heads for size in sizes):
        raise RecipeError(
            f"student.loss.attention_relations.heads: {heads} does not divide the hidden sizes of teacher and student, "
            f"{sizes[0].hidden_size} and {sizes[1].hidden_size}"
        )
    return heads


def _record_attention(model: PreTrainedModel) -> None:
    """Let each attention module keep its queries, keys and values, through transformers' AttentionInterface."""
    AttentionInterface.register(RECORDING, _recording_attention)
    AttentionMaskInterface.register(RECORDING, sdpa_mask)
    model.set_attn_implementation(RECORDING)
    if model.config._attn_implementation != RECORDING:  # transformers only logs it
        raise RecipeError(
            f"student.loss.attention_relations: {model.config.model_type} does not use transformers' "
            "AttentionInterface, so its queries, keys and values cannot be read: leave it out"
        )


def _recording_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    module.__dict__["recorded_heads"] = (query, key, value)  # hidden from nn.Module's own bookkeeping
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
