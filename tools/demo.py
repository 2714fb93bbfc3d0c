"""Run the quickstart in the project's own environment: teacher, student, exports and report on synthetic reviews.

usage: python3 tools/demo.py [arguments for `distill run`]
Needs Python 3.11 or newer with venv and pip. Only installing needs a network.
"""

from __future__ import annotations

import sys

import environment

sys.exit(environment.run("-m", "distill", "run", "recipes/quickstart.yaml", *sys.argv[1:]))
