"""Steps of the measurement: each runs a command with a time limit, and keeps what it found or why it failed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / "tools"
GRACE_SECONDS = 30.0  # from asking a step to stop, with a checkpoint, to killing it
LEAST_SECONDS = 20.0  # with less time left, no step begins
SHAPES = ("1x128", "128x128", "8x128", "1x512", "32x512", "32x64-512")  # those with a goal first, several lengths last


class Failed(Exception):
    """A step did not do what it should; the message is what is kept of it."""


class Skipped(Exception):
    """A step lacks something, which the message names."""


@dataclass(frozen=True)
class Size:
    """How much is measured: real, or just enough to see that all of it runs."""

    texts: int  # that training speed is measured on
    batches: tuple[int, ...]
    labelled: int
    teacher_epochs: int
    student_steps: int
    batch: int
    learning_rate: float
    base_epochs: int  # of the teacher of base size
    base_rate: float  # its learning rate
    rounds: int
    shapes: tuple[str, ...]
    predicted: int
    peak: tuple[str, ...]
    quickstart: tuple[str, ...]
    patience: float  # times the steps' minutes


REAL = Size(
    texts=4_096, batches=(8, 32, 64), labelled=25_000, teacher_epochs=3, student_steps=3_500, batch=32,
    learning_rate=1e-4, base_epochs=2, base_rate=3e-5, rounds=100, shapes=SHAPES, predicted=2_000, peak=(),
    quickstart=("data.train_samples=1000", "data.test_samples=200"), patience=1.0,
)  # fmt: skip
TOY = Size(
    texts=24, batches=(8,), labelled=600, teacher_epochs=2, student_steps=24, batch=32, learning_rate=3e-3,
    base_epochs=2, base_rate=3e-3, rounds=5, shapes=("4x16", "4x4-16"), predicted=40,
    peak=("--side", "128", "--gigabytes", "0.01", "--rounds", "5"),
    quickstart=("data.train_samples=200", "data.test_samples=40"), patience=5.0,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A part of a part: at most so many minutes, and what it does; it returns what it found."""

    name: str
    minutes: float
    run: Callable[[Visit], dict[str, Any]]
    again: bool = False  # in every visit, since what it sums up has grown


@dataclass(frozen=True)
class Visit:
    """What was asked for, and until when (time.monotonic) the running step may take."""

    arguments: argparse.Namespace
    size: Size
    end: float
    log: Path

    @property
    def work(self) -> Path:
        return self.arguments.work

    @property
    def models(self) -> Path:
        return self.work / "models"

    @property
    def encoder(self) -> Path:
        return self.models / "encoder" if self.arguments.toy else self.given("minilm")

    @property
    def base(self) -> Path:
        """The encoder of BERT-base's size."""
        return self.models / "encoder" if self.arguments.toy else self.given("base")

    def given(self, name: str) -> Path:
        """Return the path of an argument; raises `Skipped` where it was not given or is not there."""
        value = getattr(self.arguments, name.replace("-", "_"))
        if value is None:
            raise Skipped(f"no --{name}")
        if not value.exists():
            raise Skipped(f"--{name} {value}: not there")
        return value

    def texts(self, name: str, data: str = "imdb") -> Path:
        """Return a file of IMDb or Yelp, or of the rehearsal's texts, which stand under the same names."""
        folder = self.work / "texts" if self.arguments.toy else self.given(data)
        if not (folder / f"{data}_{name}.parquet").is_file():
            raise Skipped(f"{folder}: no {data}_{name}.parquet")
        return folder / f"{data}_{name}.parquet"

    def tool(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a script by its path in tools/ and return the JSON in its last line."""
        return self.measure(sys.executable, TOOLS / name, *arguments)

    def distill(self, *arguments: object, on_device: bool = True) -> str:
        """Run a command of distill, on the device unless it takes none, and return what it printed."""
        device = ("--device", self.arguments.device) if on_device else ()
        return self.call(sys.executable, "-m", "distill", *arguments, *device)

    def measure(self, *command: object) -> dict[str, Any]:
        """Run a command and return the JSON in its last line, with the most memory that the GPU held meanwhile."""
        with gpu_memory() as most:
            lines = self.call(*command).strip().splitlines()
        try:
            found = json.loads(lines[-1], parse_constant=lambda name: None)  # NaN, which our files do not hold
        except (IndexError, ValueError):
            raise Failed(f"its last line is no JSON: {''.join(lines[-1:])[:300]}") from None
        return found | most

    def call(self, *command: object, may_fail: bool = False) -> str:
        """Run a command in the project's root until the step's time is up; return what it printed to stdout.

        Raises `Failed`, with the end of what it printed to stderr, where it fails or takes too long.
        """
        words = list(map(str, command))
        out, errors = self.work / "stdout", self.work / "stderr"
        with open(out, "wb") as to, open(errors, "wb") as err:
            # A group, to be stopped with all that it started; of this session, which the machine ends with us.
            process = subprocess.Popen(words, cwd=ROOT, env=environment(self), stdout=to, stderr=err, process_group=0)
            try:
                process.wait(max(0.0, self.end - time.monotonic()))
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
            finally:
                stop(process)
        said = errors.read_text(errors="replace").replace("\r", "\n")
        with open(self.log, "a") as log:
            log.write(f"$ {shlex.join(words)}\n{said[-100_000:]}\n{out.read_text(errors='replace')[-20_000:]}\n")
        if not in_time:
            raise Failed("its time was up")
        if process.returncode and not may_fail:
            lines = said.strip().splitlines()
            reason = [line for line in lines if line.startswith("error: ")] or lines[-1:]
            raise Failed(f"exit status {process.returncode}: {''.join(reason[-1:])}\n{said.strip()[-1_500:]}")
        return out.read_text(errors="replace")


def attempt(step: Step, visit: Visit) -> dict[str, Any]:
    """Do a step and return what it found, or why it was skipped or failed, and the seconds that it took."""
    begun = time.monotonic()
    left = visit.end - begun
    print(f"visit: {step.name} ({left / 60:.1f} minutes left)", file=sys.stderr, flush=True)
    if left < LEAST_SECONDS:
        return {"error": "not begun: the time was up; the same command goes on from here"}
    try:
        found = step.run(replace(visit, end=min(visit.end, begun + 60 * step.minutes * visit.size.patience)))
    except Skipped as reason:
        found = {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001 - one step that fails must not cost the visit
        found = {"error": str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"}
        print(f"visit: {step.name} failed: {found['error'].splitlines()[0]}", file=sys.stderr, flush=True)
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def environment(visit: Visit) -> dict[str, str]:
    """Return the environment of every command: this tree's distill, no hub, caches in WORK, a GPU only where meant."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {"HF_HOME": visit.work / "huggingface", "TORCHINDUCTOR_CACHE_DIR": visit.work / "inductor"}
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    found |= {name: str(path) for name, path in kept.items()}
    return found | ({"CUDA_VISIBLE_DEVICES": ""} if visit.arguments.device == "cpu" else {})


def stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a command's group: asked to, which leaves a checkpoint, and killed after `GRACE_SECONDS`."""
    for wanted, patience in ((signal.SIGTERM, GRACE_SECONDS - 5), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + patience
        try:
            os.killpg(process.pid, wanted)
            while time.monotonic() < end:
                process.poll()  # a child that has ended is of the group until it is waited for
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


@contextlib.contextmanager
def gpu_memory() -> Iterator[dict[str, int]]:
    """Yield a dictionary that holds, once the block is left, `gpu_peak_bytes`: the most that the driver saw in use."""
    most: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not done.wait(0.5):
            try:
                used = subprocess.check_output(query, text=True, stderr=subprocess.DEVNULL, timeout=10)
                most["gpu_peak_bytes"] = max(most.get("gpu_peak_bytes", 0), int(used.split()[0]) * 2**20)
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                return  # no such program, or it does not say

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
