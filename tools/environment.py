"""The project's own environment: a .venv beside the README, with distill and the tested versions of its packages.

Standard library only, since this runs on a fresh machine with whatever Python it has.
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
    """Return the Python of .venv, which is made and installed first, unless that is done for the present versions."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python can run this file up to here
        sys.exit(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = ENVIRONMENT / "installed", _wanted()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making {ENVIRONMENT.name} and installing distill into it (once; some minutes)", file=sys.stderr, flush=True)
    venv.create(ENVIRONMENT, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    # torch first, at the tested version: for a range, pip would take the newest, with gigabytes of CUDA libraries
    _call([*pip, "torch"])
    _call([*pip, "--editable", f"{ROOT}[dev]"])
    stamp.write_text(wanted)
    return python


def run(*arguments: str) -> int:
    """Run the environment's Python in the project's root, offline; return its exit status."""
    python = prepare()
    process = subprocess.Popen([str(python), *arguments], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the process got the signal too and may be saving a checkpoint


def _wanted() -> str:
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()


def _call(command: list[str]) -> None:
    if status := subprocess.call(command):
        sys.exit(f"error: {' '.join(command)} failed with exit status {status}; fix what it reports and run this again")
