"""What each command does, as a function of the same name: paths in, folders out.

    from distill import commands
    recipe = commands.check("recipes/quickstart.yaml")
    commands.teacher(recipe)
    commands.student(recipe, recipe.teacher.output)

Notes go to the logger "distill", progress to stderr; nothing is printed to stdout.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import doctor as examination
from distill import search as searching
from distill.data import inspection
from distill.data.splits import read_splits
from distill.distillation import student as distilling
from distill.distillation.teacher_logits import KeptLogits, identify_teacher
from distill.errors import BudgetError, ExportError, FolderError, RecipeError
from distill.export import formats as exporting
from distill.export.card import export_card
from distill.export.proofs import Bounds
from distill.inference.classifier import load
from distill.inference.runtimes import onnx_runs_on_cuda
from distill.inference.sessions import TorchSession
from distill.machine.devices import Device, describe_hardware, resolve_device
from distill.machine.progress import progress_line
from distill.machine.provenance import now, versions
from distill.machine.ranks import leave, rank
from distill.measuring.benchmark import cascade_of, measure
from distill.measuring.candidates import candidates_of, flipped_texts, learning_curves
from distill.measuring.metrics import commonest_share
from distill.models import pickles
from distill.models.calibration import temperature_of
from distill.models.loading import (
    align_labels,
    check_base,
    load_classifier,
    load_config,
    load_tokenizer,
    reorder_classes,
    share_padding,
    vocabulary_of,
)
from distill.models.names import named_by
from distill.recipe.file import dump_recipe, load_recipe
from distill.recipe.schema import Recipe, with_absolute_paths
from distill.report import document as reporting
from distill.report.choice import Budget
from distill.report.page import render
from distill.storage.checksums import damage_of
from distill.storage.contents import find_recipe, models_in, sweeps_in
from distill.storage.exports import EXPORT_PROOFS, read_proofs
from distill.storage.files import read_json, write_json, write_text
from distill.storage.hub import check_can_push, push
from distill.storage.lock import check_writable, hold
from distill.storage.run_folder import RunFolder, SweepFolder
from distill.training.arguments import check_trackers as check_stage_trackers
from distill.training.arguments import settle_precision
from distill.training.finished import already_finished, finished_with
from distill.training.origin import base_fingerprint, origin_of
from distill.training.run import fit, open_training
from distill.training.tokens import tokenised

log = logging.getLogger("distill")

PREDICT_CHUNK = 4_096  # texts held at once by predict
PREDICT_CHARACTERS = 4_000_000  # in them; their tokens take some forty bytes a character


def check(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the resolved recipe in `path`; raises `RecipeError` with every mistake in it."""
    return load_recipe(path, overrides)


def check_models(recipe: Recipe, device: str = "auto") -> None:
    """Raise what is wrong with the recipe's student and its formats, as far as configurations tell."""
    if recipe.teacher is None:
        return
    with named_by("teacher.model"):
        check_base(recipe.teacher.model, recipe.data.label_names, pretrained=recipe.teacher.pretrained)
        if recipe.student:
            distilling.check_student(recipe, recipe.teacher.model, device)


def check_trackers(recipe: Recipe) -> None:
    """Raise `RecipeError` if a stage of the recipe reports to a tracker that is not installed."""
    for stage in ("teacher", "student"):
        if settings := getattr(recipe, stage):
            check_stage_trackers(settings.training, stage)


def teacher(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    push_to_hub: str | None = None,
) -> RunFolder:
    """Fine-tune the recipe's teacher and leave a run folder at `output` (default: the recipe's).

    It is uploaded to the repository `push_to_hub` where one is named.
    """
    settings = recipe.teacher
    if settings is None:
        raise RecipeError("teacher: missing, and a teacher is to be trained")
    if push_to_hub:
        check_can_push(push_to_hub)
    folder = RunFolder(Path(output or settings.output))
    if resume and not overwrite and already_finished(folder, recipe, "teacher"):
        if push_to_hub and rank() == 0:
            push(folder.path, push_to_hub)
        return folder
    check_models(recipe, device)  # a student that cannot be made of this teacher is refused before hours go into it
    with named_by("teacher.model"):
        architecture = load_config(settings.model).model_type
    training = open_training(
        recipe, "teacher", folder, [architecture], resume=resume, overwrite=overwrite, device=device
    )
    recipe, splits = training.recipe, training.splits
    assert recipe.teacher is not None
    settings = recipe.teacher
    with named_by("teacher.model"):
        tokenizer = load_tokenizer(settings.model)
    model = load_classifier(
        settings.model,
        splits.label_names,
        seed=training.arguments.seed,
        max_tokens=recipe.data.max_tokens,
        vocabulary=vocabulary_of(tokenizer),
        pretrained=settings.pretrained,
        attention_dropout=settings.attention_dropout,
    )
    share_padding(model.config, tokenizer)
    base = base_fingerprint(settings.model, tokenizer, pretrained=settings.pretrained)
    with training.clock("tokenising"):
        rows = tokenised("train", splits.train, tokenizer, recipe.data.max_tokens)
    origin = origin_of(splits, training.device, **{"teacher.model": base})
    folder = fit(training, model, tokenizer, rows, origin=origin, parents={"model": settings.model})
    if push_to_hub and rank() == 0:
        push(folder.path, push_to_hub)
    return folder


def kept_logits(
    recipe: Recipe, teacher: Path | str, cache: Path | str | None = None, *, device: str = "auto"
) -> dict[str, KeptLogits]:
    """Return what `student` will ask of its teacher, for each of the recipe's splits; see KeptLogits.

    Nothing is answered yet, and workers that see the one folder `cache` (default: the teacher's) can share the work.
    """
    splits = read_splits(recipe)
    known = identify_teacher(str(teacher), splits.label_names)
    is_bf16 = False
    if recipe.student:
        folder, resolved = RunFolder(Path(recipe.student.output)), resolve_device(device)
        settled, _ = settle_precision(recipe, "student", folder, resolved, distilling.manifest_of(str(teacher)))
        is_bf16 = settled.student is not None and bool(settled.student.training.get("bf16"))
    return distilling.kept_logits(known, splits, Path(cache) if cache else None, device, bf16=is_bf16)


def student(
    recipe: Recipe,
    teachers: Sequence[Path | str] | Path | str,
    output: Path | str | None = None,
    *,
    control: Path | str | None = None,
    teacher_logits: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
    push_to_hub: str | None = None,
) -> RunFolder:
    """Distil the recipe's student from the classifier or classifiers in `teachers` and leave a run folder at `output`.

    Where the recipe asks for a control, it follows, in `control` (default: OUTPUT-control). `teacher_logits` is where
    the teachers' answers are kept (default: in each teacher's folder). `force` distils from a teacher that is no better
    than the commonest class. The student is uploaded to the repository `push_to_hub` where one is named.
    """
    if recipe.student is None:
        raise RecipeError("student: missing, and a student is to be distilled")
    if push_to_hub:
        check_can_push(push_to_hub)
    names = [str(teachers)] if isinstance(teachers, Path | str) else [str(name) for name in teachers]
    distilling.check_teachers(names)
    folder = RunFolder(Path(output or recipe.student.output))
    beside = RunFolder(Path(control) if control else folder.path.with_name(f"{folder.path.name}-control"))
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    may_be_done = resume and not overwrite
    is_done = may_be_done and already_finished(folder, recipe, "student", names)
    needs_control = recipe.student.control
    if needs_control:
        if os.path.realpath(beside.path) in map(os.path.realpath, names):
            raise FolderError(f"{beside.path}: the control would overwrite a teacher", hint="--output DIR")
        if is_done and already_finished(beside, recipe, "control", names, student=folder):
            needs_control = False
        else:  # before hours go into the student: its control must find its folder free too
            beside.check(with_absolute_paths(recipe), resume=resume, overwrite=overwrite)
    redone = [one for one in (folder, *([beside] if needs_control else [])) if overwrite and one.is_finished]
    if redone:  # noted now: the teacher's answers may take hours, and the control comes last
        folder.check(with_absolute_paths(recipe), resume=resume, overwrite=overwrite)
        read_splits(recipe)  # first, since bad data is to leave no mark
    for one in redone:
        one.redo(with_absolute_paths(recipe))
    if not is_done:
        cache = Path(teacher_logits) if teacher_logits else None
        distilling.distil(recipe, names, folder, cache=cache, force=force, **options)
    if needs_control:
        distilling.control(recipe, names[0], folder, beside, **options)
    if push_to_hub and rank() == 0:
        push(folder.path, push_to_hub)
    return folder


def sweep(
    recipe: Recipe,
    teachers: Sequence[Path | str] | Path | str = (),
    output: Path | str | None = None,
    *,
    teacher_logits: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Search over the keys of the recipe's `sweep`, on validation; return the trials (see sweep.sweep).

    They are left in `output` (default: the recipe's), with a recipe.yaml that has the values of the best. `teachers`
    are those of the student whose keys are searched over, and none where the keys are the teacher's; `teacher_logits`
    and `force` are as in `student`.
    """
    if recipe.sweep is None:
        raise RecipeError("sweep: missing, and there are no keys to search over")
    names = [str(teachers)] if isinstance(teachers, Path | str) else [str(name) for name in teachers]
    distilling.check_teachers(names)
    if recipe.sweep.stage == "student" and not names:
        raise RecipeError("sweep.keys: are the student's, and no teacher is named", hint="--teacher DIR")
    if recipe.sweep.stage == "teacher" and names:
        raise RecipeError(f"sweep.keys: are the teacher's, which learns from no other, got {', '.join(names)}")
    return searching.sweep(
        recipe,
        names,
        SweepFolder(Path(output or recipe.sweep.output)),
        cache=Path(teacher_logits) if teacher_logits else None,
        resume=resume,
        overwrite=overwrite,
        force=force,
        device=device,
    )


def export(
    model: Path | str,
    formats: Sequence[str] | None = None,
    *,
    recipe: Recipe | None = None,
    output: Path | str | None = None,
    device: str = "auto",
    push_to_hub: str | None = None,
) -> dict[str, Any]:
    """Write `formats` (default: the recipe's) of a classifier to `output` (default: MODEL/export); return their proofs.

    `recipe` defaults to the one in the model's folder; its validation texts prove each format. Raises `ExportError`
    once all are written where any broke its bound. Those that passed are uploaded to the repository `push_to_hub` where
    one is named, each to a folder of its name.
    """
    if push_to_hub:
        check_can_push(push_to_hub)
    recipe = recipe or _recipe_of([Path(model)])
    resolved = resolve_device(device)
    folder = Path(output) if output else RunFolder(Path(model)).export
    formats = formats or recipe.export.formats
    exporting.check_formats(formats, load_config(str(model)).model_type)
    if not output and not Path(model).is_dir():
        raise FolderError(f"{model}: no such folder, so the exports have no place to go", hint="--output DIR")
    splits = read_splits(recipe)
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
        splits.validation["text"][:],
        np.asarray(splits.validation["label"][:]),
        folder,
        formats,
        max_tokens=classifier.max_tokens,
        bounds=Bounds(recipe.export.max_accuracy_drop, recipe.export.min_agreement),
        device=resolved,
        card=functools.partial(
            export_card,
            Path(model).absolute().name,
            label_names=splits.label_names,
            calibrated=temperature_of(classifier.session.model.config) != 1,
        ),
        progress=lambda step: log.info("export: %s", step),
    )
    made = exporting.keep_proofs(proofs, folder, formats)
    failed = [proof for proof in made if not proof.passed]
    for proof in made if push_to_hub else ():
        if proof.passed:
            push(folder / proof.format, push_to_hub, within=proof.format)
    if failed:
        raise ExportError(
            *(f"{folder / proof.format}: failed and not kept: {proof.reason}" for proof in failed),
            hint=f"every figure is in {folder / EXPORT_PROOFS}"
            + (", the texts answered otherwise in flipped-*.jsonl beside it" if any(p.flipped for p in failed) else ""),
        )
    return {proof.format: proof.as_json() for proof in made}


def inspect(
    recipe: Recipe, output: Path | str | None = None, *, rows: int = 5, seed: int | None = None
) -> dict[str, Any]:
    """Return what is in the recipe's data (see inspection.inspect), and leave it as a page in `output` if one is given.

    The tokenizer is the teacher's, or the student's where the recipe has no teacher. `rows` train texts are drawn with
    `seed` (default: the recipe's).
    """
    model = recipe.teacher.model if recipe.teacher else recipe.student.model if recipe.student else None
    if model is None:
        raise RecipeError("teacher.model: missing, so there is no tokenizer to look at the texts with")
    with named_by("teacher.model" if recipe.teacher else "student.model"):
        tokenizer = load_tokenizer(model)
    splits = read_splits(recipe)
    seed = recipe.data.seed if seed is None else seed
    found = inspection.inspect(splits, tokenizer, max_tokens=recipe.data.max_tokens, rows=rows, seed=seed)
    if output is not None:
        shown = {
            "concerns": inspection.concerns(found),
            "nothing_wrong": inspection.NOTHING_WRONG,
            "unread": inspection.unread(found),
            "split_rows": inspection.split_rows(found),
            "token_rows": inspection.token_rows(found["tokenised"], inspection.TOKENS_ON_A_PAGE),
        }
        Path(output).mkdir(parents=True, exist_ok=True)
        write_json(Path(output) / "inspect.json", found)
        write_text(Path(output) / "inspect.html", render("inspect.html", title="distill inspect", found=found, **shown))
    return found


def doctor(
    recipe: Recipe | None = None, output: Path | str = ".", *, device: str = "auto"
) -> Iterator[examination.Finding]:
    """Yield what is right and wrong with this machine and, where a `recipe` is given, whether its parts can be had."""
    yield from examination.examine(Path(output))
    if recipe is None:
        return
    yield from examination.examine_recipe(recipe, Path(output), device)
    if recipe.teacher and recipe.student:
        yield examination.attempt("student", lambda: _student_line(recipe, device))


def _student_line(recipe: Recipe, device: str) -> str:
    check_models(recipe, device)
    return f"can be made, and exported as {', '.join(recipe.export.formats)}"


def report(
    folders: Sequence[Path | str],
    output: Path | str = "report",
    *,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure every model in `folders` and its exports on the test split and leave a report; return report.json.

    A folder is a run folder, an export, any transformers classifier, the output of `run`, or that of a `sweep`, whose
    trials are shown beside. `recipe` (data, shapes) defaults to the first one found in them. Devices: the CPU always,
    CUDA where there is one, or just `device`. Raises `BudgetError`, once the report is written, where no model is
    within `budget`.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise FolderError(f"{output}: a file, not a folder", hint="--output DIR")
    check_writable(Path(output))
    models = [model for folder in folders for model in models_in(Path(folder))]
    if not models:
        raise FolderError(f"{folders[0]}: holds a search and no model to measure", hint="name a model's folder too")
    sweeps = [found for folder in folders for found in sweeps_in(Path(folder))]
    recipe = recipe or _recipe_of(models)
    devices: list[Device] = [resolve_device(device)] if device != "auto" else ["cpu"]
    if device == "auto" and resolve_device("auto") == "cuda":
        devices.append("cuda")
    splits = read_splits(recipe)
    notes: list[str] = []
    candidates = [item for model in models for item in candidates_of(model, devices, notes)]
    if budget:
        budget.check({item.role for item in candidates})
    # Whatever is read of the folders is looked at before minutes of measuring.
    comparisons = distilling.compare_with_controls(models, notes)
    trainings, flipped = list(learning_curves(models)), list(flipped_texts(models))
    gold_labels = np.asarray(splits.test["label"][:])
    measurements = measure(
        candidates,
        splits.label_names,
        splits.test["text"][:],
        gold_labels,
        recipe.benchmark.shapes,
        rounds=recipe.benchmark.rounds,
        threads=recipe.benchmark.threads,
    )
    environment = {
        "measured": now(),
        "versions": versions(),
        "hardware": describe_hardware(),
        "test_examples": len(splits.test),
        "commonest_class_share": commonest_share(gold_labels),
        "max_tokens": recipe.data.max_tokens,
        "rounds": recipe.benchmark.rounds,
        "data": splits.fingerprints,
    }
    if environment["commonest_class_share"] == 1:
        notes.append("Every test text is of one class, so the figures say nothing of the others.")
    with hold(Path(output)):
        found = reporting.write_report(
            Path(output),
            [item.as_json() for item in measurements],
            environment,
            recipe.benchmark.shapes,
            notes,
            label_names=splits.label_names,
            budget=budget,
            comparisons=comparisons,
            trainings=trainings,
            cascade=cascade_of(measurements, gold_labels, recipe.benchmark.shapes[0]),
            flipped=flipped,
            sweeps=sweeps,
            recipe=dump_recipe(recipe),
        )
    if budget and found["choice"]["model"] is None:
        page = Path(output) / reporting.REPORT_HTML
        raise BudgetError(f"report: {found['choice']['reason']}", hint=f"every figure is in {page}")
    return found


def run(
    recipe: Recipe,
    output: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
) -> dict[str, Any] | None:
    """Teacher, student (and its control), exports and report in one folder; return report.json.

    A stage that finished with this very recipe is skipped; one that finished with another, and a student of another
    teacher, is an error, unless `overwrite` redoes all of them. The report is measured anew each time. Of several ranks
    the first alone exports and reports; the others return None.
    """
    root = Path(output)
    if recipe.teacher is None or recipe.student is None:
        raise RecipeError(f"{'teacher' if recipe.teacher is None else 'student'}: missing, and `run` needs both")
    if len(recipe.student.teacher_weights or (1.0,)) != 1:
        raise RecipeError("student.teacher_weights: `run` has one teacher; distill student takes several")
    check_models(recipe, device)
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    names = ("teacher", "student", *(["control"] if recipe.student.control else []))
    folders = {name: RunFolder(root / name) for name in names}
    for folder in folders.values():  # what stands in the way of a later one is said before the first is trained
        folder.settle()
        if overwrite or not folder.is_finished or folder.is_being_replaced:
            folder.check(with_absolute_paths(recipe), resume=resume, overwrite=overwrite)

    @functools.cache
    def data() -> dict[str, str]:
        return read_splits(recipe).fingerprints

    if overwrite:
        data()  # first, since bad data is to leave no mark
        for folder in folders.values():  # also of the later ones, which `--resume` then redoes too
            folder.redo(with_absolute_paths(recipe))
    for name, folder in folders.items():
        is_done = folder.is_finished and not folder.is_being_replaced and not overwrite
        if is_done and finished_with(folder, recipe, [str(root / "teacher")], data):
            log.info("%s: finished before, skipped (%s)", name, folder.path)
            _clear_away(folder.path)
        elif name == "teacher":
            teacher(recipe, folder.path, **options)
        elif name == "student":
            distilling.distil(recipe, [str(root / "teacher")], folder, force=force, **options)
        else:
            distilling.control(recipe, str(root / "teacher"), folders["student"], folder, **options)
    leave()  # what follows is for one process, which must not wait for the others
    if rank():
        return None
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
        _clear_away(student_folder.export)
    result = report([root], root / "report", recipe=recipe, device=device)
    if failure:
        raise failure
    return result


def predict(
    model: Path | str,
    texts: Iterator[str],
    *,
    escalate: Path | str | None = None,
    below: float = 0.8,
    device: str = "auto",
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each text and its probability per label, in order, holding only a few thousand texts at a time.

    Texts whose likeliest label has a probability below `below` are answered by the classifier `escalate` instead.
    """
    classifier = load(model, device)
    second = load(escalate, device) if escalate else None
    columns = align_labels(second.label_names, classifier.label_names, teacher=str(escalate)) if second else []
    passed_on = answered = 0
    exports = RunFolder(Path(model)).export
    hint = f" (its exports: distill predict {exports})" if (exports / EXPORT_PROOFS).is_file() else ""
    log.info("predict: %s on %s%s", classifier.session.format, classifier.session.device, hint)
    with progress_line("predict", None, "text") as bar:
        for chunk in _chunks(texts, PREDICT_CHUNK):
            probabilities = classifier.probabilities(chunk)
            answered += len(chunk)
            unsure = np.flatnonzero(probabilities.max(axis=1) < below) if second else []
            if second and len(unsure):
                passed_on += len(unsure)
                probabilities[unsure] = second.probabilities([chunk[index] for index in unsure])[:, columns]
            for text, row in zip(chunk, probabilities, strict=True):
                yield text, dict(zip(classifier.label_names, map(float, row), strict=True))
            bar.update(len(chunk))
    if second:
        log.info("predict: %d of %d texts were passed on to %s", passed_on, answered, escalate)


def convert(model: Path | str, output: Path | str) -> Path:
    """Write a model folder whose weights are a pickle as safetensors to the new folder `output`; return that.

    See pickles.convert: nothing that the pickle may hold is run.
    """
    return pickles.convert(Path(model), Path(output))


def _recipe_of(models: Sequence[Path]) -> Recipe:
    return load_recipe(find_recipe(models))


def _clear_away(folder: Path) -> None:
    """Remove what a run that was killed at its very end was still about to remove."""
    if rank() == 0:
        with hold(folder):
            pass


def _was_exported(folder: RunFolder, name: str) -> bool:
    """Whether a format is there, whole and proved, and export.json says so too."""
    if damage_of(folder.export / name) is not None or not (folder.export / EXPORT_PROOFS).is_file():
        return False
    proof, said = read_proofs(folder.export).get(name, {}), read_json(folder.export / EXPORT_PROOFS)
    return proof.get("passed", False) and said.get(name) == proof


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Cut into lists of at most `size` texts, or fewer where they are long."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == size or characters >= PREDICT_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
