"""The server's pages: predictions in the shape of the Hub's inference API, health, metrics, and a page to try it."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from distill.errors import UserError
from distill.inference.text_classifier import TextClassifier, check_finite
from distill.serving import counters
from distill.serving.batching import MOST_WAITING, Answered, BatchQueue
from distill.serving.counters import Counters
from distill.serving.hub_api import Limits, answers_to, read_question
from distill.serving.page import try_page
from distill.serving.refusal import Refused

log = logging.getLogger("distill")

# No page of another site may frame what this server answers, or guess what it is.
GUARDED = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def create_app(
    classifiers: Mapping[str, TextClassifier],
    limits: Limits,
    *,
    name: str = "",
    most_waiting: int = MOST_WAITING,
) -> Starlette:
    """Return the application that serves `classifiers`, by format; the first answers if no format is named.

    All formats share one thread, so that none slows down another while it is timed. `name` is what /health calls the
    model.
    """
    worker, counted = ThreadPoolExecutor(1, "classifier"), Counters()
    queues = {
        format: BatchQueue(one, worker, counted, most_waiting=most_waiting) for format, one in classifiers.items()
    }
    served = _Served(queues, counted, limits, name)
    return Starlette(
        routes=[
            Route("/", served.page, methods=["GET"]),
            Route("/", served.predict_for_hub_clients, methods=["POST"]),
            Route("/predict", served.predict, methods=["POST"]),
            Route("/predict/{format}", served.predict, methods=["POST"]),
            Route("/health", served.health, methods=["GET"]),
            Route("/metrics", served.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _not_here, Exception: _failed},
    )


class _Served:
    """The endpoints of `create_app`."""

    def __init__(self, queues: Mapping[str, BatchQueue], counted: Counters, limits: Limits, name: str):
        self._queues, self._counters, self._limits, self._name = queues, counted, limits, name
        self._default = next(iter(queues))
        self._page = try_page()

    async def page(self, request: Request) -> Response:
        headers = GUARDED | {"Content-Security-Policy": self._page.policy}
        return Response(self._page.html, media_type="text/html", headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answer one text with a list of labels, and a list of texts with a list of lists."""
        return await self._predict(request, always_nested=False)

    async def predict_for_hub_clients(self, request: Request) -> Response:
        """Answer with a list of lists even if one text was asked for, as the clients of the Hub unpack it."""
        return await self._predict(request, always_nested=True)

    async def health(self, request: Request) -> Response:
        first = self._queues[self._default].classifier
        return _json(
            {
                "status": "ok",
                "model": self._name,
                "format": first.format,
                "device": first.device,
                "labels": list(first.label_names),
                "several_labels": first.thresholds is not None,
                "reads": first.reads,
                "max_tokens": first.max_tokens,
                "max_texts": self._limits.texts,
                "max_characters": self._limits.characters,
                "formats": list(self._queues),
                "distill": metadata.version("distill"),
            }
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._counters.shown(), headers=GUARDED | {"Content-Type": counters.MEDIA_TYPE})

    async def _predict(self, request: Request, *, always_nested: bool) -> Response:
        start = time.perf_counter()
        format = request.path_params.get("format", self._default)
        if format not in self._queues:
            return _refusal(Refused(404, f"{format[:50]}: not served here, but {', '.join(self._queues)}"))
        try:
            response = await self._answer(request, self._queues[format], always_nested)
        except Refused as refused:
            response = _refusal(refused)
        except Exception as error:  # noqa: BLE001 - a client gets no traceback, and a log no text
            response = _failed(request, error)
        self._counters.requests.labels(format, str(response.status_code)).inc()
        self._counters.latencies.labels(format).observe(time.perf_counter() - start)
        return response

    async def _answer(self, request: Request, queue: BatchQueue, always_nested: bool) -> Response:
        classifier = queue.classifier
        question = read_question(await _body(request, self._limits), self._limits, classifier.reads)
        answered: Answered = await queue.logits(question.texts)
        check_finite(answered.logits, f"{classifier.format} on {classifier.device}")
        found = answers_to(question, answered.logits, classifier.label_names, classifier.thresholds)
        self._counters.texts.labels(classifier.format).inc(len(found))
        timing = f"queue;dur={answered.waited * 1e3:.2f}, model;dur={answered.computed * 1e3:.2f}"
        return _json(found[0] if question.is_one and not always_nested else found, headers={"Server-Timing": timing})


async def _body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request; raises `Refused` if it is not declared as JSON, or too large to be read."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # what no form of another site can send
        raise Refused(415, f"Content-Type: wants application/json, got {kind[:50] or 'none'}")
    too_large = Refused(413, f"the body has more than {limits.bytes} bytes; send fewer or shorter texts")
    if int(request.headers.get("content-length", 0)) > limits.bytes:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limits.bytes:
                raise too_large
    except ClientDisconnect:
        raise Refused(400, "the connection ended before the body did") from None
    return bytes(body)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of one line of JSON, in ASCII: what a client typed may come back, and steers no terminal."""
    content = json.dumps(value) + "\n"
    return Response(content, status, {**GUARDED, **(headers or {})}, media_type="application/json")


def _refusal(refused: Refused) -> Response:
    return _json({"error": refused.reason}, refused.status, refused.headers)


def _not_here(request: Request, error: Exception) -> Response:
    """Answer for a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path[:50]}: {error.detail.lower()}; try POST /predict"
    return _json({"error": reason}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
    """Answer for a failure of the model or of ours. The log gets its kind and place, but not its words.

    The words may quote the text.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    log.error("serve: %s at %s:%s", type(error).__name__, Path(frame.filename).name, frame.lineno)
    reason = error.problems[0] if isinstance(error, UserError) else "the server failed on this request"
    return _json({"error": reason}, 500)
