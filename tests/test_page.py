"""The report's page: it has the figures of report.json, loads nothing, and shows hostile texts as texts."""

import json
import random
import re
import shutil
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from py_mini_racer import MiniRacer

from distill.measuring import escalation
from distill.measuring.training_log import training_curve
from distill.report.choice import Budget, choose
from distill.report.dashboard import script_data
from distill.report.document import Findings, write_report

HOSTILE = """<script>document.title = "taken"</script><img src=x onerror='document.title="taken"'>{{ 7 * 7 }}"""
SHAPES = ["1x128", "8x128"]
ENVIRONMENT = {
    "versions": {"torch": "2"},
    "hardware": {"cpu": "c", "gpus": []},
    "test_examples": 100,
    "commonest_class_share": 0.5,
    "measured": "2026",
}
SCRIPT = resources.files("distill").joinpath("templates/report.js").read_text()


def row(role, format, p50, accuracy):
    latency = {
        shape: {"p50": p50 * n, "p95": p50 * n + 1, "p99": p50 * n + 2, "raw": [p50] * 15}
        for n, shape in enumerate(SHAPES, 1)
    }
    return {
        "role": role, "model": f"runs/{role}", "format": format, "device": "cpu", "accuracy": accuracy,
        "folder": f"runs/{role}" if format == "torch-fp32" else f"runs/{role}/{format}", "classes_answered": 2,
        "chance_p_value": 0.0,
        "accuracy_ci95": [accuracy - 0.02, accuracy + 0.02], "thresholds": None, "macro_f1": accuracy - 0.001,
        "roc_auc": 0.95, "ece": 0.051, "brier": 0.123,
        "agreement": 0.99, "size_bytes": 17_000_000, "load_seconds": 0.2, "texts_per_second": 100.0,
        "latency_ms": latency, "confusion": [[40, 7], [5, 48]],
        "classes": [
            {"class": name, "examples": 50, "precision": 0.8, "recall": 0.7, "f1": 0.75, "roc_auc": None}
            for name in (HOSTILE, "positive")
        ],
        "reliability": [{"confidence": 0.7, "accuracy": 0.6, "examples": 10}],
    }  # fmt: skip


ROWS = [
    row("teacher", "torch-fp32", 40.0, 0.90), row("student", "torch-fp32", 20.0, 0.88),
    row("student", "onnx-int8", 5.0, 0.87), row("control", "torch-fp32", 20.0, 0.85),
]  # fmt: skip
LOG = [
    {"epoch": 0.5, "step": 5, "loss": 0.6},
    {"epoch": 1.0, "step": 10, "eval_log_loss": 0.5, "eval_accuracy": 0.8},
    {"epoch": 2.0, "step": 20, "eval_log_loss": 0.4, "eval_accuracy": 0.9},
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every part; its texts, labels and folders attack the page."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 100)
    logits = {name: rng.normal(size=(100, 2)) + skill * np.eye(2)[gold] for name, skill in (("s", 1.0), ("t", 3.0))}
    curve = escalation.cascade_curve(logits["s"], logits["t"], gold, student_ms=5.0, teacher_ms=40.0)
    flipped = {
        "text": HOSTILE, "gold": HOSTILE, "model": HOSTILE, "format": "b", "model_probabilities": {HOSTILE: 0.6},
        "format_probabilities": {"b": 0.7},
    }  # fmt: skip
    found = write_report(
        folder, Findings(ROWS, ENVIRONMENT | {HOSTILE: HOSTILE}, SHAPES, [HOSTILE], label_names=[HOSTILE, "b"],
        trainings=[training_curve("teacher", LOG, 20), training_curve("student", LOG, None)],
        data_name=HOSTILE,
        runs=[{
            "model": f"runs/{role}", "role": role, "origin": HOSTILE, "finished": "2026", "parameters": 22_700_000,
            "seconds": 90.0, "examples_per_second": None, "precision": "fp32", "course": "ran all 20 steps",
        } for role in ("teacher", "student")],
        differences=[{
            "models": ["runs/student", HOSTILE], "keys": [{"key": "student.layers", "values": [HOSTILE, None]}],
        }],
        mistakes=[{
            "model": "runs/student", "teacher": "runs/teacher", "examples": 100, "wrong": 12, "teacher_wrong": 10,
            "both_wrong": 7, "surest": {"runs/student": [{
                "example_id": "test/1", "text": HOSTILE, "gold": HOSTILE,
                "answers": {"runs/student": {"answer": HOSTILE, "probability": 0.9}},
            }], "runs/teacher": []},
        }],
        cascade={"student": HOSTILE, "teacher": "torch", "student_ms": 5.0, "teacher_ms": 40.0, "curve": curve},
        sweeps=[{
            "folder": HOSTILE, "stage": "student", "metric": "accuracy", "direction": "maximize", "best": 1,
            "trials": [
                {"number": 1, "values": {"student.training.optim_args": HOSTILE}, "objective": 0.9, "epoch": 1.0,
                 "seconds": 1.0, "error": None},
                {"number": 2, "values": {"student.training.optim_args": "x"}, "objective": None, "epoch": None,
                 "seconds": 1.0, "error": HOSTILE},
            ],
        }],
        flipped=[{"model": HOSTILE, "format": "onnx-int8", "total": 3, "texts": [flipped]}], recipe=HOSTILE,
        comparisons=[{
            "student": HOSTILE, "control": "c", "examples": 100, "measure": "accuracy", "gain": 0.02,
            "gain_ci95": [0.01, 0.03], "p_value": 0.001, "only_first_correct": 5, "only_second_correct": 3,
        }]),
    )  # fmt: skip
    return folder, found


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(report):
    parser = Tags()
    parser.feed((report[0] / "report.html").read_text())
    return parser


def test_user_text_is_shown_as_text_and_nothing_is_fetched(report, page, record_property):
    html = (report[0] / "report.html").read_text()
    assert "img" not in page.tags and page.tags.count("script") == 2
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    assert script == SCRIPT and len(json.loads(data)["rows"]) == len(ROWS)
    assert not [value for name, value in page.attributes if name.startswith("on")]
    wanted = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") if value[0] != "#"]
    assert not wanted
    # Unchanged in the text, the labels, the note, the recipe, a condition and the trials.
    assert "".join(page.text).count(HOSTILE) >= 17
    record_property("attacks refused", 1)


def test_the_figures_are_those_of_the_json(report, page):
    folder, found = report
    assert json.loads((folder / "report.json").read_text()) == found
    text = " ".join(" ".join(page.text).split())
    for measured in found["measurements"]:
        for shape in SHAPES:
            timed = measured["latency_ms"][shape]
            assert " / ".join(f"{timed[name]:.1f}" for name in ("p50", "p95", "p99")) in text
        for name in ("accuracy", "macro_f1"):
            assert f"{measured[name]:.4f}" in text
    for point in found["cascade"]["curve"]:
        below = "all" if point["below"] is None else f"{point['below']:.4f}"
        assert f"{below} {point['escalated']:.0%} {point['accuracy']:.1%}" in text
    assert found["controls"][0]["sentence"] in text
    assert "Ship the student onnx-int8" in text
    assert "It keeps 96.7% of the teacher's accuracy (87.0% against 90.0%) and is 8.0x as fast." in text
    assert "5.0 against 40.0 ms at 1x128; 8.0 to 8.0 in 3 blocks of calls" in text
    assert "most often it answers 'b' for" in text and "(7 of 47 such texts)" in text
    assert "gets 12 of 100 test texts wrong, the teacher 10. 7 of these texts are the same." in text


def test_every_part_has_its_picture_and_every_id_is_unique(report):
    html = (report[0] / "report.html").read_text()
    # Each for a screen and a phone: two shapes, texts per second, cascade, reliability, speed, training.
    assert html.count("<svg") == 2 * 7
    svg_ids = re.findall(r' id="([^"]+)"', html)
    assert len(svg_ids) == len(set(svg_ids))
    assert "#1d1d20" not in html.split("</style>", 1)[1]  # the ink takes the colour of the page's text


def test_a_report_without_logs_exports_or_shapes_is_still_a_page(tmp_path):
    write_report(
        tmp_path, Findings([{**ROWS[1], "latency_ms": {}}], ENVIRONMENT, ["1x512"], [], label_names=["a", "b"])
    )
    html = (tmp_path / "report.html").read_text()
    assert "No model can be chosen" in html and "<svg" in html


def test_if_no_model_is_within_the_limits_the_page_says_so_and_names_the_nearest(tmp_path):
    found = write_report(tmp_path, Findings(ROWS, ENVIRONMENT, SHAPES, [], label_names=["a", "b"]), Budget(4.0))
    assert found["choice"]["model"] is None and found["choice"]["nearest"]["format"] == "onnx-int8"
    html = (tmp_path / "report.html").read_text()
    assert "<h1>Not yet: no model is within the limits</h1>" in html
    assert "No model is within 4 ms at 1x128; the nearest is the student as onnx-int8" in html


def random_rows(rng):
    """Measurements as choose takes them: several models and formats, some of them equal, some not fit to ship."""
    rows = []
    for number in range(rng.randint(1, 4)):
        role = "teacher" if number == 0 else rng.choice(["student", "student", "control"])
        for format in rng.sample(["torch-fp32", "torch-bf16", "onnx-fp32", "onnx-int8"], rng.randint(1, 4)):
            made = row(role, format, rng.choice([1.0, 2.5, 5.0, 40.0]), rng.choice([0.6, 0.85, 0.87, 0.9]))
            made |= {"model": f"runs/{number}", "folder": f"runs/{number}/{format}"}
            made["size_bytes"] = rng.choice([1_000_000, 17_000_000, 90_000_000])
            rows.append(made | ({"classes_answered": 1} if rng.random() < 0.1 else {}))
    return [row("teacher", "torch-fp32", 40.0, 0.88) | {"model": "runs/t"}, *rows]


def random_budget(rng):
    limits = [
        rng.choice([None, 0.5, 2.5, 10.0, 50.0]),
        rng.choice([None, 0.0, 0.01, 0.03]),
        rng.choice([None, 5, 20.0]),
    ]
    return Budget(*limits) if any(limit is not None for limit in limits) else None


def test_the_slider_picks_what_the_command_picks():
    engine, rng = MiniRacer(), random.Random(0)
    engine.eval(SCRIPT)
    seen = set()
    for _ in range(200):
        rows, budget = random_rows(rng), random_budget(rng)
        choice = choose(rows, "1x128", budget, commonest_share=0.5)
        data = script_data({"measurements": rows, "choice": choice, "budget": None}, "1x128", range(len(rows)))
        limits = {"max_latency_ms": None, "max_drop": None, "max_size_mb": None} | (vars(budget) if budget else {})
        found = engine.call("choose", data["rows"], limits, "1x128", data["teacher"])
        picked = choice if choice["model"] else choice.get("nearest")
        seen.add((choice["model"] is not None, picked is not None))
        if picked is None:
            assert found["index"] is None
            continue
        assert found["within"] == (choice["model"] is not None)
        their = rows[found["index"]]
        assert (their["model"], their["format"]) == (picked["model"], picked["format"]), (budget, rows)
    assert len(seen) == 3  # a choice, a nearest one, nothing that is fit


@pytest.mark.slow
def test_a_page_of_many_models_classes_and_long_texts_can_be_mailed(tmp_path):
    names = [f"class {index}" for index in range(50)]
    matrix = np.full((50, 50), 1).tolist()
    classes = [ROWS[0]["classes"][1] | {"class": name} for name in names]
    rows = [
        row("student" if number else "teacher", format, 5.0 + place, 0.8 + number / 100)
        | {"model": f"runs/{number}", "folder": f"runs/{number}/{format}", "confusion": matrix, "classes": classes}
        for number in range(4)
        for place, format in enumerate(
            ["torch-fp32", "torch-bf16", "onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-int8"]
        )
    ]
    text = {"text": "字" * 50_000, "gold": "class 1", "example_id": "test/1"}
    answers = {f"runs/{number}": {"answer": "class 2", "probability": 0.9} for number in range(4)}
    flipped = text | {
        "model": "class 1", "format": "class 2", "model_probabilities": {"class 1": 0.6},
        "format_probabilities": {"class 2": 0.7},
    }  # fmt: skip
    mistakes = [
        {"model": f"runs/{number}", "teacher": None, "examples": 100, "wrong": 9,
         "surest": {f"runs/{number}": [text | {"text": "字" * 1_000, "answers": answers}] * 5}}
        for number in range(4)
    ]  # fmt: skip
    write_report(
        tmp_path,
        Findings(
            rows, ENVIRONMENT, ["1x128", "8x128"], label_names=names, mistakes=mistakes,
            flipped=[{"model": f"runs/{number}", "format": "onnx-int8", "total": 30, "texts": [flipped] * 10}
                     for number in range(15)],
        ),
    )  # fmt: skip
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    """A function that opens the page in Chromium at a width, light or dark, and returns the driver."""
    from selenium import webdriver

    drivers = []

    def opened(page, width, scheme):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
            "disable-sync", "no-first-run", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
            f"window-size={width},900",
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        drivers.append(driver)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(page.as_uri())
        return driver

    yield opened
    for driver in drivers:
        driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason="no chromium and chromedriver here")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_the_page_fetches_nothing_and_runs_no_review(report, open_page, width, scheme):
    from axe_core_python.selenium import Axe
    from selenium.webdriver.common.by import By

    url = (report[0] / "report.html").as_uri()
    driver = open_page(report[0] / "report.html", width, scheme)
    assert driver.title == f"Ship the student onnx-int8 - {HOSTILE}"
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {request["request"]["url"] for request in sent if request["documentURL"] == url} == {url}
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width  # only tables scroll
    pictures = [picture for picture in driver.find_elements(By.TAG_NAME, "svg") if picture.is_displayed()]
    assert len(pictures) == 5 and all(picture.size["height"] > 60 for picture in pictures)
    faults = [found for found in Axe().run(driver)["violations"] if found["impact"] in ("serious", "critical")]
    assert not faults, [(found["id"], found["nodes"][0]["html"][:200]) for found in faults]


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason="no chromium and chromedriver here")
def test_sliders_move_the_choice_and_a_click_keeps_a_model(report, open_page):
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    driver = open_page(report[0] / "report.html", 1280, "light")
    answer = driver.find_element(By.CSS_SELECTOR, "#limits output")
    picked = "return [...document.querySelectorAll('#models tr.picked th')].map((cell) => cell.innerText)"
    assert answer.text.startswith("Chosen without limits: student onnx-int8: 87.0%, 5.0 ms at 1x128")
    slide = (
        "const slider = document.querySelector(`[name=${arguments[0]}]`); slider.value = arguments[1];"
        "slider.dispatchEvent(new Event('input'))"
    )
    for name, value, limits, typed in (
        ("max_drop", 20, {"max_drop": 0.01}, "--max-drop 0.01"),
        ("max_drop", 40, {"max_drop": 0.02}, "--max-drop 0.02"),
        ("max_latency_ms", 0, {"max_drop": 0.02, "max_latency_ms": 4.5}, "--max-latency-ms 4.5 --max-drop 0.02"),
    ):
        driver.execute_script(slide, name, value)
        choice = choose(ROWS, "1x128", Budget(**limits), commonest_share=0.5)
        assert typed in answer.text
        wanted = [f"{choice['role']} {choice['format']}"] if choice["model"] else []
        assert driver.execute_script(picked) == wanted
    assert driver.find_elements(By.CSS_SELECTOR, "#front line.limit")
    driver.find_element(By.CSS_SELECTOR, "#limits button").click()
    assert driver.execute_script(picked) == ["student onnx-int8"]
    kept = driver.find_element(By.ID, "kept")
    driver.find_element(By.CSS_SELECTOR, "#models tbody tr:nth-child(4) button").click()
    assert kept.text.splitlines()[2:] == ["control torch-fp32 85.0% 20.0 40.0 100 17.0"]
    point = next(one for one in driver.find_elements(By.CSS_SELECTOR, '[data-part="row-1"]') if one.is_displayed())
    webdriver.ActionChains(driver).move_to_element(point).perform()
    assert "student torch-fp32\n88.0%, 17.0 MB" in driver.find_element(By.ID, "tip").text
    driver.find_elements(By.CSS_SELECTOR, "#models thead button")[1].click()
    accuracies = [row.text.split()[2] for row in driver.find_elements(By.CSS_SELECTOR, "#models tbody tr")]
    assert accuracies == sorted(accuracies, reverse=True)
