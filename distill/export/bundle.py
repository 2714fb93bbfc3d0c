"""Collect a model and its proved exports in one folder, under the names that other runtimes look for.

The layout is that of the Hub: transformers and text-embeddings-inference read the root, transformers.js and Optimum
`onnx/`, optimum-intel `openvino/`, and Triton `triton/`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from tokenizers.models import WordPiece
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from distill.data.encoding import Truncation
from distill.errors import ExportError, FolderError, UserError
from distill.export.card import bundle_card
from distill.export.onnx_graph import graph_inputs
from distill.inference.classifier import identify
from distill.inference.exported import SPECIAL_TOKENS, TOKENIZER_CONFIG, is_export, read_config
from distill.models.config import NGRAMS, class_names, task_of
from distill.models.names import is_baseline
from distill.models.saving import save
from distill.models.weights import ONNX_WEIGHTS, OPENVINO_WEIGHTS, SAFE_WEIGHTS_INDEX_NAME, weight_files
from distill.recipe.schema import FORMATS
from distill.report.page import render
from distill.storage.cascades import is_cascade
from distill.storage.checksums import ANSWERING, SEAL, check_whole, seal
from distill.storage.exports import EXPORT_PROOFS, read_proofs
from distill.storage.files import atomic_path, link_or_copy, read_json, write_json, write_text
from distill.storage.lock import check_writable
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

# transformers.js calls the graph of q8 "quantized" and that of int8 "int8"; here they are one. The names of OpenVINO's
# files are those of sentence-transformers, and the first of them is optimum-intel's default.
PLACES = {
    "onnx-fp32": ("onnx/model.onnx",),
    "onnx-fp16": ("onnx/model_fp16.onnx",),
    "onnx-int8": ("onnx/model_int8.onnx", "onnx/model_quantized.onnx"),
    "openvino-bf16": ("openvino/openvino_model.xml",),
    "openvino-int8": ("openvino/openvino_model_qint8_quantized.xml",),
}
SENTENCE_CONFIG = "sentence_bert_config.json"  # where text-embeddings-inference looks for the number of tokens
VOCABULARY = "vocab.txt"
TRITON = "triton"
TRITON_FORMATS = ("onnx-fp32", "onnx-fp16", "onnx-int8")  # the first that there is: fp32 suits every device
TRITON_NAME = r"[A-Za-z0-9._-]+"  # a part of the model's address
TRITON_BATCH = 64  # texts; the graph takes any number
READ_ONLY = 0o444


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: its formats, and its files by their names within `folder`.

    `missing` has the formats that could be in it, each with the reason why it is not.
    """

    folder: str
    formats: list[str]
    missing: dict[str, str]
    files: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it for other programs."""
        return asdict(self)


def make_bundle(model: Path, output: Path, *, triton: bool = False, overwrite: bool = False) -> Bundle:
    """Write the folder `output`: the classifier in the folder `model`, and its exports that passed their proof.

    With `triton`, it also holds a model repository for Triton. The folder comes into being complete, or not at all. An
    earlier bundle is replaced if `overwrite` is set. Raises `FolderError` if `output` holds anything else, if `model`
    holds no finished classifier of torch or a file of it is damaged, and `ExportError` if there is no proved export.
    """
    _check_place(output, overwrite=overwrite)
    if triton and not re.fullmatch(TRITON_NAME, output.name):
        raise UserError(
            f"--triton: the model is called as its folder, so --output wants letters, digits, . _ and -: {output.name}"
        )
    weights = _weights_of(model)
    exports = RunFolder(model).export
    proofs = read_proofs(exports) if (exports / EXPORT_PROOFS).is_file() else {}
    formats = [name for name in PLACES if proofs.get(name, {}).get("passed")]
    if not formats:
        raise ExportError(
            f"{model}: has no ONNX or OpenVINO export that passed its proof",
            hint=shlex.join(["distill", "export", str(model)]),
        )
    if triton and not any(name in formats for name in TRITON_FORMATS):
        raise ExportError(f"--triton: {model}: has no ONNX export", hint=_export_command(model, ["onnx-fp32"]))
    config, tokenizer, truncation = identify(str(model))
    label_names = class_names(config, str(model))
    for name in formats:
        check_whole(exports / name, ("*",))
        its = class_names(read_config(exports / name), str(exports / name))
        if its != label_names:  # one config.json names the outputs of all of them
            raise ExportError(
                f"{exports / name}: has the classes in another order than the model: {', '.join(its)}, not "
                f"{', '.join(label_names)}",
                hint="export again with the model's order as data.label_names",
            )
    missing = _missing(config, formats, proofs)
    _tell_missing(model, missing)
    with atomic_path(output) as made:
        made.mkdir()
        _write_root(model, made, weights, config, tokenizer, truncation)
        for name in formats:
            _write_format(exports / name, made, PLACES[name])
        if triton:
            graph = next(exports / name / ONNX_WEIGHTS for name in TRITON_FORMATS if name in formats)
            _write_triton(graph, made / TRITON / output.name, label_names)
        write_text(
            made / RunFolder(made).card.name,
            bundle_card(
                output.name,
                _card_of(model),
                places={name: PLACES[name] for name in formats},
                proofs=proofs,
                weights=[path.name for path in weights],
                architecture=config.model_type,
                several=task_of(config, str(model)) == "multi_label",
                truncation=truncation,
                triton=output.name if triton else None,
            ),
        )
        seal(made)
        for path in made.rglob("*"):
            if path.is_file() and path.stat().st_nlink > 1:  # whoever changed it here would change the run
                path.chmod(READ_ONLY)
        files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    return Bundle(str(output), formats, missing, [name for name in files if name != SEAL])


def _check_place(output: Path, *, overwrite: bool) -> None:
    """Raise `FolderError` if `output` cannot become a bundle without harm to something else."""
    check_writable(output)
    if not os.path.lexists(output):
        return
    if output.is_symlink() or os.path.ismount(output) or Path.cwd().is_relative_to(output.resolve()):
        what = "a link" if output.is_symlink() else "a mount point" if os.path.ismount(output) else "where you are"
        raise FolderError(f"{output}: {what}, so it cannot be replaced in one step", hint="--output DIR names another")
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if not names:
        return
    sealed = set(read_json(output / SEAL)) if (output / SEAL).is_file() else set()
    places = {place for places in PLACES.values() for place in places}
    if not sealed & places or names - sealed - {SEAL}:
        other = min(names - sealed - {SEAL}, default=SEAL)
        raise FolderError(
            f"{output}: holds other files than a bundle's ({other}); nothing was touched", hint="--output DIR"
        )
    if not overwrite:
        raise FolderError(f"{output}: holds a bundle", hint="--overwrite, or --output for another folder")


def _weights_of(model: Path) -> list[Path]:
    """Return the safetensors of a finished classifier; raises `FolderError` if it is none, or is damaged."""
    if not model.is_dir():
        raise FolderError(f"{model}: no such folder")
    if is_cascade(model) or is_baseline(model):
        kind = "a cascade" if is_cascade(model) else "a baseline"
        raise FolderError(f"{model}: {kind}, which no other runtime reads", hint="name the folder of a student")
    if is_export(model) or ((model / EXPORT_PROOFS).is_file() and not (model / "config.json").is_file()):
        raise FolderError(f"{model}: holds exports", hint="name the model that they came from")
    run = RunFolder(model)
    if run.started.is_file() and not run.is_finished:
        raise FolderError(f"{model}: holds an unfinished run", hint="finish it with --resume")
    check_whole(model, ANSWERING)
    return weight_files(str(model))


def _missing(config: PretrainedConfig, formats: Sequence[str], proofs: Mapping[str, Any]) -> dict[str, str]:
    """Return why each other format is not in the bundle; OpenVINO computes no n-grams."""
    could = [name for name in PLACES if not (config.model_type == NGRAMS and name.startswith("openvino-"))]
    return {
        name: f"failed its proof: {proofs[name]['reason']}" if name in proofs else "not exported"
        for name in could
        if name not in formats
    }


def _tell_missing(model: Path, missing: Mapping[str, str]) -> None:
    absent = [name for name, reason in missing.items() if reason == "not exported"]
    for name in missing.keys() - absent:
        log.warning("bundle: without %s, which %s", name, missing[name])
    if absent:
        log.info("bundle: without %s; to make them: %s", ", ".join(absent), _export_command(model, absent))


def _export_command(model: Path, formats: Sequence[str]) -> str:
    in_order = ",".join(name for name in FORMATS if name in formats)
    return shlex.join(["distill", "export", str(model), "--set", f"export.formats=[{in_order}]"])


def _write_root(
    model: Path,
    made: Path,
    weights: Sequence[Path],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    truncation: Truncation,
) -> None:
    """Write the model as transformers reads it, and what others read about its texts beside it."""
    save(config, tokenizer, made)
    settings = read_json(made / TOKENIZER_CONFIG)
    settings["model_input_names"] = list(graph_inputs(config))  # then a graph takes all that the tokenizer gives
    settings["truncation_side"] = "left" if truncation.kept == "tail" else "right"
    if truncation.limit:
        settings["model_max_length"] = truncation.limit
        write_json(made / SENTENCE_CONFIG, {"max_seq_length": truncation.limit, "do_lower_case": False})
    write_json(made / TOKENIZER_CONFIG, settings)
    if words := list(_words(tokenizer)):
        write_text(made / VOCABULARY, "".join(f"{word}\n" for word in words))
    run = RunFolder(model)
    for path in (model / SPECIAL_TOKENS, model / SAFE_WEIGHTS_INDEX_NAME, run.learning_curve):
        if path.is_file():
            shutil.copyfile(path, made / path.name)
    for path in weights:
        _link_weights(path, made / path.name)


def _words(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the vocabulary of a WordPiece tokenizer in the order of its ids, which in vocab.txt are line numbers.

    Nothing, if it is another kind, or if lines cannot say its ids.
    """
    backend = tokenizer.backend_tokenizer
    ids = backend.get_vocab(with_added_tokens=False)
    in_lines = sorted(ids.values()) == list(range(len(ids))) and not any("\n" in word for word in ids)
    if isinstance(backend.model, WordPiece) and in_lines:
        yield from sorted(ids, key=ids.__getitem__)


def _card_of(model: Path) -> str:
    """Return the card in the model's folder, or an empty text."""
    card = RunFolder(model).card
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""


def _write_format(export: Path, made: Path, places: Sequence[str]) -> None:
    """Put the graph of an export to the first of `places`, and link the other places to that."""
    first, *others = (made / place for place in places)
    first.parent.mkdir(exist_ok=True)
    if first.suffix == ".onnx":
        _write_graph(export / ONNX_WEIGHTS, first)
    else:
        for suffix in (".xml", ".bin"):  # OpenVINO looks for the second under the name of the first
            _link_weights((export / OPENVINO_WEIGHTS).with_suffix(suffix), first.with_suffix(suffix))
    for other in others:
        link_or_copy(first, other)


def _write_graph(graph: Path, target: Path) -> None:
    """Put an ONNX graph under a new name; if its weights are in a second file, that gets a new name too.

    The graph names that file. It is copied, because onnx refuses one that has several hard links.
    """
    data = graph.with_name(f"{graph.name}.data")
    if not data.is_file():
        _link_weights(graph, target)
        return
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{target.name}_data"
    onnx.save(model, target)
    shutil.copyfile(data, target.with_name(f"{target.name}_data"))


def _link_weights(source: Path, target: Path) -> None:
    """Make `target` another name of the weights in `source`, or a copy if that cannot be.

    Whatever distill writes replaces a file, so a new run does not reach a bundle through the link. The other way round,
    the file may not be written to (see `make_bundle`); if its mode is not ours to change, it is copied.
    """
    link_or_copy(source.resolve(), target)
    try:
        target.chmod(READ_ONLY)
    except PermissionError:
        target.unlink()
        shutil.copyfile(source, target)


def _write_triton(graph: Path, folder: Path, label_names: Sequence[str]) -> None:
    """Write a model of Triton's repository: version 1 of the graph, its configuration and the names of its classes."""
    (folder / "1").mkdir(parents=True)
    _write_graph(graph, folder / "1" / ONNX_WEIGHTS)
    inputs = [value.name for value in onnx.load(graph, load_external_data=False).graph.input]
    settings = render("triton.pbtxt", inputs=inputs, classes=len(label_names), max_batch_size=TRITON_BATCH)
    write_text(folder / "config.pbtxt", f"{settings}\n")
    write_text(folder / "labels.txt", "".join(f"{' '.join(name.split())}\n" for name in label_names))
