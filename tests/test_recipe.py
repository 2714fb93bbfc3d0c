import json
from pathlib import Path

import pytest
from conftest import run
from ruamel.yaml import YAML

from distill.errors import RecipeError
from distill.recipe.file import dump_recipe, load_recipe
from distill.recipe.schema import with_absolute_paths
from distill.recipe.shipped import shipped

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
    assert "load_best_model_at_end" not in training  # no evaluations to select by


def test_a_date_is_text_as_it_stands(recipe, tmp_path):
    text = GOOD.replace("imdb\n", "imdb\n  label_names: [2020-01-01, 2021-02-03]\n", 1)
    first = load_recipe(recipe(text))
    assert first.data.label_names == ("2020-01-01", "2021-02-03")
    (tmp_path / "resolved.yaml").write_text(dump_recipe(first))
    assert load_recipe(tmp_path / "resolved.yaml") == first


@pytest.mark.parametrize(
    "names", ["TRUE, FALSE", "007, 012", "1, 2, 3", "1.0, 2.50", "yes, no", "on, Off", "'a b', \"c\""]
)
def test_class_names_are_taken_as_they_are_written(recipe, tmp_path, names):
    written = tuple(name.strip().strip("'\"") for name in names.split(","))
    first = load_recipe(recipe(GOOD.replace("imdb\n", f"imdb\n  label_names: [{names}]\n", 1)))
    assert first.data.label_names == written
    assert load_recipe(recipe(GOOD), [f"data.label_names=[{names}]"]).data.label_names == written
    (tmp_path / "resolved.yaml").write_text(dump_recipe(first))
    assert load_recipe(tmp_path / "resolved.yaml") == first


def test_a_name_that_an_alias_shares_stays_a_number_elsewhere(recipe):
    text = GOOD.replace("imdb\n", "imdb\n  label_names: [&five 5, 6]\n  seed: *five\n", 1)
    found = load_recipe(recipe(text)).data
    assert (found.label_names, found.seed) == (("5", "6"), 5)


@pytest.mark.parametrize("names", ["a, A", "a, ' a '", "x y, 'x\u00a0y'", "TRUE, true"])
def test_class_names_that_look_alike_are_refused(recipe, names):
    (problem,) = mistakes(recipe(GOOD.replace("imdb\n", f"imdb\n  label_names: [{names}]\n", 1)))
    assert "data.label_names: the same name twice, apart from case and white space" in problem


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


def test_all_arguments_of_a_stage_are_printed_with_their_own_types(recipe):
    path = recipe(GOOD + "  training: {learning_rate: 1.0e-4, report_to: none}\n")
    arguments = ("check", path, "--training", "student", "--set", "student.training.bf16=false")
    code, out, _ = run(*arguments, "--json")
    found = json.loads(out)
    assert code == 0 and found["learning_rate"] == 1e-4 and found["bf16"] is False and found["run_name"] is None
    assert found["report_to"] == [] and found["num_train_epochs"] == 3.0 and found["adam_beta2"] == 0.999
    assert "average_tokens_across_devices" in found and not any(name.endswith("_token") for name in found)
    _, out, _ = run(*arguments)
    assert YAML(typ="safe").load(out) == found
    code, _, err = run("check", recipe(GOOD.partition("student")[0]), "--training", "student")
    assert code == 2 and "student: missing" in err


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


def test_a_name_means_the_recipe_that_comes_with_distill_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    assert load_recipe("imdb") == load_recipe(shipped()["imdb"]) == load_recipe(Path("imdb"))
    (tmp_path / "yelp").write_text(GOOD)
    assert load_recipe("yelp") == load_recipe(tmp_path / "yelp") != load_recipe(shipped()["yelp"])
    for unknown in ("imbd", "recipes/imdb.yaml", "imdb.yaml", "sub/imdb"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(unknown)
        assert caught.value.problems == (
            f"{unknown}: No such file or directory; recipes that come with distill: imdb, yelp, yelp-full",
        )
