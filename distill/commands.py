"""One function for each command, under the same name: it takes paths and returns what it wrote or measured.

    from distill import commands
    recipe = commands.check("recipes/quickstart.yaml")
    commands.teacher(recipe)
    commands.student(recipe, recipe.teacher.output)

Notes go to the logger "distill" and progress to stderr. Nothing is printed to stdout.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from distill.data import inspection
from distill.data.draft import draft
from distill.data.encoding import MOST_LOST, truncation_of
from distill.data.splits import read_splits
from distill.distillation.answer_file import AnswerFile, is_answer_file
from distill.distillation.control import train_control
from distill.distillation.pruned_student import BUDGET, FORMAT, check_export
from distill.distillation.student import check_student, made_of, student_of, train_student
from distill.distillation.teacher_logits import LogitCache, identify_teacher, load_or_compute
from distill.distillation.teacher_review import SUREST, concerns_of, review, review_rows
from distill.distillation.teachers import check_teachers, logit_caches
from distill.doctor import examine, examine_recipe, finding_of
from distill.errors import BudgetError, ExportError, FolderError, RecipeError, UserError
from distill.export.bundle import make_bundle
from distill.export.formats import check_formats
from distill.export.model import export_model
from distill.export.proofs import Bounds
from distill.inference.prediction import predict as predict
from distill.inference.prediction import write_answers as write_answers
from distill.inference.verification import verify_exports as verify  # noqa: F401
from distill.machine.devices import Device, resolve_device
from distill.machine.packages import Finding
from distill.machine.ranks import leave, rank
from distill.measuring import evaluation
from distill.measuring.baselines import baseline_beside, compare_with_baseline
from distill.measuring.cascade import check_unseen, classifiers_of, make_cascade
from distill.measuring.findings import findings_of
from distill.measuring.promise import Promise
from distill.models import pickles
from distill.models.loading import check_base, load_config, load_tokenizer
from distill.models.names import named_by
from distill.recipe.budgets import each_budget
from distill.recipe.file import load_recipe
from distill.recipe.schema import Recipe, with_absolute_paths
from distill.report.choice import TO_TRY, Budget, baseline_sentence, is_above
from distill.report.document import REPORT_HTML, write_report
from distill.report.page import render
from distill.search import run_search
from distill.storage.cascades import check_place
from distill.storage.contents import find_recipe, manifest_of, models_in, models_of_budgets, sweeps_in
from distill.storage.exports import EXPORT_PROOFS, is_exported
from distill.storage.files import atomic_path, write_json, write_text
from distill.storage.hub import check_can_push, is_here, push
from distill.storage.lock import check_writable, hold
from distill.storage.run_folder import RunFolder, SweepFolder
from distill.training import arguments
from distill.training.arguments import settle_precision
from distill.training.baseline import train_baseline
from distill.training.finished import already_finished, finished_with, go_on_longer, goes_on_longer
from distill.training.parts import accuracy_by_part
from distill.training.teacher import teacher_of, train_teacher

log = logging.getLogger("distill")


def check(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in `path` with all defaults; raises `RecipeError` with every mistake in it."""
    return load_recipe(path, overrides)


def training_settings(recipe: Recipe, stage: Literal["teacher", "student"], device: str = "auto") -> dict[str, Any]:
    """Return the TrainingArguments of a stage as JSON, with transformers' own defaults, as this machine would train.

    Raises `RecipeError` if the recipe lacks the stage.
    """
    settings = teacher_of(recipe) if stage == "teacher" else student_of(recipe)
    folder, resolved = RunFolder(Path(settings.output)), resolve_device(device)
    found, _ = arguments.training_arguments(settings.training, folder, resolved, stage=stage)
    return arguments.as_settings(found)


def check_models(recipe: Recipe, device: str = "auto") -> None:
    """Raise `UserError` if the configurations show that the student or one of its exports cannot be made."""
    if recipe.teacher is None:
        return
    with named_by("teacher.model"):
        check_base(
            recipe.teacher.model, recipe.data.label_names, recipe.data.task, pretrained=recipe.teacher.pretrained
        )
        for one in (each_budget(recipe) or {"": recipe}).values() if recipe.student else ():
            check_student(one, made_of(student_of(one), [recipe.teacher.model]), device)


def check_trackers(recipe: Recipe) -> None:
    """Raise `RecipeError` if a stage of the recipe needs a tracker that is not installed, or groups texts by length."""
    for stage in ("teacher", "student"):
        if settings := getattr(recipe, stage):
            arguments.check_supported(settings.training, stage)


def baseline(
    recipe: Recipe, output: Path | str = "baseline", *, resume: bool = False, overwrite: bool = False
) -> RunFolder:
    """Train the baseline, a linear classifier on words and word pairs, and write a run folder at `output`.

    It is what teacher and student are compared with: if they are no better, they are not worth their cost.
    """
    folder = RunFolder(Path(output))
    if resume and not overwrite and already_finished(folder, recipe, "baseline"):
        return folder
    return train_baseline(recipe, folder, resume=resume, overwrite=overwrite)


def teacher(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    push_to_hub: str | None = None,
) -> RunFolder:
    """Fine-tune the recipe's teacher and write a run folder at `output` (default: the recipe's).

    If `push_to_hub` names a repository, the teacher is uploaded to it.
    """
    settings = teacher_of(recipe)
    if push_to_hub:
        check_can_push(push_to_hub)
    folder = RunFolder(Path(output or settings.output))
    if resume and not overwrite and goes_on_longer(folder, recipe, "teacher"):
        go_on_longer(folder, recipe, "teacher")
    is_done = resume and not overwrite and already_finished(folder, recipe, "teacher")
    if not is_done:
        check_models(recipe, device)  # now, because training may take hours before the student is due
        folder = train_teacher(recipe, folder, resume=resume, overwrite=overwrite, device=device)
        _tell_baseline(folder)
    if push_to_hub and rank() == 0:
        push(folder.path, push_to_hub)
    return folder


def kept_logits(
    recipe: Recipe, teacher: Path | str, cache: Path | str | None = None, *, device: str = "auto"
) -> dict[str, LogitCache]:
    """Return the teacher logits that `student` will need, by split; see LogitCache.

    This computes nothing yet. Workers that share the folder `cache` (default: the teacher's) can divide the work.
    """
    splits = read_splits(recipe)
    known = identify_teacher(str(teacher), splits.label_names, splits.label_map, splits.task)
    is_bf16 = False
    if recipe.student:
        folder, resolved = RunFolder(Path(recipe.student.output)), resolve_device(device)
        settled, _ = settle_precision(recipe, "student", folder, resolved, manifest_of(str(teacher)))
        is_bf16 = settled.student is not None and bool(settled.student.training.get("bf16"))
    return logit_caches(known, splits, Path(cache) if cache else None, device, bf16=is_bf16)


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
    """Distill the recipe's student from one or several `teachers` and write a run folder at `output`.

    A teacher is a classifier, or a file of answers (see data/answers.py). If the recipe asks for a control, it is
    trained next, in `control` (default: OUTPUT-control). `teacher_logits` is the folder for the teachers' logits
    (default: each teacher's own). `force` accepts a teacher that is no better than the commonest class. If
    `push_to_hub` names a repository, the student is uploaded to it.
    """
    settings = student_of(recipe)
    if settings.prune and settings.prune.is_several:
        raise RecipeError("student.prune: has several budgets; give one, or call `students`")
    if push_to_hub:
        check_can_push(push_to_hub)
    names = _names(teachers)
    check_teachers(names)
    folder = RunFolder(Path(output or settings.output))
    control_folder = RunFolder(Path(control) if control else folder.path.with_name(f"{folder.path.name}-control"))
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    may_go_on = resume and not overwrite
    is_longer = may_go_on and goes_on_longer(folder, recipe, "student", names)
    is_control_longer = may_go_on and settings.control and goes_on_longer(control_folder, recipe, "control")
    if is_longer:  # both have been checked by now
        go_on_longer(folder, recipe, "student")
    is_done = resume and not overwrite and already_finished(folder, recipe, "student", names)
    needs_control = settings.control
    if needs_control:
        if os.path.realpath(control_folder.path) in map(os.path.realpath, names):
            raise FolderError(f"{control_folder.path}: the control would overwrite a teacher", hint="--output DIR")
        if is_control_longer:
            pass  # until the student is there
        elif is_done and already_finished(control_folder, recipe, "control", names, student=folder):
            needs_control = False
        else:  # now, because the student may train for hours before its control needs this folder
            control_folder.prepare(with_absolute_paths(recipe), resume=resume, overwrite=overwrite)
    redone = [one for one in (folder, *([control_folder] if needs_control else [])) if overwrite and one.is_finished]
    if redone:
        folder.prepare(with_absolute_paths(recipe), resume=resume, overwrite=overwrite)
        read_splits(recipe)  # if the data is bad, nothing may be marked as being redone
    for one in redone:  # now, so that --resume redoes both even if this stops during the teacher's hours of inference
        one.mark_for_replacement(with_absolute_paths(recipe))
    if not is_done:
        cache = Path(teacher_logits) if teacher_logits else None
        _tell_baseline(train_student(recipe, names, folder, cache=cache, force=force, **options))
    if is_control_longer:  # now, because it depends on the longer student
        go_on_longer(control_folder, recipe, "control", {"student": folder.read_manifest()["weights"]})
    if needs_control:
        train_control(recipe, made_of(settings, names), folder, control_folder, **options)
    if push_to_hub and rank() == 0:
        push(folder.path, push_to_hub)
    return folder


def students(
    recipe: Recipe,
    teachers: Sequence[Path | str] | Path | str,
    output: Path | str | None = None,
    *,
    push_to_hub: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    **options: Any,
) -> list[RunFolder]:
    """Distill a student for each budget that the recipe has, or the one student of any other recipe (see `student`).

    Each of several budgets gets a folder of its own in `output`, such as latency_ms-2. All budgets are checked before
    the first student is trained. Several students cannot be pushed to one repository.
    """
    recipes = each_budget(recipe)
    if not recipes:
        options |= {"push_to_hub": push_to_hub, "resume": resume, "overwrite": overwrite, "device": device}
        return [student(recipe, teachers, output, **options)]
    if push_to_hub:
        raise UserError(
            f"--push-to-hub: {push_to_hub}: is for one student, but the recipe has {len(recipes)} budgets",
            hint="distill export STUDENT --push-to-hub NAME uploads one of them",
        )
    settings, names = student_of(recipe), _names(teachers)
    root = Path(output or settings.output)
    check_teachers(names)
    _check_for_budgets(root, recipes, overwrite=overwrite)
    made = made_of(settings, names)
    for one in recipes.values():
        check_student(one, made, device)
    stages = recipes | {f"{name}-control": one for name, one in recipes.items() if settings.control}
    folders = {name: RunFolder(root / name) for name in stages}
    _prepare(folders, stages, resume=resume, overwrite=overwrite, finished=resume)
    if overwrite:
        read_splits(recipe)
        for name, folder in folders.items():
            folder.mark_for_replacement(with_absolute_paths(stages[name]))
    options |= {"resume": resume, "overwrite": overwrite, "device": device}
    made_students = []
    for number, (name, one) in enumerate(recipes.items(), 1):
        log.info("student: %d of %d budgets, in %s", number, len(recipes), root / name)
        made_students.append(student(one, names, root / name, **options))
    return made_students


def _check_for_budgets(root: Path, recipes: Mapping[str, Recipe], *, overwrite: bool) -> None:
    """Raise `FolderError` if a folder for the students of several budgets holds another student."""
    if any(path.is_file() for path in (RunFolder(root).recipe, root / "config.json")):
        raise FolderError(f"{root}: holds a run; students of several budgets need a folder", hint="--output DIR")
    known = {f"{name}{kind}" for name in recipes for kind in ("", "-control")}
    for path in models_of_budgets(root) if overwrite else ():  # a report would take it for one of the new ones
        if path.name not in known:
            raise FolderError(f"{path}: is of a budget that the recipe no longer has", hint="remove it")


def _prepare(
    folders: Mapping[str, RunFolder],
    recipes: Mapping[str, Recipe],
    *,
    resume: bool,
    overwrite: bool,
    finished: bool,
) -> None:
    """Check and prepare all run folders before the first training; `finished` ones may be left as they are."""
    for name, folder in folders.items():
        folder.recover()
        if overwrite or not finished or not folder.is_finished or folder.is_being_replaced:
            folder.prepare(with_absolute_paths(recipes[name]), resume=resume, overwrite=overwrite)


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
    """Search over the keys of the recipe's `sweep`, on validation; return the trials (see search.run_search).

    The trials are written to `output` (default: the recipe's), with a recipe.yaml that has the best values. `teachers`
    are required if the keys are the student's, and refused if they are the teacher's. `teacher_logits` and `force` are
    as in `student`.
    """
    if recipe.sweep is None:
        raise RecipeError("sweep: missing, so there are no keys to search over")
    names = _names(teachers)
    check_teachers(names)
    if recipe.sweep.stage == "student" and not names:
        raise RecipeError("sweep.keys: belong to the student, but no teacher is named", hint="--teacher DIR")
    if recipe.sweep.stage == "teacher" and names:
        raise RecipeError(f"sweep.keys: belong to the teacher, so no teacher may be named, got {', '.join(names)}")
    return run_search(
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

    The validation texts of `recipe` (default: the one in the model's folder) prove each format. If a format breaks its
    bound, `ExportError` is raised after all formats were tried. If `push_to_hub` names a repository, the formats that
    passed are uploaded to it, each to a folder of its name.
    """
    if push_to_hub:
        check_can_push(push_to_hub)
    recipe = recipe or load_recipe(find_recipe([Path(model)]))
    resolved = resolve_device(device)
    folder = Path(output) if output else RunFolder(Path(model)).export
    formats = formats or recipe.export.formats
    check_formats(formats, load_config(str(model)))
    if not output and not Path(model).is_dir():
        raise FolderError(f"{model}: no such folder, so there is no default place for the exports", hint="--output DIR")
    bounds = Bounds(recipe.export.max_accuracy_drop, recipe.export.min_agreement)
    made = export_model(
        model, read_splits(recipe), folder, formats, bounds=bounds, device=resolved, about=recipe.card,
        base_model=push_to_hub if push_to_hub and "/" in push_to_hub else None,
    )  # fmt: skip
    if any(proof.format == FORMAT and proof.passed for proof in made) and (
        found := check_export(RunFolder(Path(model)), folder, rounds=recipe.benchmark.rounds)
    ):
        write_json(folder / BUDGET, found)
    failed = [proof for proof in made if not proof.passed]
    for proof in made if push_to_hub else ():
        if proof.passed:
            push(folder / proof.format, push_to_hub, within=proof.format)
    if failed:
        raise ExportError(
            *(f"{folder / proof.format}: failed and not kept: {proof.reason}" for proof in failed),
            hint=f"every figure is in {folder / EXPORT_PROOFS}"
            + (", the texts whose label changed in flipped-*.jsonl there" if any(p.flipped for p in failed) else ""),
        )
    return {proof.format: proof.as_json() for proof in made}


def exports(
    model: Path | str,
    formats: Sequence[str] | None = None,
    *,
    output: Path | str | None = None,
    push_to_hub: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Export a classifier as `export` does, or each student of several budgets (no control) in the folder `model`.

    The proofs of several students are named STUDENT/FORMAT. All are exported before `ExportError` is raised for one.
    """
    several = [folder for folder in models_of_budgets(Path(model)) if not folder.name.endswith("-control")]
    if not several:
        return export(model, formats, output=output, push_to_hub=push_to_hub, **options)
    for option, value in (("--output", output), ("--push-to-hub", push_to_hub)):
        if value:
            raise UserError(f"{option}: {value}: is for one model, but {model} holds {len(several)}; name one of them")
    proofs: dict[str, Any] = {}
    failures: list[ExportError] = []
    for folder in several:
        try:
            proofs |= {f"{folder.name}/{name}": proof for name, proof in export(folder, formats, **options).items()}
        except ExportError as error:
            failures.append(error)
    if failures:
        raise _joined(failures)
    return proofs


def _joined(failures: Sequence[ExportError]) -> ExportError:
    hints = [failure.hint for failure in failures if failure.hint]
    return ExportError(*(problem for failure in failures for problem in failure.problems), hint="; ".join(hints))


def bundle(
    model: Path | str,
    output: Path | str,
    *,
    triton: bool = False,
    overwrite: bool = False,
    push_to_hub: str | None = None,
) -> dict[str, Any]:
    """Write a model and its exports to the folder `output` as other runtimes read them; return what is in it.

    Only formats that passed their proof go in (see make_bundle). With `triton`, the folder also holds a model
    repository for Triton. If `push_to_hub` names a repository, exactly these files are uploaded to its root.
    """
    if push_to_hub:
        check_can_push(push_to_hub)
    made = make_bundle(Path(model), Path(output), triton=triton, overwrite=overwrite)
    if push_to_hub:
        push(Path(output), push_to_hub, files=made.files)
    return made.as_json()


def cascade(
    models: Sequence[Path | str],
    output: Path | str = "cascade",
    *,
    agree: float | None = None,
    accuracy_drop: float | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a cascade of the classifiers `models`, cheapest first, to `output`; return its cascade.json.

    Each classifier answers the texts that it is sure of, and the next one gets the others. How sure it has to be is
    found on the validation texts of `recipe` (default: the one of the last model), so that the cascade keeps a promise
    on new texts with 95 % confidence: it agrees with the last classifier on a share of at least `agree`, or loses at
    most `accuracy_drop` against it. Raises `PromiseError` if no cascade is sure to.
    """
    promise = Promise(agree, accuracy_drop)
    check_writable(Path(output))
    check_place(Path(output))
    folders = classifiers_of([Path(model) for model in models], device)
    splits = read_splits(recipe or load_recipe(find_recipe(folders[::-1])))
    check_unseen(folders, splits)
    return make_cascade(folders, splits, Path(output), promise, device=device)


def init(
    train: str,
    test: str | None = None,
    output: Path | str = "recipe.yaml",
    *,
    teacher: str = "google-bert/bert-base-uncased",
    student: str = "distilbert/distilbert-base-uncased",
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
) -> dict[str, Any]:
    """Write a recipe for somebody's own tables to the new file `output` (see draft.draft); return it with concerns."""
    if Path(output).exists():
        raise FolderError(f"{output}: is there already", hint="--output FILE names another")
    tokenizer = load_tokenizer(teacher) if is_here(teacher) else None
    found = draft(
        train, test, teacher=teacher, student=student, text_columns=text_columns, label_column=label_column,
        tokenizer=tokenizer,
    )  # fmt: skip
    with atomic_path(Path(output)) as partial:
        partial.write_text(found.text, encoding="utf-8")
        load_recipe(partial)
    return {"recipe": str(output), "concerns": list(found.concerns)}


def look_at(recipe: Recipe, example_id: str) -> dict[str, Any]:
    """Return one row of the recipe's data, such as "train/17", and how the model sees it (see inspection.look_at)."""
    return inspection.look_at(example_id, read_splits(recipe), _tokenizer_of(recipe), truncation_of(recipe, "teacher"))


def _tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Return the teacher's tokenizer, or the student's if the recipe has no teacher."""
    student = recipe.student
    grams = student.ngrams.tokenizer if student and student.ngrams else None
    model = recipe.teacher.model if recipe.teacher else grams or (student.model if student else None)
    if model is None:
        raise RecipeError("teacher.model: missing, so there is no tokenizer for the texts")
    with named_by("teacher.model" if recipe.teacher else "student.ngrams.tokenizer" if grams else "student.model"):
        return load_tokenizer(model)


def inspect(
    recipe: Recipe,
    output: Path | str | None = None,
    *,
    rows: int = 5,
    seed: int | None = None,
    teacher: Path | str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Return what is in the recipe's data (see inspection.inspect); if `output` is given, write it there as a page.

    The tokenizer is the teacher's, or the student's if the recipe has no teacher. `seed` (default: the recipe's) draws
    the `rows` train texts that are shown. If a `teacher` is named, its answers are reviewed too (see teacher_review).
    """
    tokenizer = _tokenizer_of(recipe)
    if teacher:
        check_teachers([str(teacher)])
    splits = read_splits(recipe)
    seed = recipe.data.seed if seed is None else seed
    found = inspection.inspect(splits, tokenizer, truncation_of(recipe, "teacher"), rows=rows, seed=seed)
    if found["splits"]["train"]["tokens"]["lost"] > MOST_LOST and not recipe.data.has_pairs:
        found["accuracy_by_part"] = accuracy_by_part(splits, tokenizer, recipe.data.max_tokens, seed=recipe.data.seed)
    if teacher:
        if is_answer_file(str(teacher)):
            file = AnswerFile.read(str(teacher), recipe.data, splits)
            given, thresholds = file.by_split(splits), file.thresholds
        else:  # of a model all but test, from the cache that its student will use
            caches = kept_logits(recipe, teacher, device=device)
            given = {split: load_or_compute(cache) for split, cache in caches.items()}
            thresholds = next(iter(caches.values())).teacher.thresholds
        found["teacher"] = {"name": str(teacher), **review(given, splits, thresholds)}
    if output is not None:
        reviewed = found.get("teacher")
        shown = {
            "concerns": inspection.concerns(found) + (concerns_of(reviewed) if reviewed else []),
            "teacher_rows": review_rows(reviewed) if reviewed else [],
            "surest": SUREST,
            "nothing_wrong": inspection.NOTHING_WRONG,
            "unread": inspection.unread(found),
            "split_rows": inspection.split_rows(found),
            "part_rows": inspection.part_rows(found),
            "token_rows": inspection.token_rows(found["tokenised"], inspection.TOKENS_ON_A_PAGE),
        }
        Path(output).mkdir(parents=True, exist_ok=True)
        write_json(Path(output) / "inspect.json", found)
        write_text(
            Path(output) / "inspect.html", render("inspect.html", title="What is in the data", found=found, **shown)
        )
    return found


def doctor(recipe: Recipe | None = None, output: Path | str = ".", *, device: str = "auto") -> Iterator[Finding]:
    """Yield what is right and wrong with this machine and, if a `recipe` is given, with its data and models."""
    yield from examine(Path(output))
    if recipe is None:
        return
    yield from examine_recipe(recipe, Path(output), device)
    if recipe.teacher and recipe.student:
        yield finding_of("student", lambda: _student_line(recipe, device))


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
    """Measure every model in `folders` and its exports on the test split, write a report and return report.json.

    A folder is a run folder, an export, any transformers classifier, or the output of `run` or `sweep`; of a sweep, the
    report shows the trials. `recipe` gives the data and the shapes; it defaults to the first one found in the folders.
    With `device` "auto", the CPU is measured, and CUDA too if there is one. If no model is within `budget`,
    `BudgetError` is raised after the report is written.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise FolderError(f"{output}: a file, not a folder", hint="--output DIR")
    check_writable(Path(output))
    models = [model for folder in folders for model in models_in(Path(folder))]
    if not models:
        raise FolderError(f"{folders[0]}: holds a sweep and no model to measure", hint="name a model folder too")
    sweeps = [found for folder in folders for found in sweeps_in(Path(folder))]
    recipe = recipe or load_recipe(find_recipe(models))
    resolved = resolve_device(device)
    devices: list[Device] = ["cpu", "cuda"] if device == "auto" and resolved == "cuda" else [resolved]
    findings = findings_of(models, sweeps, recipe, devices, budget)
    with hold(Path(output)):
        found = write_report(Path(output), findings, budget)
    if budget and found["choice"]["model"] is None:
        page = Path(output) / REPORT_HTML
        raise BudgetError(f"report: {found['choice']['reason']}", hint=f"every figure is in {page}")
    return found


def evaluate(
    model: Path | str, recipe: Recipe | None = None, *, split: str = "test", device: str = "auto"
) -> dict[str, Any]:
    """Return how well one model does on a split of `recipe` (default: the model's own); see evaluation.evaluate."""
    recipe = recipe or load_recipe(find_recipe([Path(model)]))
    return evaluation.evaluate(model, read_splits(recipe), split, device)


def run(
    recipe: Recipe,
    output: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
) -> dict[str, Any] | None:
    """Make baseline, teacher, student (and its control), exports and report in one folder; return report.json.

    Steps that finished with the same recipe are skipped. It is an error if a step finished with another recipe, or a
    student with another teacher; `overwrite` redoes all steps. The report is always written again. If there are several
    ranks, only rank 0 exports and reports; the others return None.
    """
    root = Path(output)
    if recipe.teacher is None or recipe.student is None:
        raise RecipeError(f"{'teacher' if recipe.teacher is None else 'student'}: missing, but `run` needs both")
    if len(recipe.student.teacher_weights or (1.0,)) != 1:
        raise RecipeError("student.teacher_weights: `run` has one teacher; `distill student` takes several")
    check_models(recipe, device)
    arguments.check_training(recipe.teacher.training, resolve_device(device), "teacher")
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device}
    recipes, several = {"teacher": recipe}, each_budget(recipe)  # by folder
    for name, one in (several or {"": recipe}).items():
        recipes |= {
            str(Path(role, name)): one for role in ("student", *(["control"] if recipe.student.control else []))
        }
    if recipe.baseline and rank() == 0:  # it takes seconds, so rank 0 trains it while the others wait for the teacher
        recipes = {"baseline": recipe} | recipes
    folders = {name: RunFolder(root / name) for name in recipes}
    if several:
        for role in ("student", "control"):
            _check_for_budgets(root / role, several, overwrite=overwrite)
    _prepare(folders, recipes, resume=resume, overwrite=overwrite, finished=True)

    @functools.cache
    def data() -> dict[str, str]:
        return read_splits(recipe).fingerprints

    if overwrite:
        data()  # if the data is bad, nothing may be marked as being redone
        for name, folder in folders.items():  # all now, so that --resume redoes the later ones too
            folder.mark_for_replacement(with_absolute_paths(recipes[name]))
    for name, folder in folders.items():
        (role, *rest), one = Path(name).parts, recipes[name]
        its_student = folders[str(Path("student", *rest))] if role == "control" else None
        is_done = folder.is_finished and not folder.is_being_replaced and not overwrite
        if is_done and finished_with(folder, one, [str(root / "teacher")], data, student=its_student):
            log.info("%s: finished before, skipped (%s)", name, folder.path)
            _clean_up(folder.path)
        elif role == "baseline":
            train_baseline(recipe, folder, resume=resume, overwrite=overwrite)
        elif role == "teacher":
            teacher(recipe, folder.path, **options)
        elif role == "student":
            _tell_baseline(train_student(one, [str(root / "teacher")], folder, force=force, **options))
        else:
            assert its_student
            made = made_of(recipe.student, [str(root / "teacher")])
            train_control(one, made, its_student, folder, **options)
    leave()  # rank 0 does the rest alone and must not wait for the other ranks
    if rank():
        return None
    failures: list[ExportError] = []
    for name, one in recipes.items():
        if Path(name).parts[0] != "student":
            continue
        place = folders[name].export
        missing = [form for form in recipe.export.formats if not is_exported(place, form)]
        if missing:
            try:
                export(folders[name].path, missing, recipe=one, device=device)
            except ExportError as error:  # raised after the report, which is useful without these formats too
                failures.append(error)
        else:
            log.info("export: finished before, skipped (%s)", place)
            _clean_up(place)
    result = report([root], root / "report", recipe=recipe, device=device)
    if failures:
        raise _joined(failures)
    return result


def convert(model: Path | str, output: Path | str) -> Path:
    """Write a model folder with pickled weights as safetensors to the new folder `output`; return that folder.

    Code in the pickle is not run (see pickles.convert).
    """
    return pickles.convert(Path(model), Path(output))


def _names(teachers: Sequence[Path | str] | Path | str) -> list[str]:
    return [str(name) for name in ([teachers] if isinstance(teachers, Path | str) else teachers)]


def _tell_baseline(folder: RunFolder) -> None:
    """Say how far a finished run is above the baseline beside it, if there is one."""
    if rank():
        return
    try:
        beside = baseline_beside(folder.path)
        for found in compare_with_baseline([beside, folder.path], []) if beside else ():
            if is_above(found):
                log.info("%s: %s", found["role"], baseline_sentence(found))
            else:
                log.warning("%s: %s %s", found["role"], baseline_sentence(found), TO_TRY)
    except FolderError as error:  # a damaged baseline says nothing of the run
        log.warning("baseline: %s", error)


def _clean_up(folder: Path) -> None:
    """Remove what a run left behind if it was killed just before its end."""
    if rank() == 0:
        with hold(folder):
            pass
