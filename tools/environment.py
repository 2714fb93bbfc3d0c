"""The project's own environment: a .venv beside the README with distill and its tested versions in it.

Standard library only: this runs on a fresh machine, with the Python that is there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"


def prepare() -> Path:
    """Make .venv and install into it where that has not been done with these files; return its Python."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python can read this file, and should be told
        sys.exit(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = ENVIRONMENT / "installed", _wanted()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making {ENVIRONMENT.name} and installing distill into it (once; some minutes)", file=sys.stderr, flush=True)
    venv.create(ENVIRONMENT, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    # torch first, at the version tested: asked for by a range, pip takes the newest, with gigabytes of CUDA libraries
    _call([*pip, "torch"])
    _call([*pip, "--editable", f"{ROOT}[dev]"])
    stamp.write_text(wanted)
    return python


def run(*arguments: str) -> int:
    """Run Python in the environment from the project's root, offline; return its exit status."""
    python = prepare()
    process = subprocess.Popen([str(python), *arguments], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # it got the signal too, and is saving a checkpoint


def _wanted() -> str:
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()


def _call(command: list[str]) -> None:
    if status := subprocess.call(command):
        sys.exit(f"error: {' '.join(command)} failed with exit status {status}; mend what it says and run this again")
