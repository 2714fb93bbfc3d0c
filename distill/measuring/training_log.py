"""Read a training's log: its learning curve, an early stop, and warnings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

WORSE = 1.15  # last validation loss divided by the best one; a lower ratio is noise
FELL = 0.97  # last training losses divided by the first ones; above this nothing is learned, above 1 / FELL they rose
JUMPS = 0.5  # mean change from one logged loss to the next, divided by the mean loss; a healthy run has less
FEWEST = 6  # logged losses; with fewer there is no warning about them


def training_curve(role: str, log: Sequence[Mapping[str, Any]], selected_step: int | None) -> dict[str, Any]:
    """Return a run's learning curve from the entries of its metrics.jsonl: training losses and evaluation figures.

    Only evaluations of a model that may give a text several labels have a `micro_f1`.
    """
    steps = [
        {"step": entry["step"], "epoch": entry["epoch"], "loss": entry["loss"]} for entry in log if "loss" in entry
    ]
    evaluations = [
        {"step": entry["step"], "epoch": entry["epoch"]}
        | {name: entry[f"eval_{name}"] for name in ("log_loss", "accuracy", "micro_f1") if f"eval_{name}" in entry}
        for entry in log
        if "eval_accuracy" in entry
    ]
    return {"role": role, "steps": steps, "evaluations": evaluations, "selected_step": selected_step}


def selected_step(training: Mapping[str, Any]) -> int | None:
    """Return the step of the checkpoint that was kept, from the training figures in metrics.json; None if the last."""
    checkpoint = training.get("best_checkpoint")
    return int(checkpoint.rpartition("-")[2]) if checkpoint else None


def early_stop(step: int, planned_steps: int, epoch: float | None, kept: str | None) -> dict[str, Any] | None:
    """Return where a training stopped before its `planned_steps`, for metrics.json; None if it did not.

    `step` and `epoch` are where it ended. `kept` is the checkpoint that was kept, None for the last step.
    """
    if step >= planned_steps:
        return None
    planned_epochs = epoch * planned_steps / step if epoch else None
    epochs = {"epoch": epoch, "planned_epochs": planned_epochs}
    return {"step": step, "planned_steps": planned_steps, **epochs, "kept": kept}


def early_stop_in_words(training: Mapping[str, Any]) -> str:
    """Return in words what `early_stop` found, from the training figures in metrics.json."""
    found = training["stopped_early"]
    text = f"stopped early, at step {found['step']} of {found['planned_steps']}"
    if found["epoch"]:
        text += f" (epoch {found['epoch']:.4g} of {found['planned_epochs']:.4g})"
    return f"{text}; {_kept_in_words(found['kept'], training)}"


def course_in_words(training: Mapping[str, Any]) -> str | None:
    """Return how far a training went and what was kept, from metrics.json; None if that is not known (a baseline)."""
    if "steps" not in training:
        return None
    if training.get("stopped_early"):
        return early_stop_in_words(training)
    epochs = f" ({training['steps'] / each:.3g} epochs)" if (each := training.get("steps_per_epoch")) else ""
    return f"ran all {training['steps']} steps{epochs}; {_kept_in_words(training.get('best_checkpoint'), training)}"


def _kept_in_words(checkpoint: str | None, training: Mapping[str, Any]) -> str:
    if checkpoint is None:
        return "the last step is kept"
    metric = training["selected_by"].removeprefix("eval_").replace("_", " ")
    return f"{checkpoint} is kept, with the best validation {metric} ({training['selected_at']:.4f})"


def warnings_of(log: Sequence[Mapping[str, Any]], *, loss_is_scheduled: bool = False) -> list[str]:
    """Return what a user should know about a finished training, from Trainer's log history; empty if it went well.

    These are hints by rules of thumb; nothing is decided by them. If the loss itself follows a schedule, there are no
    hints about its course.
    """
    losses = [entry["loss"] for entry in log if "loss" in entry and not loss_is_scheduled]
    rates = [entry["learning_rate"] for entry in log if entry.get("learning_rate")]
    evaluations = [entry for entry in log if "eval_log_loss" in entry]
    said = []
    if len(losses) >= FEWEST:
        third = len(losses) // 3
        first, last = mean(losses[:third]), mean(losses[-third:])
        steps = [abs(after - before) for before, after in zip(losses[third:], losses[third + 1 :], strict=False)]
        if last > FELL * first:
            rate, figures = f"{max(rates, default=0):.1e} at its highest", f"({first:.3f} at first, {last:.3f} at last)"
            if last > first / FELL:
                course, cure = "rose", f"the learning rate ({rate}) is probably too high"
            else:
                course = "hardly fell" if last <= first else "did not fall"
                cure = f"the learning rate ({rate}) is probably too low, or far too high"
            said.append(f"the training loss {course} {figures}: {cure}")
        # If the loss is close to 0, a single hard batch makes it jump.
        elif mean(steps) > JUMPS * mean(losses[third:]) and last > 0.2 * first:
            said.append(
                f"the training loss jumps by {mean(steps):.3f} from one log to the next (its mean is "
                f"{mean(losses[third:]):.3f}): try a lower learning rate, a longer warm-up or larger batches"
            )
    if len(evaluations) > 1:
        best = min(evaluations, key=lambda entry: entry["eval_log_loss"])
        last = evaluations[-1]
        since = [entry["loss"] for entry in log if "loss" in entry and entry["step"] > best["step"]]
        before = [entry["loss"] for entry in log if "loss" in entry and entry["step"] <= best["step"]]
        still_falls = losses and since and before and mean(since) < mean(before)
        if last["eval_log_loss"] > WORSE * best["eval_log_loss"] and still_falls:
            said.append(
                f"validation log loss was best at epoch {best['epoch']:.2f} ({best['eval_log_loss']:.3f}) and rose to "
                f"{last['eval_log_loss']:.3f} while the training loss went on falling: it overfits; try fewer epochs, "
                "more texts, or early_stopping_patience with metric_for_best_model: log_loss"
            )
    return said
