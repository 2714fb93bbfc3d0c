"""Command lines with mistakes: each is refused in one line, before anything is written."""

import os
import shutil
import sys

import pytest
from conftest import check_refused, run
from safetensors import SafetensorError

from distill.data.texts import read_texts
from distill.errors import DataError, refusal_of

CASES = {
    "no recipe": (["check", "nowhere.yaml"], "nowhere.yaml: No such file"),
    "recipe": (["teacher", "{recipe}", "--set", "data.max_tokens=many"], "--set data.max_tokens=many: data.max_tokens"),
    "no data": (["teacher", "{recipe}", "--set", "data.files.train=no.csv"], "no.csv: no such file (relative"),
    "no model": (["teacher", "{recipe}", "--set", "teacher.model=./none"], "teacher.model: ./none: no such folder"),
    "no teacher": (["student", "{recipe}", "--teacher", "./none"], "--teacher: ./none: no such folder"),
    "no teacher and no recipe": (["student", "--teacher", "./none"], "--teacher: ./none: no such folder"),
    "a second teacher that is not there": (
        ["student", "{recipe}", "--teacher", "{model}", "--teacher", "./none"], "--teacher: ./none: no such folder",
    ),
    "a teacher of a hub that is not there": (
        ["student", "{recipe}", "--teacher", "nobody/nothing"], "--teacher: nobody/nothing: no model configuration",
    ),
    "no model for a student": (
        ["teacher", "{recipe}", "--set", "student.model=./none"], "student.model: ./none: no such folder",
    ),
    "a student's model of a hub that is not there": (
        ["teacher", "{recipe}", "--set", "student.model=nobody/nothing"], "student.model: nobody/nothing: no model",
    ),
    "no recipe there": (["student", "--teacher", "{model}"], "holds no recipe.yaml"),
    "layers": (
        ["student", "{recipe}", "--teacher", "{model}", "--set", "student.layers=[0, 9]"],
        "student.layers: the teacher has 4 layers (0-3), got 9",
    ),
    "too long": (["teacher", "{recipe}", "--set", "data.max_tokens=65"], "takes at most 64 tokens"),
    "both": (["teacher", "{recipe}", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    "run with layers": (
        ["run", "{recipe}", "--set", "student.layers=[0, 9]"], "student.layers: the teacher has 4 layers (0-3), got 9",
    ),
    "nothing to predict": (["predict", "{model}"], "predict: wants texts on the command line or --file"),
    "no file": (["predict", "{model}", "--file", "no.csv"], "no.csv: no such file"),
    "no text file": (["predict", "{model}", "--file", "no.txt"], "no.txt: No such file"),
    "no model to predict": (["predict", "./none", "a"], "./none: no such folder"),
    "no run": (["report", "./none"], "none: no such folder"),
    "export without recipe": (["export", "{model}"], "no recipe.yaml there"),
    "foreign folder": (["teacher", "{recipe}", "--output", "{data}"], "not empty and not a run folder"),
    "student over teacher": (
        ["student", "{recipe}", "--teacher", "{model}", "--output", "{model}"], "would overwrite its teacher",
    ),
    "no such command": (["techer"], "No such command 'techer'. Did you mean 'teacher'?"),
    "no such option": (["check", "--sett", "x"], "--set"),
    "no value": (["teacher", "{recipe}", "--set"], "Option '--set' requires an argument"),
    "no recipe named": (["teacher"], "Missing argument 'RECIPE'"),
    "no teacher named": (["student", "{recipe}"], "Missing option '--teacher'"),
    "no name": (["student", "{recipe}", "--teacher", ""], "wants a model's folder or its name on"),
    "a model for a recipe": (["check", "{model}/model.safetensors"], "not UTF-8 at byte"),
    "data for a recipe": (["check", "{data}/train.csv"], "train.csv"),
    "a recipe for a model": (["predict", "{recipe}", "a"], "recipe.yaml: no such folder"),
    "a device": (["teacher", "{recipe}", "--device", "tpu"], "tpu"),
    "output is a file": (["teacher", "{recipe}", "--output", "{data}/train.csv"], "train.csv: a file, not a folder"),
    "output below a file": (["teacher", "{recipe}", "--output", "{data}/train.csv/x"], "cannot be written"),
    "output below a device": (["teacher", "{recipe}", "--output", "/dev/null/x"], "/dev/null/x: cannot be written"),
    "output with too long a name": (["teacher", "{recipe}", "--output", "x" * 300], "File name too long"),
    "output with a null": (["teacher", "{recipe}", "--output", "a\0b"], "null byte"),
    "a run into a file": (["run", "{recipe}", "--output", "{data}/train.csv"], "train.csv"),
    "a report into a file": (["report", "{model}", "--recipe", "{recipe}", "--output", "{data}/test.csv"], "test.csv"),
    "exports into a file": (["export", "{model}", "--recipe", "{recipe}", "--output", "{data}/train.csv"], "train.csv"),
    "a look into a file": (["inspect", "{recipe}", "--output", "{data}/train.csv"], "train.csv: File exists"),
    "answers into a file": (
        ["student", "{recipe}", "--teacher", "{model}", "--teacher-logits", "{data}/train.csv"], "train.csv",
    ),
    "no rows to look at": (["inspect", "{recipe}", "--rows", "0"], "--rows"),
    "a negative seed": (["inspect", "{recipe}", "--seed", "-1"], "--seed"),
    "no latency": (["report", "x", "--max-latency-ms", "0"], "--max-latency-ms: wants a number above 0, got 0"),
    "an endless latency": (["report", "x", "--max-latency-ms", "inf"], "wants a number above 0, got inf"),
    "a latency that is no number": (["report", "x", "--max-latency-ms", "nan"], "wants a number above 0, got nan"),
    "a latency in words": (["report", "x", "--max-latency-ms", "fast"], "--max-latency-ms"),
    "no size": (["report", "x", "--max-size-mb", "-3"], "--max-size-mb: wants a number above 0, got -3"),
    "everything dropped": (["report", "x", "--max-drop", "1"], "wants a share from 0 to below 1 (0.01 is one point)"),
    "a gain": (["report", "x", "--max-drop", "-0.1"], "--max-drop: wants a share from 0 to below 1"),
    "a drop from no teacher": (
        ["report", "{model}", "--recipe", "{recipe}", "--max-drop", "0.1"], "counts from the teacher, which is not",
    ),
    "an empty folder to report": (["report", "{data}"], "no model there (no config.json)"),
    "below without a teacher": (["predict", "x", "a", "--below", "0.8"], "--escalate TEACHER and --below P"),
    "a teacher without below": (["predict", "x", "a", "--escalate", "y"], "--escalate TEACHER and --below P"),
    "a probability of two": (["predict", "x", "a", "--escalate", "y", "--below", "2"], "--below: wants a probability"),
    "no probability": (["predict", "x", "a", "--escalate", "y", "--below", "nan"], "--below: wants a probability"),
    "no teacher to pass on to": (
        ["predict", "{model}", "a", "--escalate", "./none", "--below", "0.5"], "./none: no such folder",
    ),
    "texts twice over": (["predict", "{model}", "a", "--file", "x.txt"], "wants texts on the command line or --file"),
    "a folder of texts": (["predict", "{model}", "--file", "{data}"], ": a folder, not a file"),
    "a device of texts": (["predict", "{model}", "--file", "/dev/null"], "/dev/null: a device or a pipe, not a file"),
    "texts of no name": (["predict", "{model}", "--file", ""], "'--file': wants a name, got nothing"),
    "a column of no name": (
        ["predict", "{model}", "--file", "{data}/train.csv", "--text-column", ""], "'--text-column': wants a name",
    ),
    "a second model of no name": (
        ["predict", "{model}", "a", "--escalate", "", "--below", "0.5"], "'--escalate': wants a name, got nothing",
    ),
    "a recipe of no name": (["check", ""], "'RECIPE': wants a name, got nothing"),
    "a repository of no name": (["teacher", "{recipe}", "--push-to-hub", ""], "'--push-to-hub': wants a name, got"),
    "answers of no name": (
        ["student", "{recipe}", "--teacher", "{model}", "--teacher-logits", ""], "'--teacher-logits': wants a name",
    ),
    **{
        f"{arguments[0]} into no name": ([*arguments, "--output", ""], "'--output': wants a name, got nothing")
        for arguments in (
            ["inspect", "{recipe}"], ["teacher", "{recipe}"], ["student", "{recipe}", "--teacher", "{model}"],
            ["sweep", "{recipe}"], ["export", "{model}"], ["report", "{model}"], ["run", "{recipe}"],
            ["convert", "{model}"], ["doctor"],
        )
    },
    "an export of no formats": (
        ["export", "{model}", "--recipe", "{recipe}", "--set", "export.formats=[]"],
        "export.formats: wants one or more, got none",
    ),
    "processes that talk alone": (
        ["teacher", "{recipe}", "--set", "teacher.training.ddp_backend=gloo"],
        "teacher.training.ddp_backend: needs several processes, but there is only one",
    ),
    "no such column": (
        ["predict", "{model}", "--file", "{data}/train.csv", "--text-column", "x"], "--text-column: no column 'x'",
    ),
    "an unknown kind of file": (
        ["predict", "{model}", "--file", "{recipe}"],
        "recipe.yaml: not one of .csv, .tsv, .json, .jsonl, .parquet, .arrow, .txt, - (stdin)",
    ),
    "an export of nothing": (["export", "./none"], "none: no such folder"),
    "an export of a file": (["export", "{data}/train.csv"], "train.csv: no such folder"),
    "a name that no hub has": (
        ["teacher", "{recipe}", "--push-to-hub", "a/b/c"], "--push-to-hub a/b/c: wants NAME or OWNER/NAME",
    ),
    "a model of a hub that is not there": (["predict", "nobody/nothing", "a"], "nobody/nothing: no"),
    "a search for nothing": (["sweep", "{recipe}"], "sweep: missing, so there are no keys to search over"),
    "a search without the teacher": (
        ["sweep", "{recipe}", "--set", "sweep.keys.student.training.learning_rate=[1.0e-3, 2.0e-3]"],
        "sweep.keys: belong to the student, but no teacher is named",
    ),
    "a search with a teacher's teacher": (
        ["sweep", "{recipe}", "--teacher", "{model}", "--set", "sweep.keys.teacher.attention_dropout=[0.0, 0.1]"],
        "sweep.keys: belong to the teacher, so no teacher may be named, got",
    ),
    "a search into a folder of others": (
        ["sweep", "{recipe}", "--output", "{data}", "--set", "sweep.keys.teacher.attention_dropout=[0.0, 0.1]"],
        "not empty and not a run folder",
    ),
    "a search over its teacher": (
        ["sweep", "{recipe}", "--teacher", "{model}", "--output", "{model}", "--set",
         "sweep.keys.student.attention_dropout=[0.0, 0.1]"],
        "would overwrite its teacher",
    ),
    "a search with what transformers refuses": (
        ["sweep", "{recipe}", "--set", "sweep.keys.teacher.training.optim=[adamw_torch, adamw_bnb_8bit]"],
        "teacher.training: ",
    ),
    "a teacher that is a ring of links": (
        ["student", "{recipe}", "--teacher", "ring"], "--teacher: ring: no such folder",
    ),
    "a model that is a ring of links": (["predict", "ring", "a"], "ring: no such folder"),
    "a student into a ring of links": (
        ["student", "{recipe}", "--teacher", "{model}", "--output", "ring", "--force"], "ring: a broken link",
    ),
    "a report into a ring of links": (
        ["report", "{model}", "--recipe", "{recipe}", "--output", "ring"], "ring: cannot be written: ",
    ),
    "a report below a file": (
        ["report", "{model}", "--recipe", "{recipe}", "--output", "{data}/train.csv/x"], "train.csv is not a folder",
    ),
    "an output in other bytes": (
        ["teacher", "{recipe}", "--output", "caf\udce9"], "caf\\udce9: the name is not UTF-8",
    ),
    "exports in other bytes": (["export", "{model}", "--output", "caf\udce9"], "caf\\udce9: the name is not UTF-8"),
    "a model in other bytes": (["predict", "./caf\udce9", "a"], "./caf\\udce9: a model's name cannot hold control"),
    "a key in other bytes": (["check", "{recipe}", "--set", "caf\udce9=1"], "--set caf\\udce9=1: "),
    "batches of similar length": (
        ["check", "{recipe}", "--set", "teacher.training.train_sampling_strategy=group_by_length"],
        "teacher.training.train_sampling_strategy: got 'group_by_length'; leave it out",
    ),
    "a tracker that is not installed": (
        ["check", "{recipe}", "--set", "teacher.training.report_to=comet_ml"],
        "teacher.training.report_to: comet_ml is not installed",
    ),
    "a tracker of nobody": (
        ["check", "{recipe}", "--set", "student.training.report_to=[wombat]"],
        "student.training.report_to: got 'wombat', wants one",
    ),
    "no full batch": (
        ["teacher", "{recipe}", "--set", "teacher.training.dataloader_drop_last=true", "--set",
         "teacher.training.per_device_train_batch_size=500"],
        "teacher.training.dataloader_drop_last: drops the only batch, which has 144 of 500 texts",
    ),
    "nothing to convert": (["convert", "{model}", "--output", "x"], "there is nothing to convert"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_on_the_command_line_is_one_line(
    name, recipe_path, tiny_bert, data, tmp_path, monkeypatch, record_property
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ring").symlink_to("other")
    (tmp_path / "other").symlink_to("ring")
    arguments, expected = CASES[name]
    arguments = [text.format(recipe=recipe_path, model=tiny_bert, data=data) for text in arguments]
    check_refused(tmp_path, [expected], *arguments, also=(data, tiny_bert))
    record_property("bad command lines", 1)


# The hint that cures each of these cases.
HINTS = {
    "no teacher": "distill teacher RECIPE --output ./none makes one",
    "no teacher and no recipe": "distill teacher RECIPE --output ./none makes one",
    "no model": "--set teacher.model=DIR",
    "no model for a student": "--set student.model=DIR",
    "a student's model of a hub that is not there": "--set student.model=DIR",
}


@pytest.mark.parametrize("name", HINTS)
def test_a_model_that_is_not_there_is_cured_where_it_is_named(name, recipe_path, tiny_bert, data):
    arguments = [text.format(recipe=recipe_path, model=tiny_bert, data=data) for text in CASES[name][0]]
    assert f"{HINTS[name]}" in run(*arguments)[2]


@pytest.mark.parametrize(("text", "said"), [(b"caf\xe9\n", "not UTF-8"), (b"\xff\xfe\n", "UTF-16, not UTF-8")])
def test_texts_that_are_not_utf_8_are_one_line(text, said, tiny_bert, tmp_path, record_property):
    (tmp_path / "texts.txt").write_bytes(text)
    check_refused(tmp_path, [f"texts.txt: line 1: {said}"], "predict", tiny_bert, "--file", tmp_path / "texts.txt")
    check_refused(tmp_path, [f"stdin: line 1: {said}"], "predict", tiny_bert, "--file", "-", stdin=text)
    record_property("bad command lines", 2)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "x"}, "RANK: wants a whole number, 0 or more, got 'x'"),
        ({"RANK": "-1"}, "RANK: wants a whole number, 0 or more, got '-1'"),
        ({"RANK": "1"}, "RANK: wants a number below WORLD_SIZE, which is 1, got 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: wants a whole number, 1 or more, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: wants a whole number, 1 or more, got '0'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: wants a whole number, -1 or more, got 'x'"),
    ],
)
def test_a_launcher_that_talks_nonsense_is_one_line(
    variables, said, recipe_path, tmp_path, monkeypatch, record_property
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("distill.cli.time.sleep", lambda seconds: None)  # ranks above 0 wait
    check_refused(tmp_path, [said], "teacher", recipe_path)
    record_property("bad command lines", 1)


SAFETENSORS = "Error while serializing: I/O error: File too large (os error 27)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SafetensorError(SAFETENSORS), f"File too large: {SAFETENSORS}"),
        (
            shutil.Error([("a", "b/x", "[Errno 28] No space left on device"), ("c", "b/y", "[Errno 28] No space")]),
            "No space left on device: b/x: [Errno 28] No space left on device (and of 1 more files)",
        ),
        (ValueError("whatever"), None),
    ],
)
def test_what_a_disk_refuses_is_one_line_whoever_says_it(error, said):
    assert refusal_of(error) == said


def test_the_version_is_told_without_torch(monkeypatch):
    monkeypatch.setattr("distill.cli._commands", None)
    assert run("--version")[:2] == (0, "distill 0.1.0\n")


def test_no_stdin_and_no_working_directory_are_one_line(tiny_bert, tmp_path, monkeypatch, record_property):
    with pytest.raises(DataError, match="stdin: is closed"), monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)
        next(read_texts("-", "text"))
    monkeypatch.chdir(tmp_path)  # so that monkeypatch returns to a directory that exists
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_refused(tmp_path, ["the working directory no longer exists"], "predict", tiny_bert, "a")
    record_property("bad command lines", 2)
