"""What `distill inspect` finds in data that has every fault it knows, and that it finds none where there is none."""

import csv
import json

import pytest
from conftest import LABELS

from distill import commands
from distill.data.inspection import as_text, concerns

FAULTY = {
    "broken_encoding": "a really \x97 good film",
    "control_characters": "a really \x07 good film",
    "markup": "a good film<br />and music",
    "no_letters": "10 / 10 !",
    "one_word": "superb!",
}


@pytest.fixture
def look(tmp_path, tiny_bert):
    def look(train, test, validation=None):
        splits = {"train": train, "test": test} | ({"validation": validation} if validation else {})
        for name, rows in splits.items():
            with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        files = {name: str(tmp_path / f"{name}.csv") for name in splits}
        recipe = {
            "data": {"files": files, "label_names": LABELS, "max_tokens": 16, "validation_fraction": 0.2},
            "teacher": {"model": str(tiny_bert)},
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        return commands.inspect(commands.check(tmp_path / "recipe.yaml"), tmp_path / "page")

    return look


def plain(count, start=0):
    words = ["plot", "cast", "music", "film", "the", "a", "was", "and"]
    return [
        (
            f"{'good' if n % 2 else 'bad'} " + " ".join(words[(n >> bit & 1) * 4 + bit % 4] for bit in range(9)),
            LABELS[n % 2],
        )
        for n in range(start, start + count)
    ]


def test_clean_data_raise_no_concern(look, tmp_path):
    found = look(plain(100), plain(20, start=200))
    assert concerns(found) == [] and "Nothing looks wrong: no leaks" in as_text(found)
    assert found["splits"]["train"]["rows"] + found["splits"]["validation"]["rows"] == 100
    assert sum(found["splits"]["test"]["labels"].values()) == 20
    page = (tmp_path / "page" / "inspect.html").read_text()
    assert "Nothing looks wrong: no leaks" in page
    assert json.loads((tmp_path / "page" / "inspect.json").read_text()) == found


@pytest.mark.parametrize("kind", FAULTY)
def test_each_suspicious_text_is_found_where_it_is_and_no_other(look, kind):
    test = [*plain(20, start=200), (FAULTY[kind], "positive")]
    found = look(plain(100), test)
    (suspicion,) = found["suspicious"]
    assert (suspicion["split"], suspicion["kind"], suspicion["count"]) == ("test", kind, 1)
    assert suspicion["shown"] == [{"example_id": "test/20", "text": FAULTY[kind]}]
    (said,) = concerns(found)
    assert "1 test texts, such as test/20" in said


def test_repeated_torn_and_leaking_texts_are_counted_and_said(look):
    torn = [("the PLOT  was torn", "positive"), ("the plot was torn", "negative")]
    leaks = [*plain(2, start=200), *plain(3, start=300)]
    found = look(
        [*plain(100), *torn, *leaks, *plain(4)], plain(20, start=200), [*plain(20, start=300), plain(1, start=200)[0]]
    )
    assert found["leaks_dropped"] == {"train": 5}
    assert found["duplicates"] == {"train": 5, "validation": 0, "test": 0}  # four again, and one with other case
    assert found["contradictions"] == {"count": 1, "shown": [{"text": "the PLOT  was torn", "labels": LABELS}]}
    assert found["validation_in_test"] == 1
    assert concerns(found) == [
        "5 train texts are also in validation or test; training drops them",
        "1 validation texts are also in test: choices made on them make test figures look too good",
        "5 train texts repeat an earlier one of their split, ignoring case and white space",
        "1 train texts have more than one label, such as negative and positive for: the PLOT was torn",
    ]


def test_what_max_tokens_cuts_off_is_counted(look):
    long = [(f"{text} {text} {text}", label) for text, label in plain(100)]
    found = look(long, plain(20, start=200))
    tokens = found["splits"]["train"]["tokens"]
    assert tokens["cut"] == 1.0 and tokens["median"] == 3 * 10 + 2
    assert tokens["lost"] == pytest.approx(1 - 16 / 32)
    assert any(
        "50% of train's and 50% of validation's tokens are cut off: a model reads the first 16 tokens" in said
        for said in concerns(found)
    )


def test_a_rare_class_is_named(look):
    rows = plain(300)
    found = look([row for n, row in enumerate(rows) if row[1] == "positive" or n % 30 == 0], plain(20, start=400))
    assert any("'negative' is rare" in said for said in concerns(found))


def test_the_sample_is_what_the_tokenizer_makes_of_it(look):
    found = look(plain(100), plain(20, start=200))
    sample = found["tokenised"]
    assert sample["text"] == found["examples"][0]["text"]
    assert sample["tokens"][0] == "[CLS]" and len(sample["tokens"]) == len(sample["input_ids"]) == 12
    assert sample["attention_mask"] == [1] * 12


def test_other_seeds_draw_other_texts_and_the_same_seed_the_same(look, tmp_path):
    look(plain(100), plain(20, start=200))
    recipe = commands.check(tmp_path / "recipe.yaml")
    drawn = [
        [row["example_id"] for row in commands.inspect(recipe, rows=5, seed=seed)["examples"]] for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_hostile_texts_are_text_on_the_page_and_on_the_terminal(look, tmp_path):
    hostile = "<script>alert(1)</script>\x1b[31m good"
    found = look([*plain(100), *[(f"{hostile} {n}", "positive") for n in range(60)]], plain(20, start=200))
    page = (tmp_path / "page" / "inspect.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in as_text(found)


def test_a_script_without_spaces_is_not_one_word(look):
    found = look([*plain(100), *[(f"这部电影很好看{n}", "positive") for n in range(20)]], plain(20, start=200))
    assert "one_word" not in {suspicion["kind"] for suspicion in found["suspicious"]}


def test_without_a_tokenizer_there_is_one_line(tmp_path, data):
    recipe = {"data": {"files": {"train": str(data / "train.csv"), "test": str(data / "test.csv")}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(commands.RecipeError, match=r"teacher\.model: missing, so there is no tokenizer"):
        commands.inspect(commands.check(tmp_path / "recipe.yaml"))
