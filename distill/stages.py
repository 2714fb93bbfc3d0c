"""What each command does, as a function of the same name: paths in, folders out.

    from distill import stages
    recipe = stages.check("recipes/quickstart.yaml")
    stages.teacher(recipe)
    stages.student(recipe, teacher=recipe.teacher.output)

Notes go to the logger "distill", progress to stderr; nothing is printed to stdout.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from distill import export as exporting
from distill import report as reporting
from distill.benchmark import Candidate, measure
from distill.data import Splits, check_tokenised, load_splits, tokenise
from distill.devices import Device, describe_hardware, has_fast_bf16, resolve_device
from distill.errors import ExportError, FolderError, RecipeError
from distill.metrics import figures
from distill.models import (
    build_from_layers,
    check_fit,
    check_layers,
    load_classifier,
    load_config,
    load_tokenizer,
    parameter_count,
    reorder_classes,
    weights_fingerprint,
)
from distill.predictors import Classifier, TorchSession, load, load_torch, onnx_runs_on_cuda
from distill.progress import progress_line
from distill.recipe import FORMATS, Recipe, Stage, load_recipe, with_absolute_paths
from distill.run_folder import RunFolder, read_json, write_json, write_predictions
from distill.teacher_logits import align_labels
from distill.training import ClassificationTrainer, DistillationTrainer, train, training_arguments

log = logging.getLogger("distill")

PREDICT_CHUNK = 4_096  # texts held at once by predict
DISTRIBUTIONS = ("distill", "torch", "transformers", "datasets", "accelerate", "onnxruntime", "onnx", "optimum")


def check(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the resolved recipe in `path`; raises `RecipeError` with every mistake in it."""
    return load_recipe(path, overrides)


def teacher(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Fine-tune the recipe's teacher and leave a run folder at `output` (default: the recipe's)."""
    settings = recipe.teacher
    if settings is None:
        raise RecipeError("teacher: missing, and a teacher is to be trained")
    resolved = resolve_device(device)
    recipe = with_absolute_paths(recipe)
    folder = RunFolder(Path(output or settings.output))
    folder.check(recipe, resume=resume, overwrite=overwrite)
    arguments, precision = training_arguments(settings.training, folder, resolved, stage="teacher")
    splits = _load_splits(recipe)
    tokenizer = load_tokenizer(settings.model)
    model = load_classifier(
        settings.model,
        splits.label_names,
        seed=arguments.seed,
        max_tokens=recipe.data.max_tokens,
        vocabulary=len(tokenizer),
        pretrained=settings.pretrained,
    )
    return _train_and_finish(
        ClassificationTrainer, model, tokenizer, splits, recipe, settings, folder, arguments, precision,
        overwrite=overwrite, device=resolved, role="teacher", parents={"model": settings.model},
    )  # fmt: skip


def student(
    recipe: Recipe,
    teacher: Path | str,
    output: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Distil the recipe's student from the classifier in `teacher` and leave a run folder at `output`."""
    settings = recipe.student
    if settings is None:
        raise RecipeError("student: missing, and a student is to be distilled")
    resolved = resolve_device(device)
    recipe = with_absolute_paths(recipe)
    folder = RunFolder(Path(output or settings.output))
    if folder.path.resolve() == Path(teacher).resolve():
        raise FolderError(f"{folder.path}: the student would overwrite its teacher", hint="--output DIR")
    classifier = load(teacher, device)
    folder.check(recipe, resume=resume, overwrite=overwrite)
    arguments, precision = training_arguments(settings.training, folder, resolved, stage="student")
    splits = _load_splits(recipe)
    columns = align_labels(classifier.label_names, splits.label_names, teacher=str(teacher))
    if settings.layers:
        tokenizer = classifier.tokenizer
        config = load_config(str(teacher))
        check_fit(config, str(teacher), max_tokens=recipe.data.max_tokens, vocabulary=len(tokenizer))
        whole = load_torch(str(teacher), config, "float32")
        set_seed(arguments.seed)
        model = build_from_layers(reorder_classes(whole, columns, splits.label_names), settings.layers)
    else:
        assert settings.model is not None
        tokenizer = load_tokenizer(settings.model)
        model = load_classifier(
            settings.model,
            splits.label_names,
            seed=arguments.seed,
            max_tokens=recipe.data.max_tokens,
            vocabulary=len(tokenizer),
        )
    fingerprint = _weights_of(Path(teacher), classifier)
    with progress_line("teacher logits", len(splits.train), "text") as bar:
        teacher_logits = classifier.logits(splits.train["text"], progress=bar.update)[:, columns]
    return _train_and_finish(
        DistillationTrainer, model, tokenizer, splits, recipe, settings, folder, arguments, precision,
        overwrite=overwrite, device=resolved, role="student",
        parents={"teacher": str(Path(teacher).absolute()), "teacher_weights": fingerprint, "model": settings.model},
        teacher_logits=teacher_logits, temperature=settings.loss.temperature, soft_weight=settings.loss.soft_weight,
    )  # fmt: skip


def export(
    model: Path | str,
    formats: Sequence[str] | None = None,
    *,
    recipe: Recipe | None = None,
    output: Path | str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write `formats` (default: the recipe's) of a classifier to `output` (default: MODEL/export); return their proofs.

    `recipe` defaults to the one in the model's folder; its validation texts prove each format. Raises `ExportError`
    once all are written where any broke its bound.
    """
    recipe = recipe or _recipe_of([Path(model)])
    resolved = resolve_device(device)
    folder = Path(output) if output else RunFolder(Path(model)).export
    splits = _load_splits(recipe)
    classifier = load(model, "cpu")
    if not isinstance(classifier.session, TorchSession):
        raise FolderError(f"{model}: is itself an export; name the model that it came from")
    columns = align_labels(classifier.label_names, splits.label_names, teacher=str(model))
    if resolved == "cuda" and not onnx_runs_on_cuda():
        log.info("export: this onnxruntime has no CUDA provider; ONNX formats are proved on the CPU")
    proofs = exporting.export_formats(
        reorder_classes(classifier.session.model.float(), columns, splits.label_names),
        classifier.tokenizer,
        splits.label_names,
        splits.validation["text"],
        np.asarray(splits.validation["label"]),
        folder,
        formats or recipe.export.formats,
        max_tokens=classifier.max_tokens,
        max_accuracy_drop=recipe.export.max_accuracy_drop,
        device=resolved,
        progress=lambda step: log.info("export: %s", step),
    )
    path = folder / "export.json"
    entries = read_json(path) if path.is_file() else {}
    entries |= {proof.format: proof.as_json() for proof in proofs}
    write_json(path, {name: entries[name] for name in FORMATS if name in entries})
    failed = [proof for proof in proofs if not proof.passed]
    if failed:
        raise ExportError(
            *(f"{folder / proof.format}: failed and not kept: {proof.reason}" for proof in failed),
            hint=f"every figure is in {path}; export.max_accuracy_drop sets the bound",
        )
    return {proof.format: proof.as_json() for proof in proofs}


def report(
    folders: Sequence[Path | str],
    output: Path | str = "report",
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure every model in `folders` and its exports on the test split and leave a report; return report.json.

    A folder is a run folder, an export, any transformers classifier, or the output of `run`. `recipe` (data, shapes)
    defaults to the first one found in them. Devices: the CPU always, CUDA where there is one, or just `device`.
    """
    models = [model for folder in folders for model in _models_in(Path(folder))]
    recipe = recipe or _recipe_of(models)
    devices: list[Device] = [resolve_device(device)] if device != "auto" else ["cpu"]
    if device == "auto" and resolve_device("auto") == "cuda":
        devices.append("cuda")
    splits = _load_splits(recipe)
    notes: list[str] = []
    candidates = [item for model in models for item in _candidates(model, devices, notes)]
    measurements = measure(
        candidates,
        splits.label_names,
        splits.test["text"],
        np.asarray(splits.test["label"]),
        recipe.benchmark.shapes,
        rounds=recipe.benchmark.rounds,
        threads=recipe.benchmark.threads,
    )
    environment = {
        "measured": _now(),
        "versions": _versions(),
        "hardware": describe_hardware(),
        "test_examples": len(splits.test),
        "max_tokens": recipe.data.max_tokens,
        "rounds": recipe.benchmark.rounds,
        "data": splits.fingerprints(),
    }
    return reporting.write_report(
        Path(output), [item.as_json() for item in measurements], environment, recipe.benchmark.shapes, notes
    )


def run(
    recipe: Recipe, output: Path | str, *, resume: bool = False, overwrite: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Teacher, student, exports and report in one folder; return report.json.

    A stage that finished with this very recipe is skipped; one that finished with another, and a student of another
    teacher, is an error, unless `overwrite` redoes all of them. The report is measured anew each time.
    """
    root = Path(output)
    _check_student_can_be_had(recipe)
    stages: tuple[tuple[str, Callable[..., RunFolder]], ...] = (("teacher", teacher), ("student", student))
    for name, stage in stages:
        folder = RunFolder(root / name)
        if folder.is_finished and not overwrite and _finished_with(folder, recipe):
            log.info("%s: finished before, skipped (%s)", name, folder.path)
            continue
        arguments = (recipe,) if name == "teacher" else (recipe, root / "teacher")
        stage(*arguments, output=folder.path, resume=resume, overwrite=overwrite, device=device)
    failure: ExportError | None = None
    student_folder = RunFolder(root / "student")
    missing = [name for name in recipe.export.formats if not _was_exported(student_folder, name)]
    if missing:
        try:
            export(student_folder.path, missing, recipe=recipe, device=device)
        except ExportError as error:  # the report is worth having all the same; the failure is raised after it
            failure = error
    else:
        log.info("export: finished before, skipped (%s)", student_folder.export)
    result = report([root], root / "report", recipe=recipe, device=device)
    if failure:
        raise failure
    return result


def recipe_file(folders: Sequence[Path]) -> Path:
    """Return the first recipe.yaml found in model folders, or in the run folder that an export lies in."""
    for model in (model for folder in folders for model in _models_in(folder)):
        for folder in (model, model.parent.parent):
            if RunFolder(folder).recipe.is_file():
                return RunFolder(folder).recipe
    raise FolderError(
        f"{', '.join(map(str, folders))}: no recipe.yaml there, so the data is not known", hint="--recipe RECIPE"
    )


def predict(model: Path | str, texts: Iterator[str], *, device: str = "auto") -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each text and its probability per label, in order, holding only a few thousand texts at a time."""
    classifier = load(model, device)
    with progress_line("predict", None, "text") as bar:
        for chunk in _chunks(texts, PREDICT_CHUNK):
            for text, row in zip(chunk, classifier.probabilities(chunk), strict=True):
                yield text, dict(zip(classifier.label_names, map(float, row), strict=True))
            bar.update(len(chunk))


def _train_and_finish(
    trainer_class: type[ClassificationTrainer],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    recipe: Recipe,
    settings: Stage,
    folder: RunFolder,
    arguments: TrainingArguments,
    precision: str,
    *,
    overwrite: bool,
    device: Device,
    role: str,
    parents: dict[str, Any],
    teacher_logits: np.ndarray | None = None,
    **loss_settings: float,
) -> RunFolder:
    """Train, judge on test once, and write the run folder, the manifest last."""
    max_tokens = recipe.data.max_tokens
    log.info(
        "%s: %.1f M parameters on %s; %s; %d train, %d validation, %d test texts",
        role, parameter_count(model) / 1e6, device, precision, len(splits.train), len(splits.validation),
        len(splits.test),
    )  # fmt: skip
    tokenised = {}
    for name in ("train", "validation"):
        rows = getattr(splits, name)
        with progress_line(f"tokenising {name}", len(rows), "text") as bar:
            tokenised[name] = tokenise(rows, tokenizer, max_tokens, progress=bar.update)
            bar.update(len(rows) - bar.n)  # all at once where the cache had it
        check_tokenised(rows, tokenised[name], tokenizer, max_tokens)
    if teacher_logits is not None:
        tokenised["train"] = tokenised["train"].add_column("teacher_logits", list(teacher_logits.astype(np.float32)))
    checkpoint = folder.start(recipe, overwrite=overwrite)  # only now that nothing of the user's can be wrong
    if checkpoint:
        log.info("%s: goes on from %s", role, checkpoint.name)
    training = train(
        trainer_class,
        model,
        tokenizer,
        tokenised["train"],
        tokenised["validation"],
        arguments,
        folder,
        padding=recipe.data.padding,
        max_tokens=max_tokens,
        device=device,
        early_stopping_patience=settings.early_stopping_patience,
        checkpoint=checkpoint,
        title=role,
        **loss_settings,
    )
    tokenizer.model_max_length = max_tokens  # whoever loads the folder cuts texts where training did
    classifier = Classifier(TorchSession(model, device), tokenizer, splits.label_names, max_tokens)
    with progress_line(f"{role}: test", len(splits.test), "text") as bar:
        test_logits = classifier.logits(splits.test["text"], progress=bar.update)
    gold_labels = np.asarray(splits.test["label"])
    test = figures(test_logits, gold_labels)
    model.save_pretrained(folder.path)
    tokenizer.save_pretrained(folder.path)
    write_predictions(folder.predictions, splits.test["example_id"], gold_labels, test_logits)
    write_json(folder.metrics, {"test": test, "training": training})
    write_json(
        folder.manifest,
        {
            "role": role,
            "finished": _now(),
            "versions": _versions(),
            "hardware": describe_hardware(),
            "device": device,
            "precision": precision,
            "seed": arguments.seed,
            "labels": list(splits.label_names),
            "data": splits.fingerprints(),
            "weights": weights_fingerprint(model),
            "parents": parents,
            "training_arguments": {k: v for k, v in arguments.to_sanitized_dict().items() if "token" not in k},
        },
    )
    log.info(
        "%s: test accuracy %.4f (95 %% interval %.4f to %.4f), macro-F1 %.4f, on %d texts; saved in %s",
        role, test["accuracy"], *test["accuracy_ci95"], test["macro_f1"], test["examples"], folder.path,
    )  # fmt: skip
    return folder


def _weights_of(folder: Path, classifier: Classifier) -> str | None:
    """What tells this teacher from another: the fingerprint in its manifest, or one made of its torch weights."""
    manifest = RunFolder(folder).manifest
    if manifest.is_file():
        return read_json(manifest)["weights"]
    return weights_fingerprint(classifier.session.model) if isinstance(classifier.session, TorchSession) else None


def _load_splits(recipe: Recipe) -> Splits:
    log.info("data: reading %s", recipe.data.dataset or ", ".join(_file_names(recipe)))
    return load_splits(recipe.data)


def _file_names(recipe: Recipe) -> Iterator[str]:
    assert recipe.data.files is not None
    yield from (Path(path).name for path in recipe.data.files.model_dump(exclude_none=True).values())


def _recipe_of(models: Sequence[Path]) -> Recipe:
    return load_recipe(recipe_file(models))


def _models_in(folder: Path) -> list[Path]:
    """The folder itself, or the stages of a `run` in it."""
    if (folder / "config.json").is_file():
        return [folder]
    inner = [folder / name for name in ("teacher", "student", "control") if (folder / name / "config.json").is_file()]
    if not inner:
        raise FolderError(
            f"{folder}: no model there (no config.json)" if folder.is_dir() else f"{folder}: no such folder"
        )
    return inner


def _candidates(model: Path, devices: Sequence[Device], notes: list[str]) -> Iterator[Candidate]:
    """A model and its exports on each device; what cannot be measured there becomes a note."""
    manifest = RunFolder(model).manifest
    role = read_json(manifest).get("role", "other") if manifest.is_file() else "other"
    exports = RunFolder(model).export
    proofs = read_json(exports / "export.json") if (exports / "export.json").is_file() else {}
    for name, proof in proofs.items():
        if not proof["passed"]:
            notes.append(f"{role} {name} is not here: it failed its proof ({proof['reason']}).")
    for device in devices:
        yield Candidate(role, str(model), model, device)
        if has_fast_bf16(device) and not (model / "model.onnx").is_file():
            yield Candidate(role, str(model), model, device, "bfloat16")
        for name in FORMATS:
            if not (exports / name / "config.json").is_file():
                continue
            if name.startswith("onnx-") and device == "cuda" and not onnx_runs_on_cuda():
                notes.append(f"{role} {name} is not measured on CUDA: this onnxruntime has no CUDA provider.")
                continue
            if name == "torch-fp16" and device == "cpu":
                notes.append(f"{role} torch-fp16 is not measured on the CPU: it is meant for GPUs.")
                continue
            yield Candidate(role, str(model), exports / name, device)
            if name == "onnx-fp16" and device == "cpu":
                notes.append(f"{role} onnx-fp16 is meant for GPUs; a CPU converts it to fp32 as it goes.")


def _finished_with(folder: RunFolder, recipe: Recipe) -> bool:
    """Say whether a finished run used the same data and stages; raise where it did not, rather than mix two runs."""
    wanted, found = with_absolute_paths(recipe), load_recipe(folder.recipe)
    role = folder.path.name
    for section in ("data", "teacher") if role == "teacher" else ("data", "teacher", "student"):
        if getattr(wanted, section) != getattr(found, section):
            raise FolderError(
                f"{folder.path}: finished with another `{section}` section than this recipe's ({folder.recipe})",
                hint="--overwrite to redo it, or --output for another folder",
            )
    if role == "student":
        teacher_weights = read_json(RunFolder(folder.path.parent / "teacher").manifest)["weights"]
        if read_json(folder.manifest)["parents"].get("teacher_weights") != teacher_weights:
            raise FolderError(f"{folder.path}: was distilled from another teacher", hint="--overwrite to redo it")
    return True


def _check_student_can_be_had(recipe: Recipe) -> None:
    """Find what is wrong with the student before hours go into its teacher."""
    if recipe.teacher is None or recipe.student is None:
        raise RecipeError(f"{'teacher' if recipe.teacher is None else 'student'}: missing, and `run` needs both")
    if recipe.student.layers:
        check_layers(load_config(recipe.teacher.model), recipe.student.layers)
    elif recipe.student.model:
        load_config(recipe.student.model)
        load_tokenizer(recipe.student.model)


def _was_exported(folder: RunFolder, name: str) -> bool:
    path = folder.export / "export.json"
    passed = path.is_file() and read_json(path).get(name, {}).get("passed", False)
    return passed and (folder.export / name / "config.json").is_file()


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
