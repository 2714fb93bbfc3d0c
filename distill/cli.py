"""The command line. Each command parses its options, calls one function of `commands` and prints the result.

Results go to stdout, everything else to stderr. Heavy imports wait until a command runs, so that --help is fast.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from distill.errors import SERVE_EXTRA, TRAIN_EXTRA, Interrupted, UserError, lacking, printable, refusal_of
from distill.machine.ranks import check_launcher, end_rank, is_launched, leave, rank, refuse_ranks, world_size
from distill.machine.terminal import Guarded, NotWritten, give_up_stdout, guarded

Device = Literal["auto", "cpu", "cuda"]


def _path(text: str) -> Path:
    """Return the path; raise `UserError` if its name is not UTF-8, because many files that a run writes contain it."""
    try:
        _name(text).encode()
    except UnicodeEncodeError:
        raise UserError(f"{text}: the name is not UTF-8", hint="rename it") from None
    if "\0" in text:
        raise typer.BadParameter("contains a null byte")
    return Path(text)


def _name(text: str) -> str:
    """Return the name; an empty one is refused, because as a path it would mean the working directory."""
    if not text:
        raise typer.BadParameter("wants a name, got nothing")
    return text


def _option(name: str, metavar: str, about: str, parser: Any = None) -> Any:
    return typer.Option(name, metavar=metavar, help=about, parser=parser)


def _output(about: str) -> Any:
    return _option("--output", "DIR", about, _path)


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file (YAML) or a name from `distill recipes`. Its paths are relative to the working directory.",
        show_default=False,
        parser=_path,
    ),
]
SetOption = Annotated[
    list[str] | None,
    _option("--set", "KEY=VALUE", "Set a recipe key, e.g. data.max_tokens=256. May be given several times."),
]
OutputOption = Annotated[Path | None, _output("Where to write (default: `output` in the recipe).")]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run. A finished one goes on if the recipe now has more epochs or steps.",
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an earlier run. A finished one stays until the new one has finished."),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Distill even if the teacher does not beat always predicting the majority class."),
]
TeacherLogitsOption = Annotated[
    Path | None,
    _option(
        "--teacher-logits", "DIR", "Cache folder for the teacher's predictions (default: in the teacher's folder).",
        _path,
    ),
]  # fmt: skip
DeviceOption = Annotated[
    Device, typer.Option("--device", help="The device to compute on. auto takes a CUDA GPU if there is one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the whole result as JSON, as the last line of stdout.")]
PushOption = Annotated[
    str | None,
    _option(
        "--push-to-hub", "NAME",
        "Upload to this Hub repository. A new repository is private. Needs a token (hf auth login or HF_TOKEN).", _name,
    ),
]  # fmt: skip
RecipeOption = Annotated[
    Path | None, _option("--recipe", "RECIPE", "The recipe (default: recipe.yaml in the model folder).", _path)
]


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came outside training, which handles these signals itself."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


class _Group(TyperGroup):
    def main(self, *arguments: Any, **settings: Any) -> Any:
        try:
            with guarded():
                try:
                    return super().main(*arguments, **settings)
                except SystemExit as done:  # raised again once stdout is flushed
                    code = done.code
            if world_size() > 1 and is_launched():
                end_rank(code if isinstance(code, int) else 0 if code is None else 1)
            raise SystemExit(code)
        except NotWritten as error:
            give_up_stdout()
            if error.errno == errno.EPIPE:  # the reader has stopped reading, as `| head` does
                raise SystemExit(128 + 13) from None
            with contextlib.suppress(OSError):
                print(f"error: stdout: cannot be written: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            check_launcher()
            _check_directory()
            result = super().invoke(ctx)
            leave()
            return result
        except NotWritten:
            raise
        except Interrupted as interruption:
            print(f"interrupted: {interruption}", file=sys.stderr)
            raise typer.Exit(interruption.exit_code) from None
        except (KeyboardInterrupt, _Terminated) as stopped:
            print(
                "\ninterrupted; finished steps stay (run, teacher, student and sweep: --resume continues)",
                file=sys.stderr,
            )
            raise typer.Exit(stopped.exit_code if isinstance(stopped, _Terminated) else 130) from None
        except Exception as error:
            known = _as_user_error(error)
            if known is None:
                raise
            if rank():
                time.sleep(5)  # if rank 0 fails in the same way, it prints the error, and the launcher ends this rank
            for problem in known.problems:
                print(f"error: {problem}", file=sys.stderr)
            if known.hint:
                print(f"hint: {known.hint}", file=sys.stderr)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Turn a large text classifier into a small, fast one: distillation, export, report.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill {metadata.version('distill')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def check(
    recipe: RecipeArgument,
    set_: SetOption = None,
    training: Annotated[
        Literal["teacher", "student"] | None,
        _option("--training", "STAGE", "Print all TrainingArguments of a stage instead: teacher or student."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Validate a recipe and print it with all defaults.

    If the recipe's models are on this disk, also check that the student can be made from the teacher.
    """
    from distill.recipe.file import as_yaml, dump_recipe, load_recipe

    resolved = load_recipe(recipe, set_ or ())
    if resolved.teacher and resolved.student:
        from distill.storage.hub import is_here

        names = [name for name in (resolved.teacher.model, resolved.student.model) if name]
        if away := [name for name in names if not is_here(name)]:
            print(f"the student was not checked: not on this disk: {', '.join(away)}", file=sys.stderr)
            print("hint: `distill doctor RECIPE` looks for them on the Hub", file=sys.stderr)
        else:
            _commands().check_models(resolved)
    _commands().check_trackers(resolved)
    if training:
        settings = _commands().training_settings(resolved, training)
        print(json.dumps(settings) if json_ else as_yaml(settings).rstrip("\n"))
    elif json_:
        print(json.dumps(resolved.model_dump(mode="json")))
    else:
        print(dump_recipe(resolved), end="")


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The recipe to copy. Without NAME, all recipes are listed.", parser=_name
        ),
    ] = None,
    output: Annotated[
        Path | None, _option("--output", "PATH", "The copy: a folder or a .yaml file (default: ./NAME.yaml).", _path)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the recipes that come with distill, or copy one."""
    refuse_ranks("recipes")
    from distill.recipe.shipped import about, copy_recipe, shipped

    if name is None and output is not None:
        raise UserError("recipes: --output needs the NAME of a recipe")
    files = {name: copy_recipe(name, output)} if name else shipped()
    if json_:
        print(json.dumps([{"name": one, "about": about(file), "file": str(file)} for one, file in files.items()]))
    else:
        print(*files.values() if name else (f"{one}\t{about(file)}" for one, file in files.items()), sep="\n")


@app.command()
def init(
    train: Annotated[
        str,
        typer.Argument(
            metavar="TRAIN",
            help="A table of texts and labels (.csv, .jsonl, .parquet, ...).",
            show_default=False,
            parser=_name,
        ),
    ],
    test: Annotated[
        str | None,
        typer.Argument(metavar="[TEST]", help="A second one to test on (default: a tenth of TRAIN).", parser=_name),
    ] = None,
    text_column: Annotated[
        list[str] | None, _option("--text-column", "NAME", "The column with the texts. Twice for pairs.", _name)
    ] = None,
    label_column: Annotated[str | None, _option("--label-column", "NAME", "The column with the labels.", _name)] = None,
    teacher: Annotated[
        str, _option("--teacher", "MODEL", "The model to fine-tune as teacher.", _name)
    ] = "google-bert/bert-base-uncased",
    student: Annotated[
        str, _option("--student", "MODEL", "The small model to distill it into.", _name)
    ] = "distilbert/distilbert-base-uncased",
    output: Annotated[
        Path | None, _option("--output", "FILE", "The recipe to write (default: ./recipe.yaml).", _path)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Draft a recipe for your own texts.

    The columns are chosen by their names and values, the number of tokens by the lengths of the texts.
    """
    refuse_ranks("init")
    output = output or Path("recipe.yaml")
    found = _commands().init(
        train, test, output, text_columns=text_column or (), label_column=label_column, teacher=teacher, student=student
    )
    if json_:
        print(json.dumps(found))
        return
    print(found["recipe"])
    for concern in found["concerns"]:
        print(f"- {concern}", file=sys.stderr)
    print(
        f"next: {shlex.join(['distill', 'inspect', str(output)])}, then "
        f"{shlex.join(['distill', 'run', str(output), '--output', f'runs/{output.stem}'])}",
        file=sys.stderr,
    )


@app.command()
def inspect(
    recipe: RecipeArgument,
    set_: SetOption = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="How many train texts to show.", min=1)] = 5,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="The seed that draws these texts (default: `data.seed` in the recipe).", min=0
        ),
    ] = None,
    output: Annotated[
        Path | None, _output("Also write the findings to this folder, as inspect.html and inspect.json.")
    ] = None,
    row: Annotated[
        str | None,
        _option("--row", "ID", "Show only this row, in full: train/17, or 17 for train (the first row is 0).", _name),
    ] = None,
    teacher: Annotated[
        str | None,
        _option("--teacher", "DIR", "Also review the answers of this teacher: a file, a folder or a Hub name.", _name),
    ] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Look at the data: class balance, lengths, duplicates, leaks.

    Prints some of the texts, the contents of each split, and what looks wrong. Lengths are in tokens. A leak is a
    training text that is also in validation or test; training drops it. With --teacher, it also prints how good the
    teacher's answers are.
    """
    refuse_ranks("inspect")
    commands = _commands()
    from distill.data.inspection import as_text, row_text

    if row is not None:
        if output or teacher:
            raise UserError("--row: shows one row and nothing else; leave out --output and --teacher")
        shown = commands.look_at(commands.check(recipe, set_ or ()), row if "/" in row else f"train/{row}")
        print(json.dumps(shown, ensure_ascii=False) if json_ else row_text(shown))
        return
    found = commands.inspect(
        commands.check(recipe, set_ or ()), output, rows=rows, seed=seed, teacher=teacher, device=device
    )
    if json_:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(as_text(found))
    if teacher:
        from distill.distillation.teacher_review import concerns_of, review_text

        print(f"\n{review_text(found['teacher'])}")
        if said := concerns_of(found["teacher"]):
            print("\n" + "\n".join(f"- {concern}" for concern in said))
    if output:
        print(f"\n{output / 'inspect.html'}")


@app.command()
def baseline(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: Annotated[Path | None, _output("Where to write (default: ./baseline).")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Train the yardstick: a linear model on word pairs.

    It takes seconds. If teacher and student are no better, they are not worth their cost. The report compares them.
    """
    refuse_ranks("baseline")
    commands = _commands()
    folder = commands.baseline(
        commands.check(recipe, set_ or ()), output or "baseline", resume=resume, overwrite=overwrite
    )
    _print_runs([folder], json_)


@app.command()
def teacher(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Fine-tune the teacher on the labels."""
    commands = _commands()
    folder = commands.teacher(
        commands.check(recipe, set_ or ()), output, resume=resume, overwrite=overwrite, device=device,
        push_to_hub=push_to_hub,
    )  # fmt: skip
    _print_runs([folder], json_)


@app.command()
def student(
    teacher: Annotated[
        list[str],
        _option(
            "--teacher",
            "DIR",
            "A teacher: a folder, a Hub name, or a file of answers (.csv, .jsonl, .parquet). May be given several "
            "times: an ensemble.",
        ),
    ],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="The recipe (default: that of the teacher).", parser=_path)
    ] = None,
    set_: SetOption = None,
    output: Annotated[
        Path | None,
        _output(
            "Where to write (default: `output` in the recipe). The control goes to the folder DIR-control. If the "
            "recipe has several budgets, DIR gets a folder for each."
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    teacher_logits: TeacherLogitsOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Distill the student from one or several teachers.

    If the recipe asks for a control, it is trained next: the same student, trained on labels alone.
    """
    commands = _commands()
    if recipe is None and Path(teacher[0]).is_file():
        raise UserError(f"--teacher: {teacher[0]}: a file has no recipe", hint="distill student RECIPE --teacher FILE")
    if recipe is None and not Path(teacher[0]).is_dir():
        hint = f"distill teacher RECIPE --output {teacher[0]} makes one"
        raise UserError(f"--teacher: {teacher[0]}: no such folder", hint=hint)
    resolved = _recipe(recipe or Path(teacher[0], "recipe.yaml"), set_)
    folders = commands.students(
        resolved, teacher, output, teacher_logits=teacher_logits, resume=resume, overwrite=overwrite, force=force,
        device=device, push_to_hub=push_to_hub,
    )  # fmt: skip
    _print_runs(folders, json_)


@app.command()
def sweep(
    recipe: RecipeArgument,
    teacher: Annotated[
        list[str] | None,
        _option("--teacher", "DIR", "A teacher, as in `distill student`. Required if the sweep tunes the student."),
    ] = None,
    set_: SetOption = None,
    output: OutputOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted sweep, or a finished one with a larger `sweep.trials`."),
    ] = False,
    overwrite: OverwriteOption = False,
    teacher_logits: TeacherLogitsOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Tune the hyperparameters that the recipe lists under `sweep`.

    Each trial trains with other values. Trials are compared on the validation split. The output folder gets a
    recipe.yaml with the best values.
    """
    refuse_ranks("sweep")
    commands = _commands()
    resolved = commands.check(recipe, set_ or ())
    found = commands.sweep(
        resolved, teacher or (), output, teacher_logits=teacher_logits, resume=resume, overwrite=overwrite,
        force=force, device=device,
    )  # fmt: skip
    if json_:
        print(json.dumps(found))
        return
    from distill.report.sentences import sweep_sentence
    from distill.report.tables import sweep_table

    print(f"{sweep_table(found, style='simple')}\n\n{sweep_sentence(found)}")
    best = Path(output or resolved.sweep.output, "recipe.yaml")
    teachers = [word for name in teacher or () for word in ("--teacher", name)]
    print(shlex.join(["distill", found["stage"], str(best), *teachers]))


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="The model: a folder of `distill student` (also of several budgets) or `distill teacher`, or another "
            "transformers classifier.",
        ),
    ] = "./distilbert-student",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx-fp32.")] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Write torch-fp16 and onnx-fp16; with --onnx, only onnx-fp16.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write onnx-int8.")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write openvino-bf16 and openvino-int8.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    output: Annotated[Path | None, _output("Where to write (default: MODEL/export).")] = None,
    device: DeviceOption = "auto",
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Export a model to faster formats; compare each with the original.

    The comparison is on the validation texts. A format that loses too much accuracy or agreement is not kept. If no
    format is named, those in the recipe are written (`export.formats`).
    """
    refuse_ranks("export")
    commands = _commands()
    named = _formats(onnx=onnx, fp16=fp16, int8=int8, openvino=openvino)
    resolved = _recipe(recipe or commands.find_recipe([Path(model)]), set_) if recipe or set_ else None
    entries = commands.exports(model, named, recipe=resolved, output=output, device=device, push_to_hub=push_to_hub)
    if json_:
        print(json.dumps(entries))
        return
    for name, proof in entries.items():
        print(f"{name}\t{_shown_proof(proof)}")


@app.command()
def bundle(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="STUDENT",
            help="A folder of `distill student` or `distill teacher`, after `distill export`.",
            show_default=False,
            parser=_path,
        ),
    ],
    output: Annotated[Path, _output("Where to write; the folder must not exist, or be empty.")],
    triton: Annotated[
        bool, typer.Option("--triton", help="Also write a model repository for Triton, DIR/triton.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle.")] = False,
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Join a model and its exports in one folder that other runtimes read.

    The layout is that of the Hugging Face Hub and transformers.js. Only formats that passed their proof go in. Nothing
    of the recipe, the data or this machine does, except what the model card says.
    """
    refuse_ranks("bundle")
    found = _commands().bundle(model, output, triton=triton, overwrite=overwrite, push_to_hub=push_to_hub)
    if json_:
        print(json.dumps(found))
        return
    for name in found["files"]:
        print(f"{output / name}\t{(output / name).stat().st_size / 1e6:.1f} MB")


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR ...]",
            help="Model folders, or folders of `distill run` or `distill sweep`. Exports in DIR/export are found too.",
            parser=_path,
        ),
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    max_latency_ms: Annotated[
        float | None,
        _option("--max-latency-ms", "MS", "The largest median latency allowed, for the first of `benchmark.shapes`."),
    ] = None,
    max_size_mb: Annotated[
        float | None, _option("--max-size-mb", "MB", "The largest size of the weights on disk that is allowed.")
    ] = None,
    max_drop: Annotated[
        float | None,
        _option(
            "--max-drop",
            "F",
            "The most accuracy that may be lost against the teacher on the test split; 0.01 is one point.",
        ),
    ] = None,
    output: Annotated[Path | None, _output("Where to write (default: ./report).")] = None,
    device: Annotated[
        Device,
        typer.Option("--device", help="The device to measure on. auto measures the CPU and, if there is one, the GPU."),
    ] = "auto",
    json_: JsonOption = False,
) -> None:
    """Measure models and their exports; say which one to ship.

    Accuracy is measured on the test split, latency at the shapes in the recipe. If no folder is named, the models are
    ./bert-teacher, ./distilbert-student and its control.
    """
    refuse_ranks("report")
    budget = _budget(max_latency_ms, max_drop, max_size_mb)
    commands = _commands()
    from distill.storage.contents import find_recipe

    models = folders or [
        *Path().glob("baseline"),
        Path("bert-teacher"),
        Path("distilbert-student"),
        *Path().glob("distilbert-student-control"),
    ]
    resolved = _recipe(recipe or find_recipe(models), set_) if recipe or set_ else None
    target = output or Path("report")
    _print_report(commands.report(models, target, recipe=resolved, budget=budget, device=device), target, json_)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, an export or any classifier.", show_default=False)
    ],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    split: Annotated[
        Literal["test", "validation", "train"], typer.Option("--split", help="The split to evaluate on.")
    ] = "test",
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Evaluate one model on one split: accuracy, and precision, recall, F1 and ROC-AUC of each class.

    The data is that of the recipe; --set data... names another, such as data.files.test=FILE or data.test_samples=500.
    """
    refuse_ranks("evaluate")
    commands = _commands()
    from distill.storage.contents import find_recipe

    resolved = _recipe(recipe or find_recipe([Path(model)]), set_)
    found = commands.evaluate(model, resolved, split=split, device=device)
    if json_:
        print(json.dumps(found))
        return
    from tabulate import tabulate

    from distill.measuring.metrics import in_a_line
    from distill.report.classes import class_cells

    print(
        f"{found['model']} ({found['format']} on {found['device']}), {found['examples']} {split} texts\n"
        f"{in_a_line(found)}\nlog loss {found['log_loss']:.4f}, calibration error {found['ece']:.4f}, "
        f"{found['texts_per_second']:.1f} texts/s\n"
    )
    print(tabulate(class_cells(found["classes"]), headers="keys", tablefmt="simple", disable_numparse=True))
    for fault in found["warnings"]:
        print(f"\nIt {fault}.")


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: Annotated[Path | None, _output("Where to write (default: ./runs/RECIPE).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a step that was interrupted in the middle of its training.")
    ] = False,
    overwrite: OverwriteOption = False,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Run all steps: teacher, student, control, exports and report.

    Everything goes to one folder. The control is trained if the recipe asks for one. Finished steps are skipped, with
    and without --resume; only the report is always written again.
    """
    commands = _commands()
    target = output or Path("runs") / recipe.stem
    result = commands.run(
        commands.check(recipe, set_ or ()), target, resume=resume, overwrite=overwrite, force=force, device=device
    )
    if result is not None:
        _print_report(result, target / "report", json_)


@app.command()
def cascade(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL ...", help="Classifiers, cheapest first.", show_default=False, parser=_path),
    ],
    agree: Annotated[
        float | None,
        _option("--agree", "F", "Promise the last classifier's answer for at least this share of new texts."),
    ] = None,
    accuracy_drop: Annotated[
        float | None,
        _option("--accuracy-drop", "F", "Or promise to lose at most this accuracy against it; 0.01 is one point."),
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    output: Annotated[Path | None, _output("Where to write (default: ./cascade).")] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Join classifiers: each answers the texts it is sure of and passes the others on.

    How sure each has to be is found on the validation texts. The promise then holds on new texts of the same kind with
    95 % confidence. `distill predict`, `distill report` and `distill.load` take the folder.
    """
    refuse_ranks("cascade")
    commands = _commands()
    from distill.measuring.cascade import classifiers_of
    from distill.storage.contents import find_recipe

    resolved = None
    if recipe or set_:
        resolved = commands.check(recipe or find_recipe(classifiers_of(models[::-1], device)), set_ or ())
    found = commands.cascade(
        models, output or Path("cascade"), agree=agree, accuracy_drop=accuracy_drop, recipe=resolved, device=device
    )
    if json_:
        print(json.dumps(found))
        return
    promise = found["promise"]
    for step, share, rate in zip(found["steps"], promise["answered"], promise["texts_per_second_alone"], strict=True):
        least = "every text" if step["at_least"] is None else f"if at least {step['at_least']:.4f} sure"
        print(f"{step['model']}\tanswers {share:.1%}\t{least}\t{rate:.1f} texts/s alone")
    proved = f"on {promise['texts']} validation texts it"
    if agree is not None:
        print(f"{proved} agrees with the last one on {promise['agreement']:.2%}")
    else:
        print(f"{proved} has {promise['accuracy']:.4f}, and the last one {promise['last_accuracy']:.4f}")


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, an export or any classifier.", show_default=False)
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT ...]", help="Texts to classify.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        _option(
            "--file",
            "F",
            "A file of texts: .txt (one a line), .csv, .tsv, .json, .jsonl, .parquet or .arrow; - is stdin.",
            _name,
        ),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        _option(
            "--text-column",
            "NAME",
            "The column with the texts (default: the recipe's). Twice for pairs of texts.",
            _name,
        ),
    ] = None,
    escalate: Annotated[
        str | None,
        _option(
            "--escalate", "TEACHER", "A second classifier, for the texts that MODEL is unsure of. Needs --below.", _name
        ),
    ] = None,
    below: Annotated[
        float | None,
        _option("--below", "P", "MODEL is unsure of a text if its likeliest label has a probability below P."),
    ] = None,
    output: Annotated[
        Path | None,
        _option(
            "--output",
            "FILE",
            "Write texts, labels and logits to a table (.csv, .jsonl or .parquet) from which a student can learn.",
            _path,
        ),
    ] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Classify texts: print label, probability and text, tab-separated; all labels, if a text may have several.

    With --escalate and --below, MODEL answers the texts that it is sure of, and a second classifier, such as its
    teacher, answers the others. With --output, the answers go to a file instead.
    """
    refuse_ranks("predict")
    if (escalate is None) != (below is None):
        raise UserError("predict: --escalate TEACHER and --below P go together")
    if below is not None and not 0 < below <= 1:
        raise UserError(f"--below: wants a probability, above 0 and at most 1, got {below:g}")
    if bool(texts) == (file is not None):
        raise UserError("predict: wants texts on the command line or --file, one of the two")
    _log_to_stderr()
    from distill.decisions import NO_LABEL
    from distill.inference import prediction
    from distill.storage.contents import text_columns_of

    columns = text_column or text_columns_of(model)
    if len(columns) > 2:
        raise UserError(f"--text-column: wants one column, or the two of pairs, got {len(columns)}")
    if len(columns) == 2 and len(texts or ()) % 2:
        raise UserError(f"predict: the model reads pairs of texts, so it wants an even number, got {len(texts or ())}")
    given = iter(texts or ())
    source: Iterator[Any] = given if len(columns) == 1 else zip(given, given, strict=True)
    if file is not None:
        from distill.data.texts import read_texts

        source = read_texts(file, *columns)
    if output is not None:
        rows = prediction.write_answers(
            model, source, output, text_columns=columns, escalate=escalate, below=below or 0.0, device=device
        )
        print(json.dumps({"output": str(output), "texts": rows}) if json_ else f"{output}\t{rows} texts")
        return
    written = False  # JSON goes out row by row, because the texts may be too many for memory
    for text, answer, probabilities in prediction.predict(
        model, source, escalate=escalate, below=below or 0.0, device=device
    ):
        if json_:
            row = {**answer, "probabilities": probabilities}
            print(", " if written else "[", json.dumps(row, ensure_ascii=False), sep="", end="")
            written = True
        else:
            labels = answer.get("labels", [answer.get("label")]) or [NO_LABEL]
            scores = answer.get("scores", [answer.get("score")]) or [max(probabilities.values())]
            shown = text if isinstance(text, str) else " | ".join(text)
            names, numbers = printable(", ".join(labels)), ", ".join(f"{score:.4f}" for score in scores)
            print(f"{names}\t{numbers}\t{printable(' '.join(shown.split()))}")
    if json_:
        print("]" if written else "[]")


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="An export, or a folder of exports.", show_default=False, parser=_path),
    ],
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Verify that this machine computes the logits of an export; exit with 2 if it does not.

    Each export carries 64 sets of random token ids with the logits that PyTorch computed for them. An int8 export can
    have other logits on another kind of CPU.
    """
    refuse_ranks("verify")
    _log_to_stderr()
    from distill.inference.verification import verify_exports

    verdicts = {}
    for export, verdict in verify_exports(folder, device=device):
        verdicts[export.name] = verdict
        if not json_:
            found = verdict.reason or f"verified: {verdict.same_answers} of {verdict.sets} answers as in PyTorch"
            errors = f"error {verdict.error:.2g} (where it was proved {verdict.proved_error:.2g})"
            print(f"{export.name}\t{'FAILED: ' if verdict.reason else ''}{found}\t{errors}")
    if json_:
        print(json.dumps({name: verdict.as_json() for name, verdict in verdicts.items()}))
    if failed := [name for name, verdict in verdicts.items() if verdict.reason]:
        raise UserError(
            f"{folder}: not verified here: {', '.join(failed)}",
            hint="fetch it again if a file differs; else use onnx-fp32, or export on this kind of machine",
        )


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, an export or any classifier.", show_default=False)
    ],
    host: Annotated[
        str,
        _option("--host", "HOST", "The address to listen at. Anybody who reaches it can ask.", _name),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="The port; 0 takes a free one.", min=0, max=65_535)
    ] = 8000,
    all_: Annotated[
        bool, typer.Option("--all", help="Serve all formats of the folder, to compare them; the first is the default.")
    ] = False,
    max_texts: Annotated[
        int, typer.Option("--max-texts", metavar="N", help="The most texts of a request.", min=1)
    ] = 64,
    max_characters: Annotated[
        int,
        typer.Option("--max-characters", metavar="N", help="The most characters of a request's texts together.", min=1),
    ] = 200_000,
    device: DeviceOption = "auto",
) -> None:
    """Serve a model over HTTP: POST /predict as on the Hub, /health, /metrics, and a page to try it.

    Requests that arrive while the model is busy are answered together. Ctrl-C ends it.
    """
    refuse_ranks("serve")
    _log_to_stderr()
    try:
        from distill.serving import server
        from distill.serving.hub_api import Limits
    except ModuleNotFoundError as error:
        if known := lacking(error, "serve", SERVE_EXTRA):
            raise known from None
        raise
    server.serve(model, host=host, port=port, device=device, all_formats=all_, limits=Limits(max_texts, max_characters))


@app.command()
def convert(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The folder of a transformers model with a pytorch_model.bin.",
            show_default=False,
            parser=_path,
        ),
    ],
    output: Annotated[Path, _output("Where to write the converted model; the folder must not exist.")],
) -> None:
    """Convert pickled weights (pytorch_model.bin) to safetensors.

    The other commands refuse pickles, because a pickle can contain code. This command reads it without running code.
    """
    refuse_ranks("convert")
    print(_commands().convert(model, output))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="Also check the data and the models of this recipe.", parser=_path),
    ] = None,
    set_: SetOption = None,
    output: Annotated[
        Path | None,
        _output("The folder where you will write runs; its free disk space is checked (default: the working folder)."),
    ] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Check this machine, and a recipe's models and data.

    Looks at packages, devices, the Hub, free disk and memory. Each problem is listed with a fix.
    """
    refuse_ranks("doctor")
    from distill.machine.packages import Finding, examine_packages

    def examine() -> Iterator[Any]:
        packages = list(examine_packages())
        yield from packages
        if any("not installed" in found.found for found in packages):
            if recipe and not any(found.state == "fault" for found in packages):
                yield Finding(
                    str(recipe), "fault", "not checked, because that needs the training packages", TRAIN_EXTRA
                )
            return  # the other checks import these packages
        commands = _commands()
        resolved = commands.check(recipe, set_ or ()) if recipe else None
        yield from commands.doctor(resolved, output or Path(), device=device)

    findings = []
    for found in examine():
        findings.append(found)
        if not json_:
            print(
                f"{found.state:5}  {found.subject}: {found.found}" + (f"\n       -> {found.cure}" if found.cure else "")
            )
    if json_:
        print(json.dumps([found.as_json() for found in findings]))
    if any(found.state == "fault" for found in findings):
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; the entry point of `distill`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Texts come in any script, and not every console is set to UTF-8.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _terminate)
    if sys.stderr is not None:  # tracebacks need this too: they may quote untrusted files
        sys.stderr = Guarded(sys.stderr, is_log=True)  # pyright: ignore[reportAttributeAccessIssue]
    app()


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one stops at once
    raise _Terminated(number)


def _check_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory no longer exists", hint="cd to another one") from None


def _as_user_error(error: Exception) -> UserError | None:
    """Return `error` if the user can mend it, or what the operating system refused behind it (e.g. a full disk)."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return lacking(error, "this command")
    refused = refusal_of(error)
    return UserError(refused, hint="put that right and try again; --resume continues a training") if refused else None


def _recipe(path: Path, set_: list[str] | None) -> Any:
    from distill.recipe.file import load_recipe

    if not path.is_file() and path.name == "recipe.yaml":
        raise UserError(f"{path.parent}: holds no recipe.yaml", hint="name a recipe")
    return load_recipe(path, set_ or ())


def _budget(max_latency_ms: float | None, max_drop: float | None, max_size_mb: float | None) -> Any:
    from distill.report.choice import Budget

    for option, value in (("--max-latency-ms", max_latency_ms), ("--max-size-mb", max_size_mb)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{option}: wants a number above 0, got {value:g}")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise UserError(f"--max-drop: wants a share from 0 to below 1 (0.01 is one point), got {max_drop:g}")
    budget = Budget(max_latency_ms, max_drop, max_size_mb)
    return None if budget == Budget() else budget


def _formats(*, onnx: bool, fp16: bool, int8: bool, openvino: bool) -> list[str] | None:
    """Return the formats that the flags name, or None if no flag is set."""
    chosen = {
        "torch-fp16": fp16 and not onnx,
        "onnx-fp32": onnx,
        "onnx-fp16": fp16,
        "onnx-int8": int8,
        "openvino-bf16": openvino,
        "openvino-int8": openvino,
    }
    return [name for name, is_chosen in chosen.items() if is_chosen] or None


def _shown_proof(proof: dict[str, Any]) -> str:
    """Return a format's proof as one line with tabs between its figures."""
    parts = [
        f"accuracy {proof['accuracy']:.4f}",
        f"drop {proof['accuracy_drop']:.4f}",
        f"agreement {proof['agreement']:.4f}",
        f"{proof['flipped']} flipped",
        f"logit difference {proof['mean_logit_diff']:.2g} mean, {proof['max_logit_diff']:.2g} largest",
        f"{proof['size_bytes'] / 1e6:.1f} MB",
        *([f"{proof['texts_per_second']:.0f} texts/s"] if proof["texts_per_second"] else []),
    ]
    for name, found in proof["fusion"].items():
        counted = f"{found['fused']}/{found['expected']}" if isinstance(found, dict) else found
        parts.append(f"{name.replace('_', ' ')} {counted}")
    if proof.get("note"):
        parts.append(proof["note"])
    if proof["tried"]:
        parts.append(f"{len(proof['tried'])} settings failed before: {proof['tried'][-1]['reason']}")
    return "\t".join(parts)


def _print_runs(folders: Sequence[Any], json_: bool) -> None:
    """Print the folder of each run; as JSON, one object with its figures, or a list of them if there are several."""
    if rank():
        return
    if json_:
        found = [
            {"folder": str(folder.path), **json.loads(folder.metrics.read_text(encoding="utf-8"))} for folder in folders
        ]
        print(json.dumps(found if len(found) > 1 else found[0]))
    else:
        print(*(folder.path for folder in folders), sep="\n")


def _print_report(result: dict[str, Any], folder: Path, json_: bool) -> None:
    if json_:
        print(json.dumps(result))
        return
    from distill.report.sentences import control_sentences
    from distill.report.tables import cascade_table, table

    shapes = dict.fromkeys(shape for row in result["measurements"] for shape in row["latency_ms"])
    print(table(result["measurements"], list(shapes), style="simple"))
    print(f"\n{result['choice']['reason']}")
    if result["choice"]["model"]:
        print(f"it is in {result['choice']['folder']}")
    for sentence in control_sentences(result):
        print(sentence)
    for found in result["cascades"]:
        print(f"\n{cascade_table(found, style='simple')}\n{found['sentence']}")
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{folder / 'report.html'}")


class _Formatter(logging.Formatter):
    """Keeps each note on one line, even if a file name or a label in it contains control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _commands() -> Any:
    """Import `distill.commands` and silence other libraries, whose progress bars and warnings would bury ours."""
    import warnings

    import datasets
    import transformers

    from distill import commands

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it also raises what it logs as an error
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|sklearn")
    _log_to_stderr()
    return commands


def _log_to_stderr() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # if it is not set, each forked worker warns about it
    # For commands that import transformers only if the model is no export; it reads these when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logger = logging.getLogger("distill")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    logger.propagate = False
