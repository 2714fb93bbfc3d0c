"""The command line as a user sees it: what it prints to stdout and stderr, its exit status and the files it writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from conftest import check_refused, data_section, make_classifier, run, write_reviews
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import distill
from distill import commands
from distill.measuring.runs import recipe_differences, recipes_of, runs_of
from distill.storage.checksums import seal
from distill.storage.contents import text_columns_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, tiny_bert):
    """The output of `distill run` on a recipe that takes seconds, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    training = {"num_train_epochs": 4, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 5}
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": training},
        "student": {"layers": [0, 2], "control": True, "training": training},
        "export": {"max_accuracy_drop": 0.1},
        "benchmark": {"shapes": ["1x8", "2x16"], "rounds": 5, "threads": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    code, out, err = run("run", folder / "recipe.yaml", "--output", folder / "out", "--json")
    assert code == 0, err
    return folder, out, err


def test_a_run_leaves_every_step_and_a_report(finished):
    folder, out, _ = finished
    report = json.loads(out.splitlines()[-1])
    assert report == json.loads((folder / "out" / "report" / "report.json").read_text())
    formats = [(row["role"], row["format"]) for row in report["measurements"]]
    for expected in (
        ("teacher", "torch-fp32"), ("student", "torch-fp32"), ("student", "onnx-fp32"), ("student", "onnx-int8"),
    ):  # fmt: skip
        assert expected in formats
    for row in report["measurements"]:
        assert set(row["latency_ms"]) == {"1x8", "2x16"}
        assert len(row["latency_ms"]["1x8"]["raw"]) >= 5
        assert row["texts_per_second"] > 0 and row["size_bytes"] > 0
        assert row["classes_answered"] == 2
    assert report["environment"]["commonest_class_share"] == 0.5 and report["choice"]["unfit"] == []
    exports = folder / "out" / "student" / "export"
    assert set(json.loads((exports / "export.json").read_text())) == {
        path.name for path in exports.iterdir() if path.is_dir()
    }


def test_a_run_with_a_control_says_what_distilling_was_worth(finished):
    folder, out, _ = finished
    (found,) = json.loads(out.splitlines()[-1])["controls"]
    assert (folder / "out" / "control" / "manifest.json").is_file()
    assert found["student"] == str(folder / "out" / "student")
    assert found["sentence"] in (folder / "out" / "report" / "report.md").read_text()
    code, out, _ = run("report", folder / "out", "--output", folder / "again")
    assert code == 0 and found["sentence"] in out


def test_a_report_says_how_its_models_were_trained_and_what_differs_between_their_recipes(finished, tmp_path):
    folder, out, _ = finished
    report = json.loads(out.splitlines()[-1])
    runs = {found["role"]: found for found in report["runs"]}
    assert list(runs) == ["baseline", "teacher", "student", "control"]
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "teacher")
    assert runs["teacher"]["parameters"] == teacher.num_parameters()
    assert runs["student"]["origin"] == "layers 0, 2 of the teacher"
    assert runs["student"]["course"].startswith("ran all ") and runs["student"]["seconds"] > 0
    # A control has the recipe of its student, and the exports have no recipe of their own.
    assert report["recipe_differences"] == []
    (mistakes,) = report["mistakes"]
    assert mistakes["model"].endswith("student") and mistakes["teacher"].endswith("teacher")
    wrong = {row["folder"]: round((1 - row["accuracy"]) * 40) for row in report["measurements"]}
    for place, model in (("wrong", "model"), ("teacher_wrong", "teacher")):
        assert mistakes[place] == wrong[mistakes[model]]

    scored = {row["folder"]: row for row in report["measurements"] if row["format"] == "torch-fp32"}
    student, teacher = scored[mistakes["model"]], scored[mistakes["teacher"]]
    low, high = student["against_teacher"]["gain_ci95"]
    assert low <= student["accuracy"] - teacher["accuracy"] <= high and "against_teacher" not in teacher

    other = tmp_path / "other"
    code, _, err = run(
        "student", folder / "recipe.yaml", "--teacher", folder / "out" / "teacher", "--output", other,
        "--set", "student.loss.temperature=4", "--set", "student.layers=1", "--set", "data.train_samples=100",
    )  # fmt: skip
    assert code == 0, err
    notes: list[str] = []
    (found,) = recipe_differences(recipes_of([folder / "out" / "teacher", folder / "out" / "student", other], notes))
    assert found["models"] == [str(folder / "out" / "student"), str(other)]
    values = {row["key"]: row["values"] for row in found["keys"]}
    texts = values.pop("data: train")  # the same file, of which the other student saw a part
    assert values == {
        "data.train_samples": [None, 100], "student.layers": [[0, 2], 1], "student.loss.temperature": [2.0, 4.0],
    }  # fmt: skip
    assert texts[0] != texts[1] and all(text.startswith("train.csv ") for text in texts)
    assert notes == []
    (other / "recipe.yaml").write_text("data: {from_an_earlier_version: 1}")
    recipes = recipes_of([folder / "out" / "student", other], notes)
    assert recipe_differences(recipes) == [] and [run["origin"] for run in runs_of(recipes)][1] is None
    assert "other cannot be compared with others: " in notes[0] and "from_an_earlier_version" in notes[0]


def test_several_teachers_and_a_place_for_their_answers_on_the_command_line(finished, tmp_path):
    folder, _, _ = finished
    teachers = [tmp_path / name for name in ("one", "two")]
    for teacher in teachers:
        shutil.copytree(folder / "out" / "teacher", teacher, ignore=shutil.ignore_patterns("teacher_logits"))
    code, out, err = run(
        "student", "--teacher", teachers[0], "--teacher", teachers[1], "--teacher-logits", tmp_path / "answers",
        "--output", tmp_path / "student", "--set", "student.control=false", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["test"]["accuracy"] > 0.9
    assert list((tmp_path / "answers").iterdir()) and not (teachers[0] / "teacher_logits").exists()


def test_a_run_folder_holds_what_the_contract_says(finished):
    folder, _, err = finished
    for role in ("teacher", "student"):
        run_folder = folder / "out" / role
        model = AutoModelForSequenceClassification.from_pretrained(run_folder)
        assert model.config.id2label == {0: "negative", 1: "positive"}
        for path in run_folder.rglob("config.json"):  # also in its exports and checkpoints
            assert json.loads(path.read_text())["problem_type"] == "single_label_classification", path
        assert len(list(run_folder.rglob("config.json"))) >= (5 if role == "student" else 2)
        assert AutoTokenizer.from_pretrained(run_folder).model_max_length == 32
        metrics = json.loads((run_folder / "metrics.json").read_text())
        assert metrics["test"]["accuracy"] > 0.9  # these reviews are easy
        assert metrics["warnings"] == [] and metrics["training"]["stopped_early"] is None
        assert set(metrics["test"]) == {
            "examples", "accuracy", "accuracy_ci95", "macro_f1", "roc_auc", "log_loss", "ece", "brier",
        }  # fmt: skip
        assert {
            "seconds", "samples_per_second", "tokens_per_second", "padding_fraction", "peak_memory_bytes",
        } <= set(metrics["training"])  # fmt: skip
        if role == "student":
            few = "16 validation texts are too few to judge it (at least 50)"
            assert metrics["calibration"]["refused"] == few
            assert (
                f"student: not calibrated: a temperature of {metrics['calibration']['fitted_temperature']:.2f}" in err
            )
            assert "student: made of layers 0, 2 of the teacher's 4 (0 to 3); learns by soft_targets at" in err
        parts = {"data", "tokenising", "evaluation", "test", *(["teacher_logits"] if role == "student" else [])}
        assert all(metrics["training"][f"{part}_seconds"] > 0 for part in parts)
        assert 0 < metrics["training"]["model_flop_utilisation"] < 1
        assert "of peak=" in finished[2]
        predictions = pq.read_table(run_folder / "predictions.parquet").to_pylist()
        assert [row["example_id"] for row in predictions] == [f"test/{index}" for index in range(40)]
        correct = sum(row["logits"].index(max(row["logits"])) == row["gold_label"] for row in predictions)
        assert correct / 40 == metrics["test"]["accuracy"]
        manifest = json.loads((run_folder / "manifest.json").read_text())
        assert manifest["role"] == role and manifest["seed"] == 42
        assert manifest["versions"]["torch"] and manifest["data"]["test"] and manifest["weights"]
        log = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        assert sum("eval_accuracy" in entry for entry in log) == 4
    assert list(manifest["parents"]["teachers"]) == [str(folder / "out" / "teacher")]


def test_stdout_is_data_and_stderr_is_ours(finished):
    _, out, err = finished
    assert len(out.splitlines()) == 1
    for noise in ("Warning", "LOAD REPORT", "Traceback", "[transformers]", "Generating", "deprecated"):
        assert noise not in err, err
    assert "teacher: test accuracy" in err and "student: test accuracy" in err


def test_running_again_skips_what_is_finished(finished):
    folder, _, _ = finished
    manifests = [folder / "out" / role / "manifest.json" for role in ("teacher", "student")]
    before = [path.stat().st_mtime_ns for path in manifests]
    code, _, err = run("run", folder / "recipe.yaml", "--output", folder / "out")
    assert code == 0
    for step in ("teacher", "student", "export"):
        assert f"{step}: finished before, skipped" in err
    assert [path.stat().st_mtime_ns for path in manifests] == before


def test_a_finished_run_that_is_resumed_says_so_and_is_done(finished, tmp_path):
    """For scripts that always resume, and launchers that restart after a rank died behind the manifest."""
    folder, _, _ = finished
    for source, target in (("teacher", "teacher"), ("student", "student"), ("control", "student-control")):
        shutil.copytree(folder / "out" / source, tmp_path / target)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    recipe, teacher = folder / "recipe.yaml", folder / "out" / "teacher"
    of_teacher = ["teacher", recipe, "--output", tmp_path / "teacher", "--resume"]
    of_student = ["student", recipe, "--teacher", teacher, "--output", tmp_path / "student", "--resume"]
    for command, roles in ((of_teacher, ["teacher"]), (of_student, ["student", "control"])):
        code, out, err = run(*command)
        assert (code, out.strip()) == (0, str(command[command.index("--output") + 1])), err
        said = [line for line in err.splitlines() if "has finished with this recipe" in line]
        assert [line.split(":")[0] for line in said] == roles
    refused = {
        (*of_teacher, "--set", "teacher.training.learning_rate=1.0e-3"): "teacher.training.learning_rate: 0.001 now",
        (*of_student, "--set", "student.loss.temperature=4"): "student.loss.temperature: 4.0 now, 2.0 then",
        (*of_student, "--set", "data.max_tokens=16"): "data.max_tokens: 16 now, 32 then",
        ("teacher", recipe, "--output", tmp_path / "student", "--resume"): "holds a finished student, not a teacher",
        (*of_student[:3], tmp_path / "teacher", *of_student[4:]): None,  # the same weights in another place
    }
    other = shutil.copytree(tmp_path / "teacher", tmp_path / "other")
    weights = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "checksums.json").unlink()
    refused[(*of_student[:3], other, *of_student[4:])] = "was distilled from another teacher"
    for command, expected in refused.items():
        code, _, err = run(*command)
        assert code == (2 if expected else 0) and (expected or "has finished") in err, err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_finished_run_whose_base_has_changed_since_is_not_taken_for_done(finished, tmp_path, tiny_bert):
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    command = ("teacher", finished[0] / "recipe.yaml", "--output", tmp_path / "teacher", "--resume")
    command += ("--set", f"teacher.model={base}", "--set", "teacher.training.max_steps=2")
    assert run(*command)[0] == 0
    assert run(*command)[0] == 0
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"hidden_dropout_prob": 0.3}))
    code, _, err = run(*command)
    assert code == 2 and f"began with another teacher.model: {base} has changed since" in err
    shutil.rmtree(base)
    (tmp_path / "teacher" / "predictions.parquet").unlink()
    code, _, err = run(*command)
    assert code == 2 and "predictions.parquet cannot be read" in err


def test_a_finished_run_whose_texts_have_changed_since_is_not_taken_for_done(finished, tmp_path):
    folder, _, _ = finished
    manifest = folder / "out" / "teacher" / "manifest.json"
    shutil.copytree(manifest.parent, tmp_path / "teacher")
    found = json.loads(manifest.read_text())
    found["data"]["train"] = "0" * 64  # as if the file had been another one then
    (tmp_path / "teacher" / "manifest.json").write_text(json.dumps(found))
    (tmp_path / "teacher" / "checksums.json").unlink()
    code, _, err = run("teacher", folder / "recipe.yaml", "--output", tmp_path / "teacher", "--resume")
    assert code == 2 and "finished with other data: texts or labels of train have changed" in err


def test_running_again_with_another_recipe_mixes_nothing(finished):
    folder, _, _ = finished
    code, _, err = run("run", folder / "recipe.yaml", "--output", folder / "out", "--set", "student.loss.temperature=4")
    assert (
        code == 2
        and "finished with another recipe: student.loss.temperature: 4.0 now, 2.0 then" in err
        and "--overwrite" in err
    )


def test_a_student_of_another_teacher_is_not_taken_for_finished(finished, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    manifest = tmp_path / "out" / "student" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"parents": {"teachers": {"it": "others"}}}))
    (manifest.parent / "checksums.json").unlink()
    code, _, err = run("run", folder / "recipe.yaml", "--output", tmp_path / "out")
    assert code == 2 and "was distilled from another teacher" in err


def test_a_failed_export_is_tried_again(finished, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    exports = tmp_path / "out" / "student" / "export"
    proofs = json.loads((exports / "export.json").read_text())
    proofs["torch-fp16"]["passed"] = False
    (exports / "export.json").write_text(json.dumps(proofs))
    shutil.rmtree(exports / "torch-fp16")
    code, _, err = run("run", folder / "recipe.yaml", "--output", tmp_path / "out")
    assert code == 0 and "export: torch-fp16" in err and "export: onnx-fp32" not in err
    assert json.loads((exports / "export.json").read_text())["torch-fp16"]["passed"]


def test_the_student_finds_the_recipe_in_its_teachers_folder(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    monkeypatch.chdir(tmp_path)
    code, out, err = run("student", "--teacher", folder / "out" / "teacher")
    assert code == 0, err
    assert out.strip() == "distilbert-student"
    first, second = (
        json.loads((path / "manifest.json").read_text())["weights"]
        for path in (folder / "out" / "student", tmp_path / "distilbert-student")
    )
    assert first == second  # the same recipe, seed and machine


@pytest.mark.slow
def test_a_student_with_another_vocabulary_and_label_order_learns_from_the_same_teacher(finished, tmp_path):
    """Each model gets its own tokens, and classes are matched by name."""
    from conftest import BAD, FILLER, GOOD

    folder, _, _ = finished
    other = make_classifier(tmp_path / "other", "distilbert", words=["new", *BAD, *GOOD, *FILLER])
    code, _, err = run(
        "student", folder / "recipe.yaml", "--teacher", folder / "out" / "teacher", "--output", tmp_path / "student",
        "--set", f"student.model={other}", "--set", "data.label_names=[positive, negative]",
        "--set", "student.loss.soft_weight=1.0", "--set", "student.training.num_train_epochs=12",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.9
    assert distill.load(tmp_path / "student").label_names == ("positive", "negative")


def test_predict_reads_every_kind_of_source(finished, tmp_path):
    folder, _, _ = finished
    model = folder / "out" / "student" / "export" / "onnx-int8"
    write_reviews(tmp_path / "a.csv", 6, seed=9)
    code, out, _ = run("predict", model, "--file", tmp_path / "a.csv")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(rows) == 6 and {len(row) for row in rows} == {3}
    texts = [row[2] for row in rows]
    assert run("predict", model, *texts)[1] == out
    assert run("predict", model, "--file", "-", stdin="\n".join(texts) + "\n")[1] == out
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert run("predict", model, "--file", tmp_path / "a.txt")[1] == out
    answers = json.loads(run("predict", model, "--json", *texts)[1])
    assert [row["label"] for row in answers] == [row[0] for row in rows]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in answers)


def test_predict_says_what_runs_and_takes_the_fastest_of_a_folder_of_exports(finished):
    student = finished[0] / "out" / "student"
    err = run("predict", student, "good film")[2]
    assert f"predict: torch-fp32 on cpu (its exports: distill predict {student / 'export'})" in err
    proofs = json.loads((student / "export" / "export.json").read_text())
    fastest = max(proofs, key=lambda name: proofs[name]["texts_per_second"] or 0)
    code, out, err = run("predict", student / "export", "good film")
    assert code == 0 and out.startswith("positive\t") and f"predict: {fastest} on cpu\n" in err


@pytest.mark.slow
def test_report_takes_any_classifier_and_export_flags_name_formats(finished, tiny_bert, tmp_path):
    folder, _, _ = finished
    shutil.copytree(tiny_bert, tmp_path / "foreign")
    code, out, err = run(
        "export",
        tmp_path / "foreign",
        "--onnx",
        "--recipe",
        folder / "recipe.yaml",
        "--set",
        "export.max_accuracy_drop=1",
    )
    assert code == 0, err
    assert out.startswith("onnx-fp32\taccuracy ") and len(out.splitlines()) == 1
    code, _, err = run(
        "report", tmp_path / "foreign", folder / "out", "--recipe", folder / "recipe.yaml", "--output", tmp_path / "r"
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "r" / "report.json").read_text())["measurements"]
    assert {row["role"] for row in rows} == {"other", "baseline", "teacher", "student", "control"}
    assert [row["format"] for row in rows if row["role"] == "other"][-1] == "onnx-fp32"


def test_an_export_that_breaks_its_bound_exits_2_and_is_not_kept(finished, tmp_path, monkeypatch):
    from distill.export import formats as export

    folder, _, _ = finished

    def useless(source, target, settings):
        worse = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "student")
        worse.classifier.weight.data.neg_()
        worse.classifier.bias.data.neg_()
        worse.half().save_pretrained(target)

    monkeypatch.setitem(export.WRITERS, "torch-fp16", useless)
    code, _, err = run(
        "export", folder / "out" / "student", "--fp16", "--output", tmp_path / "export", "--device", "cpu"
    )
    assert code == 2
    assert "torch-fp16: failed and not kept: validation accuracy falls by" in err
    left = sorted(path.name for path in (tmp_path / "export").iterdir() if path.name != ".lock")
    assert left == ["export.json", "flipped-torch-fp16.jsonl", "onnx-fp16"]
    assert not json.loads((tmp_path / "export" / "export.json").read_text())["torch-fp16"]["passed"]


def test_recipes_are_listed_and_copied_and_never_overwrite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = dict(line.split("\t") for line in run("recipes")[1].splitlines())
    assert list(lines) == ["imdb", "yelp", "yelp-full"] and lines["imdb"].startswith("IMDb movie reviews, two classes")
    listed = json.loads(run("recipes", "--json")[1])
    assert {found["name"]: found["about"] for found in listed} == lines
    assert run("recipes", "imdb")[:2] == (0, "imdb.yaml\n")
    for output, file in (("mine", "mine/yelp.yaml"), ("a/b.yaml", "a/b.yaml")):
        assert run("recipes", "yelp", "--output", output)[:2] == (0, f"{file}\n")
        assert run("check", file)[1] == run("check", "yelp")[1] != ""
    (tmp_path / "imdb.yaml").write_text("mine")
    check_refused(tmp_path, ["imdb.yaml: not written: File exists"], "recipes", "imdb")
    check_refused(tmp_path, ["imdb.yaml/x/yelp.yaml: not written: Not a"], "recipes", "yelp", "--output", "imdb.yaml/x")
    check_refused(tmp_path, ["imbd: no such recipe comes with distill; known: imdb, yelp"], "recipes", "imbd")
    check_refused(tmp_path, ["recipes: --output needs the NAME"], "recipes", "--output", "x")


def test_every_command_takes_the_name_of_a_recipe(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    wrong = ["--set", "data.seed=x"]
    for command in ("check", "inspect", "doctor", "teacher", "sweep", "run"):
        assert "--set data.seed=x: data.seed: " in run(command, "imdb", *wrong)[2], command
    assert "--set data.seed=x: data.seed: " in run("student", "imdb", "--teacher", tiny_bert, *wrong)[2]
    for command in ("export", "report"):
        assert "--set data.seed=x: data.seed: " in run(command, tiny_bert, "--recipe", "imdb", *wrong)[2], command
    made = []
    monkeypatch.setattr(commands, "run", lambda recipe, output, **options: made.append(str(output)))
    assert run("run", "imdb")[0] == 0 and made == ["runs/imdb"]


def test_check_prints_a_recipe_that_checks(recipe_path, tmp_path):
    code, out, err = run("check", recipe_path)
    assert code == 0 and err == ""
    (tmp_path / "again.yaml").write_text(out)
    assert run("check", tmp_path / "again.yaml")[1] == out
    assert json.loads(run("check", recipe_path, "--json")[1])["data"]["max_tokens"] == 32


def test_unknown_commands_and_options_are_answered_with_a_guess():
    code, _, err = run("techer")
    assert code == 2 and "teacher" in err
    code, _, err = run("check", "--sett", "x")
    assert code == 2 and "--set" in err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_resume_goes_on(recipe_path, tmp_path, number, code):
    many = ["--set", "teacher.training.num_train_epochs=400", "--set", "teacher.training.eval_strategy=epoch"]
    command = [sys.executable, "-m", "distill", "teacher", str(recipe_path), *many, "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    folder = tmp_path / "teacher"
    deadline = time.monotonic() + 90
    while not list(folder.glob("checkpoints/checkpoint-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted: stopped at step" in err and "Traceback" not in err
    assert not (folder / "manifest.json").exists()
    refused = run("teacher", recipe_path, *many)
    assert refused[0] == 2 and "holds an unfinished run" in refused[2] and "--resume" in refused[2]
    other = run("teacher", recipe_path, "--resume")
    assert other[0] == 2 and "was started with another recipe" in other[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups and their signals")
@pytest.mark.parametrize(
    ("number", "code", "log"), [(signal.SIGTERM, 143, "read"), (signal.SIGHUP, 129, "gone")], ids=["TERM", "HUP"]
)
def test_a_signal_to_all_processes_of_a_run_leaves_a_whole_checkpoint(recipe_path, tmp_path, number, code, log):
    """A terminal or a scheduler signals loader workers too, and the reader of stderr may be gone by then."""
    from distill.storage.run_folder import RunFolder

    many = ["teacher.training.num_train_epochs=400", "teacher.training.dataloader_num_workers=2"]
    command = [sys.executable, "-m", "distill", "teacher", str(recipe_path), "--device", "cpu"]
    command += [part for setting in many for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    folder = RunFolder(tmp_path / "teacher")
    deadline = time.monotonic() + 120
    while not list(folder.checkpoints.glob("checkpoint-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    if log == "gone":
        process.stderr.close()
        time.sleep(1)  # time for it to write to stderr
        assert process.poll() is None
    os.killpg(process.pid, number)
    err = process.stderr.read() if log == "read" else ""
    assert process.wait(90) == code, err
    assert "Traceback" not in err and ("stopped at step" in err or log == "gone"), err
    last = folder.last_checkpoint()
    newest = max(folder.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert last == newest


@pytest.mark.slow
def test_resume_on_the_command_line_finishes_a_run(recipe_path, tmp_path):
    assert run("teacher", recipe_path)[0] == 0
    folder = tmp_path / "teacher"
    weights = json.loads((folder / "manifest.json").read_text())["weights"]
    (folder / "manifest.json").unlink()  # as if killed just before the end
    code, _, err = run("teacher", recipe_path, "--resume")
    assert code == 0 and "goes on from checkpoint-" in err
    assert json.loads((folder / "manifest.json").read_text())["weights"] == weights
    code, _, err = run("teacher", recipe_path)
    assert code == 2 and "holds a finished run" in err and "--overwrite" in err


@pytest.mark.slow
def test_what_is_overwritten_answers_until_the_new_has_finished(finished, tmp_path, monkeypatch):
    """If --overwrite stops between teacher and student, --resume redoes the rest, although it had finished before."""
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    command = ("run", finished[0] / "recipe.yaml", "--output", tmp_path / "out", "--set", "teacher.training.seed=7")
    student = tmp_path / "out" / "student"
    (student / "mine.txt").write_text("keep")
    redone = ("baseline", "teacher")
    before = {
        path.relative_to(tmp_path): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.name != ".lock" and path.relative_to(tmp_path / "out").parts[0] not in redone
    }

    def stop(*arguments, **settings):
        assert {path: (tmp_path / path).read_bytes() for path in before} == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commands, "train_student", stop)
        assert run(*command, "--overwrite")[0] == 130
    assert run("predict", student / "export", "good film")[0] == 0
    for more, expected in (
        ([], f"{student}: holds a finished run, and an unfinished one that will replace it"),
        (["--resume", "--set", "student.loss.temperature=4"], "was started with another recipe"),
    ):
        code, _, err = run(*command, *more)
        assert code == 2 and expected in err and f"delete {student / '.next'} to keep" in err, err
    code, _, err = run(*command, "--resume")
    assert code == 0 and "teacher: finished before, skipped" in err, err
    assert "student: finished before" not in err and "control: finished before" not in err
    manifests = {
        role: json.loads((tmp_path / "out" / role / "manifest.json").read_text())
        for role in ("teacher", "student", "control")
    }
    assert list(manifests["student"]["parents"]["teachers"].values()) == [manifests["teacher"]["weights"]]
    assert manifests["control"]["parents"]["student_weights"] == manifests["student"]["weights"]
    assert (student / "mine.txt").read_text() == "keep" and not list((tmp_path / "out").rglob(".next"))
    assert manifests["student"]["training_arguments"]["output_dir"] == str(student / "checkpoints")
    assert distill.load(student / "export").session.format


def test_a_budget_that_none_meets_exits_2_with_the_nearest_and_leaves_the_report(finished, tmp_path):
    folder, _, _ = finished
    arguments = ("report", folder / "out", "--output", tmp_path / "report", "--set", "benchmark.rounds=5")
    code, out, err = run(*arguments, "--max-latency-ms", "0.001", "--max-drop", "0.2")
    assert code == 2 and out == ""
    assert "error: report: " in err
    assert "o model is within 0.001 ms at 1x8 and 20 points of the teacher's accuracy; the nearest" in err
    assert "no model is within the limits" in (tmp_path / "report" / "report.html").read_text()
    code, _, err = run(*arguments, "--max-size-mb", "0.0001")
    assert code == 2 and "o model is within 0.0001 MB; the nearest" in err


def test_a_student_that_gives_one_answer_is_not_shipped_however_fast(finished, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(finished[0] / "out" / "student", student, ignore=shutil.ignore_patterns("export"))
    found = load_file(student / "model.safetensors")
    found["classifier.weight"].zero_()
    found["classifier.bias"][:] = torch.tensor([1.0, 0.0])
    save_file(found, student / "model.safetensors", metadata={"format": "pt"})
    seal(student)
    code, out, _ = run("report", finished[0] / "out" / "teacher", student, "--output", tmp_path / "report")
    assert (
        code == 0 and "\nthe student is not fit to ship: it predicts the same class for every test text (50.00%" in out
    )
    assert "distill it longer" in out and "it is in" not in out
    code, _, err = run("report", student, "--output", tmp_path / "report", "--max-latency-ms", "1000")
    assert code == 2 and "error: report: the student is not fit to ship: it predicts the same class" in err


def test_unsure_texts_are_answered_by_the_teacher(finished):
    folder, _, _ = finished
    student, teacher = (distill.load(folder / "out" / role) for role in ("student", "teacher"))
    texts = ["a good film", "the plot", "awful and dull", "it was the cast", "music"]
    confidence = student.probabilities(texts).max(axis=1)
    limit = float(sorted(confidence)[2])  # two are below it
    code, out, err = run(
        "predict",
        folder / "out" / "student",
        *texts,
        "--escalate",
        folder / "out" / "teacher",
        "--below",
        limit,
        "--json",
    )
    assert code == 0 and "answered 2 of 5 texts" in err
    for row, sure, own, its in zip(
        json.loads(out), confidence >= limit, student.probabilities(texts), teacher.probabilities(texts), strict=True
    ):
        assert list(row["probabilities"].values()) == pytest.approx((own if sure else its).tolist(), abs=1e-5)


def test_predict_reads_the_column_that_the_model_was_trained_on(recipe_path, tmp_path):
    recipe = json.loads(recipe_path.read_text())
    recipe["data"]["text_column"] = "message"
    run_folder = tmp_path / "mine"
    (run_folder / "export" / "onnx-int8").mkdir(parents=True)
    (run_folder / "recipe.yaml").write_text(json.dumps(recipe))
    for folder in (run_folder, run_folder / "export", run_folder / "export" / "onnx-int8"):
        assert text_columns_of(folder) == ("message",)
    assert text_columns_of(tmp_path / "elsewhere") == ("text",)


@pytest.mark.slow
def test_sigterm_outside_training_is_said_and_exits_143(finished, tmp_path):
    folder, _, _ = finished
    command = [sys.executable, "-m", "distill", "predict", str(folder / "out" / "student"), "--file", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "predict:" in line:  # it now waits for texts
                break
        process.terminate()
        assert "interrupted" in process.stderr.read() and process.wait() == 143


@pytest.mark.slow
def test_resuming_with_workers_that_stay_neither_hangs_nor_differs(recipe_path, tmp_path):
    """Persistent workers of a data loader could wait forever if a run resumed in the middle of an epoch."""
    settings = ["dataloader_num_workers=2", "dataloader_persistent_workers=true", "eval_strategy=steps", "eval_steps=4"]
    sets = [part for setting in settings for part in ("--set", f"teacher.training.{setting}")]
    whole, again = tmp_path / "whole", tmp_path / "again"

    def teach(output, *more):
        command = [sys.executable, "-m", "distill", "teacher", str(recipe_path), "--output", str(output), *sets, *more]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr

    teach(whole, "--set", "teacher.training.save_total_limit=null")
    shutil.copytree(whole, again)
    for name in ("manifest.json", "checksums.json", "model.safetensors"):
        (again / name).unlink()
    kept = again / "checkpoints" / "checkpoint-4"  # of 9 steps in an epoch
    for path in kept.parent.iterdir():
        if path != kept:
            shutil.rmtree(path)
    teach(again, "--set", "teacher.training.save_total_limit=null", "--resume")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
