"""A student that is cut out of its teacher as a budget allows: planned, recorded, resumed, exported, refused."""

import functools
import json
import shutil

import pytest
import torch
from conftest import BRIEFLY, check_refused, data_section, make_classifier, run
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from distill import commands
from distill.distillation import latency_table, pruned_student
from distill.distillation.budget import MOST_TRIES
from distill.errors import FolderError, ModelError, RecipeError, UserError
from distill.export.latency import Cost
from distill.measuring.baselines import baseline_beside
from distill.models.importance import importance_of
from distill.models.pruning import Size, even, parts_of, size_of, without_empty_parts
from distill.recipe.file import load_recipe
from distill.storage.run_folder import RunFolder

TINY = even(4, 4, 64)


def cost_of(size):
    """What a model of this size is said to cost: 5.6 ms if it is whole, 0.16 ms if it is the smallest."""
    layers = [0.05 + 0.075 * heads + 0.01 * channels for heads, channels in zip(*size, strict=True)]
    return Cost(0.08 + sum(layers), 1_000 * (size.layers + sum(size.heads) + sum(size.channels)))


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The sizes that were measured, none of them in earnest; the whole one, which is measured beside others, once."""
    sizes = []

    def costs(models, shape, *, rounds, threads, progress=lambda exported: None):
        return {size: cost(model) for size, model in models}

    def cost(model):
        layers = model.base_model.encoder.layer
        without_empty_parts(model)
        size = Size(
            tuple(layer.attention.self.num_attention_heads for layer in layers),
            tuple(layer.output.dense.in_features for layer in layers),
        )
        if size != TINY or TINY not in sizes:
            sizes.append(size)
        return cost_of(size)

    monkeypatch.setattr(pruned_student, "int8_costs", costs)
    monkeypatch.setattr(latency_table, "LATENCIES", tmp_path / "latencies")
    yield sizes


@pytest.fixture(scope="module")
def world(tmp_path_factory, data, tiny_bert):
    """A folder with a trained teacher and a recipe that prunes it."""
    folder = tmp_path_factory.mktemp("pruning")
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": {**BRIEFLY, "num_train_epochs": 4}},
        "student": {"prune": {"latency_ms": 2.0, "shape": "1x8"}, "training": BRIEFLY},
        "export": {"max_accuracy_drop": 1.0, "min_agreement": 0.0},
        "benchmark": {"rounds": 5, "threads": 1, "shapes": ["1x8"]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.teacher(
        load_recipe(folder / "recipe.yaml", ["student.prune=null", "student.layers=1"]), folder / "teacher"
    )
    return folder


def student(world, output, *overrides, teacher=None, **options):
    """A student of two steps, which all but what it learns is tested on."""
    recipe = load_recipe(world / "recipe.yaml", ["student.training.max_steps=2", *overrides])
    return commands.student(recipe, teacher or world / "teacher", output, device="cpu", **options)


def kept(folder):
    return pruned_student._kept(json.loads(folder.pruning.read_text()))


def test_a_student_is_within_its_budget_and_learns(world, tmp_path, measured):
    folder = student(world, tmp_path / "student", "student.training.max_steps=-1")
    plan = json.loads(folder.pruning.read_text())
    size = kept(folder).size
    assert plan["cost"] == cost_of(size).latency_ms <= 2.0
    assert plan["whole"] == {"heads": [4] * 4, "channels": [64] * 4}
    assert size in measured and len(measured) == len(set(measured)) + 1  # the smallest was measured by the check too
    model = AutoModelForSequenceClassification.from_pretrained(folder.path)  # with transformers alone
    assert size_of(model.config) == even(size.layers, 4, max(size.channels))
    reads = parts_of(model.config).heads.reads
    for layer, heads in zip(model.bert.encoder.layer, kept(folder).heads, strict=True):
        weight = layer.get_submodule(reads).weight.unflatten(1, (4, -1))
        assert [head for head in range(4) if weight[:, head].any()] == list(heads)
    assert folder.read_metrics()["test"]["accuracy"] > 0.9


@pytest.mark.slow
def test_looser_budgets_cost_no_new_table_and_keep_what_tighter_ones_keep(world, tmp_path, measured):
    small = student(world, tmp_path / "small")
    first = set(measured)
    large = student(world, tmp_path / "large", "student.prune.latency_ms=4")
    assert len(measured) - len(first) <= MOST_TRIES + 1
    lost = [json.loads(one.pruning.read_text())["lost"] for one in (large, small)]
    assert lost[0] < lost[1]
    count = len(measured)
    student(world, tmp_path / "small", overwrite=True)
    assert len(measured) - count >= 12  # measured anew


def test_a_resumed_run_is_not_pruned_otherwise(world, tmp_path, measured, monkeypatch):
    settings = ["student.training.save_strategy=steps", "student.training.save_steps=1"]
    whole = student(world, tmp_path / "whole", *settings)
    half = RunFolder(shutil.copytree(whole.path, tmp_path / "half"))
    for path in (half.manifest, half.metrics, half.path / "model.safetensors"):
        path.unlink()
    shutil.rmtree(half.checkpoints / "checkpoint-2")
    monkeypatch.setattr(pruned_student, "importance_of", lambda *_, **__: pytest.fail("planned again"))
    student(world, half.path, *settings, resume=True)
    ours, theirs = (load_file(folder.path / "model.safetensors") for folder in (half, whole))
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    student(world, half.path, *settings, "student.training.max_steps=3", resume=True)  # and made longer
    assert kept(half) == kept(whole)


def test_a_control_is_the_same_pruned_model(world, tmp_path, measured):
    folder = student(world, tmp_path / "student", "student.control=true")
    control = RunFolder(tmp_path / "student-control")
    assert kept(control) == kept(folder) and control.is_finished
    shapes = [
        {name: tensor.shape for name, tensor in load_file(one.path / "model.safetensors").items()}
        for one in (folder, control)
    ]
    assert shapes[0] == shapes[1]


def test_another_classifier_than_the_teacher_can_be_pruned(world, tmp_path, measured, data):
    origin = student(world, tmp_path / "origin", "student.layers=[0, 1, 3]")
    folder = student(world, tmp_path / "student", f"student.prune={{size_mb: 0.05, model: {origin.path}}}")
    plan = json.loads(folder.pruning.read_text())
    assert plan["whole"] == {"heads": [4] * 3, "channels": [64] * 3} and plan["target"]["unit"] == "MB"
    assert cost_of(kept(folder).size).size_bytes <= 50_000
    assert student(world, folder.path, f"student.prune={{size_mb: 0.05, model: {origin.path}}}", resume=True)
    encoder = make_classifier(tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"student\.prune\.model: .*encoder has no classification head"):
        student(world, tmp_path / "other", f"student.prune={{size_mb: 0.05, model: {encoder}}}")


def test_what_is_empty_in_a_pruned_model_costs_nothing_and_is_not_kept_again(world, tmp_path, measured):
    origin = student(world, tmp_path / "origin")
    left = kept(origin).size
    assert len(set(left.channels)) > 1 or max(left.heads) < 4
    folder = student(world, tmp_path / "student", f"student.prune={{speedup: 1.5, model: {origin.path}}}")
    plan = json.loads(folder.pruning.read_text())
    assert plan["whole"] == {"heads": list(left.heads), "channels": list(left.channels)}
    assert plan["cost"] <= cost_of(left).latency_ms / 1.5
    layers = kept(folder).layers
    for fewer, more in zip(kept(folder).size, ([of[layer] for layer in layers] for of in left), strict=True):
        assert all(one <= other for one, other in zip(fewer, more, strict=True))


def test_a_speedup_is_over_the_whole_model(world, tmp_path, measured):
    folder = student(world, tmp_path / "student", "student.prune={speedup: 4}")
    assert json.loads(folder.pruning.read_text())["cost"] <= cost_of(TINY).latency_ms / 4


def test_a_budget_that_takes_the_whole_model_is_said_to_prune_nothing(world, tmp_path, measured, caplog):
    folder = student(world, tmp_path / "student", "student.prune.latency_ms=50")
    assert kept(folder).size == TINY
    assert "the whole model is within the budget, so nothing is cut away" in caplog.text


def test_a_disturbed_measurement_is_repeated_and_does_not_choose(world, tmp_path, measured, monkeypatch, caplog):
    """The smallest size takes as long as ten of the whole model, the first time that it is measured."""
    quiet = student(world, tmp_path / "quiet")
    honest, smallest = pruned_student.int8_costs, min(measured)
    monkeypatch.setattr(latency_table, "LATENCIES", tmp_path / "others")
    measured.clear()

    def disturbed(*arguments, **settings):
        costs = honest(*arguments, **settings)
        if smallest in costs and measured.count(smallest) == 1:
            costs[smallest] = costs[smallest]._replace(latency_ms=10 * cost_of(TINY).latency_ms)
        return costs

    monkeypatch.setattr(pruned_student, "int8_costs", disturbed)
    monkeypatch.setattr("distill.distillation.student.check_prunable", lambda *arguments, **settings: None)
    assert kept(student(world, tmp_path / "student")) == kept(quiet) and measured.count(smallest) > 1
    assert "other work disturbs" not in caplog.text


def test_a_machine_that_becomes_slower_changes_no_choice(world, tmp_path, measured, monkeypatch):
    quiet = student(world, tmp_path / "quiet")
    honest, calls = pruned_student.int8_costs, []
    monkeypatch.setattr(latency_table, "LATENCIES", tmp_path / "others")

    def slower(*arguments, **settings):
        calls.append(1.0 if not calls else 1.5)
        costs = honest(*arguments, **settings)
        return {size: cost._replace(latency_ms=calls[-1] * cost.latency_ms) for size, cost in costs.items()}

    monkeypatch.setattr(pruned_student, "int8_costs", slower)
    monkeypatch.setattr("distill.distillation.student.check_prunable", lambda *arguments, **settings: None)
    found = student(world, tmp_path / "student")
    assert kept(found) == kept(quiet) and len(calls) > 1
    plans = [pruned_student.read_pruning(folder) for folder in (found, quiet)]
    assert plans[0]["cost"] == pytest.approx(plans[1]["cost"])


def test_if_estimates_are_wrong_only_what_was_measured_counts(world, tmp_path, measured, monkeypatch):
    """Costs jump where a number is odd, so every estimate in between is too low or too high."""
    honest = pruned_student.int8_costs

    def jumping(*arguments, **settings):
        return {
            size: cost._replace(latency_ms=cost.latency_ms * (1.3 if size.layers % 2 else 1.0))
            for size, cost in honest(*arguments, **settings).items()
        }

    monkeypatch.setattr(pruned_student, "int8_costs", jumping)
    folder = student(world, tmp_path / "student", "student.prune.latency_ms=3")
    size = kept(folder).size
    assert size in measured and cost_of(size).latency_ms * (1.3 if size.layers % 2 else 1.0) <= 3


def test_a_list_of_budgets_makes_a_student_for_each_and_a_report_of_all(world, tmp_path, measured, monkeypatch):
    run_folder, passes = tmp_path / "run", []
    monkeypatch.setattr(pruned_student, "KNOWN", {})
    monkeypatch.setattr(
        pruned_student, "importance_of", lambda *args, **options: passes.append(1) or importance_of(*args, **options)
    )
    shutil.copytree(world / "teacher", run_folder / "teacher")
    sets = ["student.training.max_steps=2", "student.prune.latency_ms=[4, 1.5]", "student.control=true"]
    recipe = load_recipe(world / "recipe.yaml", [*sets, "export.formats=[onnx-int8]"])
    commands.run(recipe, run_folder, resume=True, device="cpu")
    report = json.loads((run_folder / "report" / "report.json").read_text())
    names = [f"{role}/latency_ms-{budget}" for role in ("student", "control") for budget in ("1.5", "4")]
    assert [one["model"] for one in report["runs"]][2:] == [str(run_folder / name) for name in names]
    assert {found["model"] for found in report["baselines"]} >= {str(run_folder / name) for name in names[:2]}
    assert baseline_beside(run_folder / names[0]) == baseline_beside(run_folder / "teacher") is not None
    plans = [pruned_student.read_pruning(RunFolder(run_folder / name)) for name in names]
    assert [plan["target"]["most"] for plan in plans] == [1.5, 4, 1.5, 4]
    tight, loose = (kept(RunFolder(run_folder / name)).size for name in names[:2])
    assert cost_of(tight).latency_ms <= 1.5 < cost_of(loose).latency_ms <= 4
    assert len(measured) <= 12 + 2 * MOST_TRIES + 2  # one table for both, and what the check measures
    assert len(passes) == 1
    count = len(measured)
    commands.run(recipe, run_folder, resume=True, device="cpu")
    assert len(measured) == count

    folders = commands.students(recipe, world / "teacher", tmp_path / "students", device="cpu")
    assert [folder.path.name for folder in folders] == ["latency_ms-4", "latency_ms-1.5"]
    proofs = commands.exports(tmp_path / "students", device="cpu")
    assert set(proofs) == {f"latency_ms-{name}/onnx-int8" for name in ("1.5", "4")}
    with pytest.raises(UserError, match=r"--output: x: is for one model, but .*students holds 2; name one"):
        commands.exports(tmp_path / "students", output="x")
    with pytest.raises(UserError, match="--push-to-hub: me/x: is for one student, but the recipe has 2 budgets"):
        commands.students(recipe, world / "teacher", tmp_path / "students", push_to_hub="me/x")
    with pytest.raises(FolderError, match="latency_ms-4: holds a run; "):
        commands.students(recipe, world / "teacher", folders[0].path)


def test_several_budgets_are_redone_together_and_none_is_left_behind(world, tmp_path, measured):
    sets = ["student.training.max_steps=2", "export.formats=[onnx-int8]"]
    recipe = load_recipe(world / "recipe.yaml", [*sets, "student.prune.latency_ms=[1.5, 4]"])
    made = functools.partial(commands.students, teachers=world / "teacher", output=tmp_path / "all", device="cpu")
    first = [folder.manifest.stat().st_mtime_ns for folder in made(recipe)]
    with pytest.raises(FolderError, match=r"latency_ms-1\.5: .*finished"):
        made(recipe)
    assert [folder.manifest.stat().st_mtime_ns for folder in made(recipe, resume=True)] == first
    count = len(measured)
    redone = [folder.manifest.stat().st_mtime_ns for folder in made(recipe, overwrite=True)]
    assert not set(redone) & set(first)
    assert len(measured) - count <= 12 + 2 * (2 * MOST_TRIES)  # one table for both
    fewer = load_recipe(world / "recipe.yaml", [*sets, "student.prune.latency_ms=[1.5, 5]"])
    with pytest.raises(FolderError, match="latency_ms-4: is of a budget that the recipe no longer has"):
        made(fewer, overwrite=True)
    one = load_recipe(world / "recipe.yaml", [*sets, "student.prune.latency_ms=[1.5]"])
    assert one == load_recipe(world / "recipe.yaml", [*sets, "student.prune.latency_ms=1.5"])

    shutil.copytree(tmp_path / "all" / "latency_ms-4", tmp_path / "run" / "student")
    with pytest.raises(FolderError, match="student: holds a run; students of several budgets need a folder"):
        commands.run(recipe, tmp_path / "run", resume=True, device="cpu")


def test_all_budgets_are_checked_before_the_first_student_is_trained(world, tmp_path, measured):
    recipe = load_recipe(world / "recipe.yaml", ["student.prune.latency_ms=[4, 0.1]"])
    with pytest.raises(RecipeError, match=r"latency_ms: 0\.1, so at most 0\.1 ms"):
        commands.students(recipe, world / "teacher", tmp_path / "students", device="cpu")
    assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["student.prune.latency_ms=0.1"],
         "latency_ms: 0.1, so at most 0.1 ms, but the smallest student, of 1 layer, 1 head, 4 channels, takes 0.245"),
        (["student.prune={speedup: 100}"], "student.prune.speedup: 100, so at most 0.0"),
        (["student.prune={size_mb: 0.001}"], "student.prune.size_mb: 0.001, so at most 0.001 MB"),
        (["student.prune.shape=1x65"], "student.prune.shape: 1x65, but"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_before_any_training(world, measured, overrides, expected):
    with pytest.raises(RecipeError) as caught:
        commands.check_models(load_recipe(world / "recipe.yaml", overrides))
    assert expected in str(caught.value)


def test_an_architecture_that_cannot_be_cut_is_refused(world, tmp_path):
    teacher = make_classifier(tmp_path / "teacher", "qwen3")
    sets = ("--set", f"teacher.model={teacher}", "--set", "student.attention_dropout=0.0")
    check_refused(world, ["student.prune: qwen3 is no architecture"], "check", world / "recipe.yaml", *sets)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.prune={}", "student.prune: wants one of latency_ms, size_mb and speedup"),
        ("student.prune.speedup=2", "student.prune: wants one of latency_ms, size_mb and speedup"),
        ("student.prune={speedup: 1.0}", "student.prune.speedup: wants a number above 1, or a list of such numbers"),
        ("student.prune={speedup: [2, 1]}", "student.prune.speedup: wants a number above 1"),
        ("student.prune.latency_ms=[]", "student.prune.latency_ms: wants a number above 0, or a list of such numbers"),
        ("student.prune.latency_ms=[1, 1.0]", "student.prune.latency_ms: wants budgets that differ, got [1, 1.0]"),
        ("student.prune.latency_ms=fast", "student.prune.latency_ms: wants a number above 0"),
        ("student.prune.shape=128", "student.prune.shape"),
        ("student.prune.shape=1X128", "student.prune.shape: wants BATCHxTOKENS such as 8x128, got '1X128'"),
        ("student.prune={size_mb: 3, shape: 1x8}", "student.prune: shape: a size does not depend on it; leave it out"),
        ("student.loss.hidden_states={teacher_layers: [1]}", "but prune chooses how many it has; leave it out"),
        ("export.formats=[onnx-fp32]", "student.prune: its budget is for onnx-int8, which export.formats leaves out"),
        ("sweep={keys: {student.loss.temperature: [1, 2]}}", "sweep.keys: belong to a student with prune"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_recipe_is_one_line(world, override, expected):
    check_refused(world, [expected], "check", world / "recipe.yaml", "--set", override)


def test_a_prune_beside_layers_is_one_mistake_with_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {dataset: x}\nstudent:\n  layers: 2\n  prune: {latency_ms: 1, size_mb: 2}\n")
    check_refused(tmp_path, ["recipe.yaml:4: student.prune: wants one of latency_ms"], "check", path)
    path.write_text("data: {dataset: x}\nstudent:\n  layers: 2\n  prune: {latency_ms: 1}\n")
    check_refused(tmp_path, ["recipe.yaml:2: student: wants one of model"], "check", path)


@pytest.mark.parametrize(
    ("unit", "value", "level"),
    [("ms", 1.05, "INFO"), ("ms", 0.95, "INFO"), ("ms", 1.2, "WARNING"), ("ms", 0.8, "WARNING"),
     ("MB", 0.95, "INFO"), ("MB", 1.0, "INFO"), ("MB", 1.001, "WARNING")],
)  # fmt: skip
def test_a_warning_says_that_a_budget_is_missed(unit, value, level, caplog):
    caplog.set_level("INFO", logger="distill")
    pruned_student._compare("export", pruned_student.Target(1.0, unit, "1x8", 1, None), value)
    assert [record.levelname for record in caplog.records] == [level]


@pytest.mark.slow
def test_a_pruned_student_is_exported_and_held_against_its_budget(world, tmp_path, monkeypatch):
    """Measured in earnest; bytes, unlike milliseconds, do not depend on what else the machine does."""
    monkeypatch.setattr(latency_table, "LATENCIES", tmp_path / "latencies")
    code, _, err = run(
        "student", world / "recipe.yaml", "--teacher", world / "teacher", "--output", tmp_path / "student",
        "--set", "student.prune={size_mb: 0.07}",
    )  # fmt: skip
    assert code == 0 and "of the importance is lost" in err and "the budget of" in err, err
    plan = json.loads((tmp_path / "student" / "pruning.json").read_text())
    code, _, err = run("export", tmp_path / "student", "--set", "export.formats=[onnx-fp32, onnx-int8]")
    assert code == 0 and "export: onnx-int8: " in err, err
    found = json.loads((tmp_path / "student" / "export" / "budget.json").read_text())
    assert 0 < found["measured"] <= 0.07 * (1 + pruned_student.NEAR) and all(
        one["latency_ms"] > 0 for one in plan["measured"]
    )

    assert plan["cost"] <= 0.07

    # A speed-up is a ratio, whatever the whole model took when the budget was set.
    plan["target"] |= {"unit": "ms", "most": 1e-3, "speedup": 1.5}
    (tmp_path / "student" / "pruning.json").write_text(json.dumps(plan))
    found = pruned_student.check_export(RunFolder(tmp_path / "student"), tmp_path / "student" / "export", rounds=30)
    assert found["above_budget"] < 1.0
    said = pruned_student.Target(**found["budget"]).in_words(found["measured"])
    assert said.endswith(" times as fast as the whole model at 1x8; 1.5 times was asked for")
