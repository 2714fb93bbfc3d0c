"""The command line: parse, call one function of `commands`, print. stdout is data, stderr is everything else.

Nothing heavy is imported before a command runs, so that --help answers at once.
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
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from distill.errors import Interrupted, UserError, printable, refusal_of
from distill.machine.ranks import check_launcher, leave, rank, refuse_ranks
from distill.machine.terminal import Guarded, NotWritten, give_up_stdout, guarded

Device = Literal["auto", "cpu", "cuda"]


def _path(text: str) -> Path:
    """A path that can be written in every file that names it; raises `UserError` before hours of work if it cannot."""
    try:
        _name(text).encode()
    except UnicodeEncodeError:
        raise UserError(f"{text}: bytes that are not UTF-8, in which files are named here", hint="rename it") from None
    if "\0" in text:
        raise typer.BadParameter("holds a null byte")
    return Path(text)


def _name(text: str) -> str:
    """A name; as a path, none would be the working directory, and elsewhere it would do nothing."""
    if not text:
        raise typer.BadParameter("wants a name, got nothing")
    return text


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file (YAML) or a name from `distill recipes`; paths in it start at the working directory.",
        show_default=False,
        parser=_path,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe key: dotted, repeatable, a YAML value."),
]
OutputOption = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Where to write.", parser=_path)]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Redo what is already there.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Distil from a teacher that has nothing to teach.")]
TeacherLogitsOption = Annotated[
    Path | None,
    typer.Option(
        "--teacher-logits",
        metavar="DIR",
        help="Where the teachers' answers are kept (default: TEACHER).",
        parser=_path,
    ),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The last line of stdout is the whole result.")]
PushOption = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub", metavar="NAME", help="Upload the model to this repository, private if it is new.", parser=_name
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="RECIPE", help="For models that carry no recipe.yaml of their own.", parser=_path),
]


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came where nothing was being trained; training has its own way with them."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


class _Group(TyperGroup):
    def main(self, *arguments: Any, **settings: Any) -> Any:
        try:
            with guarded():
                try:
                    return super().main(*arguments, **settings)
                except SystemExit as done:  # once what was printed is written
                    code = done.code
            raise SystemExit(code)
        except NotWritten as error:
            give_up_stdout()
            if error.errno == errno.EPIPE:  # who read it has read enough, as of `| head`
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
        except UserError as error:
            if rank():
                time.sleep(5)  # where the first rank fails alike, it says so, and the launcher ends this one meanwhile
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
            raise typer.Exit(2) from None
        except Interrupted as interruption:
            print(f"interrupted: {interruption}", file=sys.stderr)
            raise typer.Exit(interruption.exit_code) from None
        except Exception as error:  # a full disk hides behind whatever a library makes of it
            refused = refusal_of(error)
            if refused is None:
                raise
            if rank():
                time.sleep(5)
            print(f"error: {printable(refused)}", file=sys.stderr)
            print("hint: put that right, then the same command; where it trains, --resume goes on", file=sys.stderr)
            raise typer.Exit(2) from None
        except (KeyboardInterrupt, _Terminated) as stopped:
            print(
                "\ninterrupted; finished stages stay (run, teacher, student and sweep: --resume goes on)",
                file=sys.stderr,
            )
            raise typer.Exit(stopped.exit_code if isinstance(stopped, _Terminated) else 130) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Teacher-student distillation for text classification: recipe, student, export, proof, report.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill {metadata.version('distill')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def check(recipe: RecipeArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Validate a recipe, and its student against the models on this disk; print it with every default filled in."""
    from distill.recipe.file import dump_recipe, load_recipe

    resolved = load_recipe(recipe, set_ or ())
    if resolved.teacher and resolved.student:
        from distill.storage.hub import is_here

        names = [name for name in (resolved.teacher.model, resolved.student.model) if name]
        if away := [name for name in names if not is_here(name)]:
            print(f"not on this disk, so the student was not checked: {', '.join(away)}", file=sys.stderr)
            print("hint: distill doctor RECIPE asks the hub for them", file=sys.stderr)
        else:
            _commands().check_models(resolved)
    _commands().check_trackers(resolved)
    print(json.dumps(resolved.model_dump(mode="json")) if json_ else dump_recipe(resolved), end="\n" if json_ else "")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The one to copy.", parser=_name)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="PATH", help="A folder or .yaml file (default: ./NAME.yaml).", parser=_path),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the recipes that come with distill, or copy one to edit."""
    refuse_ranks("recipes")
    from distill.recipe.shipped import about, copy_recipe, shipped

    if name is None and output is not None:
        raise UserError("recipes: --output goes with the NAME of a recipe")
    files = {name: copy_recipe(name, output)} if name else shipped()
    if json_:
        print(json.dumps([{"name": one, "about": about(file), "file": str(file)} for one, file in files.items()]))
    else:
        print(*files.values() if name else (f"{one}\t{about(file)}" for one, file in files.items()), sep="\n")


@app.command()
def inspect(
    recipe: RecipeArgument,
    set_: SetOption = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Train texts to show.", min=1)] = 5,
    seed: Annotated[int | None, typer.Option("--seed", help="Draws other ones (default: the recipe's).", min=0)] = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Look at the data: texts, balance, token lengths, duplicates, leaks, and what looks wrong."""
    refuse_ranks("inspect")
    commands = _commands()
    found = commands.inspect(commands.check(recipe, set_ or ()), output, rows=rows, seed=seed)
    if json_:
        print(json.dumps(found, ensure_ascii=False))
        return
    from distill.data.inspection import as_text

    print(as_text(found))
    if output:
        print(f"\n{output / 'inspect.html'}")


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
    """Fine-tune the teacher."""
    commands = _commands()
    folder = commands.teacher(
        commands.check(recipe, set_ or ()), output, resume=resume, overwrite=overwrite, device=device,
        push_to_hub=push_to_hub,
    )  # fmt: skip
    _print_run(folder, json_)


@app.command()
def student(
    teacher: Annotated[
        list[str], typer.Option("--teacher", metavar="DIR", help="A teacher's folder; several answer together.")
    ],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe; default: the teacher's own.", parser=_path)
    ] = None,
    set_: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    teacher_logits: TeacherLogitsOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Distil the student from one teacher or several; its control follows where the recipe asks for one."""
    commands = _commands()
    if recipe is None and not Path(teacher[0]).is_dir():
        hint = f"distill teacher RECIPE --output {teacher[0]} makes one"
        raise UserError(f"--teacher: {teacher[0]}: no such folder", hint=hint)
    resolved = _recipe(recipe or Path(teacher[0], "recipe.yaml"), set_)
    folder = commands.student(
        resolved, teacher, output, teacher_logits=teacher_logits, resume=resume, overwrite=overwrite, force=force,
        device=device, push_to_hub=push_to_hub,
    )  # fmt: skip
    _print_run(folder, json_)


@app.command()
def sweep(
    recipe: RecipeArgument,
    teacher: Annotated[
        list[str] | None, typer.Option("--teacher", metavar="DIR", help="Whom the student of every trial learns from.")
    ] = None,
    set_: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    teacher_logits: TeacherLogitsOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Search over the recipe's sweep keys, judged on validation; leave a recipe with the best values."""
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
    from distill.report.document import sweep_sentence, sweep_table

    print(f"{sweep_table(found, style='simple')}\n\n{sweep_sentence(found)}")
    best = Path(output or resolved.sweep.output, "recipe.yaml")
    print(
        shlex.join(
            ["distill", found["stage"], str(best), *(word for name in teacher or () for word in ("--teacher", name))]
        )
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model folder.")] = "./distilbert-student",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx-fp32; with --fp16, that as ONNX only.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write torch-fp16 and onnx-fp16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write onnx-int8.")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write openvino-bf16 and openvino-int8.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    output: OutputOption = None,
    device: DeviceOption = "auto",
    push_to_hub: PushOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a model's fast formats, each proved on the validation texts (the recipe's when none is named)."""
    refuse_ranks("export")
    commands = _commands()
    named = _formats(onnx=onnx, fp16=fp16, int8=int8, openvino=openvino)
    resolved = _recipe(recipe or Path(model, "recipe.yaml"), set_) if recipe or set_ else None
    entries = commands.export(model, named, recipe=resolved, output=output, device=device, push_to_hub=push_to_hub)
    if json_:
        print(json.dumps(entries))
        return
    for name, proof in entries.items():
        print(f"{name}\t{_shown_proof(proof)}")


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR ...]", help="Model folders, or the output of `distill run`.", parser=_path),
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    max_latency_ms: Annotated[
        float | None, typer.Option("--max-latency-ms", metavar="MS", help="The most that the first shape may take.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", metavar="F", help="The most accuracy to lose: 0.01 is one point.")
    ] = None,
    output: OutputOption = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Measure models and their exports on the test split: accuracy against latency, and which to ship."""
    refuse_ranks("report")
    budget = _budget(max_latency_ms, max_drop)
    commands = _commands()
    from distill.storage.contents import find_recipe

    models = folders or [Path("bert-teacher"), Path("distilbert-student"), *Path().glob("distilbert-student-control")]
    resolved = _recipe(recipe or find_recipe(models), set_) if recipe or set_ else None
    target = output or Path("report")
    _print_report(commands.report(models, target, recipe=resolved, budget=budget, device=device), target, json_)


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Teacher, student, exports and report in one folder (default: runs/RECIPE); finished stages are skipped."""
    commands = _commands()
    target = output or Path("runs") / recipe.stem
    result = commands.run(
        commands.check(recipe, set_ or ()), target, resume=resume, overwrite=overwrite, force=force, device=device
    )
    if result is not None:
        _print_report(result, target / "report", json_)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, export or model folder.", show_default=False)],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT ...]", show_default=False)] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="F", help="Texts from .txt, .csv, .jsonl or .parquet; - is stdin.", parser=_name
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            "--text-column", metavar="NAME", help="The column of --file (default: the recipe's).", parser=_name
        ),
    ] = None,
    escalate: Annotated[
        str | None,
        typer.Option(
            "--escalate", metavar="TEACHER", help="A classifier for the texts that MODEL is not sure of.", parser=_name
        ),
    ] = None,
    below: Annotated[
        float | None, typer.Option("--below", metavar="P", help="With --escalate: not sure is a probability below P.")
    ] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Print label, probability and text of each text, tab-separated."""
    refuse_ranks("predict")
    if (escalate is None) != (below is None):
        raise UserError("predict: --escalate TEACHER and --below P go together")
    if below is not None and not 0 < below <= 1:
        raise UserError(f"--below: wants a probability, above 0 and at most 1, got {below:g}")
    if bool(texts) == (file is not None):
        raise UserError("predict: wants texts on the command line or --file, one of the two")
    commands = _commands()
    from distill.data.sources import read_texts
    from distill.storage.contents import text_column_of

    source: Iterator[str] = iter(texts or ())
    if file is not None:
        source = read_texts(file, text_column or text_column_of(model))
    written = False
    for text, probabilities in commands.predict(model, source, escalate=escalate, below=below or 0.0, device=device):
        label = max(probabilities, key=lambda name: probabilities[name])
        if json_:
            row = {"label": label, "score": probabilities[label], "probabilities": probabilities}
            print(", " if written else "[", json.dumps(row, ensure_ascii=False), sep="", end="")  # one line, never held
            written = True
        else:
            print(f"{printable(label)}\t{probabilities[label]:.4f}\t{printable(' '.join(text.split()))}")
    if json_:
        print("]" if written else "[]")


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False, parser=_path)],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where to write.", show_default=False, parser=_path)
    ],
) -> None:
    """Write a model whose weights are a pickle as safetensors, without running what the pickle may hold."""
    refuse_ranks("convert")
    print(_commands().convert(model, output))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also what this recipe needs.", parser=_path)
    ] = None,
    set_: SetOption = None,
    output: OutputOption = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Look at the set-up: versions, devices, hub, room, and a recipe's model and data; every fault with its cure."""
    refuse_ranks("doctor")
    from distill.machine.packages import examine_packages

    def examine() -> Iterator[Any]:
        packages = list(examine_packages())
        yield from packages
        if any(found.state == "fault" and "not installed" in found.found for found in packages):
            return  # the rest could not be imported
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
            stream.reconfigure(
                encoding="utf-8", errors="backslashreplace"
            )  # texts come in any script, and not every console says so
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks for
        signal.signal(signal.SIGHUP, _terminate)
    if sys.stderr is not None:  # also for a traceback, which may hold what a stranger wrote
        sys.stderr = Guarded(sys.stderr, is_log=True)  # pyright: ignore[reportAttributeAccessIssue]
    app()


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one stops at once
    raise _Terminated(number)


def _check_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory is not there any more", hint="cd to another one") from None


def _recipe(path: Path, set_: list[str] | None) -> Any:
    from distill.recipe.file import load_recipe

    if not path.is_file() and path.name == "recipe.yaml":
        raise UserError(f"{path.parent}: holds no recipe.yaml", hint="name a recipe")
    return load_recipe(path, set_ or ())


def _budget(max_latency_ms: float | None, max_drop: float | None) -> Any:
    from distill.report.choice import Budget

    if max_latency_ms is not None and not 0 < max_latency_ms < math.inf:
        raise UserError(f"--max-latency-ms: wants a number above 0, got {max_latency_ms:g}")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise UserError(f"--max-drop: wants a share from 0 to below 1 (0.01 is one point), got {max_drop:g}")
    return None if max_latency_ms is None and max_drop is None else Budget(max_latency_ms, max_drop)


def _formats(*, onnx: bool, fp16: bool, int8: bool, openvino: bool) -> list[str] | None:
    """The formats that flags name: --onnx alone is fp32; --fp16 is torch and ONNX, with --onnx just ONNX."""
    if not (onnx or fp16 or int8 or openvino):
        return None
    named = ["torch-fp16"] if fp16 and not onnx else []
    named += ["onnx-fp32"] if onnx else []
    named += ["onnx-fp16"] if fp16 else []
    named += ["onnx-int8"] if int8 else []
    return named + (["openvino-bf16", "openvino-int8"] if openvino else [])


def _shown_proof(proof: dict[str, Any]) -> str:
    """A format's proof on one line, tabs between its parts; what was fused comes last."""
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
    if proof["tried"]:
        parts.append(f"{len(proof['tried'])} settings given up before: {proof['tried'][-1]['reason']}")
    return "\t".join(parts)


def _print_run(folder: Any, json_: bool) -> None:
    if rank():
        return
    metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
    if json_:
        print(json.dumps({"folder": str(folder.path), **metrics}))
    else:
        print(folder.path)


def _print_report(result: dict[str, Any], folder: Path, json_: bool) -> None:
    if json_:
        print(json.dumps(result))
        return
    from distill.report.document import control_sentences, table

    shapes = dict.fromkeys(shape for row in result["measurements"] for shape in row["latency_ms"])
    print(table(result["measurements"], list(shapes), style="simple"))
    print(f"\n{result['choice']['reason']}")
    if result["choice"]["model"]:
        print(f"it lies in {result['choice']['folder']}")
    for sentence in control_sentences(result):
        print(sentence)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{folder / 'report.html'}")


class _Formatter(logging.Formatter):
    """A note on a line, whatever names of files and labels stand in it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _commands() -> Any:
    """The library, with third parties quiet: their progress bars and warnings would bury ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else each forked worker warns about it
    import warnings

    import datasets
    import transformers

    from distill import commands

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error it raises as well
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|sklearn")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logger = logging.getLogger("distill")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    logger.propagate = False
    return commands
