"""Set up and run the quickstart: teacher, student, exports and report on reviews that come with the project.

usage: python3 tools/demo.py [arguments for `distill run`]
Needs Python 3.11 with venv and pip, and a network only to install.
"""

from __future__ import annotations

import sys

import environment

sys.exit(environment.run("-m", "distill", "run", "recipes/quickstart.yaml", *sys.argv[1:]))
