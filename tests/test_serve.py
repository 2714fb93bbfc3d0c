"""`distill serve`: the shape of the Hub's inference API, batching, refusals in one line, and a clean end."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import run, write_reviews
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import distill
from distill.decisions import sigmoid, softmax
from distill.errors import ModelError
from distill.export.int8 import Int8Settings, quantise
from distill.export.onnx_graph import trace
from distill.inference.text_classifier import TextClassifier
from distill.serving.app import create_app
from distill.serving.hub_api import Limits

ROOT = Path(__file__).parent.parent
LIMITS = Limits(texts=4, characters=100)
SECRET = "a-text-that-nobody-may-log"


class Known(TextClassifier):
    """The logits of a text are its length, 0 and 1; a text with "bad" in it raises, "endless" is not finite.

    It computes only when `go` is set, and keeps what each call got.
    """

    format, device, max_tokens = "known", "cpu", 7
    label_names = ("short", "long\u202e", "même")

    def __init__(self, thresholds=None, reads=None):
        self.thresholds, self.reads = thresholds, reads
        self.calls, self.go, self.begun = [], threading.Event(), threading.Event()
        self.go.set()

    def logits(self, texts, *, progress=lambda done: None):
        self.calls.append(list(texts))
        self.begun.set()
        assert self.go.wait(30)
        for text in texts:
            if "bad" in text:
                raise ModelError(f"known: no token for {SECRET}")
            if "bug" in text:
                raise RuntimeError(f"{SECRET} {text}")
        return np.array([[np.nan if "endless" in text else len(text), 0, 1] for text in texts], np.float32)

    def warm_up(self):
        pass


@contextmanager
def served(*classifiers, limits=LIMITS, **settings):
    classifiers = classifiers or (Known(),)
    app = create_app({one.format: one for one in classifiers}, limits, name="a/model", **settings)
    with TestClient(app, raise_server_exceptions=False) as client:  # one event loop, as in a server
        yield client


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


def test_one_text_gets_its_labels_and_a_list_gets_lists(client):
    one = client.post("/predict", json={"inputs": "abc"}).json()
    assert [row["label"] for row in one] == ["short", "même", "long\u202e"]
    np.testing.assert_allclose([row["score"] for row in one], softmax(np.float32([[3, 1, 0]]))[0], rtol=1e-6)
    assert client.post("/predict", json={"inputs": ["abc", ""]}).json()[0] == one
    assert client.post("/predict", json={"inputs": ["abc"]}).json() == [one]
    assert client.post("/predict", json={"inputs": {"text": "abc"}}).json() == one
    assert client.post("/predict", json={"inputs": [{"text": "abc"}, ""]}).json()[0] == one
    assert client.post("/predict", json={"inputs": "abc", "parameters": {"top_k": 2}}).json() == one[:2]
    assert client.post("/predict", json={"inputs": "abc", "parameters": {"top_k": 9}}).json() == one
    assert client.post("/predict", json={"inputs": "abc", "parameters": None}).json() == one
    assert client.post("/predict/known", json={"inputs": "abc"}).json() == one
    assert client.post("/", json={"inputs": "abc"}).json() == [one]  # as the Hub's clients unpack it


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("softmax", softmax(np.float32([[3, 1, 0]]))[0]),
        ("sigmoid", sigmoid(np.float32([3, 1, 0]))),
        ("none", [3, 1, 0]),
    ],
)
def test_a_function_makes_the_scores_of_the_logits(client, function, scores):
    found = client.post("/predict", json={"inputs": "abc", "parameters": {"function_to_apply": function}}).json()
    np.testing.assert_allclose([row["score"] for row in found], scores, rtol=1e-6)


def test_of_several_labels_each_says_whether_it_reaches_its_threshold():
    with served(Known(thresholds=(0.999, 0.5, 0.8))) as client:
        found = client.post("/predict", json={"inputs": "abc"}).json()
        assert [(row["label"], row["answered"]) for row in found] == [
            ("short", False), ("même", False), ("long\u202e", True)
        ]  # fmt: skip
        np.testing.assert_allclose([row["score"] for row in found], sigmoid(np.float32([3, 1, 0])), rtol=1e-6)
        raw = {"function_to_apply": "none", "top_k": 1}
        assert client.post("/predict", json={"inputs": "abc", "parameters": raw}).json() == [
            {"label": "short", "score": 3.0, "answered": False}
        ]
        assert client.get("/health").json()["several_labels"] is True


def test_pairs_go_to_a_model_that_reads_pairs_and_texts_to_one_that_reads_texts():
    pair = {"text": "a", "text_pair": "b"}
    for reads, right, wrong, words in (
        ("pairs", pair, "a", "reads pairs of texts"),
        ("texts", "a", pair, "reads single texts"),
    ):
        one = Known(reads=reads)
        with served(one) as client:
            assert client.post("/predict", json={"inputs": [right, right]}).status_code == 200
            assert one.calls == [[("a", "b")] * 2 if reads == "pairs" else ["a", "a"]]
            found = client.post("/predict", json={"inputs": wrong})
            assert found.status_code == 422 and words in found.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "not JSON"),
        ("[" * 100_000, 413, "bytes"),
        ("[" * 2_000, 400, "not JSON"),
        ('{"inputs": 1' + "0" * 1_500 + "}", 422, "got a long number"),
        ("\xff", 400, "not JSON"),
        ('"a"', 422, 'wants an object such as {"inputs": "a text"}, got "a"'),
        ("{}", 422, "inputs: missing"),
        ('{"inputs": []}', 422, "the list is empty"),
        ('{"inputs": null}', 422, "inputs: wants a text"),
        ('{"inputs": ["a", 5]}', 422, "inputs[1]: wants a text"),
        ('{"inputs": [["a", "b"]]}', 422, "inputs[0]: wants a text"),
        ('{"inputs": {"text": 5}}', 422, "inputs: text: wants a string, got 5"),
        ('{"inputs": {"text_pair": "a"}}', 422, "inputs: text: wants a string, got null"),
        ('{"inputs": {"text": "a", "text_pair": []}}', 422, "text_pair: wants a string, got a list"),
        ('{"inputs": {"text": "a", "txt": "b"}}', 422, "txt: not known"),
        ('{"inputs": ["a", {"text": "a", "text_pair": "b"}]}', 422, "and not both"),
        ('{"inputs": "a", "input": "b"}', 422, "input: not known; did you mean inputs?"),
        ('{"inputs": "a", "parameters": []}', 422, "parameters: wants an object"),
        ('{"inputs": "a", "parameters": {"topk": 1}}', 422, "parameters.topk: not known; did you mean top_k?"),
        ('{"inputs": "a", "parameters": {"top_k": 0}}', 422, "top_k: wants a whole number from 1 on, got 0"),
        ('{"inputs": "a", "parameters": {"top_k": true}}', 422, "got true"),
        ('{"inputs": "a", "parameters": {"top_k": 1.5}}', 422, "got 1.5"),
        ('{"inputs": "a", "parameters": {"top_k": NaN}}', 422, "got NaN"),
        ('{"inputs": "a", "parameters": {"function_to_apply": "relu"}}', 422, "one of softmax, sigmoid, none"),
        ('{"inputs": "a", "parameters": {"function_to_apply": []}}', 422, "got a list"),
        ('{"inputs": ["a", "a", "a", "a", "a"]}', 413, "5 texts, and a request may have 4"),
        (json.dumps({"inputs": "a" * 101}), 413, "101 characters, and a request may have 100"),
        (json.dumps({"inputs": ["a" * 60, {"text": "b" * 41}]}), 413, "101 characters"),
        ('{"\\ud800\\u001b[31m\\u202e": 1}', 422, "not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_one_line(client, body, status, words):
    found = client.post("/predict", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert found.status_code == status and found.headers["content-type"] == "application/json"
    assert list(found.json()) == ["error"] and words in found.json()["error"] and len(found.text) < 400
    assert found.text.endswith("\n") and found.text.isascii() and not re.search(r"[\x00-\x1f]", found.text[:-1])


def test_a_request_within_the_limits_fits_however_it_is_escaped(client):
    texts = ["\U0001f600" * 25] * 4
    escaped = '{ "inputs" : [ ' + " , ".join('{ "text" : "' + "\\ud83d\\ude00" * 25 + '" }' for _ in texts) + " ] }"
    found = client.post("/predict", content=escaped, headers={"Content-Type": "application/json"})
    assert found.status_code == 200 and found.json() == client.post("/predict", json={"inputs": texts}).json()


def test_a_body_without_a_length_is_read_no_further_than_the_limit(client):
    parts = (b" " * 1_000 for _ in range(1_000))
    found = client.post("/predict", content=parts, headers={"Content-Type": "application/json"})
    assert found.status_code == 413 and "more than" in found.json()["error"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_read(client, kind):
    """A form of another site can send these kinds, and no other, without asking the server first."""
    found = client.post("/predict", content=b'{"inputs": "a"}', headers={"Content-Type": kind} if kind else {})
    assert found.status_code == 415 and "wants application/json" in found.json()["error"]
    ours = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/predict", content=b'{"inputs": "a"}', headers=ours).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("GET", "/nope", 404), ("DELETE", "/", 405), ("POST", "/predict/onnx-int8", 404)],
)
def test_what_is_not_there_is_one_line_too(client, method, path, status):
    found = client.request(method, path, headers={"Content-Type": "application/json"})
    assert found.status_code == status and list(found.json()) == ["error"] and found.text.count("\n") == 1


def ask_at_once(client, one, first, *others):
    """Send `first`, and the others while the model computes; return all responses in this order."""
    one.go.clear()
    one.begun.clear()
    with ThreadPoolExecutor(1 + len(others)) as pool:
        asked = [pool.submit(client.post, "/predict", json={"inputs": first})]
        assert one.begun.wait(30)
        texts = 0
        for inputs in others:
            asked.append(pool.submit(client.post, "/predict", json={"inputs": inputs}))
            texts += len(inputs) if isinstance(inputs, list) else 1
            until(lambda texts=texts: waiting(client) >= texts)
        one.go.set()
        return [answer.result(30) for answer in asked]


def waiting(client):
    return metrics(client)["distill_waiting_texts", "known"]


def metrics(client):
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = dict(sample.labels)
            found[sample.name, labels.pop("format"), *labels.values()] = sample.value
    return found


def until(is_true, seconds=30):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_arrives_while_the_model_computes_is_answered_together():
    one = Known()
    with served(one) as client:
        responses = ask_at_once(client, one, "a", "bb", ["ccc", "dddd"], "eeeee")
        assert one.calls == [["a"], ["bb", "ccc", "dddd", "eeeee"]]
        found = [client.post("/predict", json={"inputs": inputs}).json() for inputs in ("a", "bb", ["ccc", "dddd"])]
        assert [response.json() for response in responses[:3]] == found
        assert re.fullmatch(r"queue;dur=[\d.]+, model;dur=[\d.]+", responses[1].headers["server-timing"])
        counted = metrics(client)
        assert counted["distill_requests_total", "known", "200"] == 7
        assert counted["distill_texts_total", "known"] == 9
        assert counted["distill_batch_texts_sum", "known"] == 9
        assert counted["distill_batch_texts_bucket", "known", "4.0"] == 5
        assert counted["distill_request_seconds_count", "known"] == 7
        assert counted["distill_waiting_texts", "known"] == 0


def test_a_text_that_fails_does_not_fail_its_neighbours_and_is_not_logged(capsys, caplog):
    one = Known()
    with served(one) as client, caplog.at_level("DEBUG"):
        responses = ask_at_once(client, one, "a", "bb", "bad", "ccc", "bug", "endless", "dddd")
        assert [response.status_code for response in responses] == [200, 200, 500, 200, 500, 500, 200]
        assert responses[3].json()[0]["label"] == "short"
        assert responses[4].json() == {"error": "the server failed on this request"}
        assert "not finite" in responses[5].json()["error"]
        assert metrics(client)["distill_requests_total", "known", "500"] == 3
    said = caplog.text + "".join(capsys.readouterr())
    assert "RuntimeError at test_serve.py:" in said and SECRET not in said and "Traceback" not in said


def test_if_too_many_texts_wait_the_next_is_asked_to_come_again():
    one = Known()
    with served(one, most_waiting=3) as client:
        *answered, refused = ask_at_once_and_once_more(client, one)
        assert [response.status_code for response in answered] == [200, 200, 200]
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "3 texts wait already" in refused.json()["error"]
        assert client.post("/predict", json={"inputs": "a"}).status_code == 200


def ask_at_once_and_once_more(client, one):
    one.go.clear()
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, "/predict", json={"inputs": "a"})]
        assert one.begun.wait(30)
        for number, inputs in ((2, ["b", "b"]), (3, "c")):
            asked.append(pool.submit(client.post, "/predict", json={"inputs": inputs}))
            until(lambda number=number: waiting(client) >= number)
        refused = client.post("/predict", json={"inputs": "d"})
        one.go.set()
        return [*(answer.result(30) for answer in asked), refused]


def test_a_batch_has_a_bound_and_a_request_is_not_divided():
    one = Known()
    with served(one, limits=Limits(200, 10_000)) as client:
        responses = ask_at_once(client, one, "a", *[["b"] * 30] * 3, ["c"] * 100)
        assert [len(call) for call in one.calls] == [1, 60, 30, 100]
        assert [len(response.json()) for response in responses[1:]] == [30, 30, 30, 100]


def test_health_says_what_is_served(client):
    found = client.get("/health").json()
    assert found == {
        "status": "ok", "model": "a/model", "format": "known", "device": "cpu",
        "labels": ["short", "long\u202e", "même"], "several_labels": False, "reads": None, "max_tokens": 7,
        "max_texts": 4, "max_characters": 100, "formats": ["known"], "distill": found["distill"],
    }  # fmt: skip


def test_the_page_may_ask_its_own_server_and_run_its_own_script_and_nothing_else(client):
    found = client.get("/")
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'" and policy.pop("connect-src") == "'self'"
    assert re.fullmatch(r"'sha256-\S+='", policy.pop("script-src"))
    assert re.fullmatch(r"'sha256-\S+='", policy.pop("style-src"))
    assert policy.pop("img-src") == "data:"  # an empty icon, so that the browser asks for none
    assert set(policy.values()) == {"'none'"} and "frame-ancestors" in policy
    assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(| on\w+=", found.text)
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def exports(tiny_bert, tmp_path_factory):
    """A folder of exports of the tiny BERT: onnx-fp32 and, as the fastest, onnx-int8."""
    folder = tmp_path_factory.mktemp("serve") / "export"
    for name in ("onnx-fp32", "onnx-int8"):
        (folder / name).mkdir(parents=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_bert / file, folder / name)
    trace(distill.load(tiny_bert).session.model, folder / "onnx-fp32" / "model.onnx")
    quantise(folder / "onnx-fp32" / "model.onnx", folder / "onnx-int8" / "model.onnx", Int8Settings(outliers=False), {})
    proofs = {
        name: {"passed": True, "reason": None, "device": "cpu", "texts_per_second": rate}
        for name, rate in (("onnx-fp32", 1.0), ("onnx-int8", 2.0))
    }
    for name, proof in proofs.items():
        (folder / name / "proof.json").write_text(json.dumps(proof))
    (folder / "export.json").write_text(json.dumps(proofs))
    return folder


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(tiny_bert, port):
    assert run("serve", tiny_bert, "--port", port)[0] == 2


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("serve", tmp_path / "no-model", "--port", port)
    assert (code, out) == (2, "") and len(err.splitlines()) == 2
    assert f"--host 127.0.0.1 --port {port}: cannot be had: Address already in use" in err


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70, "\u202e"])
def test_a_host_that_is_not_this_machine_is_one_line(tmp_path, host):
    code, _, err = run("serve", tmp_path / "no-model", "--host", host, "--port", "0")
    assert code == 2 and len(err.splitlines()) == 2 and "cannot be had" in err and "\u202e" not in err


def test_another_host_than_loopback_is_warned_of_and_a_folder_without_formats_has_no_all(tmp_path):
    code, _, err = run("serve", tmp_path, "--host", "0.0.0.0", "--port", "0", "--all")
    assert code == 2 and "--all: " in err and "holds no formats" in err
    assert len([line for line in err.splitlines() if "anybody who reaches port" in line]) == 1
    assert "anybody" not in run("serve", tmp_path, "--port", "0", "--all")[2]


def test_without_the_extra_the_cure_is_one_line(tmp_path):
    for missing in ("starlette", "uvicorn", "prometheus_client"):
        block = f"import sys; sys.modules[{missing!r}] = None; from distill.cli import main; main()"
        # None in sys.modules raises ModuleNotFoundError, as a package that is not installed does.
        command = [sys.executable, "-c", block, "serve", str(tmp_path / "no-model")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.splitlines() == [
            f"error: serve needs {missing}: not installed", "hint: pip install 'distill[serve]'",
        ]  # fmt: skip


@contextmanager
def process(*arguments, blocked=()):
    """`distill serve` in a process of its own, without these modules: the process, its port and what it says."""
    start = "import sys; sys.modules |= dict.fromkeys(sys.argv.pop(1).split()); from distill.cli import main; main()"
    command = [sys.executable, "-c", start, " ".join(blocked), "serve", *map(str, arguments), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if address := re.search(r"http://\S+:(\d+)", line):
                break
        assert address, said
        reader = threading.Thread(target=lambda: said.extend(server.stderr))
        reader.start()
        yield server, int(address[1]), said
        server.wait(60)
        reader.join()
    finally:
        server.kill()
        server.wait()


def post(connection, inputs, path="/predict"):
    connection.request("POST", path, json.dumps({"inputs": inputs}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx-fp32", "onnx-int8"])
def test_fifty_clients_get_the_answers_of_one(exports, tmp_path, format):
    """With int8 also to the last digit: what others ask meanwhile changes no score."""
    texts = [text for text, _ in write_reviews(tmp_path / "texts.csv", 2_000, seed=4)]
    classifier = distill.load(exports / format)
    alone = [classifier([text])[0] for text in texts]
    waiting, found, lock = iter(range(len(texts))), {}, threading.Lock()
    with process(exports / format, blocked=("torch", "transformers", "datasets")) as (server, port, said):

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while True:
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return connection.close()
                found[index] = post(connection, texts[index])

        threads = [threading.Thread(target=client) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.send_signal(signal.SIGTERM)
    assert server.returncode == 143 and said[-1].startswith("interrupted: requests that had begun are answered")
    assert {status for status, _ in found.values()} == {200}
    assert [found[index][1][0]["label"] for index in range(len(texts))] == [answer["label"] for answer in alone]
    scores = [found[index][1][0]["score"] for index in range(len(texts))]
    np.testing.assert_allclose(scores, [answer["score"] for answer in alone], atol=0 if format == "onnx-int8" else 1e-5)
    assert not any(text in line for line in said for text in texts[:50])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_lets_a_request_that_has_begun_end(exports, number, code):
    with process(exports / "onnx-fp32") as (server, port, said):
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        assert post(idle, "good film")[0] == 200  # its connection stays open, and holds up nothing
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        answers = []
        many = ["the film was good " * 100] * 64
        asking = threading.Thread(target=lambda: answers.append(post(connection, many)))
        asking.start()
        time.sleep(0.05)  # so that the request has begun, and most likely has not ended
        server.send_signal(number)
        asking.join()
    assert server.returncode == code and answers[0][0] == 200 and len(answers[0][1]) == 64
    assert said[-1].startswith("interrupted") and "Traceback" not in "".join(said)


@pytest.mark.slow
def test_all_formats_are_served_and_clients_of_the_hub_are_answered(exports):
    with process(exports, "--all") as (server, port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
        assert health["formats"] == ["onnx-int8", "onnx-fp32"] and health["model"].endswith("/export")
        assert str(exports.parent) not in json.dumps(health)
        for format in health["formats"]:
            (answer,) = distill.load(exports / format)(["good film"])
            assert post(connection, "good film", f"/predict/{format}")[1][0] == answer
        connection.close()
        # The example of the page, with this server's port. The Hub's client refuses every address if it is offline.
        page = (ROOT / "docs" / "serving.md").read_text()
        (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "InferenceClient" in one]
        online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        command = [sys.executable, "-c", block.replace(":8000", f":{port}")]
        done = subprocess.run(command, capture_output=True, text=True, env=online, timeout=60)
        (answer,) = distill.load(exports / "onnx-int8")(["A fine film."])
        assert done.stdout.split() == [answer["label"], f"{answer['score']:.4f}"], done.stderr
        server.terminate()
    assert server.returncode == 143


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = """<script>document.title = "taken"</script><img src=x onerror='document.title="taken"'>"""


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason="no chromium and chromedriver here")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_a_text_is_typed_and_answered_by_each_format(exports, tmp_path, width, scheme):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    hostile = tmp_path / "hostile" / "onnx-fp32"  # its labels are markup, and so is the text
    shutil.copytree(exports / "onnx-fp32", hostile)
    config = json.loads((hostile / "config.json").read_text())
    config["id2label"] = {"0": HOSTILE, "1": "positive"}
    (hostile / "config.json").write_text(json.dumps(config | {"label2id": {HOSTILE: 0, "positive": 1}}))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
        "disable-sync", "no-first-run", f"user-data-dir={tmp_path / 'profile'}", f"window-size={width},900",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for folder, formats in ((exports, ["onnx-int8", "onnx-fp32"]), (hostile, ["onnx-fp32"])):
            with process(folder, *(["--all"] if len(formats) > 1 else [])) as (server, port, _):
                url = f"http://127.0.0.1:{port}/"
                driver.get(url)
                WebDriverWait(driver, 20).until(lambda page: "2 labels" in page.find_element(By.ID, "about").text)
                box = driver.find_element(By.ID, "text")
                assert driver.find_element(By.CSS_SELECTOR, "label[for=text]").text == "Text"
                assert not driver.find_element(By.ID, "pair").is_displayed()
                box.send_keys(HOSTILE)
                box.send_keys(Keys.CONTROL, Keys.ENTER)  # with the keyboard alone
                status = driver.find_element(By.ID, "status")
                WebDriverWait(driver, 20).until(lambda page, status=status: status.text.startswith("Answer: "))
                boxes = driver.find_elements(By.TAG_NAME, "section")
                assert [one.find_element(By.TAG_NAME, "h2").text for one in boxes] == formats
                for one in boxes:
                    assert re.search(r"model [\d.]+ ms, round trip [\d.]+ ms", one.text)
                    assert len(one.find_elements(By.TAG_NAME, "li")) == 2
                    widths = [bar.size["width"] for bar in one.find_elements(By.CLASS_NAME, "fill")]
                    assert widths[0] >= widths[1]
                assert driver.title == "Try it: distill"
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
                paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
                assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(23, 23, 26)")
                assert driver.get_log("browser") == []
                events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
                sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
                asked = {request["request"]["url"] for request in sent if request["documentURL"] == url}
                assert all(one.startswith((url, "data:,")) for one in asked)
                server.terminate()
    finally:
        driver.quit()
