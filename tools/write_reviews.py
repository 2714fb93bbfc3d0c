"""Write the quickstart's data: synthetic reviews whose labels follow from the text.

usage: python tools/write_reviews.py [--output DIR]

A review speaks about aspects of one thing, such as the plot and the acting of a film. Each aspect has a score from
-4 to 4, put into words in one of several ways: "was good", "was fairly lovely" and "never bothered me" are all
favorable, to different degrees. The form of a sentence weights the scores: what follows "but" counts three times, and
a rumor that proves wrong counts with the opposite sign. The sum over all sentences decides the label, so counting good
and bad words is not enough. No label is random: each one can be derived from its text.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from bisect import bisect
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

QUICKSTART = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"
SEED = 1
TRAIN_ROWS, TEST_ROWS = 7000, 1000
LABELS = ("negative", "positive")

# Words by score; each fits every aspect.
ADJECTIVES = {
    3: ("brilliant", "superb", "wonderful"),
    2: ("good", "lovely", "impressive"),
    1: ("decent", "fine", "solid"),
    -1: ("mediocre", "weak", "uninspired"),
    -2: ("bad", "poor", "disappointing"),
    -3: ("terrible", "awful", "horrible"),
}
VERBS = {
    3: ("thrilled me", "made my day"),
    2: ("pleased me", "won me over"),
    -2: ("bothered me", "let me down"),
    -3: ("appalled me", "ruined everything"),
}
WEAKENERS = ("slightly", "fairly")
STRENGTHENERS = ("very", "really")
EXTREMES = ("absolutely", "simply")
MILD_NEGATIONS = ("not", "hardly")
FULL_NEGATIONS = ("not at all", "anything but")
VERB_NEGATIONS = ("never", "hardly")


class Form(NamedTuple):
    """A sentence pattern for one or two opinions, how often it is used, and the weight of each opinion."""

    pattern: str
    frequency: int
    first: int
    second: int = 0


FORMS = (
    Form("{first}.", frequency=10, first=1),
    Form("{first}, and {second}.", frequency=2, first=1, second=1),
    Form("{first}, while {second}.", frequency=2, first=1, second=1),
    Form("{first}, but {second}.", frequency=2, first=1, second=3),
    Form("{first}, even though {second}.", frequency=1, first=3, second=1),
    Form("people say that {first}, and they are right.", frequency=2, first=1),
    Form("people say that {first}, but they are wrong.", frequency=2, first=-1),
)


class Domain(NamedTuple):
    """A kind of product or place: its aspects, and neutral remarks about it."""

    aspects: tuple[str, ...]
    remarks: tuple[str, ...]


DOMAINS = (
    Domain(
        ("plot", "acting", "ending", "soundtrack", "dialogue", "camera work"),
        ("We saw the film on a {day}.", "It runs for two hours.", "My {friend} had picked the film."),
    ),
    Domain(
        ("food", "service", "wine", "dessert", "menu", "terrace"),
        ("We had dinner there on a {day}.", "The place is near the station.", "I went with my {friend}."),
    ),
    Domain(
        ("battery", "screen", "camera", "keyboard", "speaker", "software"),
        ("The phone arrived on a {day}.", "I have used it for three weeks.", "My {friend} has the same phone."),
    ),
    Domain(
        ("room", "breakfast", "bed", "view", "pool", "staff"),
        ("We checked in on a {day}.", "The hotel has forty rooms.", "I shared the room with my {friend}."),
    ),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FRIENDS = ("sister", "brother", "mother", "father", "neighbour", "colleague")
# Drawn from for each review: the number of sentences with opinions, and of remarks. Most reviews are short.
OPINIONS = (1, 1, 1, 2)
REMARKS = (0, 0, 1)

# The lowest scores for two, three, four and five stars.
STARS = (-3, -1, 2, 4)
THREE_STARS = 2

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 128,
    # BERT's 0.02 suits 768 dimensions. With 96, the model would learn nothing in the first epochs.
    "initializer_range": 0.06,
    # No dropout: it takes a third of the time on a CPU, and three epochs are too few to overfit much.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY = 1000


class Review(NamedTuple):
    """A text and its score, below zero if it is unfavorable."""

    text: str
    score: int


def join(openers: Iterable[str], words: Iterable[str]) -> list[str]:
    """Return every opener followed by every word."""
    return [f"{opener} {word}" for opener in openers for word in words]


@cache
def predicates(score: int) -> list[list[str]]:
    """Return the predicates for an aspect with this score, one list for each way to say it."""
    sign = 1 if score > 0 else -1
    mild, clear, strong = (ADJECTIVES[sign * strength] for strength in (1, 2, 3))
    clear_verbs, strong_verbs = (VERBS[sign * strength] for strength in (2, 3))
    # The strength of a negation does not depend on the word that it negates: "not terrible" is faint praise.
    opposites = ADJECTIVES[-sign * 2] + ADJECTIVES[-sign * 3]
    opposite_verbs = VERBS[-sign * 2] + VERBS[-sign * 3]
    adjectives, verbs = {
        1: ([mild, join(WEAKENERS, clear), join(MILD_NEGATIONS, opposites)], join(VERB_NEGATIONS, opposite_verbs)),
        2: ([clear, join(STRENGTHENERS, mild), join(FULL_NEGATIONS, opposites)], clear_verbs),
        3: ([strong, join(STRENGTHENERS, clear)], strong_verbs),
        4: ([join(EXTREMES, strong)], join(EXTREMES, strong_verbs)),
    }[abs(score)]
    return [*(join(["was"], way) for way in adjectives), list(verbs)]


def compose(form: Form, scores: tuple[int, int], aspects: tuple[str, str], rng: random.Random) -> Review:
    """Return one sentence of this form about the aspects, with the sentence's score."""
    first, second = (
        f"the {aspect} {rng.choice(rng.choice(predicates(score)))}" for aspect, score in zip(aspects, scores)
    )
    sentence = form.pattern.format(first=first, second=second)
    return Review(sentence[0].upper() + sentence[1:], form.first * scores[0] + form.second * scores[1])


def draw_scores(form: Form, mood: float, rng: random.Random) -> tuple[int, int]:
    """Return two scores near the mood; if the form weights them differently, they have opposite signs."""
    first, second = (max(-4, min(4, round(rng.gauss(mood, 1.2)))) or rng.choice((-1, 1)) for _ in range(2))
    if form.second not in (0, form.first):
        second = -abs(second) if first > 0 else abs(second)
    return first, second


def write_review(rng: random.Random) -> Review:
    """Return a review of one to three sentences."""
    domain = rng.choice(DOMAINS)
    mood = rng.choice((-2.5, 2.5))
    aspects = rng.sample(domain.aspects, len(domain.aspects))
    opinions = []
    for _ in range(rng.choice(OPINIONS)):
        form = rng.choices(FORMS, [form.frequency for form in FORMS])[0]
        opinions.append(compose(form, draw_scores(form, mood, rng), (aspects.pop(), aspects.pop()), rng))
    sentences = [opinion.text for opinion in opinions]
    for remark in rng.sample(domain.remarks, rng.choice(REMARKS)):
        remark = remark.format(day=rng.choice(DAYS), friend=rng.choice(FRIENDS))
        sentences.insert(rng.randint(0, len(sentences)), remark)
    return Review(" ".join(sentences), sum(opinion.score for opinion in opinions))


def write_reviews(count: int, seed: int, stars: bool = False) -> list[tuple[str, int]]:
    """Return distinct texts with labels: 0 negative and 1 positive, or 0 to 4 for one to five stars.

    With two labels, reviews of three stars are left out, since neither label fits them.
    """
    rng = random.Random(seed)
    labels: dict[str, int] = {}
    while len(labels) < count:
        text, score = write_review(rng)
        label = bisect(STARS, score)
        if stars or label != THREE_STARS:
            labels.setdefault(text, label if stars else int(label > THREE_STARS))
    return list(labels.items())


def write_rows(path: Path, rows: list[tuple[str, int]]) -> None:
    """Write a csv file with the columns text and label."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows((text, LABELS[label]) for text, label in rows)


def write_bert(folder: Path, texts: list[str]) -> None:
    """Write the configuration of a small BERT and a tokenizer trained on these texts; no weights."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = list(SPECIAL_TOKENS.values())
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    separator, start = (
        (token, tokenizer.token_to_id(token)) for token in (SPECIAL_TOKENS["sep_token"], SPECIAL_TOKENS["cls_token"])
    )
    tokenizer.post_processor = processors.BertProcessing(separator, start)

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    length = BERT["max_position_embeddings"]
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": length, **SPECIAL_TOKENS}
    config = {**BERT, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": special.index("[PAD]")}
    for name, content in (("tokenizer_config.json", about), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write train.csv, test.csv and the folder bert."""
    parser = argparse.ArgumentParser(description="Write the data, configuration and vocabulary of the quickstart.")
    parser.add_argument("--output", type=Path, default=QUICKSTART, metavar="DIR", help="folder to write to")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    # Both files come from one list of distinct texts, so they share no text.
    reviews = write_reviews(TRAIN_ROWS + TEST_ROWS, SEED)
    train, test = reviews[:TRAIN_ROWS], reviews[TRAIN_ROWS:]
    write_rows(output / "train.csv", train)
    write_rows(output / "test.csv", test)
    write_bert(output / "bert", [text for text, _ in train])


if __name__ == "__main__":
    main()
