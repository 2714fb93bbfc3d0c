"""Questions and answers in the shape of the Hub's inference API for text classification."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from distill.data.pairs import Text
from distill.decisions import Thresholds, answers_of, probabilities_of, sigmoid, softmax
from distill.errors import did_you_mean
from distill.models.truncation import Reads
from distill.serving.refusal import Refused

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
PARAMETERS = ("top_k", "function_to_apply")
ESCAPED = 12  # bytes that JSON takes at most for a character: two halves of a surrogate pair, such as \ud83d\ude00
FRAME = 64  # bytes around a text: names, quotes, commas, some spaces


class Limits(NamedTuple):
    """The most texts of a request, and the most characters that they may have together."""

    texts: int
    characters: int

    @property
    def bytes(self) -> int:
        """The most bytes of a request's body; any request within the other limits fits, however it is escaped."""
        return ESCAPED * self.characters + FRAME * (self.texts + 16)


@dataclass(frozen=True)
class Question:
    """Texts to classify. `is_one` says whether one was asked for by itself, and not as a list.

    `top_k` is how many labels of each are wanted (None: all), `function` what makes their scores of the logits (None:
    what the model was trained with).
    """

    texts: list[Text]
    is_one: bool
    top_k: int | None = None
    function: str | None = None


def read_question(body: bytes, limits: Limits, reads: Reads | None) -> Question:
    """Return the question in a JSON body for a model that `reads` texts or pairs (None: both).

    Raises `Refused` if it is no such JSON, is over the limits, or has a parameter that is not known.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON (in UTF-8)") from None
    if not isinstance(found, dict):
        raise Refused(422, f'wants an object such as {{"inputs": "a text"}}, got {_kind(found)}')
    for name in found:
        if name not in ("inputs", "parameters"):
            raise Refused(422, f"{name[:50]}: not known; {did_you_mean(name[:50], ('inputs', 'parameters'))}")
    if "inputs" not in found:
        raise Refused(422, 'inputs: missing; send {"inputs": "a text"}')
    inputs, is_one = found["inputs"], not isinstance(found["inputs"], list)
    given = [inputs] if is_one else inputs
    if not given:
        raise Refused(422, "inputs: the list is empty; send one text or more")
    if len(given) > limits.texts:
        raise Refused(413, f"inputs: {len(given)} texts, and a request may have {limits.texts}; send several")
    places = ["inputs"] if is_one else [f"inputs[{index}]" for index in range(len(given))]
    texts = [_text(one, place) for one, place in zip(given, places, strict=True)]
    characters = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
    if characters > limits.characters:
        raise Refused(
            413, f"inputs: {characters} characters, and a request may have {limits.characters}; shorten or split it"
        )
    pairs = sum(not isinstance(text, str) for text in texts)
    if 0 < pairs < len(texts):
        raise Refused(422, "inputs: wants texts, or pairs of texts, and not both")
    if reads == "pairs" and not pairs:
        raise Refused(422, 'inputs: the model reads pairs of texts; send {"text": "...", "text_pair": "..."}')
    if reads == "texts" and pairs:
        raise Refused(422, "inputs: the model reads single texts; leave out text_pair")
    return Question(texts, is_one, *_parameters(found.get("parameters")))


def answers_to(
    question: Question, logits: np.ndarray, label_names: Sequence[str], thresholds: Thresholds
) -> list[list[dict[str, Any]]]:
    """Return labels and scores of each text, the likeliest first, as {"label", "score"}.

    If a text may have several labels, each has {"answered"} too: whether its probability reaches the label's threshold,
    which no function and no `top_k` changes.
    """
    function = FUNCTIONS[question.function] if question.function else lambda rows: probabilities_of(rows, thresholds)
    scores, found = function(logits), []
    answered = None if thresholds is None else answers_of(logits, thresholds)
    for row, order in enumerate(np.argsort(-logits, axis=1, kind="stable")):  # scores may round to the same number
        of_text = []
        for label in order[: question.top_k]:
            of_label = {"label": label_names[label], "score": float(scores[row, label])}
            of_text.append(of_label if answered is None else of_label | {"answered": bool(answered[row, label])})
        found.append(of_text)
    return found


def _text(given: Any, place: str) -> Text:
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise Refused(422, f'{place}: wants a text or {{"text": "...", "text_pair": "..."}}, got {_kind(given)}')
    for name in given:
        if name not in ("text", "text_pair"):
            raise Refused(422, f"{place}: {name[:50]}: not known; wants text and text_pair")
    text, second = given.get("text"), given.get("text_pair")
    if not isinstance(text, str):
        raise Refused(422, f"{place}: text: wants a string, got {_kind(text)}")
    if second is not None and not isinstance(second, str):
        raise Refused(422, f"{place}: text_pair: wants a string, got {_kind(second)}")
    return text if second is None else (text, second)


def _parameters(given: Any) -> tuple[int | None, str | None]:
    if given is None:
        return None, None
    if not isinstance(given, dict):
        raise Refused(422, f'parameters: wants an object such as {{"top_k": 1}}, got {_kind(given)}')
    for name in given:
        if name not in PARAMETERS:
            raise Refused(422, f"parameters.{name[:50]}: not known; {did_you_mean(name[:50], PARAMETERS)}")
    top_k, function = given.get("top_k"), given.get("function_to_apply")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise Refused(422, f"parameters.top_k: wants a whole number from 1 on, got {_kind(top_k)}")
    if function is not None and (not isinstance(function, str) or function not in FUNCTIONS):
        raise Refused(422, f"parameters.function_to_apply: wants one of {', '.join(FUNCTIONS)}, got {_kind(function)}")
    return top_k, function


def _kind(value: Any) -> str:
    """Return what a JSON value is, in JSON's words; of a short one, the value itself."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value)
    return shown if len(shown) <= 50 else "a long text" if isinstance(value, str) else "a long number"
