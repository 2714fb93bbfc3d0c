"""Cut a student out of a classifier, as large as a budget for its onnx-int8 export allows."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from distill.data.encoding import Truncation, encode
from distill.data.splits import Splits
from distill.distillation.budget import (
    MOST_TRIES,
    choose,
    contradiction,
    estimate,
    grid,
    loss_of,
    search,
    smallest,
    what_to_keep,
)
from distill.distillation.latency_table import JsonSize, LatencyTable, Measured, size_as_json, size_from_json
from distill.errors import RecipeError
from distill.export.latency import Cost, first_int8, int8_costs, latencies_in_turn
from distill.inference.classifier import open_session, pad, weights_bytes
from distill.machine.devices import Device
from distill.machine.progress import progress_line
from distill.machine.timing import speedup
from distill.models.config import TOKEN_TYPES, inputs_of, token_limit
from distill.models.importance import Importance, importance_of
from distill.models.loading import load_config, normalized_config
from distill.models.pruning import Kept, Size, parts_of, prune, size_of, used_size
from distill.models.students import build_from_config
from distill.recipe.schema import Benchmark, Prune
from distill.storage.files import read_json
from distill.storage.records import checked
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

FORMAT = "onnx-int8"  # of which a budget is
BUDGET = "budget.json"  # beside the exports: what the finished one costs
TEXTS = 512  # whose logits say how important a part is
AT_ONCE = 16  # texts
NEAR = 0.1  # share of the budget: if a student misses it by more, that is a warning; any excess of a size is one
SPARE = 0.01  # share of the megabytes beyond the smallest model, since training changes which channels are wide
REPEATS = 4  # measurements of a pair of sizes that contradict each other; other work may have disturbed one
ROUGH_ROUNDS = 5  # timed calls of a model that only has to be possible
KNOWN: dict[bytes, Importance] = {}  # in this process, by a digest of all that the importance depends on


@dataclass(frozen=True)
class Target:
    """The most that a pruned student may cost, in milliseconds at a shape with so many threads, or in megabytes.

    If a speed-up was asked for, `most` is the latency of the whole model, when that was measured, over the speed-up.
    """

    most: float
    unit: str  # ms or MB
    shape: str
    threads: int | None
    speedup: float | None

    def of(self, cost: Cost) -> float:
        """Return a cost in the target's unit."""
        return cost.latency_ms if self.unit == "ms" else cost.size_bytes / 1e6

    def in_words(self, value: float) -> str:
        """Return a cost, and how far it is from the target."""
        where = f" at {self.shape}" if self.unit == "ms" else ""
        if self.speedup is not None:
            faster = self.speedup * self.most / value
            return f"{faster:.3g} times as fast as the whole model{where}; {self.speedup:g} times was asked for"
        apart = value / self.most - 1
        side = f"{abs(apart):.1%} {'above' if apart > 0 else 'below'} the budget of {self.most:.4g} {self.unit}"
        return f"{value:.4g} {self.unit}{where}, {side}"


class _Kept(TypedDict):
    layers: list[int]
    heads: list[list[int]]
    channels: list[list[int]]


class Pruning(TypedDict):
    """What pruning.json holds: the target, what is kept of a model of the size `whole`, and what was measured.

    `whole` leaves out what is empty in it already. `lost` is the share of the importance that is cut away, and `cost`
    what the student costs before it is trained, in the target's unit.
    """

    target: dict[str, Any]  # the fields of Target
    cost: float
    lost: float
    whole: JsonSize
    kept: _Kept
    measured: list[Measured]


def check_prunable(settings: Prune, benchmark: Benchmark, name: str, *, trimmed: bool) -> None:
    """Raise an error if the model `name` cannot be pruned to the budget; only its configuration is read.

    The smallest model that can be left is exported and measured, with random weights, and for a speed-up the whole one
    too. If the vocabulary is to be `trimmed`, its size is not known yet.
    """
    config = load_config(name)
    parts_of(config)
    shape, limit = settings.shape or benchmark.shapes[0], token_limit(config)
    if limit is not None and int(shape.split("x")[1]) > limit:
        raise RecipeError(f"student.prune.shape: {shape}, but {name} takes at most {limit} tokens; give a shorter one")
    if settings.size_mb and trimmed:
        return
    cost_of = functools.partial(_rough_cost, name, shape, benchmark.threads)
    target = _target(settings, benchmark, cost_of(size_of(config)) if settings.speedup else None)
    _check_reachable(settings, target, smallest(size_of(config)), cost_of(smallest(size_of(config))))


@functools.cache
def _rough_cost(name: str, shape: str, threads: int | None, size: Size) -> Cost:
    """Return the cost of a model as `name`, but of this size and with random weights."""
    models = [(size, _random_model(load_config(name), size))]
    return int8_costs(models, shape, rounds=ROUGH_ROUNDS, threads=threads)[size]


def _random_model(config: PretrainedConfig, size: Size) -> PreTrainedModel:
    """Return a model of the configuration's architecture, but of this size and with random weights."""
    count = {normalized_config(config).NUM_LAYERS: size.layers, parts_of(config).width: max(size.channels)}
    heads, channels = (tuple(tuple(range(number)) for number in numbers) for numbers in size)
    return prune(build_from_config(config, count, seed=0), Kept(tuple(range(size.layers)), heads, channels))


def _target(settings: Prune, benchmark: Benchmark, whole: Cost | None) -> Target:
    """Return what the budget comes to; a speed-up is over the cost of the `whole` model."""
    shape, (key, (budget,)) = settings.shape or benchmark.shapes[0], settings.budgets
    if key == "speedup":
        assert whole is not None
        return Target(whole.latency_ms / budget, "ms", shape, benchmark.threads, budget)
    return Target(budget, "MB" if key == "size_mb" else "ms", shape, benchmark.threads, None)


def _check_reachable(settings: Prune, target: Target, least: Size, cost: Cost) -> None:
    if target.of(cost) <= target.most:
        return
    key, (budget,) = settings.budgets
    where = f" at {target.shape}" if target.unit == "ms" else ""
    raise RecipeError(
        f"student.prune.{key}: {budget:g}, so at most {target.most:.3g} {target.unit}, but the "
        f"smallest student, of {_in_words(least)}, takes {target.of(cost):.3g} {target.unit}{where}; "
        + ("give more" if key != "speedup" else "give less")
    )


def _in_words(size: Size) -> str:
    """Return the numbers of a size whose layers are equal."""
    numbers = {"layer": size.layers, "head": size.heads[0], "channel": size.channels[0]}
    return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in numbers.items())


def plan_pruning(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    truncation: Truncation,
    settings: Prune,
    benchmark: Benchmark,
    *,
    seed: int,
    device: Device,
    fresh: bool,
) -> Pruning:
    """Return what to cut out of `model` so that as little importance as possible is lost within the budget.

    A few sizes are exported to onnx-int8 and measured, and what each layer of any other costs is estimated from them.
    What then loses least is measured too, until it is within the budget and close to it. Measured sizes are kept in
    HF_HOME for later runs on this machine; if `fresh` is set, they are measured anew. Rank 0 plans for all. Raises
    `RecipeError` if no size is within the budget.
    """
    if not PartialState().is_main_process:
        (found,) = broadcast_object_list([None])
        assert found is not None
        return found
    importance = _importance(model, tokenizer, _some_texts(splits, seed), truncation, seed=seed, device=device)
    whole, used, shape = size_of(model.config), used_size(model), settings.shape or benchmark.shapes[0]
    table = LatencyTable(model, shape, benchmark, fresh=fresh)
    measurable = model
    if used != whole:  # exports leave out what an earlier pruning emptied, so measure weights that are not zero
        with torch.random.fork_rng(devices=[]):
            measurable = type(model)(model.config).eval()

    def measure(students: Iterable[Kept], progress: Callable[[int], None] = lambda exported: None) -> None:
        # In turn with the whole model, whose earlier latency tells how much slower or faster the machine has become.
        by_size = {kept.size: kept for kept in (*students, what_to_keep(importance, whole))}
        models = ((size, prune(measurable, kept)) for size, kept in by_size.items())
        costs = int8_costs(models, shape, rounds=benchmark.rounds, threads=benchmark.threads, progress=progress)
        drift = costs[whole].latency_ms / table.costs.get(whole, costs[whole]).latency_ms
        costs = {size: cost._replace(latency_ms=cost.latency_ms / drift) for size, cost in costs.items()}
        table.add({size: min(cost, table.costs.get(size, cost)) for size, cost in costs.items()})  # others only add

    def evenly(sizes: Iterable[Size]) -> list[Kept]:
        return [what_to_keep(importance, size) for size in sizes]

    def disturbed() -> tuple[Size, Size] | None:
        return contradiction({size: table.costs[size].latency_ms for size in grid(whole)})

    missing = [size for size in dict.fromkeys((*grid(whole), used)) if size not in table.costs]
    if missing:
        with progress_line("latencies in int8", len(missing), "size") as bar:
            measure(evenly(missing), bar.update)
    for _ in range(REPEATS):
        if pair := disturbed():
            measure(evenly(pair))
    if found := disturbed():
        small, large = found
        log.warning(
            "student: %s took %.3g ms and %s only %.3g ms, so other work disturbs the measurements; stop it and "
            "measure again (--overwrite)",
            _in_words(small), table.costs[small].latency_ms, _in_words(large), table.costs[large].latency_ms,
        )  # fmt: skip
    target = _target(settings, benchmark, table.costs[used])
    _check_reachable(settings, target, smallest(whole), table.costs[smallest(whole)])

    def measured_cost(kept: Kept) -> float:
        for _ in range(2 if target.unit == "ms" else 1):  # once more, because other work only adds to a latency
            measure([kept])
            if target.of(table.costs[kept.size]) <= target.most:
                break
        bar.update()
        return target.of(table.costs[kept.size])

    costs = estimate({size: target.of(table.costs[size]) for size in grid(whole)}, whole)
    known = {size: target.of(cost) for size, cost in table.costs.items()}
    if known[used] <= target.most:
        found = [what_to_keep(importance, used)]
    else:
        least = known[smallest(whole)]
        most = target.most - SPARE * (target.most - least) if target.unit == "MB" else target.most
        best = functools.partial(choose, importance, costs, used)
        with progress_line("sizes tried", MOST_TRIES, "size") as bar:
            found = search(best, costs.of, known, measured_cost, most, least)
    kept = min((*found, what_to_keep(importance, smallest(whole))), key=functools.partial(loss_of, importance))
    planned: Pruning = {
        "target": asdict(target),
        "cost": target.of(table.costs[kept.size]),
        "lost": loss_of(importance, kept),
        "whole": size_as_json(used),
        "kept": {"layers": list(kept.layers), "heads": _lists(kept.heads), "channels": _lists(kept.channels)},
        "measured": table.as_json(),
    }
    broadcast_object_list([planned])
    return planned


def _importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    truncation: Truncation,
    *,
    seed: int,
    device: Device,
) -> Importance:
    """Compute the importance of the parts of `model` on the texts, unless that was done for an earlier budget."""
    settings = [model.config.to_json_string(), list(texts), astuple(truncation), seed]
    read = hashlib.sha256(json.dumps(settings).encode())
    for tensor in model.state_dict().values():
        read.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    if read.digest() not in KNOWN:
        with progress_line("importance of heads and channels", len(texts), "text") as bar:
            batches = _batches(model, tokenizer, texts, truncation)
            found = importance_of(model.to(torch.device(device)), batches, seed=seed, progress=bar.update)
        model.to("cpu")
        KNOWN[read.digest()] = found
    return KNOWN[read.digest()]


def _some_texts(splits: Splits, seed: int) -> list[str]:
    """Return texts of train and transfer, drawn with the seed."""
    rows = [part for part in (splits.train, splits.transfer) if part is not None]
    drawn = np.random.default_rng(seed).permutation(sum(map(len, rows)))[:TEXTS]
    texts: list[str] = []
    for part in rows:
        texts += part.select(sorted(drawn[(drawn >= 0) & (drawn < len(part))]))["text"][:]
        drawn = drawn - len(part)
    return texts


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], truncation: Truncation
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the inputs of the model for all texts, the longest first."""
    ids, _, types = encode(tokenizer, texts, truncation)
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    for start in range(0, len(order), AT_ONCE):
        rows = order[start : start + AT_ONCE]
        input_ids, mask = pad([ids[row] for row in rows], tokenizer.pad_token_id)
        given = {"input_ids": input_ids, "attention_mask": mask}
        if types is not None:
            given[TOKEN_TYPES] = pad([types[row] for row in rows], 0)[0]
        yield {name: torch.from_numpy(array) for name, array in inputs_of(model.config, given).items()}


def pruned(model: PreTrainedModel, pruning: Pruning) -> PreTrainedModel:
    """Return what is kept of the model."""
    return prune(model, _kept(pruning))


def _kept(pruning: Pruning) -> Kept:
    parts = pruning["kept"]
    return Kept(tuple(parts["layers"]), tuple(map(tuple, parts["heads"])), tuple(map(tuple, parts["channels"])))


def tell(pruning: Pruning) -> None:
    """Log what is kept, and what that cost when it was measured."""
    kept, whole = _kept(pruning), size_from_json(pruning["whole"])
    log.info(
        "student: keeps layers %s of %d, with %s of %d heads and %s of %d channels; %.1f %% of the importance is lost",
        _listed(kept.layers), whole.layers, _listed(kept.size.heads), max(whole.heads), _listed(kept.size.channels),
        max(whole.channels), 100 * pruning["lost"],
    )  # fmt: skip
    if kept.size == whole:
        log.warning("student: the whole model is within the budget, so nothing is cut away")
    else:
        _compare(f"student: in {FORMAT}", Target(**pruning["target"]), pruning["cost"])


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _lists(units: Sequence[tuple[int, ...]]) -> list[list[int]]:
    return [list(numbers) for numbers in units]


def _compare(what: str, target: Target, value: float) -> None:
    apart = value / target.most - 1
    near = -NEAR <= apart <= (NEAR if target.unit == "ms" else 0)  # a file's size is no estimate
    log.log(logging.INFO if near else logging.WARNING, "%s: %s", what, target.in_words(value))


def read_pruning(folder: RunFolder) -> Pruning:
    """Return what the student in a run folder keeps; raises `FolderError` if that is not there or damaged."""
    return checked(Pruning, read_json(folder.pruning), str(folder.pruning))


def check_export(run: RunFolder, exports: Path, *, rounds: int) -> dict[str, Any] | None:
    """Measure the finished onnx-int8 export of a pruned student, say how far it is from its budget, and return that.

    If a speed-up was asked for, a model of the whole one's size, with random weights, is timed in turn with it. Returns
    None if the model is not pruned or has no such export.
    """
    folder = exports / FORMAT
    if not run.pruning.is_file() or not folder.is_dir():
        return None
    pruning, config = read_pruning(run), load_config(str(folder))
    target = Target(**pruning["target"])
    with tempfile.TemporaryDirectory() as work:
        sessions = {"finished": open_session(str(folder), config, "cpu", threads=target.threads)}
        if target.speedup is not None:
            whole = _random_model(config, size_from_json(pruning["whole"]))
            sessions["whole"] = first_int8(whole, Path(work), threads=target.threads)
        latencies = latencies_in_turn(sessions, target.shape, rounds=rounds, vocabulary=config.vocab_size)
    now = median(latencies["finished"])  # the median, as in a report
    if target.speedup is not None:  # as fast as the machine was when the budget was set
        now = target.speedup * target.most / speedup(latencies["whole"], latencies["finished"]).median
    value = target.of(Cost(now, weights_bytes(folder)))
    _compare(f"export: {FORMAT}", target, value)
    return {"budget": asdict(target), "measured": value, "above_budget": value / target.most - 1}
