"""Set up and run the tests.

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
# A worker a core, a file to a worker: what a file's tests share is made once. The longest come first (conftest.py).
shared = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
sys.exit(environment.run("-m", "pytest", *shared, "-m", TIERS[tier], *arguments))
