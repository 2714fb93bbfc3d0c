from pathlib import Path

import pytest

from distill.errors import RecipeError
from distill.recipe import with_absolute_paths
from distill.recipe_file import dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
GOOD = """\
data:
  dataset: stanfordnlp/imdb
teacher:
  model: google-bert/bert-base-uncased
student:
  layers: [0, 2]
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def mistakes(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [problem.replace(f"{path}:", "") for problem in caught.value.problems]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_distill_is_valid(path):
    load_recipe(path)


def test_the_resolved_recipe_reads_back_to_itself(recipe, tmp_path):
    first = load_recipe(recipe(GOOD))
    (tmp_path / "resolved.yaml").write_text(dump_recipe(first))
    assert load_recipe(tmp_path / "resolved.yaml") == first


def test_yaml_1_2_numbers_and_words(recipe):
    text = GOOD + "  training: {learning_rate: 3e-4, eval_strategy: no}\n"
    training = load_recipe(recipe(text)).student.training
    assert training["learning_rate"] == 3e-4  # PyYAML reads a string
    assert training["eval_strategy"] == "no"  # PyYAML reads False
    assert "load_best_model_at_end" not in training  # nothing to choose by


def test_saving_follows_evaluating(recipe):
    text = GOOD + "  training: {eval_strategy: steps, eval_steps: 20}\n"
    training = load_recipe(recipe(text)).student.training
    assert (training["save_strategy"], training["save_steps"]) == ("steps", 20)
    assert training["seed"] == 42


def test_the_best_by_a_loss_is_the_lowest(recipe):
    for metric, greater in (("log_loss", False), ("eval_loss", False), ("macro_f1", True)):
        text = GOOD + f"  training: {{metric_for_best_model: {metric}}}\n"
        assert load_recipe(recipe(text)).student.training["greater_is_better"] is greater


def test_evaluating_by_steps_saves_at_the_same_steps(recipe):
    for settings in ("eval_strategy: steps", "eval_strategy: steps, logging_steps: 30"):
        training = load_recipe(recipe(GOOD + f"  training: {{{settings}}}\n")).student.training
        assert training["save_steps"] == training["eval_steps"] == training["logging_steps"]


CASES = {
    "metric": (
        GOOD + "  training: {metric_for_best_model: f1}\n",
        ["7: student.training.metric_for_best_model: got 'f1'; one of accuracy, macro_f1"],
    ),
    "steps apart": (
        GOOD + "  training: {eval_strategy: steps, eval_steps: 100, save_steps: 500}\n",
        ["7: student.training.save_steps: got 500, but evaluates every 100"],
    ),
    "patience for nothing": (
        GOOD + "  training: {eval_strategy: no}\n  early_stopping_patience: 2\n",
        ["5: student: early_stopping_patience needs evaluations"],
    ),
    "unknown key": (GOOD + "  temprature: 2\n", ["7: student.temprature: unknown key"]),
    "did you mean": (GOOD.replace("teacher:", "teecher:"), ["3: teecher: unknown key; did you mean teacher?"]),
    "wrong type": (
        GOOD.replace("[0, 2]", "zero"),
        ["6: student.layers: wants a number of layers, or a"],
    ),
    "number as text": (
        GOOD + '  loss: {temperature: "2"}\n',
        ["7: student.loss.temperature: wants a number"],
    ),
    "out of range": (GOOD + "  loss: {soft_weight: 1.5}\n", ["7: student.loss.soft_weight: wants a share from 0 to 1"]),
    "not a number": (GOOD + "  loss: {temperature: .nan}\n", ["7: student.loss.temperature: wants a number"]),
    "equal key twice": (GOOD + "  layers: [1]\n", ["7: found duplicate key"]),
    "tab": (GOOD + "\tloss: {}\n", ["7: found character"]),
    "no mapping": ("- a\n", ["wants keys and values"]),
    "empty": ("", ["wants keys and values"]),
    "missing": ("teacher: {model: x}\n", ["data: missing"]),
    "two sources": (GOOD.replace("imdb\n", "imdb\n  files: {train: a.csv, test: b.csv}\n"), ["1: data: wants dataset"]),
    "two students": (GOOD + "  model: x\n", ["5: student: wants model"]),
    "no layers": (GOOD.replace("[0, 2]", "0"), ["6: student.layers: wants a number of layers"]),
    "three origins": (GOOD + "  config: {hidden_size: 8}\n", ["5: student: wants model"]),
    "half a schedule": (GOOD + "  loss: {temperature: {start: 4}}\n", ["7: student.loss.temperature.end: missing"]),
    "schedule out of range": (
        GOOD + "  loss: {soft_weight: {start: 1, end: -1}}\n",
        ["7: student.loss.soft_weight: wants a share from 0 to 1, got {'start': 1.0, 'end': -1.0}"],
    ),
    "schedule typo": (
        GOOD + "  loss: {temperature: {start: 4, ende: 1, end: 1}}\n",
        ["7: student.loss.temperature.ende: unknown key; did you mean end?"],
    ),
    "cold": (
        GOOD + "  loss: {temperature: 0}\n",
        ["7: student.loss.temperature: wants a temperature above 0, got 0.0"],
    ),
    "unknown loss": (GOOD + "  loss: {soft: kd}\n", ["7: student.loss.soft: input should be 'soft_targets'"]),
    "negative weight": (
        GOOD + "  loss: {hidden_states: {weight: -1}}\n",
        ["7: student.loss.hidden_states.weight: wants a weight of 0"],
    ),
    "teacher for nothing": (
        GOOD + "  teacher_weights: [1, 0]\n",
        ["7: student.teacher_weights.1: input should be greater than 0"],
    ),
    "all dropped": (GOOD + "  attention_dropout: 1\n", ["7: student.attention_dropout: input should be less than 1"]),
    "layers fall": (
        GOOD.replace("[0, 2]", "[2, 0]"),
        ["6: student.layers: wants one or more layers, rising, each once, got [2, 0]"],
    ),
    "old name": (
        GOOD + "  training: {evaluation_strategy: epoch}\n",
        ["7: student.training.evaluation_strategy: renamed eval_strategy in transformers 4.46"],
    ),
    "gone": (
        GOOD + "  training: {group_by_length: true}\n",
        ["7: student.training.group_by_length: gone in transformers 5; write train_sampling_strategy: group_by_length"],
    ),
    "training typo": (
        GOOD + "  training: {learning_rat: 1}\n",
        ["7: student.training.learning_rat: not a field of transformers' TrainingArguments; did you mean learning"],
    ),
    "training type": (
        GOOD + "  training:\n    num_train_epochs: two\n",
        ["8: student.training.num_train_epochs: wants float, got 'two'"],
    ),
    "training choice": (
        GOOD + "  training: {eval_strategy: epok}\n",
        ["7: student.training.eval_strategy: got 'epok'; did you mean epoch?"],
    ),
    "ours to set": (
        GOOD + "  training: {output_dir: x}\n",
        ["7: student.training.output_dir: set by distill; write output: beside training:"],
    ),
    "shape": (GOOD + "benchmark: {shapes: [8*128]}\n", ["7: benchmark.shapes: wants BATCHxTOKENS such as 8x128, got"]),
    "format": (GOOD + "export: {formats: [onnx-int4]}\n", ["7: export.formats.0: input should be 'torch-fp16'"]),
    "one label": (GOOD.replace("imdb\n", "imdb\n  label_names: [a]\n"), ["3: data.label_names: "]),
    "label twice": (GOOD.replace("imdb\n", "imdb\n  label_names: [a, a]\n"), ["3: data.label_names: the same name"]),
    "not UTF-8": (b"data: \xff\n", ["not UTF-8 at byte 6"]),
    "control character": (b"data: \x00\n", [""]),
    "alias that holds itself": ("data: &a\n  files: *a\n", [""]),
    "deep": ("a: " + "[" * 300_000, ["nested too deeply"]),
    "deep behind others": ("# " + "]" * 9_000 + "\na: " + "[" * 9_000, ["nested too deeply"]),
    "deep blocks": ("- " * 3_000, ["nested too deeply"]),
    "everything at once": (
        "data: {dataset: a/b, seed: x}\nteacher: {model: 3}\nstudent: {layers: [-1], training: {lr: 1}}\n",
        ["1: data.seed: ", "2: teacher.model: ", "3: student.layers: ", "3: student.training.lr: "],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_with_its_line(recipe, name):
    text, expected = CASES[name]
    found = mistakes(recipe(text))
    assert len(found) == len(expected), found
    for problem, start in zip(found, expected, strict=True):
        assert problem.strip().startswith(start), problem
        assert "\n" not in problem


def test_a_file_that_is_not_there_and_one_too_large(tmp_path):
    assert "No such file" in mistakes(tmp_path / "none.yaml")[0]
    assert "a folder" in mistakes(tmp_path)[0]
    (tmp_path / "big.yaml").write_bytes(b"#" * 2_000_000)
    assert "larger than" in mistakes(tmp_path / "big.yaml")[0]


def test_a_number_is_a_schedule_that_stays_and_a_pair_one_that_moves(recipe):
    text = GOOD + "  loss: {temperature: {start: 4, end: 1}, soft_weight: 1}\n"
    loss = load_recipe(recipe(text)).student.loss
    assert [loss.temperature.at(progress) for progress in (0, 0.5, 1)] == [4.0, 2.5, 1.0]
    assert loss.soft_weight.at(0) == loss.soft_weight.at(1) == 1.0
    assert loss.hidden_states is None and not loss.runs_teacher
    shown = dump_recipe(load_recipe(recipe(text)))
    assert "soft_weight: 1.0" in shown and "start: 4.0" in shown
    assert load_recipe(recipe(GOOD + "  loss: {attention_relations: {}}\n")).student.loss.runs_teacher


def test_set_takes_yaml_values_at_dotted_keys(recipe):
    path = recipe(GOOD)
    changed = load_recipe(
        path, ["student.layers=[1, 3]", "student.loss.temperature=4", "teacher.training.learning_rate=1e-5"]
    )
    assert changed.student.layers == (1, 3)
    assert changed.student.loss.temperature.at(0) == 4
    assert changed.teacher.training["learning_rate"] == 1e-5


def test_set_of_one_of_two_exclusive_keys_drops_the_other(recipe):
    path = recipe(GOOD)
    local = load_recipe(path, ["data.files.train=a.csv", "data.files.test=b.csv", "student.model=some/bert"])
    assert local.data.dataset is None and local.data.files.train == "a.csv"
    assert local.student.layers is None and local.student.model == "some/bert"


def test_set_of_one_origin_of_a_student_drops_the_others(recipe):
    for override, origin in (("model=a/b", "model"), ("layers=3", "layers"), ("config={hidden_size: 8}", "config")):
        student = load_recipe(recipe(GOOD), [f"student.{override}"]).student
        assert [name for name in ("model", "layers", "config") if getattr(student, name) is not None] == [origin]


def test_mistakes_in_set_name_the_option(recipe):
    path = recipe(GOOD)
    assert mistakes(path, ["student.layers"]) == ["--set student.layers: wants dotted.key=value"]
    assert mistakes(path, ["teacher.model.x=1"]) == ["--set teacher.model.x=1: model is not a section"]
    assert mistakes(path, ["data.seed=x"]) == ["--set data.seed=x: data.seed: input should be a valid integer, got 'x'"]


def test_a_recipe_cannot_be_changed_once_read(recipe):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe(GOOD)).data.seed = 1


def test_local_paths_become_absolute_and_hub_names_stay(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    local = load_recipe(recipe(GOOD), ["data.files={train: a.csv, test: b.csv}", "student.model=model"])
    absolute = with_absolute_paths(local)
    assert absolute.data.files.train == str(tmp_path / "a.csv")
    assert absolute.student.model == str(tmp_path / "model")
    assert absolute.teacher.model == "google-bert/bert-base-uncased"
