"""A queue that answers together what arrives while the model is busy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from distill.data.pairs import Text
from distill.inference.text_classifier import TextClassifier
from distill.serving.counters import Counters
from distill.serving.refusal import Refused

BATCH_TEXTS = 64  # in one call of the model: more are hardly faster, and the first of them would wait for the last
MOST_WAITING = 1_024  # texts


class Answered(NamedTuple):
    """Logits, float32 (texts, classes), the seconds that the texts waited, and those that the model computed."""

    logits: np.ndarray
    waited: float
    computed: float


@dataclass(eq=False)
class _Waiting:
    texts: Sequence[Text]
    answer: asyncio.Future[Answered]
    since: float = field(default_factory=time.perf_counter)


class BatchQueue:
    """Texts that wait for a classifier, which computes in a thread of `worker`.

    If the classifier is idle, a request is answered at once. Requests that arrive while it computes are answered
    together by its next call, of at most `batch_texts` texts; a request is not divided. If more than `most_waiting`
    texts would wait, the request is refused. To be used from one event loop.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        worker: Executor,
        counters: Counters,
        *,
        batch_texts: int = BATCH_TEXTS,
        most_waiting: int = MOST_WAITING,
    ):
        self.classifier = classifier
        self._worker, self._counters = worker, counters
        self._batch_texts, self._most_waiting = batch_texts, most_waiting
        self._waiting, self._waiting_texts = deque[_Waiting](), 0
        self._work: asyncio.Task[None] | None = None

    async def logits(self, texts: Sequence[Text]) -> Answered:
        """Return the logits of `texts`; raises `Refused` if too many wait, and whatever the classifier raises."""
        if self._waiting and self._waiting_texts + len(texts) > self._most_waiting:
            raise Refused(503, f"{self._waiting_texts} texts wait already; try again later", {"Retry-After": "1"})
        one = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._count_waiting(len(texts))
        if self._work is None:
            self._work = asyncio.create_task(self._answer_all())
        return await one.answer

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                await self._answer(self._next_batch())
        finally:
            self._work = None

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].texts)
        while self._waiting and size + len(self._waiting[0].texts) <= self._batch_texts:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].texts)
        self._count_waiting(-size)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        texts = [text for one in batch for text in one.texts]
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            logits = await loop.run_in_executor(self._worker, self.classifier.logits, texts)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the request that caused it
            if len(batch) == 1:
                if not batch[0].answer.done():
                    batch[0].answer.set_exception(error)
                return
            # One of them spoils the batch. Halving finds it with few calls, and its neighbors are answered.
            await self._answer(batch[: len(batch) // 2])
            await self._answer(batch[len(batch) // 2 :])
            return
        computed, at = time.perf_counter() - start, 0
        self._counters.batches.labels(self.classifier.format).observe(len(texts))
        for one in batch:
            if not one.answer.done():  # its client may have gone
                one.answer.set_result(Answered(logits[at : at + len(one.texts)], start - one.since, computed))
            at += len(one.texts)

    def _count_waiting(self, texts: int) -> None:
        self._waiting_texts += texts
        self._counters.waiting.labels(self.classifier.format).set(self._waiting_texts)
