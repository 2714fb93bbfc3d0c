"""Inspect the data: example texts, class balance, token lengths, and what looks wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tabulate import tabulate
from transformers import PreTrainedTokenizerBase

from distill.data.encoding import Truncation, cut_of, encode
from distill.data.pairs import shown_text
from distill.data.splits import SPLITS, Splits, drawn, gold_labels_of, label_counts, text_keys
from distill.decisions import NO_LABEL, in_words
from distill.errors import DataError
from distill.recipe.labels import joined

MEASURED_TEXTS = 10_000  # per split, drawn at random: enough to know a share of the texts to about one percent
SHOWN = 3  # examples of each kind of suspicious text
TOKENS_IN_A_LINE, TOKENS_ON_A_PAGE = 12, 60
MOST_COLUMNS = 20
RARE = 0.1  # the share of a class
FEW = 20  # texts of a label, if texts may have several: then most labels are on few texts, and that is no fault
EXCERPT = 100  # characters of a text that a concern quotes

# Patterns that a text written by a person seldom contains on purpose.
SUSPICIONS = {
    "broken_encoding": ("letters broken by a wrong encoding", re.compile("[\x80-\x9f\ufffd]|Ã[\xa0-\xbf]|â€[™œ]")),
    "control_characters": ("control characters", re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")),
    "markup": ("HTML tags", re.compile(r"</?[a-zA-Z][^<>]{0,200}>")),
    "no_letters": ("no letters", re.compile(r"\A[\W\d_]*\Z")),
    "one_word": ("only one word", re.compile(r"\A\s*[!-\u024f]{1,40}\s*\Z")),
}


def inspect(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, truncation: Truncation, *, rows: int, seed: int
) -> dict[str, Any]:
    """Return as JSON what is in the splits: texts, class balance, token lengths, duplicates, leaks, suspicious texts.

    It also holds `rows` train texts, drawn with `seed`, and the first of them as the model sees it. Token lengths are
    measured on at most `MEASURED_TEXTS` texts of each split, drawn with the same seed. All else covers all texts.
    """
    parts = {name: part for name in SPLITS if (part := getattr(splits, name)) is not None}
    examples = [
        {
            "example_id": example["example_id"],
            "label": in_words(example["label"], splits.label_names),
            "text": example["text"],
        }
        for example in map(dict, drawn(splits.train, rows, seed))
    ]
    tokenised = _tokenised(examples[0]["text"], tokenizer, truncation)
    for example in examples:
        example["text"] = shown_text(example["text"])
    return {
        "max_tokens": truncation.max_tokens,
        "truncation": truncation.kept,
        "task": splits.task,
        "label_names": list(splits.label_names),
        "splits": {
            name: {
                "rows": len(part),
                **(_balance(part, splits.label_names) if "label" in part.column_names else {"labels": None}),
                "tokens": _lengths(drawn(part, MEASURED_TEXTS, seed)["text"][:], tokenizer, truncation),
            }
            for name, part in parts.items()
        },
        "leaks_dropped": dict(splits.leaks),
        "notes": list(splits.notes),
        "unread_columns": list(splits.unread),
        "joined_labels": joined(splits.label_names),
        "examples": examples,
        "tokenised": tokenised,
        **_repeated(parts, splits.label_names),
        "suspicious": list(_suspicious(parts)),
        "accuracy_by_part": [],
    }


PARTS_TITLE = "what cutting may cost: a linear model, trained on whole texts or on a part of each"
NOTHING_WRONG = (
    "Nothing looks wrong: no leaks, duplicates, contradictions, empty or odd texts; few tokens are lost or unknown."
)


def as_text(found: Mapping[str, Any]) -> str:
    """Return what `inspect` found as text for a terminal: tables, then what looks wrong, or that nothing does."""
    head = tabulate(split_rows(found), headers="keys", tablefmt="simple", disable_numparse=True)
    rows = part_rows(found)
    parts = [
        head,
        tabulate(label_rows(found), headers="keys", tablefmt="simple", disable_numparse=True),
        "\n".join(
            f"[{excerpt(example['label'], EXCERPT)}] {excerpt(example['text'], 160)}" for example in found["examples"]
        ),
        "the first of them as the model sees it:\n"
        + tabulate(token_rows(found["tokenised"], TOKENS_IN_A_LINE), tablefmt="plain", disable_numparse=True),
        *([f"{PARTS_TITLE}:\n{tabulate(rows, headers='keys', tablefmt='simple')}"] if rows else []),
        "\n".join(f"- {concern}" for concern in concerns(found)) or NOTHING_WRONG,
        *([unread(found)] if found["unread_columns"] else []),
    ]
    return "\n\n".join(parts)


def split_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return for each split: the number of texts, their lengths in tokens, and the share cut at `max_tokens`."""
    return [
        {
            "split": name,
            "texts": f"{part['rows']}",
            **{f"tokens {kind}": f"{part['tokens'][kind]}" for kind in ("median", "p95", "p99", "longest")},
            f"cut at {found['max_tokens']}": f"{part['tokens']['cut']:.1%}",
            "tokens lost": f"{part['tokens']['lost']:.1%}",
        }
        for name, part in found["splits"].items()
    ]


def label_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return for each label how many texts of each split have it, and their share.

    If texts may have several labels, two more rows say how many have none, and how many labels a text has on average.
    """
    parts = {name: part for name, part in found["splits"].items() if part["labels"]}
    rows = [
        {"label": excerpt(label, EXCERPT)}
        | {name: _with_share(part["labels"][label], part["rows"]) for name, part in parts.items()}
        for label in found["label_names"]
    ]
    if found["task"] == "single_label":
        return rows
    return [
        *rows,
        {"label": NO_LABEL} | {name: _with_share(part["without_labels"], part["rows"]) for name, part in parts.items()},
        {"label": "labels a text"} | {name: f"{part['labels_per_text']:.2f}" for name, part in parts.items()},
    ]


def part_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the validation accuracy of a linear model by the part of long texts that it reads; empty if none is cut.

    The commands that can train one add it to what `inspect` found (see training/parts.py).
    """
    return [
        {
            "it reads": row["part"] + (" (this recipe)" if row["part"] == found["truncation"] else ""),
            "validation accuracy": f"{row['accuracy']:.1%}",
            "95 % interval": "{:.1%} to {:.1%}".format(*row["accuracy_ci95"]),
        }
        for row in found["accuracy_by_part"]
    ]


def token_rows(tokenised: Mapping[str, Any], most: int) -> list[list[str]]:
    """Return three rows: the first `most` tokens of a text, their ids, and their attention mask."""
    return [
        [name, *(excerpt(str(value), EXCERPT) for value in tokenised[name][:most])]
        for name in ("tokens", "input_ids", "attention_mask")
    ]


def concerns(found: Mapping[str, Any]) -> list[str]:
    """Return in words what may harm training or distort its figures."""
    said = list(found["notes"])
    if found["joined_labels"]:
        names = _listed([repr(excerpt(name, EXCERPT)) for name in found["joined_labels"][:SHOWN]])
        more = len(found["joined_labels"]) - SHOWN
        unless = (
            "data.task: multi_label and data.label_separator (what joins the labels) say that a text has several"
            if found["task"] == "single_label"
            else "data.label_separator is what joins them"
        )
        said.append(
            f"{names}{f' and {more} more classes' if more > 0 else ''} look like several labels in one: each "
            f"combination is a class of its own, unless {unless}"
        )
    if leaks := _counted(found["leaks_dropped"]):
        said.append(f"{leaks} texts are also in validation or test; training drops them")
    if found["validation_in_test"]:
        said.append(
            f"{found['validation_in_test']} validation texts are also in test: choices made on them make test figures "
            "look too good"
        )
    if repeated := _counted(found["duplicates"]):
        said.append(f"{repeated} texts repeat an earlier one of their split, ignoring case and white space")
    if found["contradictions"]["count"]:
        first = found["contradictions"]["shown"][0]
        labels = " and ".join(excerpt(label, EXCERPT) for label in first["labels"])
        what = "more than one label" if found["task"] == "single_label" else "other labels where they are repeated"
        said.append(
            f"{found['contradictions']['count']} train texts have {what}, such as {labels} for: "
            f"{excerpt(first['text'], EXCERPT)}"
        )
    tokens = {name: part["tokens"] for name, part in found["splits"].items()}
    if lost := _shares(tokens, "lost", 0.1):
        said.append(
            f"{lost} tokens are cut off: a model reads {Truncation(found['max_tokens'], found['truncation'])} "
            "(data.max_tokens, data.truncation)"
        )
    if unknown := _shares(tokens, "unknown", 0.05):
        said.append(f"{unknown} tokens are unknown to the tokenizer")
    said += _rare(found["splits"]["train"]["labels"], found["task"])
    for kind, (meaning, pattern) in SUSPICIONS.items():
        if suspicions := [suspicion for suspicion in found["suspicious"] if suspicion["kind"] == kind]:
            first = suspicions[0]["shown"][0]
            counts = _counted({suspicion["split"]: suspicion["count"] for suspicion in suspicions})
            said.append(
                f"{meaning} in {counts} texts, such as {first['example_id']}: {_around(first['text'], pattern)}"
            )
    return said


def unread(found: Mapping[str, Any]) -> str:
    """Return in words which columns are not read; empty if all are."""
    names = [excerpt(name, EXCERPT) for name in found["unread_columns"]]
    more = len(names) - MOST_COLUMNS
    shown = ", ".join([*names[:MOST_COLUMNS], *([f"and {more} more"] if more > 0 else [])])
    return f"Columns that are not read: {shown}" if names else ""


def _rare(balance: Mapping[str, int], task: str) -> Iterator[str]:
    """Yield what to do about classes with few of the train texts; if texts may have several labels, with few texts."""
    rarest, commonest = (pick(balance, key=lambda label: balance[label]) for pick in (min, max))
    if task == "multi_label":
        if few := [f"{excerpt(name, EXCERPT)!r} ({count})" for name, count in balance.items() if count < FEW]:
            more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
            yield (
                f"fewer than {FEW} train texts have the label {', '.join(few[:SHOWN])}{more}: without class_weights: "
                "balanced it may never be answered"
            )
    elif balance[rarest] < RARE * sum(balance.values()):
        yield (
            f"{rarest!r} is rare ({balance[rarest]} train texts; {commonest!r} has {balance[commonest]}): read "
            "macro-F1 as well as accuracy; training.metric_for_best_model: macro_f1 chooses checkpoints by it, and "
            "class_weights: balanced may help"
        )


def _balance(rows: Dataset, label_names: Sequence[str]) -> dict[str, Any]:
    """Return how many texts have each label; if they may have several, also how many have none, and the mean number."""
    counts = label_counts(rows, len(label_names))
    found: dict[str, Any] = {"labels": {name: int(count) for name, count in zip(label_names, counts, strict=True)}}
    if (gold_labels := gold_labels_of(rows)).ndim == 2:
        found["without_labels"] = int((~gold_labels.any(axis=1)).sum())
        found["labels_per_text"] = float(counts.sum() / len(rows))
    return found


def _lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, truncation: Truncation) -> dict[str, Any]:
    ids, lengths, _ = encode(tokenizer, texts, truncation)
    cut = cut_of(lengths, truncation.max_tokens)
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
    percentiles = map(int, np.percentile(lengths, [50, 95, 99, 100]))
    return {
        "measured": len(lengths),
        **dict(zip(("median", "p95", "p99", "longest"), percentiles, strict=True)),
        "cut": cut.texts,
        "lost": cut.tokens,
        "unknown": unknown / sum(map(len, ids)),
    }


def look_at(
    example_id: str, splits: Splits, tokenizer: PreTrainedTokenizerBase, truncation: Truncation
) -> dict[str, Any]:
    """Return one row as JSON: its split, label and text, and how the model sees it; `example_id` is as "train/17".

    A train row may be in validation, if that was taken from train. Raises `DataError` if it is in no split.
    """
    for name in SPLITS:
        if (rows := getattr(splits, name)) is None:
            continue
        ids = rows["example_id"][:]
        if example_id in ids:
            row = rows[ids.index(example_id)]
            tokenised = _tokenised(row["text"], tokenizer, truncation)
            label = in_words(row["label"], splits.label_names) if "label" in row else None
            (length,) = encode(tokenizer, [row["text"]], truncation).lengths
            return {"example_id": example_id, "split": name, "label": label, "tokens_uncut": int(length), **tokenised}
    raise DataError(
        f"--row: {example_id} is in no split: a number from 0 counts the rows of its file; one that is also in "
        "validation or test, or was not sampled, is dropped"
    )


def row_text(row: Mapping[str, Any]) -> str:
    """Return what `look_at` found as text for a terminal."""
    read, whole = len(row["tokens"]), row["tokens_uncut"]
    cut = f"; the model reads {read} of its {whole} tokens" if read < whole else ""
    label = "no label" if row["label"] is None else f"label {excerpt(row['label'], EXCERPT)}"
    lines = [excerpt(line, len(line)) for line in row["text"].splitlines()]
    return "\n\n".join(
        [
            f"{row['example_id']}: in {row['split']}, {label}{cut}",
            "\n".join(lines),
            " ".join(excerpt(token, EXCERPT) for token in row["tokens"]),
        ]
    )


def _tokenised(text: str, tokenizer: PreTrainedTokenizerBase, truncation: Truncation) -> dict[str, Any]:
    (ids,) = encode(tokenizer, [text], truncation).ids
    return {
        "text": shown_text(text),
        "tokens": tokenizer.convert_ids_to_tokens(ids),
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
    }


def _repeated(parts: Mapping[str, Dataset], label_names: Sequence[str]) -> dict[str, Any]:
    """Count repeated texts: within a split, in both validation and test, and in train with different labels."""
    keys = {name: list(text_keys(part)) for name, part in parts.items()}
    gold_labels = gold_labels_of(parts["train"])
    distinct, which = np.unique(gold_labels, axis=0, return_inverse=True)
    labels: dict[bytes, set[int]] = {}
    for key, label in zip(keys["train"], which.tolist(), strict=True):
        labels.setdefault(key, set()).add(label)
    contradictory = [key for key, found in labels.items() if len(found) > 1]
    shown = [
        {
            "text": shown_text(parts["train"][keys["train"].index(key)]["text"]),
            "labels": [in_words(distinct[label], label_names) for label in sorted(labels[key])],
        }
        for key in contradictory[:SHOWN]
    ]
    return {
        "duplicates": {name: len(found) - len(set(found)) for name, found in keys.items()},
        "validation_in_test": len(set(keys["validation"]) & set(keys["test"])),
        "contradictions": {"count": len(contradictory), "shown": shown},
    }


def _suspicious(parts: Mapping[str, Dataset]) -> Iterator[dict[str, Any]]:
    for split, part in parts.items():
        counts = dict.fromkeys(SUSPICIONS, 0)
        shown: dict[str, list[dict[str, str]]] = {kind: [] for kind in SUSPICIONS}
        for batch in part.iter(batch_size=1_000):
            for example_id, text in zip(batch["example_id"], batch["text"], strict=True):
                text = shown_text(text)  # the separator of a pair is a control character
                for kind, (_, pattern) in SUSPICIONS.items():
                    if pattern.search(text):
                        counts[kind] += 1
                        if len(shown[kind]) < SHOWN:
                            shown[kind].append({"example_id": example_id, "text": text})
        for kind, count in counts.items():
            if count:
                meaning = SUSPICIONS[kind][0]
                yield {"split": split, "kind": kind, "meaning": meaning, "count": count, "shown": shown[kind]}


def _counted(counts: Mapping[str, int]) -> str:
    """Return the counts that are not 0 as "29 train and 60 transfer"."""
    return _listed([f"{count} {name}" for name, count in counts.items() if count])


def _shares(tokens: Mapping[str, Mapping[str, float]], name: str, most: float) -> str:
    return _listed([f"{part[name]:.0%} of {split}'s" for split, part in tokens.items() if part[name] > most])


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def _around(text: str, pattern: re.Pattern[str]) -> str:
    """Return the part of a text around the match of a pattern, on one line."""
    found = pattern.search(text)
    start = max(0, found.start() - EXCERPT // 2) if found else 0
    return ("…" if start else "") + excerpt(text[start:], EXCERPT)


def _with_share(count: int, texts: int) -> str:
    return f"{count} ({count / max(1, texts):.1%})"


def excerpt(text: str, width: int) -> str:
    """Return a text as one line for a terminal: without line breaks and control characters, cut at `width`."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"
