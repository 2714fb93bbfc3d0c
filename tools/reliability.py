"""Write the table in docs/reliability.md: what the reliability tests cover, and the cases they counted.

usage: python3 tools/reliability.py [--soak SOAK.json] [--fuzz deep]

Runs the test files below, slow tests included, and adds up what they count (pytest's record_property). Then it writes
docs/results/reliability.json and the table between the marks in docs/reliability.md. If a test fails, nothing is
written. SOAK.json is the last line of the output of tools/benchmarks/soak.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from distill.machine.devices import describe_hardware
from distill.machine.provenance import now, versions

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- from tools/reliability.py -->\n", "<!-- to here -->\n"
# Test files in the order of the page, and what each tries.
FILES = {
    "test_kills": "kill -9 at random moments of a run, and while files are written",
    "test_run_folder": "damaged checkpoints, second runs",
    "test_damage": "damaged results, moved runs, divergence",
    "test_files": "power cuts, and files that are replaced together",
    "test_disk_full": "a disk that is full at any write",
    "test_bad_recipes": "recipes and --set",
    "test_bad_data": "data files",
    "test_tables": "misleading tables",
    "test_bad_models": "models, pickles, untrusted code",
    "test_bad_commands": "command lines",
    "test_fuzz": "random recipes and data files (Hypothesis)",
    "test_any_text": "texts of any script and length, files of many rows",
    "test_private": "network and tokens",
    "test_page": "reviews that attack the report's page",
    "test_plots": "names and settings that attack the report's pictures",
    "test_terminal": "control characters in texts, closed outputs",
}


def main() -> None:
    """Run the tests and write the table."""
    parser = argparse.ArgumentParser(
        description="Run the reliability tests and write the table in docs/reliability.md."
    )
    parser.add_argument("--soak", type=Path, help="file with the last line of tools/benchmarks/soak.py")
    parser.add_argument("--fuzz", default="default", help="Hypothesis profile: default or deep")
    arguments = parser.parse_args()
    rows, result = [], {}
    for name, subject in FILES.items():
        found = run(name, arguments.fuzz)
        result[name] = found
        noted = ", ".join(f"{key}: {value}" for key, value in found["noted"].items())
        rows.append({
            "tested": subject,
            "tests": found["tests"],
            "failures": found["failed"],
            "cases": noted or "-",
            "command": f"`pytest tests/{name}.py`",
        })  # fmt: skip
        print(f"{name}: {found}", file=sys.stderr)
    if failed := [name for name, found in result.items() if found["failed"] or not found["tests"]]:
        sys.exit(f"failed or skipped: {', '.join(failed)}; nothing was written")
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    if arguments.soak:
        soak = json.loads(arguments.soak.read_text().splitlines()[-1])
        if not soak["is_flat"]:
            sys.exit("memory grew in the soak; nothing was written")
        result["soak"] = soak
        table += (
            f"\n\nSoak: {soak['texts']} texts of 1 to {soak['max_words']:,} words through {soak['format']} in "
            f"{soak['minutes']:g} minutes; resident memory {soak['early_mb']:.0f} MB in the second tenth of the time, "
            f"{soak['late_mb']:.0f} MB in the last ([curve](results/reliability.json))."
        )
    conditions = {"measured": now(), "hardware": describe_hardware(), "versions": versions(), "fuzz": arguments.fuzz}
    (ROOT / "docs" / "results" / "reliability.json").write_text(json.dumps(result | conditions, indent=1) + "\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def run(name: str, fuzz: str) -> dict[str, object]:
    """Run a test file, slow tests included; return its tests, failures and the sums of what the tests counted."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"tests/{name}.py", f"--junitxml={log}"]
        command += [f"--hypothesis-profile={fuzz}"] if name == "test_fuzz" else []
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False, env=os.environ | {"DISTILL_KILLS": "30"})
        tree = ElementTree.parse(log)
    suite = tree.find(".//testsuite")
    assert suite is not None
    counts, said = Counter[str](), {}
    for noted in tree.iter("property"):
        key, value = noted.attrib["name"], noted.attrib["value"]
        if key.startswith("hypothesis"):  # its own statistics
            continue
        if value.isdigit():
            counts[key] += int(value)
        else:
            said[key] = value
    tests = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {"tests": tests, "failed": failed, "seconds": float(suite.attrib["time"]), "noted": {**counts, **said}}


if __name__ == "__main__":
    main()
