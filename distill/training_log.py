"""What a training's log says of how it went: as a curve, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

WORSE = 1.15  # validation loss over its best: less is noise
FELL = 0.97  # last training losses over the first ones: more is no learning
JUMPS = 0.5  # mean step from one logged loss to the next over their mean: batches of a healthy run differ by less
FEWEST = 6  # logged losses without which nothing is said of their course


def training_curve(role: str, log: Sequence[Mapping[str, Any]], selected_step: int | None) -> dict[str, Any]:
    """Return a run's learning curve from the entries of its metrics.jsonl: losses of steps, figures of evaluations."""
    values = {"loss": "loss", "log_loss": "eval_log_loss", "accuracy": "eval_accuracy"}
    steps = [
        {"step": entry["step"], "epoch": entry["epoch"], "loss": entry["loss"]} for entry in log if "loss" in entry
    ]
    evaluations = [
        {"step": entry["step"], "epoch": entry["epoch"]}
        | {name: entry[key] for name, key in values.items() if name != "loss" and key in entry}
        for entry in log
        if "eval_accuracy" in entry
    ]
    return {"role": role, "steps": steps, "evaluations": evaluations, "selected_step": selected_step}


def selected_step(training: Mapping[str, Any]) -> int | None:
    """Return the step whose checkpoint was kept, of the training figures in metrics.json; None where it is the last."""
    checkpoint = training.get("best_checkpoint")
    return int(checkpoint.rpartition("-")[2]) if checkpoint else None


def warnings_of(log: Sequence[Mapping[str, Any]], *, loss_is_scheduled: bool = False) -> list[str]:
    """Return what a user should know of a finished training, from Trainer's log history; empty where it went well.

    Rules of thumb for hints, no more: nothing is decided by them. Where the loss itself follows a schedule, nothing is
    said of its course.
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
            said.append(
                f"the training loss hardly fell ({first:.3f} at first, {last:.3f} at last): the learning rate "
                f"({max(rates, default=0):.1e} at its highest) is probably too low, or far too high"
            )
        # Where the loss is nearly gone, a single hard batch makes it jump.
        elif mean(steps) > JUMPS * mean(losses[third:]) and last > 0.2 * first:
            said.append(
                f"the training loss jumps by {mean(steps):.3f} from one log to the next (its mean is "
                f"{mean(losses[third:]):.3f}): a lower learning rate, a longer warm-up or larger batches steady it"
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
                f"{last['eval_log_loss']:.3f} while the training loss went on falling: it memorises; what helps is "
                "fewer epochs, more texts, or early_stopping_patience with metric_for_best_model: log_loss"
            )
    return said
