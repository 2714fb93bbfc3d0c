"""Pictures do not depend on a user's matplotlib settings, and names in them are never read as formulas."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRAW = """
import sys
from pathlib import Path
from distill.report import plots
evaluation = {"step": 1, "epoch": 1.0, "log_loss": 0.5, "accuracy": 0.9}
run = {"role": "$\\\\frac{a$ $5 or $6", "steps": [{"step": 1, "epoch": 1.0, "loss": 0.5}], "evaluations": [evaluation],
       "selected_step": 1}
plots.save_png(plots.learning_curves([run]), Path(sys.argv[1]))
Path(sys.argv[1]).with_suffix(".svg").write_text(plots.as_svg(plots.learning_curves([run]), "a"))
"""
SETTINGS = "text.usetex: True\nfont.size: 90\nsavefig.dpi: 1\nfigure.facecolor: red\nno.such: 3\nbackend: nothing\n"


def drawn(folder, content=None, **environment):
    folder.mkdir()
    if content == "pipe":
        os.mkfifo(folder / "matplotlibrc")
    elif content is not None:
        (folder / "matplotlibrc").write_bytes(content)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    command = [sys.executable, "-c", DRAW, str(folder / "curve.png")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "5 or $6" in (folder / "curve.svg").read_text()
    return (folder / "curve.png").read_bytes(), (folder / "curve.svg").read_text()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("plots") / "plain")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
@pytest.mark.parametrize("content", [SETTINGS.encode(), b"\xff\xfe\x00: \x80", "pipe"], ids=["TeX", "no text", "pipe"])
def test_settings_in_the_working_directory_change_nothing(content, tmp_path, plain, record_property):
    assert drawn(tmp_path / "there", content) == plain
    record_property("attacks refused", 1)


def test_settings_that_the_environment_names_change_nothing(tmp_path, plain, record_property):
    (tmp_path / "rc").write_text(SETTINGS)
    assert drawn(tmp_path / "there", MATPLOTLIBRC=str(tmp_path / "rc")) == plain
    record_property("attacks refused", 1)
