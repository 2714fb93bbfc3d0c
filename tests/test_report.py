import json

import pytest

from distill.report import choose, table, write_report

ENVIRONMENT = {"versions": {"torch": "2"}, "hardware": {"cpu": "c", "gpus": []}, "test_examples": 100}


def row(role, format, p50, accuracy, **more):
    return {
        "role": role, "model": f"runs/{role}", "format": format, "device": "cpu", "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.02, accuracy + 0.02], "macro_f1": accuracy, "ece": 0.05, "agreement": 0.99,
        "size_bytes": 17_000_000, "load_seconds": 0.2, "texts_per_second": 100.0,
        "latency_ms": {"1x128": {"p50": p50, "p95": p50, "p99": p50, "raw": [p50]}},
    } | more  # fmt: skip


ROWS = [
    row("teacher", "torch-fp32", 40.0, 0.90),
    row("student", "torch-fp32", 20.0, 0.88),
    row("student", "onnx-int8", 5.0, 0.87),
]


def test_the_choice_is_the_fastest_student_and_its_numbers_are_those_of_the_rows():
    choice = choose(ROWS, "1x128")
    assert (choice["role"], choice["format"], choice["device"]) == ("student", "onnx-int8", "cpu")
    assert choice["accuracy_of_teacher"] == pytest.approx(0.87 / 0.90)
    assert choice["speedup_over_teacher"] == pytest.approx(8)
    for fact in ("87.00%", "90.00%", "17.0 MB", "5.0 ms", "8.0 x", "96.7%"):
        assert fact in choice["reason"]


def test_test_accuracy_does_not_choose():
    worse = [*ROWS, row("student", "onnx-fp16", 4.0, 0.5)]
    assert choose(worse, "1x128")["format"] == "onnx-fp16"


def test_nothing_is_chosen_where_no_student_was_measured():
    assert choose(ROWS[:1], "1x128") == {"model": None, "reason": "no student was measured"}


def test_a_report_is_json_markdown_and_a_picture(tmp_path):
    report = write_report(tmp_path / "r", ROWS, ENVIRONMENT, ["1x128", "1x512"], ["a note <b>"])
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == report
    assert report["measurements"] == ROWS
    text = (tmp_path / "r" / "report.md").read_text()
    assert "a note <b>" in text and "accuracy_latency.png" in text
    assert (tmp_path / "r" / "accuracy_latency.png").read_bytes().startswith(b"\x89PNG")


def test_a_shape_that_a_model_cannot_take_is_a_dash_in_its_row():
    lines = table(
        [*ROWS, row("student", "onnx-fp32", 9.0, 0.88, latency_ms={})], ["1x128"], style="github"
    ).splitlines()
    assert " 9.0" not in lines[-1] and "| -" in lines[-1]
    assert len({line.count("|") for line in lines}) == 1


def test_without_a_shape_that_fits_all_there_is_no_picture(tmp_path):
    write_report(tmp_path, [row("student", "onnx-fp32", 9.0, 0.88, latency_ms={})], ENVIRONMENT, ["1x512"], [])
    assert not (tmp_path / "accuracy_latency.png").exists()
    assert "png" not in (tmp_path / "report.md").read_text()
