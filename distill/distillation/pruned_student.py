"""Cut a student out of a classifier, as large as a budget for its onnx-int8 export allows."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from distill.data.encoding import Truncation, encode
from distill.data.splits import Splits
from distill.distillation.budget import contradiction, estimate, grid, losses_of, search, sizes, smallest, what_to_keep
from distill.errors import RecipeError
from distill.export.latency import Cost, int8_costs, latencies_of
from distill.inference.classifier import open_session, pad, weights_bytes
from distill.machine.cpu import cores, cpu_kind
from distill.machine.devices import Device
from distill.machine.progress import progress_line
from distill.models.config import TOKEN_TYPES, inputs_of, token_limit
from distill.models.importance import Importance, importance_of
from distill.models.loading import load_config, normalized_config
from distill.models.pruning import Kept, Size, parts_of, prune, size_of
from distill.models.students import build_from_config
from distill.recipe.schema import Benchmark, Prune
from distill.storage.files import read_json, write_json
from distill.storage.records import checked
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

FORMAT = "onnx-int8"  # of which a budget is
BUDGET = "budget.json"  # beside the exports: what the finished one costs
TEXTS = 512  # whose logits say how important a part is
AT_ONCE = 16  # texts
NEAR = 0.1  # share of the budget: if a student misses it by more, that is a warning
REPEATS = 4  # measurements of a pair of sizes that contradict each other; other work may have disturbed one
ROUGH_ROUNDS = 5  # timed calls of a model that only has to be possible
LATENCIES = Path(HF_HOME) / "distill" / "latencies"
MEASURED_ANEW: set[Path] = set()  # in this process, for the first of several budgets
KNOWN: dict[bytes, Importance] = {}  # in this process, by a digest of all that the importance depends on


@dataclass(frozen=True)
class Target:
    """The most that a pruned student may cost, in milliseconds at a shape with so many threads, or in megabytes."""

    most: float
    unit: str  # ms or MB
    shape: str
    threads: int | None

    def of(self, cost: Cost) -> float:
        """Return a cost in the target's unit."""
        return cost.latency_ms if self.unit == "ms" else cost.size_bytes / 1e6

    def in_words(self, value: float) -> str:
        """Return a cost, and how far it is from the target."""
        where, apart = f" at {self.shape}" if self.unit == "ms" else "", value / self.most - 1
        side = f"{abs(apart):.1%} {'above' if apart > 0 else 'below'} the budget of {self.most:.4g} {self.unit}"
        return f"{value:.4g} {self.unit}{where}, {side}"


class _Kept(TypedDict):
    layers: list[int]
    heads: list[list[int]]
    channels: list[list[int]]


class _Measured(TypedDict):
    size: list[int]  # layers, heads, channels
    latency_ms: float
    size_bytes: int


class _Latencies(TypedDict):
    depends: dict[str, Any]
    measured: list[_Measured]


class Pruning(TypedDict):
    """What pruning.json holds: the target, what is kept of a model of the size `whole`, and what was measured.

    `lost` is the share of the importance that is cut away, and `cost` what the student costs before it is trained, in
    the target's unit.
    """

    target: dict[str, Any]  # the fields of Target
    cost: float
    lost: float
    whole: list[int]
    kept: _Kept
    measured: list[_Measured]


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
    config = load_config(name)
    count = {normalized_config(config).NUM_LAYERS: size.layers, parts_of(config).width: size.channels}
    model = build_from_config(config, count, seed=0)
    heads, channels = tuple(range(size.heads)), tuple(range(size.channels))
    kept = Kept(tuple(range(size.layers)), (heads,) * size.layers, (channels,) * size.layers)
    return int8_costs([(size, prune(model, kept))], shape, rounds=ROUGH_ROUNDS, threads=threads)[size]


def _target(settings: Prune, benchmark: Benchmark, whole: Cost | None) -> Target:
    """Return what the budget comes to; a speed-up is over the cost of the `whole` model."""
    shape, (key, (budget,)) = settings.shape or benchmark.shapes[0], settings.budgets
    if key == "speedup":
        assert whole is not None
        budget = whole.latency_ms / budget
    return Target(budget, "MB" if key == "size_mb" else "ms", shape, benchmark.threads)


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
    return ", ".join(
        f"{count} {name}{'s' if count > 1 else ''}"
        for count, name in zip(size, ("layer", "head", "channel"), strict=True)
    )


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

    A few sizes are exported to onnx-int8 and measured, and the cost of all others is estimated from them. The size that
    then loses least is measured too, until what is taken is a size that was measured within the budget. Measured sizes
    are kept in HF_HOME for later runs on this machine; if `fresh` is set, they are measured anew. Rank 0 plans for all.
    Raises `RecipeError` if no size is within the budget.
    """
    if not PartialState().is_main_process:
        (found,) = broadcast_object_list([None])
        assert found is not None
        return found
    importance = _importance(model, tokenizer, _some_texts(splits, seed), truncation, seed=seed, device=device)
    whole, shape = size_of(model.config), settings.shape or benchmark.shapes[0]
    table = _Table(model, shape, benchmark, fresh=fresh)

    def measure(wanted: Sequence[Size], progress: Callable[[int], None] = lambda exported: None) -> None:
        # In turn with the whole model, whose earlier latency tells how much slower or faster the machine has become.
        students = ((size, prune(model, what_to_keep(importance, size))) for size in dict.fromkeys((*wanted, whole)))
        costs = int8_costs(students, shape, rounds=benchmark.rounds, threads=benchmark.threads, progress=progress)
        drift = costs[whole].latency_ms / table.costs.get(whole, costs[whole]).latency_ms
        costs = {size: cost._replace(latency_ms=cost.latency_ms / drift) for size, cost in costs.items()}
        table.add({size: min(cost, table.costs.get(size, cost)) for size, cost in costs.items()})  # others only add

    def disturbed() -> tuple[Size, Size] | None:
        return contradiction({size: table.costs[size].latency_ms for size in grid(whole)})

    missing = [size for size in grid(whole) if size not in table.costs]
    if missing:
        with progress_line("latencies in int8", len(missing), "size") as bar:
            measure(missing, bar.update)
    for _ in range(REPEATS):
        if pair := disturbed():
            measure(pair)
    if found := disturbed():
        small, large = found
        log.warning(
            "student: %s took %.3g ms and %s only %.3g ms, so other work disturbs the measurements; stop it and "
            "measure again (--overwrite)",
            _in_words(small), table.costs[small].latency_ms, _in_words(large), table.costs[large].latency_ms,
        )  # fmt: skip
    target = _target(settings, benchmark, table.costs[whole])
    _check_reachable(settings, target, smallest(whole), table.costs[smallest(whole)])

    def measured_cost(size: Size) -> float:
        for _ in range(2):  # once more before it is given up, because other work only adds to a latency
            measure([size])
            if target.of(table.costs[size]) <= target.most:
                break
        return target.of(table.costs[size])

    losses = losses_of(importance, sizes(whole))
    estimated = estimate({size: target.of(table.costs[size]) for size in grid(whole)})
    chosen = search(
        losses,
        {size: estimated(size) for size in losses},
        {size: target.of(cost) for size, cost in table.costs.items()},
        measured_cost,
        target.most,
    )
    kept, lost = what_to_keep(importance, chosen), losses[chosen] / max(losses.values())
    planned: Pruning = {
        "target": asdict(target),
        "cost": target.of(table.costs[chosen]),
        "lost": lost,
        "whole": list(whole),
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


class _Table:
    """The costs of a model's sizes at a shape on this machine, kept in HF_HOME once they are measured."""

    def __init__(self, model: PreTrainedModel, shape: str, benchmark: Benchmark, *, fresh: bool):
        config = model.config.to_dict()
        self.depends = {
            "model": {name: config[name] for name in sorted(config) if type(config[name]) in (int, float, str)},
            "shape": shape,
            "threads": benchmark.threads or cores(),
            "rounds": benchmark.rounds,
            "cpu": cpu_kind(),
            "onnxruntime": onnxruntime.__version__,
            "figure": "median in turn with the whole model",  # tables of earlier versions hold other figures
        }
        key = hashlib.sha256(json.dumps(self.depends).encode()).hexdigest()[:16]
        self.path = LATENCIES / f"{key}.json"
        self.costs: dict[Size, Cost] = {}
        is_stale = fresh and self.path not in MEASURED_ANEW
        if fresh:
            MEASURED_ANEW.add(self.path)
        if self.path.is_file() and not is_stale:
            found = checked(_Latencies, read_json(self.path), str(self.path))["measured"]
            self.costs = {Size(*one["size"]): Cost(one["latency_ms"], one["size_bytes"]) for one in found}
            log.info("student: %d latencies were measured before (%s)", len(self.costs), self.path)

    def add(self, costs: Mapping[Size, Cost]) -> None:
        """Keep the costs of sizes."""
        self.costs |= costs
        write_json(self.path, {"depends": self.depends, "measured": self.as_json()})

    def as_json(self) -> list[_Measured]:
        return [
            {"size": list(size), "latency_ms": cost.latency_ms, "size_bytes": cost.size_bytes}
            for size, cost in self.costs.items()
        ]


def pruned(model: PreTrainedModel, pruning: Pruning) -> PreTrainedModel:
    """Return what is kept of the model."""
    return prune(model, _kept(pruning))


def _kept(pruning: Pruning) -> Kept:
    parts = pruning["kept"]
    return Kept(tuple(parts["layers"]), tuple(map(tuple, parts["heads"])), tuple(map(tuple, parts["channels"])))


def tell(pruning: Pruning) -> None:
    """Log what is kept, and what that cost when it was measured."""
    kept, whole = _kept(pruning), Size(*pruning["whole"])
    log.info(
        "student: keeps layers %s of %d, with %d of %d heads and %d of %d channels each; %.1f %% of the importance is "
        "lost",
        ", ".join(map(str, kept.layers)), whole.layers, kept.size.heads, whole.heads, kept.size.channels,
        whole.channels, 100 * pruning["lost"],
    )  # fmt: skip
    if kept.size == whole:
        log.warning("student: the whole model is within the budget, so nothing is cut away")
    else:
        _compare(f"student: in {FORMAT}", Target(**pruning["target"]), pruning["cost"])


def _lists(units: Sequence[tuple[int, ...]]) -> list[list[int]]:
    return [list(numbers) for numbers in units]


def _compare(what: str, target: Target, value: float) -> None:
    near = abs(value / target.most - 1) <= NEAR
    log.log(logging.INFO if near else logging.WARNING, "%s: %s", what, target.in_words(value))


def read_pruning(folder: RunFolder) -> Pruning:
    """Return what the student in a run folder keeps; raises `FolderError` if that is not there or damaged."""
    return checked(Pruning, read_json(folder.pruning), str(folder.pruning))


def check_export(run: RunFolder, exports: Path, *, rounds: int) -> dict[str, Any] | None:
    """Measure the finished onnx-int8 export of a pruned student, say how far it is from its budget, and return that.

    Returns None if the model is not pruned or has no such export.
    """
    folder = exports / FORMAT
    if not run.pruning.is_file() or not folder.is_dir():
        return None
    target, config = Target(**read_pruning(run)["target"]), load_config(str(folder))
    session = open_session(str(folder), config, "cpu", threads=target.threads)
    latencies = latencies_of(session, target.shape, rounds=rounds, vocabulary=config.vocab_size)
    value = target.of(Cost(median(latencies), weights_bytes(folder)))  # the median, as in a report
    _compare(f"export: {FORMAT}", target, value)
    return {"budget": asdict(target), "measured": value, "above_budget": value / target.most - 1}
