"""Results that a disk or a hand has damaged are named, never used; a run that was moved or has diverged is told."""

import json
import os
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import data_section, run

from distill.errors import FolderError
from distill.storage.checksums import SEAL, damage_of
from distill.storage.exports import read_proofs
from distill.storage.files import PARTIAL, REPLACED
from distill.storage.lock import hold
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder
from distill.training.callbacks import StopOnDivergence

FORMAT = "onnx-fp32"


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, tiny_bert):
    """A recipe, and a teacher and its export made from it."""
    folder = tmp_path_factory.mktemp("made")
    recipe = {
        "data": data_section(data),
        "teacher": {
            "model": str(tiny_bert), "pretrained": False,
            "training": {"num_train_epochs": 4, "learning_rate": 3e-3, "per_device_train_batch_size": 16},
        },
        "student": {"layers": 2, "training": {"max_steps": 1}},
        "export": {"formats": [FORMAT]},
        "benchmark": {"shapes": ["1x8"], "rounds": 5, "threads": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert run("teacher", folder / "recipe.yaml", "--output", folder / "teacher")[0] == 0
    assert run("export", folder / "teacher")[0] == 0
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def refused(folder, name, *arguments):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    code, out, err = run(*arguments)
    (problem,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and name in problem and not out, err
    assert {path: path.read_bytes() for path in before} == before


ANSWERING = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize("damage", [flip_a_bit, pytest.param(cut, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*ANSWERING, *(f"export/{FORMAT}/{name}" for name in (*ANSWERING[1:], "model.onnx"))])
def test_a_damaged_model_answers_nothing_and_is_no_teacher(folder, name, damage, record_property):
    path = folder / "teacher" / name
    damage(path)
    model = path.parent
    refused(folder, path.name, "predict", model, "a good film")
    refused(folder, path.name, "report", model, "--recipe", folder / "recipe.yaml", "--output", folder / "report")
    if path.parent.name == "teacher":
        student = ("--output", folder / "student", "--set", "student.training.max_steps=1", "--force")
        refused(folder, path.name, "student", folder / "recipe.yaml", "--teacher", model, *student)
        refused(folder, path.name, "export", model, "--output", folder / "exports")
        assert not (folder / "exports" / "export.json").exists()
        assert not (folder / "student" / "manifest.json").exists()
    record_property("damaged files named", 1)


@pytest.mark.parametrize("damage", [flip_a_bit, cut])
@pytest.mark.parametrize("name", ["manifest.json", "metrics.json", "metrics.jsonl", f"export/{FORMAT}/proof.json"])
def test_a_damaged_record_is_not_reported(folder, name, damage, record_property):
    path = folder / "teacher" / name
    damage(path)
    refused(folder, path.name, "report", folder / "teacher", "--output", folder / "report")
    if path.name == "proof.json":
        refused(folder, path.name, "predict", path.parent.parent, "a good film")
    record_property("damaged files named", 1)


LINE = {"text": "a", "gold": "b", "model": "b", "format": "c", "model_probabilities": {}, "format_probabilities": {}}
MANIFEST = {"role": "teacher", "weights": "0", "parents": {}}
# Of each file that a report reads: a content that is not ours, and what the one line says of it.
STRANGE = {
    "manifest.json": [
        ([], "input should be a valid dictionary"), ({}, "role: field required"), ({"role": 3}, "role: input should"),
        ({"role": "teacher", "parents": {}}, "weights: field required"), ({"role": "\x1b[2J"}, "role: input should be"),
        ({"role": "control", "weights": "0"}, "parents: field required"), ({"role": ["teacher"]}, "role: input should"),
        ({**MANIFEST, "role": "control", "parents": []}, "parents: input should be a valid dictionary"),
        ({**MANIFEST, "hardware": []}, "hardware: input should be"),
    ],
    "metrics.json": [
        ([], "input should be a valid dictionary"), ({}, "training: field"), ({"training": []}, "training: inp"),
        ({"training": {"best_checkpoint": 3}}, "training: best_checkpoint: input should be a valid string, got 3"),
        ({"training": {"best_checkpoint": "x"}}, "training: best_checkpoint: string should match pattern"),
    ],
    "metrics.jsonl": [
        ([], "line 1: not as distill writes it"), ("{", "line 1: not JSON"), ({"loss": 1.0}, "step: field required"),
        ({"step": 1, "epoch": 1.0, "loss": "x"}, "loss: input should be a valid number, got 'x'"),
        ({"step": 1, "epoch": 1.0, "loss": float("nan")}, "loss: input should be a finite number, got nan"),
    ],
    "export/export.json": [
        ({FORMAT: {"passed": "yes", "reason": None, "device": "cpu", "texts_per_second": 1}}, "passed: input"),
        ({FORMAT: {"passed": True, "reason": None, "device": [], "texts_per_second": 1}}, "device: input should be"),
    ],
    f"export/{FORMAT}/flipped.jsonl": [
        ([], "line 1: not as distill writes it"), ({**LINE, "model_probabilities": []}, "model_probabilities: input"),
    ],
    "sweep/sweep.json": [([], "not as distill writes it"), ({"trials": [3]}, "stage: field required")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"), [(name, content, said) for name in STRANGE for content, said in STRANGE[name]]
)
def test_a_record_that_is_not_ours_is_one_line_before_anything_is_measured(
    folder, name, content, said, monkeypatch, record_property
):
    monkeypatch.setattr("distill.measuring.findings.measure", lambda *_, **__: pytest.fail("was measured"))
    path = folder / "teacher" / name
    path.parent.mkdir(exist_ok=True)
    for sealed in (folder / "teacher", path.parent):
        (sealed / SEAL).unlink(missing_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    code, out, err = run("report", folder / "teacher", "--output", folder / "report")
    (problem,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and f"{path}: " in problem and said in problem and not out, err
    record_property("damaged files named", 1)


def test_what_a_user_may_change_is_no_damage(folder):
    for name in ("README.md", "recipe.yaml"):
        with open(folder / "teacher" / name, "a") as file:
            file.write("\n# mine\n")
    assert run("predict", folder / "teacher", "a good film")[0] == 0
    config = json.loads((folder / "teacher" / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    (folder / "teacher" / "config.json").write_text(json.dumps(config))
    code, _, err = run("predict", folder / "teacher", "a good film")
    assert code == 2 and f"delete {folder / 'teacher' / SEAL}" in err
    (folder / "teacher" / SEAL).unlink()
    assert run("predict", folder / "teacher", "a good film")[1].startswith("good")


def test_a_run_that_was_moved_goes_on_with_its_best_checkpoint(folder, tmp_path):
    """The checkpoint names the best one by the path that it had."""
    settings = ("--set", "teacher.training.seed=5", "--set", "teacher.training.num_train_epochs=3")
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run("teacher", folder / "recipe.yaml", "--output", whole, *settings)[0] == 0
    best = json.loads((whole / "metrics.json").read_text())["training"]["best_checkpoint"]
    shutil.copytree(whole, moved)
    for name in ("manifest.json", SEAL):
        (moved / name).unlink()
    recipe = (moved / "recipe.yaml").read_text()
    shutil.rmtree(whole / "checkpoints")
    code, _, err = run("teacher", folder / "recipe.yaml", "--output", moved, *settings, "--resume")
    assert code == 0, err
    assert json.loads((moved / "metrics.json").read_text())["training"]["best_checkpoint"] == best
    assert (moved / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (moved / "recipe.yaml").read_text() == recipe


DIVERGING = ("--set", "teacher.training.max_grad_norm=0.0", "--set", "teacher.training.optim=sgd")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("learning_rate=1e18", "logging_steps=2", "eval_strategy=no"),
            "the training loss is nan at step 2; there is no",
        ),
        (("learning_rate=1e18", "logging_steps=500"), "logits on validation are not finite at step 9; there is no"),
        (("learning_rate=1e18", "logging_steps=500", "eval_strategy=no"), "weights are not finite at step 9"),
        (
            ("learning_rate=1e18", "logging_steps=500", "eval_strategy=no", "save_strategy=no", "num_train_epochs=1"),
            "weights are not finite at step 9; there is no checkpoint yet",
        ),
    ],
    ids=["loss", "logits", "weights", "nothing looked at"],
)
def test_a_training_that_diverges_stops_with_the_step_and_a_cure(folder, tmp_path, settings, said, record_property):
    sets = [part for setting in settings for part in ("--set", f"teacher.training.{setting}")]
    output = tmp_path / "out"
    code, _, err = run("teacher", folder / "recipe.yaml", "--output", output, *DIVERGING, *sets)
    assert code == 2 and re.search(f"error: training diverged: {said}", err), err
    assert "hint: --output ANOTHER --set teacher.training.learning_rate=LOWER (it is 1e+18)" in err
    assert not (output / "manifest.json").exists() and not (output / "model.safetensors").exists()
    assert not list(output.glob(f"checkpoints/*/{SEAL}"))  # what holds no numbers is no checkpoint to go on from
    record_property("divergences stopped", 1)


def test_a_training_that_diverges_names_the_last_good_checkpoint(tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from distill.errors import TrainingError
    from distill.storage.checksums import seal

    for name, is_whole in (
        ("checkpoint-9", True),
        ("checkpoint-10", True),
        ("checkpoint-10 (copy)", True),
        ("checkpoint-11", False),
    ):
        path = tmp_path / "checkpoints" / name
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text("{}")
        (path / "model.safetensors").write_text("x")
        if is_whole:
            seal(path)
    state, arguments = TrainerState(global_step=12), TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(TrainingError, match=r"at step 12; the last good checkpoint is .*/checkpoint-10$"):
        StopOnDivergence(RunFolder(tmp_path), "teacher").on_log(
            arguments, state, TrainerControl(), logs={"loss": float("inf")}
        )


@pytest.mark.parametrize("content", ["[]", "3", '{"passed": true}', '{"pazzed": true}', "{"])
def test_a_proof_that_is_none_is_one_line(folder, content):
    exports = folder / "teacher" / "export"
    (exports / FORMAT / SEAL).unlink()
    (exports / FORMAT / "proof.json").write_text(content)
    refused(folder, "export", "predict", exports, "a good film")


@pytest.mark.parametrize("content", ["[]", "3", "{"])
def test_what_is_not_the_list_of_exports_is_one_line(folder, content):
    (folder / "teacher" / "export" / "export.json").write_text(content)
    refused(folder, "export.json", "predict", folder / "teacher" / "export", "a good film")


def test_an_export_that_is_interrupted_spoils_no_other_and_the_old_one_answers(folder, monkeypatch):
    """Also where the kill came between the old folder's going and the new one's coming."""
    from distill.export import formats as export

    exports = folder / "teacher" / "export"
    answer = run("predict", exports, "a good film")[1]
    proofs = read_proofs(exports)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(export.WRITERS, "torch-fp16", killed)
    monkeypatch.setitem(export.WRITERS, FORMAT, killed)
    for flag in ("--fp16", "--onnx"):
        assert run("export", folder / "teacher", flag)[0] == 130
        assert run("predict", exports, "a good film")[1] == answer and read_proofs(exports) == proofs
    torn = exports / f"{PARTIAL}x"
    (torn / REPLACED).mkdir(parents=True)
    (exports / FORMAT).rename(torn / REPLACED / FORMAT)
    with hold(exports):
        assert read_proofs(exports) == proofs and not torn.exists()
    assert run("predict", exports, "a good film")[1] == answer


@pytest.mark.slow
def test_a_damaged_teacher_is_named_where_a_run_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    assert run("run", folder / "recipe.yaml", "--output", out, "--force")[0] == 0
    flip_a_bit(out / "teacher" / "model.safetensors")
    code, _, err = run("run", folder / "recipe.yaml", "--output", out, "--force")
    assert code == 2 and f"{out / 'teacher'}: model.safetensors is damaged" in err


def test_a_better_evaluation_without_a_checkpoint_is_no_checkpoint(folder, tmp_path):
    """Evaluated more often than saved: what is resumed must not look for a checkpoint that never was."""
    settings = (
        "load_best_model_at_end=false",
        "eval_strategy=steps",
        "eval_steps=3",
        "save_strategy=steps",
        "save_steps=6",
        "learning_rate=0.0",  # all evaluations are alike, so the first is the best, and step 3 is not saved
    )
    sets = [part for setting in settings for part in ("--set", f"teacher.training.{setting}")]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run("teacher", folder / "recipe.yaml", "--output", whole, *sets)[0] == 0
    shutil.copytree(whole, again)
    for name in ("manifest.json", SEAL):
        (again / name).unlink()
    last = max((again / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(last)
    code, _, err = run("teacher", folder / "recipe.yaml", "--output", again, *sets, "--resume")
    assert code == 0 and "looked for" not in err, err
    ours, theirs = (json.loads((path / "metrics.json").read_text())["training"] for path in (again, whole))
    assert ours["best_checkpoint"] is theirs["best_checkpoint"] is None
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub/../../../../../../../../../dev/zero", "names a file outside the folder"),
        ("/dev/zero", "names a file outside the folder: /dev/zero"),
        ("../secret", "names a file outside the folder: ../secret"),
        ("pipe", "pipe is not a regular file"),
        ("device", "names a file outside the folder: device"),
        ("ring", "names a file outside the folder: ring"),
        ("a\0b", "names a file outside the folder: a"),
        ("sub", "sub is not a regular file"),
    ],
)
def test_what_a_seal_names_is_read_only_in_its_folder_and_if_it_is_a_file(name, expected, tmp_path, record_property):
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "ring").symlink_to("ring")
    (folder / "checksums.json").write_text(json.dumps({name: "0" * 64}))
    assert expected in (damage_of(folder) or "")
    record_property("attacks refused", 1)


@pytest.mark.parametrize("best", ["../../../etc", "/dev/zero", "..", 7, ["checkpoint-1"], "checkpoint-1/../../x"])
def test_the_best_checkpoint_that_a_state_names_is_one_of_the_run(best, tmp_path, record_property):
    run = RunFolder(tmp_path)
    checkpoint = run.checkpoints / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    run.seal_checkpoint(checkpoint)
    with pytest.raises(FolderError, match="best_model_checkpoint: no checkpoint"):
        run.best_checkpoint(checkpoint)
    assert run.last_checkpoint() is None
    record_property("attacks refused", 1)


@pytest.mark.parametrize("started", ["[]", '{"origin": 3}', '{"run": ["x"]}', '{"processors": "x"}', "[" * 10_000])
def test_a_start_that_says_nothing_is_one_line(started, tmp_path, record_property):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.started.write_text(started)
    with pytest.raises(FolderError, match="started"):
        run.check_origin({"data": "x"})
    record_property("damaged files named", 1)


def predictions(ids, gold=(0, 0), logits=((0.0, 1.0), (0.0, 1.0)), kind=pa.list_(pa.float32(), 2)):  # noqa: B008
    return pa.table({"example_id": ids, "gold_label": gold, "logits": pa.array(logits, kind)})


ENDLESS = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), pa.array(["x" * 10_000_000]))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (predictions(["a", "b"]).drop_columns("example_id"), "no column example_id"),
        (predictions([1, 2]), "no column example_id of its type"),
        (predictions(["a", "b"], gold=["x", "y"]), "no column gold_label of its type"),
        (predictions(["a", "b"], kind=None), "no column logits of its type"),
        (predictions(["a", None]), "an empty value"),
        (predictions(ENDLESS), "an example_id that is too long"),
    ],
    ids=["no ids", "numbers", "words", "lists", "empty", "endless"],
)
def test_predictions_that_are_none_are_one_line(table, expected, tmp_path, record_property):
    pq.write_table(table, tmp_path / "predictions.parquet")
    with pytest.raises(FolderError, match=f"predictions.parquet: not as distill writes it: {expected}$"):
        read_predictions(tmp_path / "predictions.parquet")
    record_property("damaged files named", 1)


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json", "predictions.parquet"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name, tmp_path, record_property):
    os.mkfifo(tmp_path / name)
    run = RunFolder(tmp_path)
    read = {
        "metrics.json": run.read_metrics, "manifest.json": run.read_manifest,
        "predictions.parquet": lambda: read_predictions(run.predictions),
    }  # fmt: skip
    with pytest.raises(FolderError, match="not a regular file"):
        read[name]()
    record_property("attacks refused", 1)


def test_a_lock_that_is_a_link_is_not_taken(tmp_path, record_property):
    """Older versions of filelock empty what it leads to."""
    (tmp_path / "precious").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FolderError, match="a link"), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "x"
    record_property("attacks refused", 1)
