"""Run the tests in the project's own environment.

usage: python3 tools/test.py [--tier default|slow|gpu|network|all] [arguments for pytest]
"""

from __future__ import annotations

import sys

import environment

TIERS = {
    "default": "not slow and not gpu and not network",
    "slow": "slow and not gpu and not network",
    "gpu": "gpu",
    "network": "network",
    "all": "not gpu and not network",
}
arguments = sys.argv[1:]
tier = "default"
if arguments[:1] == ["--tier"]:
    tier, arguments = arguments[1] if len(arguments) > 1 else "", arguments[2:]
if tier not in TIERS:
    sys.exit(f"error: --tier {tier}: not one of {', '.join(TIERS)}")
# One worker per core and one file per worker, so fixtures of a file are made once. Long files come first (conftest.py).
# A worker that crashed is not replaced, since pytest-xdist then waits for ever at the end.
shared = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "0")
sys.exit(environment.run("-m", "pytest", *shared, "-m", TIERS[tier], *arguments))
