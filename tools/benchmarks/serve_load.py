"""Ask `distill serve` and a plain FastAPI app around transformers' pipeline, with many clients at once, in turn.

usage: python3 tools/benchmarks/serve_load.py EXPORT TORCH_MODEL [--texts TEXTS.parquet] [--clients 50]
           [--requests 2000] [--rounds 3]

EXPORT is what `distill serve` gets: an export or a folder of exports. TORCH_MODEL is the run folder of the same model,
which the pipeline loads. Needs the extra `serve`, and `pip install fastapi` for the peer. Each request has one text.
Both servers run all the time, and each is asked in every round, so that a disturbance meets both; clients and server
share the cores. The texts are those of tools/write_reviews.py unless a table with a column `text` is named.

The last line of stdout is one JSON object. `other_labels` counts answers whose label is not that of `distill.load` of
EXPORT, asked for one text at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOOLS = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
STARTS_WITHIN = 300  # seconds
WARMUP_REQUESTS = 200


class Answer(NamedTuple):
    """What became of a request: its text's index, its status (0: no answer), its label and its seconds."""

    index: int
    status: int
    label: str | None
    seconds: float


def main() -> None:
    """Start both servers, ask them in turn, and print what was measured."""
    parser = argparse.ArgumentParser(description="Compare `distill serve` with a FastAPI app around a pipeline.")
    parser.add_argument("export")
    parser.add_argument("torch_model")
    parser.add_argument("--texts", help="a parquet file with a column text")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2_000, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = read_texts(arguments.texts, arguments.requests)

    import distill

    classifier = distill.load(arguments.export)
    expected = [classifier([text])[0]["label"] for text in texts]
    ours = [sys.executable, "-m", "distill", "serve", arguments.export, "--port", "0"]
    peer = [sys.executable, __file__, "--pipeline", arguments.torch_model]
    with running(ours) as our_port, running(peer) as peer_port:
        ports = {"distill serve": our_port, "FastAPI with a pipeline": peer_port}
        for port in ports.values():
            ask_all(port, texts[:WARMUP_REQUESTS], arguments.clients)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
        for number in range(arguments.rounds):
            for name, port in ports.items():
                start = time.perf_counter()
                answers = ask_all(port, texts, arguments.clients)
                rounds[name].append(figures(answers, time.perf_counter() - start, expected))
                print(f"round {number + 1}: {name}: {rounds[name][-1]}", file=sys.stderr)
    settings = {"clients": arguments.clients, "requests": len(texts), "export": arguments.export}
    print(json.dumps({**settings, "torch_model": arguments.torch_model, "rounds": rounds}))


def read_texts(path: str | None, count: int) -> list[str]:
    """Return `count` texts of a table, from its beginning again if it has fewer, or synthetic reviews."""
    if path is None:
        sys.path.append(str(TOOLS))
        from write_reviews import write_reviews

        return [text for text, _ in write_reviews(count, seed=25)]
    from pyarrow import parquet

    found = parquet.read_table(path, columns=["text"])["text"].to_pylist()
    return list(itertools.islice(itertools.cycle(found), count))


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
    """Run a server that says its address on stderr; yield its port."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    timer = threading.Timer(STARTS_WITHIN, process.kill)
    timer.start()
    try:
        said = ""
        for line in process.stderr:
            said += line
            if found := ADDRESS.search(line):
                break
        else:
            sys.exit(f"error: {' '.join(command)} did not start:\n{said}")
        timer.cancel()
        # Nobody else reads what it says, and a full pipe would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(found[1])
    finally:
        timer.cancel()
        process.terminate()
        process.wait()


def ask_all(port: int, texts: list[str], clients: int) -> list[Answer]:
    """Ask for each text once, by `clients` threads that each keep one connection."""
    waiting, answers = iter(enumerate(texts)), list[Answer]()
    alone = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with alone:
                index, text = next(waiting, (-1, ""))
            if index < 0:
                connection.close()
                return
            answers.append(ask(connection, index, text))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def ask(connection: http.client.HTTPConnection, index: int, text: str) -> Answer:
    """Ask for the labels of one text."""
    start = time.perf_counter()
    try:
        body = json.dumps({"inputs": text})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        found = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()  # the next request opens it again
        return Answer(index, 0, None, time.perf_counter() - start)
    label = found[0]["label"] if response.status == 200 else None
    return Answer(index, response.status, label, time.perf_counter() - start)


def figures(answers: list[Answer], seconds: float, expected: list[str]) -> dict[str, Any]:
    """Return rate, latencies in ms, errors, and how many labels differ from those expected."""
    answered = [answer for answer in answers if answer.status == 200]
    latencies = np.array([answer.seconds for answer in answered] or [np.nan]) * 1e3
    return {
        "requests_per_second": round(len(answered) / seconds, 1),
        **{f"p{share}_ms": round(float(np.percentile(latencies, share)), 2) for share in (50, 95, 99)},
        "errors": len(answers) - len(answered),
        "other_labels": sum(answer.label != expected[answer.index] for answer in answered),
    }


def serve_pipeline(model: str) -> None:
    """Serve transformers' pipeline as its users do: an endpoint of FastAPI that calls it."""
    import socket

    import uvicorn
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
    from pydantic import BaseModel
    from transformers import pipeline

    classify, app = pipeline("text-classification", model=model, device="cpu"), FastAPI()

    class Question(BaseModel):
        inputs: str

    def predict(question: Question) -> list[dict[str, Any]]:
        return classify(question.inputs, truncation=True, top_k=None)

    # Annotations are strings here, and FastAPI would look this local class up among the module's names.
    predict.__annotations__ = {"question": Question, "return": list[dict[str, Any]]}
    app.post("/predict")(predict)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pipeline"]:
        serve_pipeline(sys.argv[2])
    else:
        main()
