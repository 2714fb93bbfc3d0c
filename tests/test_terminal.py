"""What is printed: no stranger's text steers the terminal, and what is not written is told."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import run
from test_bad_models import WEIGHTS, config, graph_of

from distill.errors import STEERING
from distill.machine.terminal import Guarded, NotWritten

EVIL = "\x1b[2J\x9b31m\u202eevil\x7f\x07\r\u2028\ud800"
STEERS = r"[^\x20-\x7e\n\t\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]"


@pytest.mark.parametrize("is_log", [True, False])
def test_what_steers_is_spelt_and_json_stays_what_it_was(is_log):
    stream = io.StringIO()
    value = {"text": f"a {EVIL}", "名": ["ü"]}
    print(json.dumps(value, ensure_ascii=False), file=Guarded(stream, is_log=is_log))
    line = stream.getvalue()
    assert line.endswith("\n") and not STEERING.search(line.rstrip("\n")) and "名" in line and "ü" in line
    assert json.loads(line) == value


def test_a_line_of_progress_moves_and_a_text_in_it_does_not():
    stream = io.StringIO()
    log = Guarded(stream, is_log=True)
    for text in ("\rteacher: 3/4 \x1b[A", "\x1b[A", "\n\n", "a\rb"):
        log.write(text)
    assert stream.getvalue() == "\rteacher: 3/4 \\u001b[A" + "\x1b[A" + "\n\n" + "a\\u000db"


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_that_nobody_reads_is_no_error_and_a_result_is():
    log = Guarded(Gone(), is_log=True)
    log.write("a")
    log.flush()
    with pytest.raises(NotWritten, match="Broken pipe"):
        Guarded(Gone(), is_log=False).write("a")


def evil_classes(folder):
    config(id2label={"0": f"bad{EVIL[:-1]}", "1": "good"}, label2id={})(folder)


def evil_nodes(folder):
    """A graph that cannot be loaded; the runtime's message names its node."""
    import onnx

    graph = graph_of(("batch", 2), "logits")
    graph.graph.node[0].name = f"node {EVIL[:-1]}"
    graph.graph.node[0].op_type = "NoSuchThing"
    (folder / WEIGHTS).unlink()
    onnx.save(graph, folder / "model.onnx")


def evil_runs(folder):
    """A graph that fails as it runs."""
    import onnx

    graph = graph_of(("batch", "classes"), "logits")
    for tensor in graph.graph.initializer:
        if tensor.name == "axis":
            tensor.int64_data[:] = [7]
    graph.graph.node[1].name = f"node {EVIL[:-1]}"
    (folder / WEIGHTS).unlink()
    onnx.save(graph, folder / "model.onnx")


@pytest.mark.parametrize("change", [evil_classes, evil_nodes, evil_runs])
@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_no_name_of_a_strangers_reaches_the_terminal_as_it_is(
    change, json_, tmp_path, tiny_bert, capfd, record_property
):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    change(model)
    code, out, err = run("predict", model, "a good film", *json_)
    assert code == (0 if change is evil_classes else 2), err
    past_python = "".join(capfd.readouterr())  # what a library wrote to the descriptors itself
    for text in (out, err, past_python):
        assert not STEERING.search(text.replace("\n", "").replace("\t", "").replace("\r", "")), text
    if code == 0 and json_:
        assert f"bad{EVIL[:-1]}" in json.loads(out)[0]["probabilities"]
    record_property("attacks refused", 1)


def test_a_recipe_with_what_steers_is_shown_so_that_it_reads_back(recipe_path, tmp_path):
    recipe = json.loads(recipe_path.read_text())
    recipe["teacher"]["output"] = f"out{EVIL[:-1]}"
    recipe_path.write_text(json.dumps(recipe))
    code, out, err = run("check", recipe_path)
    assert code == 0 and not STEERING.search(out.replace("\n", "")), err
    (tmp_path / "again.yaml").write_text(out)
    assert run("check", tmp_path / "again.yaml", "--json")[1] == run("check", recipe_path, "--json")[1]


def distill(*arguments, shell, **options):
    """`distill` in a process of its own, its streams as the shell is told."""
    command = f'"{sys.executable}" -m distill {" ".join(arguments)} {shell}'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize(
    ("shell", "expected", "said"),
    [
        (">/dev/full", 2, "error: stdout: cannot be written: No space left on device\n"),
        (">&-", 2, "error: stdout: cannot be written: it is closed\n"),
        ("| true; exit ${PIPESTATUS[0]}", (0, 141), ""),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_what_was_not_written_is_not_done(shell, expected, said):
    done = distill("--help", shell=shell)
    assert done.returncode in (expected if isinstance(expected, tuple) else (expected,)), done
    assert done.stderr == said


def test_a_hangup_ends_as_a_hangup(tmp_path):
    """Where nothing is trained; with nohup it ends nothing."""
    code = f"""
import os, signal, sys
if sys.argv.pop() == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from distill import cli
cli._commands = lambda: os.kill(os.getpid(), signal.{signal.SIGHUP.name}) or sys.exit(7)
cli.main()
"""
    for how, expected in (("plain", 129), ("nohup", 7)):
        done = subprocess.run([sys.executable, "-c", code, "convert", "x", "--output", "y", how], capture_output=True)
        assert done.returncode == expected, done
