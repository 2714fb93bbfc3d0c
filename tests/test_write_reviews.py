"""The quickstart's data: repeatable, free of leaks, and labelled by what the words and the forms say."""

import csv
import importlib.util
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"

# tools/ is no package, so the file is loaded by its path.
spec = importlib.util.spec_from_file_location("quickstart_reviews", ROOT / "tools" / "write_reviews.py")
reviews = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = reviews
spec.loader.exec_module(reviews)

SCORES = [-4, -3, -2, -1, 1, 2, 3, 4]


def said(score):
    return {predicate for way in reviews.predicates(score) for predicate in way}


def form(fragment):
    return next(form for form in reviews.FORMS if fragment in form.pattern)


def test_a_seed_gives_the_same_reviews_again_and_another_seed_gives_others():
    first = reviews.write_reviews(200, seed=1)
    assert first == reviews.write_reviews(200, seed=1)
    others = {text for text, _ in reviews.write_reviews(200, seed=2)}
    assert len(others & {text for text, _ in first}) < 100


def test_fewer_reviews_are_the_first_of_more():
    assert reviews.write_reviews(300, seed=1)[:100] == reviews.write_reviews(100, seed=1)


def test_no_text_appears_twice_in_the_committed_files():
    texts = []
    for name in ("train.csv", "test.csv"):
        with open(QUICKSTART / name, encoding="utf-8", newline="") as file:
            texts += [" ".join(row["text"].lower().split()) for row in csv.DictReader(file)]
    assert len(texts) == reviews.TRAIN_ROWS + reviews.TEST_ROWS
    assert len(set(texts)) == len(texts)


def test_the_committed_files_are_what_the_generator_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["write_reviews.py", "--output", str(tmp_path)])
    reviews.main()
    for name in ("train.csv", "test.csv", "bert/config.json", "bert/tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (QUICKSTART / name).read_bytes(), name


def test_no_predicate_stands_for_two_scores():
    everything = [predicate for score in SCORES for predicate in said(score)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("score", [-2, -1, 1, 2])
def test_a_negation_takes_the_opposite_side_of_what_it_negates(score):
    opposite = {predicate for other in SCORES if other * score < 0 for predicate in said(other)}
    # the longer ones first, so that "not at all good" loses all of its negation
    negations = (*reviews.FULL_NEGATIONS, *reviews.MILD_NEGATIONS, *reviews.VERB_NEGATIONS)
    negated = {}
    for predicate in said(score):
        if found := [negation for negation in negations if f"{negation} " in predicate]:
            negated[predicate] = predicate.replace(f"{found[0]} ", "")
    assert negated
    assert set(negated.values()) <= opposite


@pytest.mark.parametrize(
    ("fragment", "scores", "total"),
    [
        (", and {second}", (3, -2), 1),
        (", but {second}", (3, -2), -3),
        (", even though {second}", (3, -2), 7),
        ("they are right", (3, -2), 3),
        ("they are wrong", (3, -2), -3),
    ],
)
def test_the_form_of_a_sentence_weighs_its_opinions(fragment, scores, total):
    sentence = reviews.compose(form(fragment), scores, ("plot", "acting"), random.Random(1))
    assert sentence.score == total
    assert any(f"he plot {predicate}" in sentence.text for predicate in said(scores[0]))


def test_more_stars_mean_a_higher_score():
    rng = random.Random(3)
    scores = dict(reviews.write_review(rng) for _ in range(3000))
    by_star = {star: [] for star in range(5)}
    for text, star in reviews.write_reviews(1000, seed=3, stars=True):
        by_star[star].append(scores[text])
    assert all(len(values) > 20 for values in by_star.values())
    for star in range(4):
        assert max(by_star[star]) < min(by_star[star + 1])


def test_two_labels_are_the_stars_without_the_three():
    stars = dict(reviews.write_reviews(1000, seed=3, stars=True))
    two = dict(reviews.write_reviews(500, seed=3))
    assert {two[text] for text in two.keys() & stars.keys()} == {0, 1}
    for text in two.keys() & stars.keys():
        assert stars[text] != 2
        assert two[text] == (stars[text] > 2)
