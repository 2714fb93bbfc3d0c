"""Write a trained classifier in faster formats, and keep each only if it agrees with torch on real texts."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.data.encoding import Truncation, encode
from distill.data.pairs import Text
from distill.decisions import Thresholds
from distill.errors import FolderError, Interrupted, ModelError, UserError, one_line
from distill.export import fusion
from distill.export.attention import ONE_NODE
from distill.export.int8 import (
    CALIBRATION_TEXTS,
    TABLES_ONLY,
    Int8Settings,
    import_nncf,
    int8_settings,
    quantise,
    quantise_openvino,
)
from distill.export.ngram_graph import interface, with_even_columns
from distill.export.onnx_graph import check_architecture, describe, graph_inputs, quiet, trace
from distill.export.outliers import RANGE_TEXTS, widest
from distill.export.proofs import Bounds, Proof, flips, prove
from distill.inference.classifier import Classifier, open_session, pad, weights_bytes
from distill.inference.exported import TOKENIZER_CONFIG
from distill.inference.runtimes import FOR_CPUS, import_openvino, onnx_runs_on_cuda, openvino_precision
from distill.inference.sessions import Session
from distill.inference.text_classifier import plain
from distill.inference.torch_session import TorchSession
from distill.inference.verification_sets import draw_sets, logits_of, write_verification
from distill.machine.devices import Device
from distill.machine.provenance import versions
from distill.measuring.benchmark import timed_logits
from distill.models.config import NGRAMS, TOKEN_TYPES, embeddings_of, is_ngrams
from distill.models.loading import load_config
from distill.models.ngrams import NgramForSequenceClassification
from distill.models.saving import save
from distill.models.weights import ONNX_WEIGHTS, OPENVINO_WEIGHTS
from distill.recipe.schema import FORMATS
from distill.storage.checksums import SEAL, seal
from distill.storage.exports import EXPORT_PROOFS, FLIPPED, PROOF, read_proofs
from distill.storage.files import PARTIAL, naming_full_disk, read_json, replace_path, write_json, write_text
from distill.storage.lock import hold
from distill.storage.run_folder import RunFolder

ABOUT_GRAPH = (
    "A text classifier, made with distill. Inputs: the ids of its tokenizer's tokens and their mask. Output: logits, "
    "calibrated if the model was. Labels, their order and what it reads of a text are in metadata_props."
)


@dataclass
class Source:
    """What formats are made from: the fp32 model, its tokenizer, calibration texts, and a scratch folder `work`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[Text]
    truncation: Truncation
    work: Path

    @cached_property
    def graph(self) -> Path:
        """The fp32 ONNX graph, traced on first use."""
        path = self.work / "traced" / ONNX_WEIGHTS
        path.parent.mkdir(exist_ok=True)  # an earlier trace may have failed
        is_table = isinstance(self.model, NgramForSequenceClassification)
        trace(with_even_columns(self.model) if is_table else self.model, path)
        return path

    @cached_property
    def batches(self) -> list[dict[str, np.ndarray]]:
        """Tokens of the first texts, to calibrate on; one text a batch, because padding would widen the ranges."""
        ids, _, types = encode(self.tokenizer, plain(self.texts[:CALIBRATION_TEXTS]), self.truncation)
        batches = []
        for index, row in enumerate(ids):
            input_ids, mask = pad([row], self.tokenizer.pad_token_id)
            given = {"input_ids": input_ids, "attention_mask": mask}
            if types is not None:
                given[TOKEN_TYPES] = np.asarray([types[index]], np.int64)
            batches.append({name: given[name] for name in graph_inputs(self.model.config)})
        return batches

    @cached_property
    def largest(self) -> dict[str, np.ndarray]:
        """The largest magnitude of each channel of the graph's feed-forward inputs."""
        return widest(self.graph, self.batches[:RANGE_TEXTS])


def check_formats(formats: Sequence[str], config: PretrainedConfig) -> None:
    """Raise `ModelError` or `DeviceError` if a model of this kind cannot be exported to one of `formats` here."""
    if any(not name.startswith("torch-") for name in formats):
        check_architecture(config)
    openvino = [name for name in formats if name.startswith("openvino-")]
    if openvino and config.model_type == NGRAMS:
        raise ModelError(
            f"export.formats: {openvino[0]}: OpenVINO computes whole numbers in 32 bits, and an n-gram's hash needs 62",
            hint="--set export.formats=[onnx-fp32,onnx-int8]",
        )
    if openvino:
        import_openvino()
    if "openvino-int8" in formats:
        import_nncf()


def export_formats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    texts: Sequence[Text],
    gold_labels: np.ndarray,
    folder: Path,
    formats: Sequence[str],
    *,
    thresholds: Thresholds = None,
    truncation: Truncation,
    temperature: float | None = None,
    bounds: Bounds,
    device: Device,
    card: Callable[[Proof], str],
    progress: Callable[[str], None] = lambda step: None,
) -> Generator[Proof, None, None]:
    """Export the fp32 `model` to each of `formats`, in its own folder in `folder`; yield its proof on `texts`.

    `thresholds` are the model's if it may give a text several labels. `temperature` is that of its calibration, if
    known; an ONNX file says it, beside labels, truncation and versions. The proof compares with `model` itself. A
    format fails if it breaks a bound on accuracy or agreement, if its logits are not finite, or if nodes are not fused
    although the architecture allows it (see attention.ONE_NODE); onnx-int8 then tries its next settings. A format that
    fails gets no folder, and the folder of an earlier export is removed. Until then the earlier export stays usable. A
    format's folder holds the model, its card, its proof and the texts whose label changed. If the format failed, those
    texts are in flipped-FORMAT.jsonl beside it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work_folder = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder)
    except OSError as error:
        raise FolderError(f"{folder}: cannot be written to: {error.strerror}", hint="--output DIR") from error

    def classify(session: Session) -> tuple[np.ndarray, float]:
        embeddings = embeddings_of(model.config)
        return timed_logits(Classifier(session, tokenizer, label_names, truncation, embeddings=embeddings), texts)

    def attempt(name: str, settings: Int8Settings | None) -> tuple[Proof, np.ndarray]:
        made = source.work / name
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            with quiet(), naming_full_disk(folder), _naming_limits(model.config.model_type):
                WRITERS[name](source, made, settings)
        except ModelError as error:
            reason = error.problems[0]
            return Proof(name, passed=False, reason=reason, size_bytes=0, device=_device(name, device)), reference
        if not name.startswith("torch-"):
            _write_rest(source, made)
        fused: dict[str, Any] = {}
        if name.startswith("onnx-"):
            describe(made / ONNX_WEIGHTS, {"format": name} | about, ABOUT_GRAPH)
            fused = fusion.count_fused_nodes(made / ONNX_WEIGHTS, model, _device(name, device))
        unfused = fusion.missing_fusions(fused)
        note = None
        if model.config.model_type not in ONE_NODE:  # then its attention was traced as it is
            unfused, note = None, unfused
        if name == "onnx-int8" and not fused.get("int8_products") and not fused.get("int8_tables"):
            unfused = "; ".join(filter(None, (unfused, "no product or table is in int8")))
        logits, rate = _answers(name, made, model, device, classify, reference)
        return prove(
            name, logits, reference, gold_labels, label_names, bounds, thresholds=thresholds,
            size_bytes=weights_bytes(made), device=_device(name, device), texts_per_second=rate,
            fusion=fused, unfused=unfused, note=note, settings=asdict(settings) if settings else {},
        ), logits  # fmt: skip

    about = {
        "task": "single_label" if thresholds is None else "multi_label",
        "label_names": json.dumps(list(label_names), ensure_ascii=False),
        **({} if thresholds is None else {"label_thresholds": json.dumps(list(thresholds))}),
        "max_tokens": str(truncation.limit or "all"),
        "truncation": truncation.kept,
        **({} if temperature is None else {"temperature_in_the_weights": f"{temperature:.6g}"}),
        **{f"version_of_{name}": version for name, version in versions().items()},
    }
    with work_folder as work:
        progress("torch-fp32, the reference")
        reference, _ = classify(TorchSession(model, device))
        if not np.isfinite(reference).all():
            raise ModelError(f"{model.name_or_path}: its own logits are not finite on the validation texts")
        reads_types = TOKEN_TYPES in graph_inputs(model.config)
        sets = draw_sets(tokenizer, truncation.max_tokens, embeddings_of(model.config), pairs=reads_types)
        of_torch = logits_of(TorchSession(model, device), sets)
        source = Source(model, tokenizer, texts, truncation, Path(work))
        of_int8 = (TABLES_ONLY,) if is_ngrams(model.config) else int8_settings()
        for name in formats:
            progress(name)
            first, *others = of_int8 if name == "onnx-int8" else (None,)
            proof, logits = attempt(name, first)
            tried: list[dict[str, Any]] = []
            for settings in others:
                unfused = proof.note is None and fusion.missing_fusions(proof.fusion)
                if proof.passed or unfused:  # other settings do not fuse more nodes
                    break
                progress(f"{name} again, with other settings: {proof.reason}")
                tried.append({"settings": proof.settings, "reason": proof.reason, "agreement": proof.agreement})
                proof, logits = attempt(name, settings)
            proof = replace(proof, tried=tried)
            changed = flips(texts, logits, reference, gold_labels, label_names, thresholds)
            beside = folder / f"flipped-{name}.jsonl"
            if proof.passed:
                made = source.work / name
                _keep_flips(made / FLIPPED, changed)
                write_text(RunFolder(made).card, card(proof))
                write_json(made / PROOF, proof.as_json())
                here = open_session(str(made), load_config(str(made)), _device(name, device))
                write_verification(made, name, sets, of_torch, logits_of(here, sets), on_cpu=here.device == "cpu")
                seal(made)
                replace_path(made, folder / name)
                beside.unlink(missing_ok=True)
            else:
                _keep_flips(beside, changed)
                if (folder / name).exists():  # in one step: a half-deleted folder would look complete
                    os.replace(folder / name, source.work / f"{name}-failed")
            yield proof


@contextlib.contextmanager
def _naming_limits(model_type: str) -> Iterator[None]:
    """Turn whatever a library raises that cannot write a format for this architecture into a `ModelError`."""
    try:
        yield
    except (UserError, Interrupted, OSError):
        raise
    except Exception as error:
        raise ModelError(f"cannot be made of a {model_type} model: {one_line(error)}") from error


def keep_proofs(proofs: Generator[Proof, None, None], folder: Path) -> list[Proof]:
    """Write the proofs of `export_formats` to export.json one by one, and keep those of other formats there."""
    path = folder / EXPORT_PROOFS
    made = []
    with hold(folder), contextlib.closing(proofs):
        (folder / SEAL).unlink(missing_ok=True)  # an earlier version of distill sealed export.json
        entries = read_proofs(folder) if path.is_file() else {}
        for proof in proofs:
            made.append(proof)
            entries[proof.format] = proof.as_json()
            write_json(path, {name: entries[name] for name in FORMATS if name in entries})
    return made


def _write_rest(source: Source, folder: Path) -> None:
    """Write configuration and tokenizer beside a graph."""
    config = source.model.config
    config = interface(config) if config.model_type == NGRAMS else config
    save(config, source.tokenizer, folder)
    settings = read_json(folder / TOKENIZER_CONFIG)
    settings["model_input_names"] = list(graph_inputs(config))  # then the graph takes all that the tokenizer gives
    write_json(folder / TOKENIZER_CONFIG, settings)


def _answers(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    device: Device,
    classify: Callable[[Session], tuple[np.ndarray, float]],
    reference: np.ndarray,
) -> tuple[np.ndarray, float | None]:
    """Return the format's logits and texts per second; emulate the rounding of a type that this machine lacks.

    A CPU runs fp16 graphs in fp32, and a CPU without bf16 runs OpenVINO's bf16 in fp32. Then an overflow, or a label
    that rounding changes, would first show on the user's machine. So a copy of the model rounds as the type would, and
    of the two logits of a text, those further from the reference count. For fp16 on a CPU the rate is None, because the
    format is not meant for CPUs.
    """
    session = open_session(str(folder), load_config(str(folder)), _device(name, device))
    if name == "torch-fp16" and device == "cpu":
        assert isinstance(session, TorchSession)
        return classify(TorchSession(_rounding(session.model, torch.float16), "cpu"))[0], None
    logits, rate = classify(session)
    if name == "onnx-fp16" and _device(name, device) == "cpu":
        return _further(reference, logits, classify(TorchSession(_rounding(model, torch.float16), "cpu"))[0]), None
    if name == "openvino-bf16" and openvino_precision() == "f32":
        return _further(reference, logits, classify(TorchSession(_rounding(model, torch.bfloat16), "cpu"))[0]), rate
    return logits, rate


def _further(reference: np.ndarray, *answers: np.ndarray) -> np.ndarray:
    """Return for each row the logits furthest from the reference; logits that are not finite are furthest."""
    distances = [np.nan_to_num(np.abs(answer - reference).max(axis=1), nan=np.inf) for answer in answers]
    return np.stack(answers)[np.argmax(distances, axis=0), np.arange(len(reference))]


def _device(name: str, device: Device) -> Device:
    if name.startswith("torch-"):
        return device
    return device if name not in FOR_CPUS and onnx_runs_on_cuda() else "cpu"


def _keep_flips(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if lines:
        write_text(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)


def _write_torch_fp16(source: Source, folder: Path, _: Any) -> None:
    save(copy.deepcopy(source.model).half(), source.tokenizer, folder)


def _write_onnx_fp32(source: Source, folder: Path, _: Any) -> None:
    shutil.copytree(source.graph.parent, folder, dirs_exist_ok=True)  # the weights may be a second file


def _write_onnx_fp16(source: Source, folder: Path, _: Any) -> None:
    """Write the graph of an fp16 model whose LayerNorms stay in fp32: sums of squares may exceed 65,504, fp16's limit.

    It is traced anew, because onnxruntime's converter writes an invalid graph if two layers share a constant.
    """
    half = copy.deepcopy(source.model).half()
    for module in half.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
            module.register_forward_hook(lambda _, __, output: output.half())
    trace(half, folder / ONNX_WEIGHTS)


def _write_onnx_int8(source: Source, folder: Path, settings: Int8Settings) -> None:
    quantise(source.graph, folder / ONNX_WEIGHTS, settings, source.largest)


def _write_openvino_bf16(source: Source, folder: Path, _: Any) -> None:
    openvino = import_openvino()
    # An ordinary weight in fp16 has every bit that bf16 keeps, in as many bytes. The session computes in bf16.
    openvino.save_model(openvino.Core().read_model(source.graph), folder / OPENVINO_WEIGHTS, compress_to_fp16=True)


def _write_openvino_int8(source: Source, folder: Path, _: Any) -> None:
    quantise_openvino(source.graph, folder, source.batches)


WRITERS: dict[str, Callable[[Source, Path, Any], None]] = {
    "torch-fp16": _write_torch_fp16,
    "onnx-fp32": _write_onnx_fp32,
    "onnx-fp16": _write_onnx_fp16,
    "onnx-int8": _write_onnx_int8,
    "openvino-bf16": _write_openvino_bf16,
    "openvino-int8": _write_openvino_int8,
}


def _rounding(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy that rounds weights and each module's output to `dtype`, like hardware that sums in fp32.

    Residual sums are not the output of a module, so they are rounded at the input of a LayerNorm. Values beyond fp16's
    range become infinite, as on that hardware. A CPU's own fp16 would be many times slower.
    """

    def rounded(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return output.to(dtype).float() if isinstance(output, torch.Tensor) else output

    emulation = copy.deepcopy(model).to(dtype).float()
    for module in emulation.modules():
        if not any(module.children()):
            module.register_forward_hook(rounded)
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.to(dtype).float() for tensor in inputs))
    return emulation
