"""How much faster a search is in two processes than in one.  `make bench-jobs` prints it.

Runs of ``rcusim explore`` alternate, so that whatever else the machine does meets both; the figure
is the ratio of the medians of the seconds that they report, those of starting workers included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "from sim.cli import main; main()")  # ``rcusim`` of this tree
OPTIONS = ("--strategy", "dpor", "--max-duration", "3600", "--json")
PROVED = 0  # exit code


def measure(workload: list[str], jobs: int) -> tuple[float, int]:
    """Seconds and executions of one run."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [*COMMAND, "explore", *workload, *OPTIONS, "--jobs", str(jobs), "--out", out],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != PROVED:
        sys.exit(f"exit code {done.returncode}: {done.stderr}")
    result = json.loads(done.stdout)
    return result["elapsed_s"], result["executions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("workload", nargs="*", default=["lastzero", "--param=n=19"])
    args = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    counts = set()
    for nth in range(args.runs):
        for jobs, took in seconds.items():
            elapsed, executions = measure(args.workload, jobs)
            took.append(elapsed)
            counts.add(executions)
            load = os.getloadavg()[0]
            print(
                f"run {nth + 1}, --jobs {jobs}: {elapsed:7.2f} s, {executions:,} executions, "
                f"load {load:.1f}",
                flush=True,
            )
    if len(counts) != 1:
        sys.exit(f"not always the same number of executions: {sorted(counts)}")
    one, two = (statistics.median(took) for took in seconds.values())
    print(
        f"median {one:.2f} s with --jobs 1, {two:.2f} s with --jobs 2: {one / two:.2f} times faster"
    )


if __name__ == "__main__":
    main()
