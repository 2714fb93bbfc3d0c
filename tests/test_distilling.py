"""What `distill student` promises beyond a plain student: transfer set, losses, several teachers, control."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import BAD, BRIEFLY, FILLER, GOOD, LABELS, make_classifier, make_tokenizer, write_reviews
from safetensors.torch import load_file
from transformers import T5Config, T5ForSequenceClassification, pipeline

import distill
from distill import commands
from distill.distillation.control import train_control
from distill.distillation.losses import soft_target_loss
from distill.distillation.online_teacher import OnlineTeacher
from distill.distillation.student import loss_in_words
from distill.errors import FolderError, ModelError, RecipeError, UserError
from distill.machine.provenance import TRAINED_WITH
from distill.recipe.file import load_recipe
from distill.recipe.schema import Loss
from distill.storage.checksums import SEAL
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory, data, tiny_bert):
    """A folder with a trained teacher, transfer texts and the recipe they are used with."""
    folder = tmp_path_factory.mktemp("distilling")
    write_reviews(folder / "transfer.csv", 120, seed=5)
    files = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
    recipe = {
        "data": {"files": files, "label_names": LABELS, "max_tokens": 32},
        "teacher": {
            "model": str(tiny_bert), "pretrained": False, "training": {**BRIEFLY, "num_train_epochs": 4},
        },
        "student": {"layers": 2, "training": BRIEFLY},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.teacher(load_recipe(folder / "recipe.yaml"), folder / "teacher", device="cpu")
    return folder


def make_t5(folder):
    """An encoder with a decoder, of which distill makes no graph, as a classifier of random weights."""
    make_tokenizer(FILLER + GOOD + BAD).save_pretrained(folder)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForSequenceClassification(T5Config(vocab_size=29, **sizes)).save_pretrained(folder)
    return folder


def distil(world, output, *overrides, teachers=None, **options):
    recipe = load_recipe(world / "recipe.yaml", overrides)
    return commands.student(recipe, teachers or world / "teacher", output, device="cpu", **options)


def metrics(folder):
    return json.loads(folder.metrics.read_text())


def manifest(folder):
    return json.loads(folder.manifest.read_text())


def weights(folder):
    return load_file(folder.path / "model.safetensors")


def test_the_second_student_never_loads_the_teacher(world, tmp_path, monkeypatch, tiny_bert):
    small = f"student.model={make_classifier(tmp_path / 'small', num_hidden_layers=2)}"
    first = distil(world, tmp_path / "first", small)
    monkeypatch.setattr("distill.distillation.teachers.load", lambda *_, **__: pytest.fail("the teacher was loaded"))
    second = distil(world, tmp_path / "second", small)
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())
    assert manifest(first)["parents"]["teachers"] == {
        str(world / "teacher"): manifest(RunFolder(world / "teacher"))["weights"]
    }


def test_transfer_texts_are_trained_on_without_labels(world, tmp_path):
    plain = distil(world, tmp_path / "plain")
    more = distil(world, tmp_path / "more", f"data.files.transfer={world / 'transfer.csv'}")
    steps = [metrics(folder)["training"]["steps"] for folder in (plain, more)]
    assert steps == [2 * 9, 2 * -(-(144 + 120) // 16)]
    assert "transfer" in manifest(more)["data"] and "transfer" not in manifest(plain)["data"]
    assert metrics(more)["test"]["accuracy"] > 0.9
    contrary = tmp_path / "contrary.csv"  # labels that nobody must read
    contrary.write_text((world / "transfer.csv").read_text().replace("positive", "x").replace("negative", "positive"))
    same = distil(world, tmp_path / "same", f"data.files.transfer={contrary}")
    assert all(torch.equal(tensor, weights(same)[name]) for name, tensor in weights(more).items())


def test_leaks_are_counted_in_the_manifest(world, data, tmp_path):
    leaky = tmp_path / "leaky.csv"
    leaky.write_text((world / "transfer.csv").read_text() + (data / "test.csv").read_text().partition("\n")[2].upper())
    folder = distil(world, tmp_path / "student", f"data.files.transfer={leaky}")
    assert manifest(folder)["leaks_dropped"] == {"train": 0, "transfer": 40}
    assert metrics(folder)["training"]["steps"] == 2 * -(-(144 + 120) // 16)


def test_a_transfer_set_wants_a_soft_loss(world, tmp_path):
    with pytest.raises(RecipeError, match="transfer texts have only the soft loss"):
        distil(world, tmp_path / "x", f"data.files.transfer={world / 'transfer.csv'}", "student.loss.soft_weight=0")


@pytest.mark.parametrize(
    "loss",
    [
        "{soft: logit_mse}",
        "{soft: decoupled, soft_weight: 0.2}",
        "{temperature: {start: 4, end: 1}, soft_weight: {start: 1.0, end: 0.0}}",
        "{hidden_states: {}}",
        "{hidden_states: {distance: mse, teacher_layers: [1, 3], weight: {start: 1, end: 0}}, attention_relations: {}}",
    ],
)
def test_every_loss_trains_a_student_with_and_without_labels(world, tmp_path, loss):
    folder = distil(
        world, tmp_path / "student", f"student.loss={loss}", f"data.files.transfer={world / 'transfer.csv'}"
    )
    assert metrics(folder)["test"]["accuracy"] > 0.9
    assert ("teacher_seconds" in metrics(folder)["training"]) == ("hidden" in loss)
    assert not [name for name in weights(folder) if "projection" in name]


def test_a_narrower_student_learns_hidden_states_and_resumes_bit_for_bit(world, tmp_path):
    """The projections are in the checkpoints and not in the finished model."""
    settings = (
        "student.config={hidden_size: 16, num_hidden_layers: 2, intermediate_size: 32}",
        "student.loss.hidden_states={distance: mse, weight: {start: 2, end: 0}}",
        "student.loss.temperature={start: 4, end: 1}",
        "student.training.save_strategy=steps",
        "student.training.save_steps=9",
    )
    whole = distil(world, tmp_path / "whole", *settings)
    assert distill.load(whole.path).session.model.config.hidden_size == 16
    half = RunFolder(shutil.copytree(whole.path, tmp_path / "half"))
    for path in (half.manifest, half.metrics, half.path / "model.safetensors"):
        path.unlink()
    shutil.rmtree(half.checkpoints / "checkpoint-18")
    distil(world, half.path, *settings, resume=True)
    assert all(torch.equal(tensor, weights(half)[name]) for name, tensor in weights(whole).items())
    assert not [name for name in weights(whole) if "projection" in name]
    assert [n for n in load_file(half.checkpoints / "checkpoint-9" / "model.safetensors") if "projection" in n]


def test_schedules_move_with_the_steps(world, tmp_path, monkeypatch):
    seen = []

    def spy(student_logits, teacher_logits, temperature):
        seen.append(temperature)
        return soft_target_loss(student_logits, teacher_logits, temperature)

    monkeypatch.setattr("distill.distillation.trainer.soft_target_loss", spy)
    distil(world, tmp_path / "student", "student.loss.temperature={start: 4, end: 1}")
    assert seen == pytest.approx([4 - 3 * step / 18 for step in range(18)])


@pytest.mark.parametrize("section", ["hidden_states", "attention_relations"])
def test_what_the_teacher_is_run_for_brings_the_student_nearer_to_it(world, tmp_path, section):
    """The same student, seed and steps, with the term and with the term at weight 0."""
    distances = []
    for weight in (0.0, 5.0):
        folder = distil(
            world, tmp_path / f"{section}{weight}", f"student.loss={{soft_weight: 0, {section}: {{weight: {weight}}}}}"
        )
        models = [distill.load(path, "cpu").session.model for path in (world / "teacher", folder.path)]
        online = OnlineTeacher(*models, distance="cosine", relations=True)
        ids = torch.randint(5, 29, (8, 12), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        states = online.student_states(models[1], inputs), online.teacher_states(inputs, None)
        measure = online.hidden_loss if section == "hidden_states" else online.relation_loss
        with torch.no_grad():
            distances.append(float(measure(*states, inputs["attention_mask"]).mean()))
    assert distances[1] < 0.8 * distances[0]


def test_hidden_states_want_one_tokenizer_and_one_teacher(world, tmp_path):
    other = make_classifier(tmp_path / "other", words=["bad", "good", "film"])
    with pytest.raises(RecipeError, match="hidden_states compare token by token"):
        distil(world, tmp_path / "x", f"student.model={other}", "student.loss.hidden_states={}")
    with pytest.raises(RecipeError, match="attention_relations need exactly one teacher, got 2"):
        distil(world, tmp_path / "x", "student.loss.attention_relations={}", teachers=[world / "teacher"] * 2)


def test_two_teachers_of_different_tokens_and_label_order_answer_together(world, tmp_path, tiny_bert, data):
    words = ["extra", *BAD, *GOOD, *FILLER]
    other = make_classifier(tmp_path / "distilbert", "distilbert", words=words)
    recipe = load_recipe(world / "recipe.yaml", [f"teacher.model={other}", "data.label_names=[positive, negative]"])
    commands.teacher(recipe, tmp_path / "second", device="cpu")
    contrary = shutil.copytree(world / "teacher", tmp_path / "contrary")  # says the opposite of the truth
    (contrary / SEAL).unlink()
    config = json.loads((contrary / "config.json").read_text())
    config |= {"id2label": {"0": LABELS[1], "1": LABELS[0]}, "label2id": {LABELS[1]: 0, LABELS[0]: 1}}
    (contrary / "config.json").write_text(json.dumps(config))
    for name, shares, expected in (("heeds", [9, 1], True), ("ignores", [1, 9], False)):
        folder = distil(
            world, tmp_path / name, "student.loss.soft_weight=1.0", f"student.teacher_weights={shares}",
            "student.training.num_train_epochs=6", teachers=[tmp_path / "second", contrary], force=True,
        )  # fmt: skip
        assert (metrics(folder)["test"]["accuracy"] > 0.9) is expected
    folder = distil(world, tmp_path / "student", teachers=[world / "teacher", tmp_path / "second"])
    assert list(manifest(folder)["parents"]["teachers"]) == [str(world / "teacher"), str(tmp_path / "second")]
    with pytest.raises(RecipeError, match="wants one for each of 1 teachers, got 2"):
        distil(world, tmp_path / "x", "student.teacher_weights=[2, 1]")


def test_a_teacher_with_nothing_to_teach_stops_unless_forced(world, tmp_path, tiny_bert):
    dull = make_classifier(tmp_path / "dull")
    model = distill.load(dull, "cpu").session.model
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    model.save_pretrained(dull)
    with pytest.raises(ModelError, match=r"0\.5000 is no better than always answering the commonest class") as caught:
        distil(world, tmp_path / "student", teachers=dull)
    assert "--force" in caught.value.hint
    assert not (tmp_path / "student").exists()
    assert len(list(RunFolder(dull).teacher_logits.iterdir())) == 1  # validation alone was answered
    assert distil(world, tmp_path / "student", teachers=dull, force=True).is_finished


def test_the_control_is_the_same_student_on_labels_alone_for_as_many_steps(world, tmp_path):
    settings = (
        f"data.files.transfer={world / 'transfer.csv'}", "student.control=true", "student.loss.soft_weight=1.0",
        "student.training.eval_strategy=epoch", "student.training.save_strategy=epoch",
        "student.training.load_best_model_at_end=true",
    )  # fmt: skip
    folder = distil(world, tmp_path / "student", *settings)
    control = RunFolder(tmp_path / "student-control")
    assert manifest(control)["role"] == "control" and manifest(folder)["role"] == "student"
    assert metrics(control)["training"]["steps"] == metrics(folder)["training"]["steps"]
    logs = [[json.loads(line) for line in run.metrics_log.read_text().splitlines()] for run in (folder, control)]
    evaluations = [[entry["step"] for entry in log if "eval_loss" in entry] for log in logs]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 2

    report = commands.report([world / "teacher", folder.path, control.path], tmp_path / "report", device="cpu")
    whole = [row["role"] for row in report["measurements"] if row["format"] == "torch-fp32"]
    assert whole == ["teacher", "student", "control"]
    (found,) = report["controls"]
    ids, gold, student_logits, _ = read_predictions(folder.predictions)
    control_logits = read_predictions(control.predictions).logits
    difference = (student_logits.argmax(1) == gold).mean() - (control_logits.argmax(1) == gold).mean()
    assert found["gain"] == pytest.approx(difference) and found["examples"] == len(ids) == 40
    assert found["sentence"] in (tmp_path / "report" / "report.md").read_text()


def test_without_a_transfer_set_and_soft_weight_the_control_equals_its_student(world, tmp_path):
    """What differs between the two is the teacher and nothing else."""
    folder = distil(world, tmp_path / "student", "student.control=true", "student.loss.soft_weight=0.0")
    control = RunFolder(tmp_path / "student-control")
    assert all(torch.equal(tensor, weights(control)[name]) for name, tensor in weights(folder).items())


def test_the_control_is_evaluated_at_the_same_steps_whatever_ends_the_training(world, tmp_path):
    settings = (
        f"data.files.transfer={world / 'transfer.csv'}", "student.control=true", "student.training.max_steps=40",
        "student.training.eval_strategy=epoch", "student.training.eval_delay=1",
    )  # fmt: skip
    folder = distil(world, tmp_path / "student", *settings)
    logs = [run.metrics_log.read_text().splitlines() for run in (folder, RunFolder(tmp_path / "student-control"))]
    steps = [[json.loads(line)["step"] for line in log if "eval_loss" in line] for log in logs]
    assert steps[0][:2] == steps[1][:2] == [17, 34]
    assert not list((tmp_path / "student-control" / "checkpoints").iterdir())  # save_strategy: no is kept


def test_a_control_of_another_student_is_not_trained(world, tmp_path):
    distil(world, tmp_path / "student")
    with pytest.raises(FolderError, match="finished with another recipe: student"):
        distil(world, tmp_path / "student", "student.layers=3", "student.control=true", resume=True)
    other = make_classifier(tmp_path / "other")
    with pytest.raises(FolderError, match="was distilled from another teacher"):
        distil(world, tmp_path / "student", "student.control=true", teachers=other, resume=True)


def unfinished(folder):
    """The folder as a kill just before the end leaves it."""
    for path in (folder.manifest, folder.path / SEAL):
        path.unlink()
    return folder


def swap_texts(path):
    """The same rows, two texts of which have changed places: each now has the other's label."""
    header, first, second, *rest = path.read_text().splitlines()
    (one, a), (other, b) = (line.rsplit(",", 1) for line in (first, second))
    path.write_text("\n".join([header, f"{other},{a}", f"{one},{b}", *rest]) + "\n")


def test_a_run_is_not_resumed_with_another_teacher_or_other_data(world, tmp_path, monkeypatch):
    files = load_recipe(world / "recipe.yaml").data.files.model_dump(exclude_none=True)
    settings = [f"data.files.{split}={shutil.copy(path, tmp_path)}" for split, path in files.items()]
    teacher = shutil.copytree(world / "teacher", tmp_path / "teacher")
    folder = unfinished(distil(world, tmp_path / "student", *settings, teachers=teacher))
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}

    def refused(*expected):
        with pytest.raises(FolderError) as caught:
            distil(world, folder.path, *settings, teachers=teacher, resume=True)
        assert len(caught.value.problems) == len(expected), caught.value.problems
        for problem, part in zip(caught.value.problems, expected, strict=True):
            assert f"{folder.path}: cannot be resumed: {part}" in problem
        assert {path: path.read_bytes() for path in before} == before

    shutil.rmtree(teacher)
    distil(world, tmp_path / "other", *settings, "student.layers=4", "student.training.max_steps=1")
    shutil.copytree(tmp_path / "other", teacher)
    refused("teacher 1 differs: ")
    shutil.rmtree(teacher)
    shutil.copytree(world / "teacher", teacher)
    swap_texts(tmp_path / "train.csv")
    refused("data.train differs: ")
    swap_texts(tmp_path / "train.csv")
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    refused("threads differs: 7 now, 1 when it began")
    monkeypatch.undo()
    monkeypatch.setattr("distill.training.origin.versions", lambda: dict.fromkeys(TRAINED_WITH, "9.9"))
    refused(*(f"{name} differs: 9.9 now, " for name in TRAINED_WITH))
    monkeypatch.undo()
    distil(world, folder.path, *settings, teachers=teacher, resume=True)
    assert folder.is_finished


def test_a_teacher_replaced_while_it_answers_leaves_no_answers(world, tmp_path, monkeypatch):
    """Answers are kept under what was identified, so they must be those of what was loaded."""
    teacher, cache = shutil.copytree(world / "teacher", tmp_path / "teacher"), tmp_path / "cache"
    other = distil(world, tmp_path / "other", "student.layers=4", "student.training.max_steps=1")

    def load(*arguments, **settings):
        shutil.copytree(other.path, teacher, dirs_exist_ok=True)
        return distill.load(*arguments, **settings)

    monkeypatch.setattr("distill.distillation.teachers.load", load)
    with pytest.raises(ModelError, match="teacher: has changed while it was read; nothing of it was kept"):
        distil(world, tmp_path / "student", teachers=teacher, teacher_logits=cache)
    assert not list(cache.rglob("*.arrow")) and not (tmp_path / "student").exists()


def test_teacher_and_student_train_in_one_precision_whatever_the_stopwatch_says(world, tmp_path, monkeypatch):
    undecided = [f"{stage}.training={json.dumps({k: v for k, v in BRIEFLY.items() if k != 'bf16'})}"
                 for stage in ("teacher", "student")]  # fmt: skip
    monkeypatch.setattr("distill.machine.devices.bf16_rate", lambda: 2.0)
    settings = [*undecided, "teacher.training.num_train_epochs=1", "student.control=true"]
    recipe = load_recipe(world / "recipe.yaml", settings)
    teacher = commands.teacher(recipe, tmp_path / "teacher", device="cpu")
    monkeypatch.setattr("distill.machine.devices.bf16_rate", lambda: 0.85)
    student = commands.student(recipe, teacher.path, tmp_path / "student", device="cpu", force=True)
    runs = [teacher, student, RunFolder(tmp_path / "student-control")]
    assert [manifest(folder)["training_arguments"]["bf16"] for folder in runs] == [True, True, True]
    for folder in runs:
        settled = load_recipe(folder.recipe)
        assert (settled.teacher if folder is teacher else settled.student).training["bf16"] is True
        assert "recipe.yaml, which holds the precision" in manifest(folder)["repeatable"]
    shutil.rmtree(tmp_path / "student-control")
    unfinished(student)
    (student.path / "model.safetensors").unlink()
    commands.student(recipe, teacher.path, student.path, device="cpu", force=True, resume=True)
    assert manifest(student)["training_arguments"]["bf16"] is True
    again = commands.teacher(recipe, tmp_path / "again", device="cpu")
    assert manifest(again)["training_arguments"]["bf16"] is False


def test_a_control_is_not_made_from_the_layers_of_another_teacher(world, tmp_path):
    teacher = shutil.copytree(world / "teacher", tmp_path / "teacher")
    student = distil(world, tmp_path / "student", teachers=teacher)
    other = distil(world, tmp_path / "other", "student.layers=4", "student.training.max_steps=1")
    recipe = load_recipe(world / "recipe.yaml")
    with pytest.raises(FolderError, match=r"other: is not the teacher of .*, so its control"):
        train_control(recipe, str(other.path), student, RunFolder(tmp_path / "control"), device="cpu")


def test_a_control_is_not_trained_on_other_data_than_its_student(world, tmp_path):
    files = load_recipe(world / "recipe.yaml").data.files.model_dump(exclude_none=True)
    settings = [f"data.files.{split}={shutil.copy(path, tmp_path)}" for split, path in files.items()]
    student = distil(world, tmp_path / "student", *settings, "student.training.max_steps=1")
    swap_texts(tmp_path / "test.csv")
    recipe = load_recipe(world / "recipe.yaml", [*settings, "student.training.max_steps=1", "student.control=true"])
    with pytest.raises(FolderError, match=r"texts or labels of test have changed since .*student was trained"):
        train_control(recipe, str(world / "teacher"), student, RunFolder(tmp_path / "c"), device="cpu")
    with pytest.raises(FolderError, match="finished with other data: texts or labels of test have changed"):
        commands.student(recipe, world / "teacher", student.path, device="cpu", resume=True)


def test_a_finished_run_is_not_skipped_with_other_data(world, tmp_path):
    files = load_recipe(world / "recipe.yaml").data.files.model_dump(exclude_none=True)
    settings = [f"data.files.{split}={shutil.copy(path, tmp_path)}" for split, path in files.items()]
    settings += ["teacher.training.max_steps=1"]
    commands.teacher(load_recipe(world / "recipe.yaml", settings), tmp_path / "run" / "teacher", device="cpu")
    swap_texts(tmp_path / "train.csv")
    with pytest.raises(FolderError, match="teacher: finished with other data: texts or labels of train have changed"):
        commands.run(load_recipe(world / "recipe.yaml", settings), tmp_path / "run", device="cpu", force=True)


@pytest.mark.parametrize("name", ["student", "control"])
def test_run_looks_at_all_its_folders_before_it_trains(world, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "mine.txt").write_text("not a run")
    with pytest.raises(FolderError, match=f"{name}: not empty and not a run folder"):
        commands.run(load_recipe(world / "recipe.yaml", ["student.control=true"]), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "teacher").exists()


def test_the_teachers_answers_are_in_the_students_precision_and_kept_apart(world, tmp_path, monkeypatch):
    for is_bf16 in (False, True):
        options = [f"student.training.bf16={json.dumps(is_bf16)}", "student.training.max_steps=1"]
        monkeypatch.setattr("distill.machine.devices.bf16_rate", lambda: 2.0)
        distil(world, tmp_path / str(is_bf16), *options, teacher_logits=tmp_path / "cache")
    origins = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/origin.json")]
    assert sorted(origin["dtype"] for origin in origins) == ["bfloat16"] * 2 + ["float32"] * 2  # validation and train


def test_a_control_with_no_room_stops_before_its_student_is_trained(world, tmp_path):
    (tmp_path / "student-control").mkdir()
    (tmp_path / "student-control" / "mine.txt").write_text("not a run")
    with pytest.raises(FolderError, match="student-control: not empty and not a run folder"):
        distil(world, tmp_path / "student", "student.control=true")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.config={hiden_size: 8}", "did you mean hidden_size"),
        ("student.config={hidden_size: 30}", "no bert model has these sizes"),
        ("student.layers=9", "the teacher has 4 layers, got 9"),
        ("student.loss.hidden_states={teacher_layers: [1]}", "wants one for each of the student's 2 layers"),
        ("student.loss.attention_relations={heads: 5}", "5 does not divide"),
        ("student.teacher_weights=[1, 2]", "`run` has one teacher"),
        ("student.model={t5}", "t5: an encoder with a decoder, which distill does not export to ONNX"),
        ("student.model={multi}", "any number of labels"),
        ("student.model={three}", "classifies into 3 classes, the data has 2"),
        ("student.model={pickled}", "its weights are a pickle"),
    ],
)
def test_run_finds_what_is_wrong_with_the_student_before_it_trains_the_teacher(world, tmp_path, override, expected):
    if "{" in override and "model" in override:
        more = {"multi": {"problem_type": "multi_label_classification"}, "three": {"id2label": dict(enumerate("abc"))}}
        name = override.split("{")[1].rstrip("}")
        made = make_t5(tmp_path / name) if name == "t5" else make_classifier(tmp_path / name, **more.get(name, {}))
        if name == "pickled":
            (made / "model.safetensors").rename(made / "pytorch_model.bin")
        override = f"student.model={made}"
    recipe = load_recipe(world / "recipe.yaml", [override])
    with pytest.raises(UserError, match=expected):
        commands.run(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    if "teacher_weights" in override:  # which several teachers of `distill student` may well have
        return
    with pytest.raises(UserError, match=expected):
        commands.teacher(recipe, tmp_path / "teacher", device="cpu")
    with pytest.raises(UserError, match=expected):
        commands.student(recipe, world / "teacher", tmp_path / "student", device="cpu")
    with pytest.raises(UserError, match=expected):
        commands.check_models(recipe)
    (found,) = [found for found in commands.doctor(recipe, tmp_path, device="cpu") if found.subject == "student"]
    assert found.state == "fault"
    assert not (tmp_path / "teacher").exists() and not (tmp_path / "student").exists()


def test_an_interrupted_control_is_resumed_without_its_student_being_redone(world, tmp_path):
    folder = distil(world, tmp_path / "student", "student.control=true")
    finished = folder.manifest.read_text()
    shutil.rmtree(tmp_path / "student-control")
    distil(world, tmp_path / "student", "student.control=true", resume=True)
    assert RunFolder(tmp_path / "student-control").is_finished
    assert folder.manifest.read_text() == finished


def test_the_student_is_calibrated_on_validation_in_the_weights_of_its_head(world, tmp_path):
    validation = tmp_path / "validation.csv"
    write_reviews(validation, 100, seed=9, mislabelled=20)  # for a temperature to make up for
    settings = (
        "student.training.num_train_epochs=10", "student.loss.soft_weight=0", f"data.files.validation={validation}",
    )  # fmt: skip
    calibrated = distil(world, tmp_path / "student", *settings)
    raw = distil(world, tmp_path / "raw", *settings, "student.calibrate=false")
    found = metrics(calibrated)["calibration"]
    temperature = found["temperature"]
    assert found["fitted_temperature"] == temperature > 1.2 and found["refused"] is None
    assert found["validation_ece"] < found["validation_ece_before"]
    assert "calibration" not in metrics(raw)
    logits = [read_predictions(folder.predictions).logits for folder in (calibrated, raw)]
    np.testing.assert_allclose(logits[0] * temperature, logits[1], rtol=1e-4, atol=1e-4)
    classify = pipeline("text-classification", model=str(calibrated.path), device="cpu", truncation=True)
    texts = ["good film", "bad", "the plot was fine"]
    for ours, theirs in zip(distill.load(calibrated.path)(texts), classify(texts), strict=True):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-6


# Of each: a recipe's loss, and what is said of it.
LOSSES = {
    "the default": ({}, "soft_targets at temperature 2 with soft weight 0.5 (the rest: cross-entropy on labels)"),
    "schedules": (
        {"temperature": {"start": 4.0, "end": 1.0}, "soft_weight": {"start": 1, "end": 0.25}},
        "soft_targets at temperature 4 to 1 with soft weight 1 to 0.25 (the rest: cross-entropy on labels)",
    ),
    "no temperature": (
        {"soft": "logit_mse", "soft_weight": 1.0}, "logit_mse with soft weight 1 (the rest: cross-entropy on labels)",
    ),
    "everything": (
        {"soft": "decoupled", "hidden_states": {"distance": "mse", "weight": {"start": 1, "end": 0}},
         "attention_relations": {"weight": 0.5}},
        "decoupled at temperature 2 with soft weight 0.5 (the rest: cross-entropy on labels), hidden_states (mse, "
        "weight 1 to 0), attention_relations (weight 0.5)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_said_in_words(name):
    section, words = LOSSES[name]
    assert loss_in_words(Loss.model_validate(section)) == words


def test_attention_dropout_is_the_recipes(world, tmp_path, caplog):
    caplog.set_level("INFO", logger="distill")
    other = make_classifier(tmp_path / "d", "distilbert")
    origins = {
        "student.layers=2": "made of layers 0, 3 of the teacher's 4 (0 to 3)",
        f"student.model={other}": f"pretrained, from {other}",
    }
    for origin, words in origins.items():
        caplog.clear()
        folder = distil(world, tmp_path / origin[:15], origin, "student.attention_dropout=0.25")
        config = json.loads((folder.path / "config.json").read_text())
        assert 0.25 in (config.get("attention_probs_dropout_prob"), config.get("attention_dropout"))
        assert f"student: {words}; learns by {LOSSES['the default'][1]}" in caplog.messages
