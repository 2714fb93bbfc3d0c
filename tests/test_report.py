import json
import re

import pytest

from distill.cli import _print_report
from distill.report.choice import choose
from distill.report.document import Findings, write_report
from distill.report.sentences import control_sentence, sweep_sentence
from distill.report.tables import table

ENVIRONMENT = {
    "versions": {"torch": "2"},
    "hardware": {"cpu": "c", "gpus": []},
    "test_examples": 100,
    "commonest_class_share": 0.4,
    "measured": "2026",
}


def row(role, format, p50, accuracy, **more):
    return {
        "role": role, "model": f"runs/{role}", "format": format, "device": "cpu", "accuracy": accuracy,
        "folder": f"runs/{role}" if format == "torch-fp32" else f"runs/{role}/export/{format}", "classes_answered": 2,
        "chance_p_value": 0.0,
        "accuracy_ci95": [accuracy - 0.02, accuracy + 0.02], "thresholds": None, "macro_f1": accuracy, "roc_auc": None,
        "ece": 0.05, "brier": 0.123, "classes": [],
        "agreement": 0.99, "size_bytes": 17_000_000, "load_seconds": 0.2, "texts_per_second": 100.0,
        "latency_ms": {"1x128": {"p50": p50, "p95": p50, "p99": p50, "raw": [p50] * 15}},
    } | more  # fmt: skip


ROWS = [
    row("teacher", "torch-fp32", 40.0, 0.90),
    row("student", "torch-fp32", 20.0, 0.88),
    row("student", "onnx-int8", 5.0, 0.87),
]


def test_the_choice_is_the_fastest_student_and_its_numbers_are_those_of_the_rows():
    choice = choose(ROWS, "1x128", commonest_share=0.4)
    assert (choice["role"], choice["format"], choice["device"]) == ("student", "onnx-int8", "cpu")
    assert choice["accuracy_of_teacher"] == pytest.approx(0.87 / 0.90)
    assert choice["speedup_over_teacher"] == pytest.approx(8)
    assert choice["speedup_of_the_student_itself"] == pytest.approx(2)  # torch against torch; the rest is the export's
    for fact in (
        "87.00%",
        "90.00%",
        "17.0 MB",
        "5.0 ms",
        "8.0x",
        "96.7%",
        "The smaller model alone gives 2.0x (range 2.0 to 2.0",
    ):
        assert fact in choice["reason"]


def test_the_smaller_models_share_is_left_out_if_it_is_unknown_or_the_whole():
    torch_student, teacher = ROWS[1], ROWS[0]
    for rows in ([teacher, torch_student], [teacher, ROWS[2]]):
        choice = choose(rows, "1x128", commonest_share=0.4)
        assert "smaller model" not in choice["reason"] and "speedup_of_the_student_itself" not in choice


def test_test_accuracy_does_not_choose():
    worse = [*ROWS, row("student", "onnx-fp16", 4.0, 0.5)]
    assert choose(worse, "1x128", commonest_share=0.4)["format"] == "onnx-fp16"


def test_nothing_is_chosen_if_no_student_was_measured():
    assert choose(ROWS[:1], "1x128", commonest_share=0.4) == {
        "model": None, "summary": "no student was measured", "reason": "no student was measured", "unfit": [],
    }  # fmt: skip


def test_a_report_is_json_markdown_and_a_picture(tmp_path):
    report = write_report(tmp_path / "r", Findings(ROWS, ENVIRONMENT, ["1x128", "1x512"], ["a note <b>"]))
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == report
    assert report["measurements"] == ROWS
    text = (tmp_path / "r" / "report.md").read_text()
    assert "a note <b>" in text and "accuracy_latency.png" in text
    assert (tmp_path / "r" / "accuracy_latency.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_the_models_only_if_a_role_has_several(tmp_path):
    other = [one | {"model": "runs/other"} for one in ROWS[1:]]
    for rows, named in ((ROWS, []), ([*ROWS, *other], ["runs/teacher", *["runs/student"] * 2, *["runs/other"] * 2])):
        head, _, *lines = table(rows, ["1x128"], style="github").splitlines()
        assert ("model" in head.split()) == bool(named)
        assert [line.split()[3] for line in lines if named] == named
        write_report(tmp_path, Findings(rows, ENVIRONMENT, ["1x128"]))
        html = (tmp_path / "report.html").read_text()
        name = "other" if named else "student"
        assert f">{name} onnx-int8</th>" in html


def comparison(gain, low, high, p_value):
    return {
        "examples": 1000, "measure": "accuracy", "gain": gain, "gain_ci95": [low, high], "p_value": p_value,
        "only_first_correct": 40, "only_second_correct": 21, "student": "runs/student", "control": "runs/control",
    }  # fmt: skip


@pytest.mark.parametrize(
    "numbers, sentence",
    [
        (
            (0.019, 0.008, 0.030, 0.0012),
            "Distilling gained 1.9 points of test accuracy over the same student trained on labels alone "
            "(95 % interval 0.8 to 3.0), p = 0.001.",
        ),
        (
            (-0.019, -0.030, -0.008, 0.0003),
            "Distilling lost 1.9 points of test accuracy against the same student trained on labels alone "
            "(95 % interval 0.8 to 3.0), p < 0.001.",
        ),
        (
            (0.003, -0.009, 0.015, 0.6),
            "No gain was found: the distilled student is 0.3 points above the same student trained on labels alone "
            "(95 % interval -0.9 to 1.5), p = 0.60.",
        ),
        (
            (-0.003, -0.015, 0.009, 0.0712),
            "No gain was found: the distilled student is 0.3 points below the same student trained on labels alone "
            "(95 % interval -1.5 to 0.9), p = 0.071.",
        ),
        (
            (-0.0002, -0.0004, 0.0003, 1.0),
            "No gain was found: the distilled student is level with the same student trained on labels alone "
            "(95 % interval 0.0 to 0.0), p = 1.00.",
        ),
    ],
)
def test_a_comparison_with_the_control_is_one_sentence_whatever_it_found(numbers, sentence):
    assert control_sentence(comparison(*numbers)) == sentence


def test_the_sentence_comes_right_after_the_answer(tmp_path):
    found = comparison(0.019, 0.008, 0.030, 0.0012)
    rows = [*ROWS, row("control", "torch-fp32", 20.0, 0.86)]
    report = write_report(tmp_path, Findings(rows, ENVIRONMENT, ["1x128"], [], comparisons=[found]))
    assert report["controls"] == [found | {"sentence": control_sentence(found)}]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    paragraphs = (tmp_path / "report.md").read_text().split("\n\n")
    assert "fastest student" in paragraphs[1] and paragraphs[2] == control_sentence(found)


def test_an_unfit_model_is_the_first_thing_in_the_report(tmp_path, capsys):
    found = comparison(-0.13, -0.16, -0.10, 0.0004)
    constant = {"accuracy": 0.4, "accuracy_ci95": [0.3, 0.5], "classes_answered": 1}
    rows = [ROWS[0], *(row | constant for row in ROWS[1:])]
    report = write_report(tmp_path, Findings(rows, ENVIRONMENT, ["1x128"], [], comparisons=[found]))
    said = "The student is not fit to ship: it predicts the same class for every test text (40.00% accuracy; "
    assert report["choice"]["model"] is None
    assert [unfit["folder"] for unfit in report["choice"]["unfit"]] == ["runs/student"]
    assert (tmp_path / "report.md").read_text().split("\n\n")[1].startswith(said)
    html = (tmp_path / "report.html").read_text()
    assert "<h1>Do not ship: no student is fit</h1>" in html and "Ship the" not in html
    lead = re.search(r'<p class="lead">(.*?)</p>', html, re.DOTALL)[1]
    assert lead.startswith("The student (runs/student) is not fit to ship: it predicts the same class")
    assert "What to do: take the control instead" in lead and html.count("is not fit to ship") == 2  # and why, folded
    _print_report(report, tmp_path, json_=False)
    said = capsys.readouterr().out.split("\n\n")[1]  # after the table
    assert said.startswith("the student is not fit to ship") and "it is in" not in said


def test_if_there_are_several_controls_each_sentence_names_its_student(tmp_path):
    found = [comparison(0.019, 0.008, 0.030, 0.0012) | {"student": name} for name in ("runs/a", "runs/b")]
    write_report(tmp_path, Findings(ROWS, ENVIRONMENT, ["1x128"], [], comparisons=found))
    text = (tmp_path / "report.md").read_text()
    assert "runs/a: Distilling gained" in text and "runs/b: Distilling gained" in text


def test_without_a_control_there_is_no_sentence(tmp_path):
    assert write_report(tmp_path, Findings(ROWS, ENVIRONMENT, ["1x128"], []))["controls"] == []
    assert "labels alone" not in (tmp_path / "report.md").read_text()


def test_the_brier_score_has_a_column_and_an_explanation(tmp_path):
    write_report(tmp_path, Findings(ROWS, ENVIRONMENT, ["1x128"], []))
    text = (tmp_path / "report.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| role"))
    column = [cell.strip() for cell in header.split("|")].index("Brier")
    rows = [
        line.split("|")[column].strip() for line in text.splitlines() if line.startswith(("| teacher", "| student"))
    ]
    assert rows == ["0.123"] * 3
    assert "The Brier score is" in text


def test_a_latency_far_below_a_millisecond_is_not_shown_as_zero():
    shown = table(
        [row("student", "onnx-fp32", 0.034, 0.88), row("teacher", "torch-fp32", 306.25, 0.9)], ["1x128"], style="simple"
    )
    assert " 0.03 " in shown and " 306.2 " in shown


def test_a_shape_that_a_model_cannot_take_is_a_dash_in_its_row():
    lines = table(
        [*ROWS, row("student", "onnx-fp32", 9.0, 0.88, latency_ms={})], ["1x128"], style="github"
    ).splitlines()
    assert " 9.0" not in lines[-1] and "| -" in lines[-1]
    assert len({line.count("|") for line in lines}) == 1


def test_without_a_shape_that_fits_every_model_there_is_no_picture(tmp_path):
    write_report(
        tmp_path, Findings([row("student", "onnx-fp32", 9.0, 0.88, latency_ms={})], ENVIRONMENT, ["1x512"], [])
    )
    assert not (tmp_path / "accuracy_latency.png").exists()
    assert "png" not in (tmp_path / "report.md").read_text()


def test_latencies_that_scatter_have_a_note(tmp_path):
    calm = write_report(tmp_path / "calm", Findings(ROWS, ENVIRONMENT, ["1x128"], []))
    assert calm["notes"] == [] and calm["choice"]["folder"] == "runs/student/export/onnx-int8"
    latency = {"1x128": {"p50": 5.0, "p95": 40.0, "p99": 50.0, "raw": [5.0] * 15}}
    rows = [*ROWS, row("student", "onnx-fp16", 5.0, 0.8, latency_ms=latency)]
    (note,) = write_report(tmp_path / "busy", Findings(rows, ENVIRONMENT, ["1x128"], []))["notes"]
    assert "p95 is 8.0 times p50 for student onnx-fp16 at 1x128" in note
    assert note in (tmp_path / "busy" / "report.html").read_text()


def test_a_search_says_if_its_best_trial_is_tied_and_if_all_failed():
    trials = [{"number": n, "objective": value} for n, value in enumerate((0.5, 0.9, 0.9, None), start=1)]
    found = {"stage": "student", "metric": "accuracy", "trials": trials, "best": 2}
    assert (
        "Trial 2 of 4 was best, with a validation accuracy of 0.9000, the first of 2 that reached it."
        in sweep_sentence(found)
    )
    assert "the first of" not in sweep_sentence(found | {"trials": trials[:2]})
    assert sweep_sentence(found | {"trials": trials[3:], "best": None}) == "All trials failed (1)."
