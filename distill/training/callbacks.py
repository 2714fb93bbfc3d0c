"""Callbacks of the Trainer: the progress line, the log file, checkpoints, divergence, and stopping on a signal."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import distributed
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from distill.errors import Interrupted, TrainingError
from distill.machine.progress import progress_line
from distill.storage.files import read_json, write_json, write_text
from distill.storage.records import checked
from distill.storage.run_folder import RunFolder
from distill.training.trainer import ClassificationTrainer

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
TOTALS = "totals.json"  # in a checkpoint
STATE = "trainer_state.json"  # of Trainer, in a checkpoint
TABLE = ("epoch", "step", "training loss", "validation log loss", "accuracy", "macro-F1")
SEVERAL = {"accuracy": "exact match"}  # what a column is called if a text may have several labels


class ProgressLine(TrainerCallback):
    """Shows a line on stderr with steps, rate, time left, loss and `figures`, and above it a row for each evaluation.

    `figures` is called when a loss is logged, not at every step, because reading a counter on a GPU waits for the GPU.
    `total_loss` returns the sum of the training losses of all steps so far.
    """

    def __init__(
        self,
        title: str,
        figures: Callable[[], Mapping[str, str]] = dict,
        total_loss: Callable[[], float] = lambda: math.nan,
    ):
        self.title = title
        self.figures = figures
        self.total_loss = total_loss
        self.line: tqdm[Any] | None = None
        self.is_begun = False
        self.last = (0, 0.0)  # step and total loss at the last evaluation
        self.columns: Sequence[str] = TABLE

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the line, on rank 0."""
        if state.is_world_process_zero:
            self.line = progress_line(self.title, state.max_steps, "step", initial=state.global_step, keep=True)
            self.last = state.global_step, self.total_loss()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the line on to the step."""
        if self.line is not None:
            self.line.update(state.global_step - self.line.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show the loss, or the figures of an evaluation."""
        if self.line is None:
            return
        if "loss" in logs:
            self.line.set_postfix({"loss": f"{logs['loss']:.4f}", **self.figures()}, refresh=False)
        if "eval_accuracy" in logs:
            if not self.is_begun:
                if "eval_micro_f1" in logs:
                    self.columns = [SEVERAL.get(name, name) for name in TABLE]
                self._write_row(self.columns)
            found = [f"{logs[f'eval_{name}']:.4f}" for name in ("log_loss", "accuracy", "macro_f1")]
            (step, loss), self.last = self.last, (state.global_step, self.total_loss())
            steps = self.last[0] - step
            trained = f"{(self.last[1] - loss) / steps:.4f}" if steps else "-"  # mean since the last evaluation
            self._write_row([f"{logs['epoch']:.2f}", str(state.global_step), trained, *found])
            self.is_begun = True

    def close(self) -> None:
        """End the line, however training ended, so that later output starts on a new line."""
        if self.line is not None:
            self.line.close()

    def _write_row(self, cells: Sequence[str]) -> None:
        assert self.line is not None
        row = "  ".join(cell.rjust(len(name)) for cell, name in zip(cells, self.columns, strict=True))
        self.line.write(f"{self.title}:  {row}", file=sys.stderr)


class StopOnDivergence(TrainerCallback):
    """Stops a training whose loss or weights are not finite, so that no broken checkpoint is sealed."""

    def __init__(self, folder: RunFolder, stage: str):
        self.folder = folder
        self.stage = stage

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Check the training loss, the mean since the last log entry."""
        if "loss" in logs and not math.isfinite(logs["loss"]):
            self.stop(f"the training loss is {logs['loss']}", args, state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Check the weights of a checkpoint before it is sealed."""
        if not all(map(_is_finite, model.parameters())):
            self.stop("weights are not finite", args, state)

    on_train_end = on_save  # for steps after the last log entry and checkpoint

    def stop(self, problem: str, args: TrainingArguments, state: TrainerState) -> NoReturn:
        """Raise `TrainingError` with the step, the last good checkpoint and what to change."""
        last = self.folder.last_checkpoint()
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"training diverged: {problem} at step {state.global_step}; {kept}",
            hint=f"--output ANOTHER --set {self.stage}.training.learning_rate=LOWER (it is {args.learning_rate:g}); "
            "more warmup_steps or a smaller max_grad_norm help too",
        )


def _is_finite(parameter: torch.nn.Parameter) -> bool:
    found = parameter.isfinite().all()
    # Each rank sees only its own shard, but all ranks must stop together.
    return bool(found.full_tensor() if isinstance(found, DTensor) else found)


class LogFile(TrainerCallback):
    """Keeps metrics.jsonl equal to the Trainer's own log history, which survives a resume."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Rewrite the whole file, so that it never ends in half a line."""
        if state.is_world_process_zero:  # keys are sorted, because a checkpoint returns them so
            write_text(self.path, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in state.log_history))


class KeepTotals(TrainerCallback):
    """Adds to each checkpoint the totals of every rank, which Trainer does not save (see ClassificationTrainer.totals).

    With them, a resumed run ends with the log and the figures of an uninterrupted one. A run that resumes from the
    checkpoint of the last step trains no further, unless it is to have more steps than when that was written.
    """

    trainer: ClassificationTrainer  # set once it is made, since it is made with this callback

    def __init__(self, resumed: Path | None):
        self.resumed = resumed

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continue from the totals of the checkpoint."""
        if self.resumed is None:
            return
        kept = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        had_all = state.global_step >= read_json(self.resumed / STATE)["max_steps"]
        is_longer = had_all and state.global_step < state.max_steps
        control.should_training_stop = bool(kept.get("should_training_stop")) and not is_longer
        if (self.resumed / TOTALS).is_file():
            totals = checked(
                list[dict[str, float | None]], read_json(self.resumed / TOTALS), str(self.resumed / TOTALS)
            )
            self.trainer.go_on_from(totals[PartialState().process_index])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the totals into the checkpoint that Trainer has just written."""
        totals = gather_object([self.trainer.totals()])
        if state.is_world_process_zero:
            write_json(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / TOTALS, totals)


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once it is written, and only then deletes the oldest ones beyond `limit`.

    Trainer would delete before the new one is sealed, and a run that is killed in between would keep neither.
    Checkpoints are ordered by step, not by time, because a clock may be set back.
    """

    def __init__(self, limit: int | None, folder: RunFolder, resumed: Path | None = None):
        self.limit = limit
        self.folder = folder
        self.resumed = resumed
        self.is_due = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put away the checkpoints beyond the step that training starts from, and find the best one in this folder.

        Trainer looks for the best one under its old path, and drops it if the run folder was moved.
        """
        if state.is_world_process_zero:
            self.folder.put_away_checkpoints(beyond=state.global_step)
        best = self.folder.best_checkpoint(self.resumed) if self.resumed else None
        if best:
            state.best_model_checkpoint = str(Path(args.output_dir or ".") / best.name)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Delay the checkpoint of an epoch's last step until the epoch is evaluated and logged.

        A run that resumed from an earlier checkpoint would miss the evaluation and the log entry.
        """
        is_last = float(state.epoch or 0).is_integer() or control.should_training_stop
        if control.should_save and is_last and "epoch" in (args.eval_strategy, args.logging_strategy):
            control.should_save, self.is_due = False, True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the delayed checkpoint."""
        if self.is_due:
            control.should_save, self.is_due = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the checkpoint that Trainer has just written."""
        PartialState().wait_for_everyone()  # each rank writes its random state into the checkpoint
        if state.is_world_process_zero:
            self.folder.seal_checkpoint(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")
            # Trainer's own name of the folder: the best checkpoint is recognized by its whole path.
            rotate_checkpoints(args.output_dir or ".", self.limit, state.best_model_checkpoint)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep only the best checkpoint if the limit is one; Trainer would also keep the last."""
        if state.is_world_process_zero and self.limit == 1 and state.best_model_checkpoint:
            for path in Path(args.output_dir or ".").glob("checkpoint-*"):
                if path != Path(state.best_model_checkpoint):
                    shutil.rmtree(path, ignore_errors=True)


class StopOnSignal(TrainerCallback):
    """Turns the first SIGINT, SIGTERM or SIGHUP into a checkpoint after the step and `Interrupted`; a second one kills.

    A signal may reach several ranks at different steps, or only one of them. All ranks stop at the same step, one step
    later.
    """

    def __init__(self, trainer: Trainer):
        self.signal_number: int | None = None
        self.agreed: int | None = None
        self.is_alone = trainer.args.world_size == 1
        # A group of its own over gloo: to read a result on a GPU would wait for the step that runs there.
        self.group = None if self.is_alone else distributed.new_group(backend="gloo")
        self.asked: Any = None  # the running exchange with the other ranks, and its result
        self.previous: dict[int, Any] = {}
        trainer.add_callback(self)

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python handles signals only here
            # A signal that the process ignores (nohup) stays ignored.
            wanted = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if kind is None and self.signal_number is not None:  # after the last checkpoint
            raise Interrupted(self.signal_number, "stopped when training had ended; --resume goes on from there")

    def _note(self, number: int, _: Any) -> None:
        self.signal_number = number
        if self.is_alone:
            self.agreed = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint once a signal has come; at the end of an epoch, the evaluation comes first."""
        self._agree()
        if self.agreed is not None and not float(state.epoch or 0).is_integer():
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the checkpoint that waited for the epoch's evaluation."""
        if self.agreed is not None:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop, now that the checkpoint is there."""
        if self.agreed is not None:
            PartialState().wait_for_everyone()  # a launcher kills all ranks once one ends, and one may be writing
            raise Interrupted(self.agreed, f"stopped at step {state.global_step}; --resume goes on from there")

    def _agree(self) -> None:
        """Read which signal any rank had by the last step, and ask for this step; so no rank waits for the answer."""
        if self.is_alone:
            return
        if self.asked is not None:
            work, answer = self.asked
            work.wait()
            self.agreed = int(answer) or None
        number = torch.tensor(self.signal_number or 0)
        self.asked = distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self.group, async_op=True), number
