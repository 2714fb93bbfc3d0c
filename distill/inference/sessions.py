"""A finished classifier on a device, token ids in and logits out: torch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from transformers import PretrainedConfig, PreTrainedModel

from distill.errors import DeviceError, ModelError, one_line
from distill.machine.devices import Device, has_fast_bf16, resolve_device
from distill.models.calibration import CONFIG_KEY
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import INPUTS, ONNX_WEIGHTS, OPENVINO_WEIGHTS, check_outputs, load_weights
from distill.storage.checksums import ANSWERING, check_whole

OPENVINO_EXTRA = "pip install openvino nncf"
FOR_CPUS = ("onnx-int8", "openvino-bf16", "openvino-int8")  # formats that run on no other device
_FIRST_TENSOR = threading.Lock()
TORCH_FORMATS = {torch.float32: "torch-fp32", torch.float16: "torch-fp16", torch.bfloat16: "torch-bf16"}
# Padded tokens in one batch. Larger ones stop being faster long before they stop costing memory; on one thread of a CPU
# they are slower, since what a layer makes of them no longer fits into the cache.
BATCH_TOKENS: dict[Device, int] = {"cpu": 2_048, "cuda": 65_536}
ONE_THREAD_BATCH_TOKENS = 1_024

# ONNX Runtime's errors have nothing in common but Python's Exception.
ONNX_ERRORS = (
    RuntimeError, onnx_errors.EPFail, onnx_errors.Fail, onnx_errors.InvalidArgument, onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf, onnx_errors.NoModel, onnx_errors.NoSuchFile, onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
)  # fmt: skip
# What the runtimes say before they come to the point: which of their own lines it was.
ONNX_PLACE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/\S+:\d+ .*?\) (?=[A-Z])")
OPENVINO_PLACES = ("Exception from ", "Check '", "FrontEnd API failed", "Loading input model", "Model wasn't fully")
# The types of numbers that a graph may want and give, as ONNX Runtime and as OpenVINO call them.
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "i64": np.int64, "i32": np.int32}
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)", "f32", "f16", "f64", "bf16")
TOKEN_TYPES = "token_type_ids"  # an input of other exporters' graphs; always 0 here

Batch = tuple[np.ndarray, np.ndarray]  # int64 ids and mask, both (batch, tokens)


class Session(Protocol):
    """A classifier on a device: token ids in, logits out; `batch_tokens` is the best size of a batch among many."""

    device: Device
    format: str
    batch_tokens: int

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return float32 logits (batch, classes) of int64 ids and mask, both (batch, tokens), as soon as it can."""
        ...

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """Yield the logits of each batch, in order, as many a second as it can."""
        ...


class TorchSession:
    """A transformers model in eval mode, in the dtype of its weights, its logits divided by its config's temperature.

    Except fp16 on a CPU, which computes in fp32: torch's fp16 kernels for CPUs are many times slower.
    """

    def __init__(self, model: PreTrainedModel, device: Device):
        self.format = TORCH_FORMATS[model.dtype]
        if model.dtype == torch.float16 and device == "cpu":
            model = model.float()
        self.model = model.to(torch.device(device)).eval()
        self.device: Device = device
        self.batch_tokens = BATCH_TOKENS[device]
        self._last_layer = last_layer(self.model)
        self._alone = threading.Lock()  # the last layer is another one while a batch runs

    @torch.inference_mode()
    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(input_ids).to(self.device, non_blocking=True)
        mask = torch.from_numpy(attention_mask).to(self.device, non_blocking=True)
        with self._alone, first_token_only(self._last_layer):
            logits = self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        return logits / calibration_temperature(self.model.config)

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        return (self.run(*batch) for batch in batches)


class OnnxSession:
    """An ONNX file with inputs input_ids and attention_mask and output logits, in ONNX Runtime.

    The logits are the graph's own: what calibrates them is in the graph, for those who run it without distill. One
    batch runs on all threads; of many, as many at once as there are threads, each on one, where none waits for another.
    """

    def __init__(self, path: Path, device: Device, threads: int | None = None, *, format: str = "onnx"):
        onnxruntime.disable_telemetry_events()  # which builds for Windows send
        options = onnxruntime.SessionOptions()
        # Warnings are about the graph's history, nothing a user can act on; errors are raised too, and printed past
        # Python they would carry a stranger's names of nodes to the terminal as they are.
        options.log_severity_level = 4
        onnxruntime.set_default_logger_severity(4)
        self._path, self._threads = path, threads or cores()
        options.intra_op_num_threads = self._threads
        if device == "cuda" and not onnx_runs_on_cuda():
            raise DeviceError(
                f"{path.parent}: this onnxruntime has no CUDA provider", hint="pip install onnxruntime-gpu"
            )
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))
        except ONNX_ERRORS as error:
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {_onnx_reason(error)}") from error
        # ONNX Runtime falls back to the CPU in silence where CUDA cannot start; a figure would then carry a false name.
        if device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"{path}: ONNX Runtime could not start CUDA", hint="distill works on the CPU: --device cpu"
            )
        inputs = {item.name: (item.type, item.shape) for item in self._session.get_inputs()}
        outputs = {item.name: (item.type, item.shape) for item in self._session.get_outputs()}
        if "logits" not in outputs:
            raise ModelError(f"{path}: has no output named logits, but {', '.join(outputs)}")
        self._types = _input_types(inputs, path)
        self.outputs = _classes_of(*outputs["logits"], path)
        self.device: Device = device
        self.format = format
        self.batch_tokens = BATCH_TOKENS["cuda"] if device == "cuda" else ONE_THREAD_BATCH_TOKENS

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = _feed(self._types, input_ids, attention_mask)
        try:
            if self.device == "cuda":
                return _run_bound(self._session, feed, "cuda")
            return self._session.run(["logits"], feed)[0].astype(np.float32)
        except ONNX_ERRORS as error:
            raise ModelError(f"{self._path}: ONNX Runtime cannot run it: {_onnx_reason(error)}") from error

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        are_many, batches = _are_many(batches, self._threads)
        if self.device == "cuda" or not are_many:
            return (self.run(*batch) for batch in batches)
        return _at_once(self._on_one_thread.run, batches, self._threads)

    @cached_property
    def _on_one_thread(self) -> OnnxSession:
        return OnnxSession(self._path, "cpu", 1, format=self.format)


class OpenVinoSession:
    """An OpenVINO model of the same inputs and output as an ONNX one, on the CPU.

    What is not int8 runs in bf16 where the CPU is faster in it, else in fp32: without the instructions OpenVINO
    emulates bf16, some forty times slower. Raises `DeviceError` where the extra is not installed.
    """

    device: Device = "cpu"
    batch_tokens = ONE_THREAD_BATCH_TOKENS

    def __init__(self, path: Path, threads: int | None = None, *, format: str = "openvino"):
        self._path, self._threads = path, threads or cores()
        compiled = self._compiled(streams=1)
        inputs = {_name_of(port): (port.element_type.get_type_name(), _shape_of(port)) for port in compiled.inputs}
        self._types = _input_types(inputs, path)
        names = [_name_of(port) for port in compiled.outputs]
        if len(names) > 1 and "logits" not in names:
            raise ModelError(f"{path}: has no output named logits, but {', '.join(names)}")
        self._output = names.index("logits") if "logits" in names else 0
        port = compiled.output(self._output)
        self.outputs = _classes_of(port.element_type.get_type_name(), _shape_of(port), path)
        self._request, self._alone = compiled.create_infer_request(), threading.Lock()
        self.format = format

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with self._alone:  # a request holds one text's answer at a time
            return self._infer(self._request, input_ids, attention_mask)

    def _infer(self, request: Any, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        try:
            request.infer(_feed(self._types, input_ids, attention_mask), share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"{self._path}: OpenVINO cannot run it: {_openvino_reason(error)}") from error
        return np.array(request.get_output_tensor(self._output).data, np.float32)  # a copy: the next call writes there

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        are_many, batches = _are_many(batches, self._threads)
        if not are_many:
            return (self.run(*batch) for batch in batches)
        idle = SimpleQueue[Any]()
        for _ in range(self._threads):
            idle.put(self._on_streams.create_infer_request())

        def run(*batch: np.ndarray) -> np.ndarray:
            request = idle.get()
            try:
                return self._infer(request, *batch)
            finally:
                idle.put(request)

        return _at_once(run, batches, self._threads)

    @cached_property
    def _on_streams(self) -> Any:
        return self._compiled(streams=self._threads)

    def _compiled(self, streams: int) -> Any:
        settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": "bf16" if has_fast_bf16("cpu") else "f32",
        }
        try:
            core = import_openvino().Core()
            return core.compile_model(core.read_model(self._path), "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"{self._path}: OpenVINO cannot load it: {_openvino_reason(error)}") from error


def open_session(
    name: str, config: PretrainedConfig, device: str, *, dtype: str | None = None, threads: int | None = None
) -> Session:
    """Return the session of a model folder or Hub name: model.onnx in ONNX Runtime, openvino_model.xml in OpenVINO.

    Anything else runs in torch, in the dtype it was saved in or in `dtype` ("bfloat16"). `device` "auto" is CUDA where
    that can run it. Raises `ModelError` where it cannot be loaded or has another number of outputs than the
    configuration has classes, `DeviceError` where the device is not there.
    """
    folder = Path(name)
    if (folder / OPENVINO_WEIGHTS).is_file():
        check_whole(folder, ANSWERING)
        if device == "cuda":
            raise DeviceError(f"{name}: OpenVINO formats run on CPUs", hint="--device cpu")
        session = OpenVinoSession(folder / OPENVINO_WEIGHTS, threads, format=_format(folder, "openvino"))
    elif (folder / ONNX_WEIGHTS).is_file():
        check_whole(folder, ANSWERING)
        is_for_cpus = folder.name in FOR_CPUS or not onnx_runs_on_cuda()
        resolved = "cpu" if device == "auto" and is_for_cpus else resolve_device(device)
        session = OnnxSession(folder / ONNX_WEIGHTS, resolved, threads, format=_format(folder, "onnx"))
    else:
        return TorchSession(load_torch(name, config, dtype), resolve_device(device))
    if isinstance(session.outputs, int):  # if the graph leaves it open, the first answers tell (Classifier.logits)
        check_outputs(session.outputs, config.num_labels, name)
    return session


def import_openvino() -> Any:
    """Return the module openvino; raises `DeviceError` where the extra is not installed.

    It would tell its makers that it was imported, and NNCF what it is used for: both do without the package for that.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError("OpenVINO is not installed", hint=OPENVINO_EXTRA) from error
    # Its bindings set up numpy at the first tensor, giving up Python's lock meanwhile: where two threads are there at
    # once, one waits for the lock and the other, which has it, for the first. A tensor made here leaves nothing to do.
    with _FIRST_TENSOR:
        openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
    return openvino


def can_run(format: str, device: Device) -> bool:
    """Say whether what runs `format` on `device` is installed."""
    if format.startswith("openvino-"):
        return importlib.util.find_spec("openvino") is not None
    return device == "cpu" or not format.startswith("onnx-") or onnx_runs_on_cuda()


def onnx_runs_on_cuda() -> bool:
    """Say whether the installed ONNX Runtime has a CUDA provider; the one for CPUs, which pip installs, has none."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def onnx_providers(device: Device) -> list[str]:
    """Return what ONNX Runtime runs on for `device`, the first choice first; on CUDA, with its libraries loaded."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # those that torch brought
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def load_torch(name: str, config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """Return the finished classifier `name` from safetensors; raises `ModelError` where a weight of it is missing."""
    model, missing = load_weights(name, config, dtype or "auto")
    if missing:
        raise ModelError(f"{name}: {len(missing)} weights are missing, first {missing[0]}")
    return model if model.dtype in TORCH_FORMATS else model.float()  # float64, which nothing here computes in


def calibration_temperature(config: PretrainedConfig) -> float:
    """Return what the configuration says the logits are to be divided by; 1.0 where it says nothing."""
    value = getattr(config, CONFIG_KEY, None)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{config.name_or_path}: config.json: {CONFIG_KEY} must be a number above 0, got {value!r}")
    return float(value)


def _are_many(batches: Iterable[Batch], threads: int) -> tuple[bool, Iterator[Batch]]:
    """Say whether there is a batch for each of several threads; return the batches whole again."""
    rest = iter(batches)
    first = list(islice(rest, threads))
    return len(first) == threads > 1, chain(first, rest)


def _at_once(run: Callable[..., np.ndarray], batches: Iterable[Batch], threads: int) -> Iterator[np.ndarray]:
    """Yield what `run` makes of each batch, in order, `threads` at work at once and few of them taken ahead."""
    with ThreadPoolExecutor(threads) as pool:  # runtimes let go of Python's lock while they compute
        begun: deque[Future[np.ndarray]] = deque()
        for batch in batches:
            begun.append(pool.submit(run, *batch))
            if len(begun) > 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _run_bound(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], device: Device) -> np.ndarray:
    """Run with inputs and output bound to `device`: one copy there and one back, none between the graph's parts."""
    binding = session.io_binding()
    for name, values in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0))
    binding.bind_output("logits", device)
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0].astype(np.float32)


def _input_types(inputs: Mapping[str, tuple[str, Sequence[Any]]], path: Path) -> dict[str, type[np.integer]]:
    """The integers that each input of a graph wants, of `inputs` by name: type and shape, an open size no int.

    Raises `ModelError` if it wants what it is not fed, lacks what it is fed, or takes texts of one length alone.
    """
    fed = (*INPUTS, TOKEN_TYPES)
    if others := [name for name in inputs if name not in fed]:
        raise ModelError(f"{path}: wants the input {others[0]}, and is fed no others than {', '.join(fed)}")
    if lacking := [name for name in INPUTS if name not in inputs]:
        raise ModelError(f"{path}: has no input {lacking[0]}, only {', '.join(inputs)}")
    for name, (kind, shape) in inputs.items():
        if kind not in INTEGERS:
            raise ModelError(f"{path}: its input {name} wants {kind}, and is fed 64-bit or 32-bit integers")
        if shape and (len(shape) != 2 or any(isinstance(size, int) for size in shape)):
            shown = " x ".join(str(size) if isinstance(size, int) else "any" for size in shape)
            raise ModelError(
                f"{path}: its input {name} has the shape {shown}, and texts are any x any: export it with open sizes"
            )
    return {name: INTEGERS[kind] for name, (kind, _) in inputs.items()}


def _classes_of(kind: str, shape: Sequence[Any], path: Path) -> int | None:
    """How many classes such an output has, None if it leaves that open; raises `ModelError` if it gives no logits."""
    if kind not in FLOATS:
        raise ModelError(f"{path}: its output is {kind}, and logits are floats")
    if shape and (len(shape) != 2 or isinstance(shape[0], int)):
        shown = " x ".join(str(size) if isinstance(size, int) else "any" for size in shape)
        raise ModelError(f"{path}: its output has the shape {shown}, and logits have one row a text: any x classes")
    return shape[1] if shape and isinstance(shape[1], int) else None


def _feed(
    types: Mapping[str, type[np.integer]], input_ids: np.ndarray, attention_mask: np.ndarray
) -> dict[str, np.ndarray]:
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {
        name: given[name].astype(kind, copy=False) if name in given else np.zeros(input_ids.shape, kind)
        for name, kind in types.items()
    }


def _name_of(port: Any) -> str:
    """The name of an OpenVINO model's input or output: of several the one that is known here, of none a word for it."""
    return min(port.names, key=lambda name: (name not in (*INPUTS, TOKEN_TYPES, "logits"), name), default="(no name)")


def _shape_of(port: Any) -> list[int | None]:
    """The shape of an OpenVINO model's input or output, an open size None; empty if not even the rank is known."""
    shape = port.partial_shape
    return [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else []


def _onnx_reason(error: BaseException) -> str:
    return ONNX_PLACE.sub("", one_line(error))[:300]


def _openvino_reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(OPENVINO_PLACES)]
    # Of many lines on a graph that it cannot read, the one that names the operations.
    summary = [line for line in lines if "No conversion rule" in line]
    return (summary or lines or [one_line(error)])[0].lstrip("- ")[:300]


def _format(folder: Path, runtime: str) -> str:
    return folder.name if folder.name.startswith(f"{runtime}-") else runtime


def cores() -> int:
    """Return the CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
