"""Run an exported classifier, from token ids to logits, in ONNX Runtime or OpenVINO. Works without torch."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from distill.errors import GPU_EXTRA, DeviceError, ModelError, one_line
from distill.inference.runtimes import (
    import_openvino,
    load_cuda_libraries,
    onnx_providers,
    onnx_runs_on_cuda,
    openvino_precision,
)
from distill.machine.cpu import cores
from distill.models.config import INPUTS, TOKEN_TYPES

if TYPE_CHECKING:
    from distill.machine.devices import Device

# Padded tokens in one batch. Larger batches cost memory and are not faster. On one CPU thread they are even slower,
# because a layer's activations no longer fit into the cache.
BATCH_TOKENS: dict[Device, int] = {"cpu": 2_048, "cuda": 65_536}
ONE_THREAD_BATCH_TOKENS = 1_024
NGRAM_BATCH_TOKENS = 16_384  # of a model that computes next to nothing for a token

# ONNX Runtime's errors have no common base class but Exception.
ONNX_ERRORS = (
    RuntimeError, onnx_errors.EPFail, onnx_errors.Fail, onnx_errors.InvalidArgument, onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf, onnx_errors.NoModel, onnx_errors.NoSuchFile, onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
)  # fmt: skip
# The runtimes begin an error with the line of their own source code that raised it.
ONNX_PLACE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/\S+:\d+ .*?\) (?=[A-Z])")
OPENVINO_PLACES = ("Exception from ", "Check '", "FrontEnd API failed", "Loading input model", "Model wasn't fully")
# The types that a graph's inputs and output may have, by the names of ONNX Runtime and of OpenVINO.
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "i64": np.int64, "i32": np.int32}
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)", "f32", "f16", "f64", "bf16")
Batch = tuple[np.ndarray, ...]  # int64 ids and mask, and of pairs token types, each (batch, tokens)


class Session(Protocol):
    """A classifier on a device, from token ids to logits; `batch_tokens` is the best batch size for many texts."""

    device: Device
    format: str
    batch_tokens: int

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> np.ndarray:
        """Return float32 logits (batch, classes) of int64 ids and mask, both (batch, tokens), with low latency.

        A model that has token types takes zeros if none are given. Other models take no notice of them.
        """
        ...

    def run_each(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """Yield the logits of each batch, in order, with high throughput."""
        ...


class OnnxSession:
    """An ONNX file with inputs input_ids and attention_mask and output logits, in ONNX Runtime.

    A single batch runs on all threads. If there are many batches, each thread runs one of its own, so that none waits.
    """

    def __init__(self, path: Path, device: Device, threads: int | None = None, *, format: str = "onnx"):
        onnxruntime.disable_telemetry_events()  # only builds for Windows send them
        options = onnxruntime.SessionOptions()
        # Only fatal messages are logged. A user cannot act on the warnings. Errors are raised as well, and the log does
        # not pass through Python, so a stranger's node names would reach the terminal with their control characters.
        options.log_severity_level = 4
        onnxruntime.set_default_logger_severity(4)
        self._path, self._threads = path, threads or cores()
        options.intra_op_num_threads = self._threads
        if device == "cuda" and not onnx_runs_on_cuda():
            raise DeviceError(f"{path.parent}: this onnxruntime has no CUDA provider", hint=GPU_EXTRA)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))
        except ONNX_ERRORS as error:
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {_onnx_reason(error)}") from error
        # If CUDA cannot start, ONNX Runtime silently falls back to the CPU, and figures would name the wrong device.
        if device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            problem, reason = f"{path}: ONNX Runtime could not start CUDA", load_cuda_libraries()
            if reason:
                raise DeviceError(f"{problem}: {reason}", hint=GPU_EXTRA)
            raise DeviceError(problem, hint="use the CPU: --device cpu")
        inputs = {item.name: (item.type, item.shape) for item in self._session.get_inputs()}
        outputs = {item.name: (item.type, item.shape) for item in self._session.get_outputs()}
        if "logits" not in outputs:
            raise ModelError(f"{path}: has no output named logits, but {', '.join(outputs)}")
        self._types = _input_types(inputs, path)
        self.outputs = _classes_of(*outputs["logits"], path)
        self.device: Device = device
        self.format = format
        self.batch_tokens = BATCH_TOKENS["cuda"] if device == "cuda" else ONE_THREAD_BATCH_TOKENS

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> np.ndarray:
        feed = _feed(self._types, input_ids, attention_mask, token_types)
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
    """An OpenVINO model with the same inputs and output as an ONNX one, on the CPU.

    Layers that are not int8 run in bf16 if this CPU is faster in it, otherwise in fp32: a CPU without bf16 instructions
    emulates it, some forty times slower. Raises `DeviceError` if the extra is not installed.
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

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_types: np.ndarray | None = None
    ) -> np.ndarray:
        with self._alone:  # a request holds the answer of one call at a time
            return self._infer(self._request, input_ids, attention_mask, token_types)

    def _infer(self, request: Any, *batch: np.ndarray | None) -> np.ndarray:
        try:
            request.infer(_feed(self._types, *batch), share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"{self._path}: OpenVINO cannot run it: {_openvino_reason(error)}") from error
        # A copy, because the next call overwrites the tensor.
        return np.array(request.get_output_tensor(self._output).data, np.float32)

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
            "INFERENCE_PRECISION_HINT": openvino_precision(),
        }
        try:
            core = import_openvino().Core()
            return core.compile_model(core.read_model(self._path), "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"{self._path}: OpenVINO cannot load it: {_openvino_reason(error)}") from error


def _are_many(batches: Iterable[Batch], threads: int) -> tuple[bool, Iterator[Batch]]:
    """Say whether there is a batch for each of several threads, and return an iterator over all batches."""
    rest = iter(batches)
    first = list(islice(rest, threads))
    return len(first) == threads > 1, chain(first, rest)


def _at_once(run: Callable[..., np.ndarray], batches: Iterable[Batch], threads: int) -> Iterator[np.ndarray]:
    """Run `threads` batches at a time and yield the results in order; only a few batches are taken ahead."""
    with ThreadPoolExecutor(threads) as pool:  # runtimes release the GIL while they compute
        begun: deque[Future[np.ndarray]] = deque()
        for batch in batches:
            begun.append(pool.submit(run, *batch))
            if len(begun) > 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _run_bound(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], device: Device) -> np.ndarray:
    """Run with inputs and output bound to `device`: one copy in and one copy out, none in between."""
    binding = session.io_binding()
    for name, values in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0))
    binding.bind_output("logits", device)
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0].astype(np.float32)


def _input_types(inputs: Mapping[str, tuple[str, Sequence[Any]]], path: Path) -> dict[str, type[np.integer]]:
    """Return the integer type of each input of a graph.

    `inputs` has the type and shape of each input by name; a dynamic size is not an int. Raises `ModelError` if the
    graph has another input, lacks one of `INPUTS`, or takes only texts of one length.
    """
    fed = (*INPUTS, TOKEN_TYPES)
    if others := [name for name in inputs if name not in fed]:
        raise ModelError(f"{path}: wants the input {others[0]}, but distill feeds only {', '.join(fed)}")
    if lacking := [name for name in INPUTS if name not in inputs]:
        raise ModelError(f"{path}: has no input {lacking[0]}, only {', '.join(inputs)}")
    for name, (kind, shape) in inputs.items():
        if kind not in INTEGERS:
            raise ModelError(f"{path}: its input {name} wants {kind}, but distill feeds 64-bit or 32-bit integers")
        if shape and (len(shape) != 2 or any(isinstance(size, int) for size in shape)):
            raise ModelError(
                f"{path}: its input {name} has the shape {_shown(shape)}, but texts need any x any: "
                "export it with dynamic axes"
            )
    return {name: INTEGERS[kind] for name, (kind, _) in inputs.items()}


def _classes_of(kind: str, shape: Sequence[Any], path: Path) -> int | None:
    """Return the number of classes of an output, None if it is dynamic; raises `ModelError` if it gives no logits."""
    if kind not in FLOATS:
        raise ModelError(f"{path}: its output is {kind}, but logits are floats")
    if shape and (len(shape) != 2 or isinstance(shape[0], int)):
        raise ModelError(f"{path}: its output has the shape {_shown(shape)}, but logits need any x classes")
    return shape[1] if shape and isinstance(shape[1], int) else None


def _shown(shape: Sequence[Any]) -> str:
    return " x ".join(str(size) if isinstance(size, int) else "any" for size in shape)


def _feed(
    types: Mapping[str, type[np.integer]],
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    token_types: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_types is not None:
        given[TOKEN_TYPES] = token_types
    return {
        name: given[name].astype(kind, copy=False) if name in given else np.zeros(input_ids.shape, kind)
        for name, kind in types.items()
    }


def _name_of(port: Any) -> str:
    """Return the name of an OpenVINO model's input or output; if it has several names, one that distill knows."""
    return min(port.names, key=lambda name: (name not in (*INPUTS, TOKEN_TYPES, "logits"), name), default="(no name)")


def _shape_of(port: Any) -> list[int | None]:
    """Return the shape of an OpenVINO model's input or output: None for a dynamic size, empty for a dynamic rank."""
    shape = port.partial_shape
    return [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else []


def _onnx_reason(error: BaseException) -> str:
    return ONNX_PLACE.sub("", one_line(error))[:300]


def _openvino_reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(OPENVINO_PLACES)]
    # If OpenVINO cannot convert a graph, only this one of its many lines names the operations.
    summary = [line for line in lines if "No conversion rule" in line]
    return (summary or lines or [one_line(error)])[0].lstrip("- ")[:300]
