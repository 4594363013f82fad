"""Speed of complete searches, beside native tools.  `make bench` prints the table.

Each figure is the median of some runs of ``rcusim explore``, each in a process of its own.  The
seconds are those of the search, without the start of the interpreter; those of the native tools
are of their whole processes, which start in some milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "from sim.cli import main; main()")  # ``rcusim`` of this tree
NO_BUDGET = "3600"  # seconds
PROVED, FINDING, INCONCLUSIVE = 0, 1, 3  # exit codes


@dataclass(frozen=True)
class Row:
    """A program, how many executions it has up to the order of independent steps, and references.

    nidhugg, genmc  seconds; None: not measured
    """

    name: str
    params: Mapping[str, int]
    classes: int
    nidhugg: float | None = None
    genmc: float | None = None

    @property
    def title(self) -> str:
        return f"{self.name}({','.join(str(value) for value in self.params.values())})"

    @property
    def native(self) -> float | None:
        """Seconds of the faster native tool."""
        known = [it for it in (self.nidhugg, self.genmc) if it is not None]
        return min(known, default=None)


# Whole processes of Nidhugg (the fastest of its algorithms) and of GenMC 0.11 (-sc) on these
# programs in C, measured once on a machine of this kind; they are not part of the run.
ROWS = (
    Row("readers", {"n": 15}, 32_768, nidhugg=4.1, genmc=0.59),
    Row("lastzero", {"n": 10}, 3_328, nidhugg=0.47, genmc=0.22),
    Row("lastzero", {"n": 15}, 147_456, nidhugg=31.7, genmc=13.0),
    Row("indexer", {"n": 15}, 4_096, nidhugg=4.2, genmc=7.7),
    Row("filesystem", {"n": 19}, 64, nidhugg=0.07, genmc=0.13),
    Row("counter", {"n": 2, "k": 5}, 34_904, nidhugg=1.3, genmc=0.39),
)

# To try the table itself, and strategies that need more executions.
TINY = (
    Row("readers", {"n": 3}, 8),
    Row("lastzero", {"n": 3}, 12),
    Row("counter", {"n": 2, "k": 2}, 34),
)


@dataclass(frozen=True)
class Measured:
    """One complete search.

    blocked  executions that ended early, for the same had been run before
    peak     bytes of memory, of the whole process
    """

    executions: int
    blocked: int
    steps: int
    seconds: float
    peak: int


def search(name: str, params: Mapping[str, int], strategy: str) -> Measured:
    """Run ``rcusim explore`` in a process of its own.  Raises SystemExit if it was not complete."""
    given = [f"--param={key}={value}" for key, value in params.items()]
    with tempfile.TemporaryDirectory() as out:
        options = [f"--strategy={strategy}", f"--max-duration={NO_BUDGET}", f"--out={out}"]
        command = [*COMMAND, "explore", name, "--json", *options, *given]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (PROVED, FINDING, INCONCLUSIVE):
        raise SystemExit(f"rcusim explore {name} failed: exit code {process.returncode}")
    result: dict[str, Any] = json.loads(printed)
    if not result["complete"]:
        raise SystemExit(f"rcusim explore {name} is not complete: {result['stopped']}")
    return Measured(
        executions=result["executions"],
        blocked=result.get("blocked", result["redundant"]),
        steps=result["steps"],
        seconds=result["elapsed_s"],
        peak=usage.ru_maxrss * 1024,
    )


def version() -> str:
    """Which rcusim is measured, and whether its engine is compiled."""
    told = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def median_of(repeat: int, name: str, params: Mapping[str, int], strategy: str) -> Measured:
    """The run of the median time."""
    runs = [search(name, params, strategy) for _ in range(repeat)]
    return sorted(runs, key=lambda run: run.seconds)[(repeat - 1) // 2]


def _line(row: Row, run: Measured) -> str:
    seconds = max(run.seconds, 0.001)
    line = (
        f"{row.title:<16}{run.executions:>11,}{run.blocked:>9,}{run.seconds:>9.2f}"
        f"{run.executions / seconds:>9,.0f}{run.steps / seconds:>10,.0f}{run.peak / 2**20:>8.0f}"
    )
    for reference in (row.nidhugg, row.genmc):
        line += f"{reference:>9.2f}" if reference is not None else f"{'-':>9}"
    if row.native is not None:
        line += f"{run.seconds / row.native:>8.1f}"
    return line


HEAD = (
    f"{'program':<16}{'executions':>11}{'blocked':>9}{'seconds':>9}{'exec/s':>9}{'steps/s':>10}"
    f"{'MiB':>8}{'Nidhugg':>9}{'GenMC':>9}{'ratio':>8}"
)


def main() -> int:
    """Measure and print; 1 if an optimal search has not run each class once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="dpor", help="of rcusim explore")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row")
    parser.add_argument("--only", default="", help="rows of this program")
    parser.add_argument("--tiny", action="store_true", help="small programs, for a try")
    options = parser.parse_args()
    rows = [row for row in (TINY if options.tiny else ROWS) if options.only in ("", row.name)]
    print(version())
    print(f"complete searches, --strategy {options.strategy}, median of {options.repeat}\n\n{HEAD}")
    ratios = []
    wrong = []
    for row in rows:
        run = median_of(options.repeat, row.name, row.params, options.strategy)
        print(_line(row, run), flush=True)
        if row.native is not None:
            ratios.append(run.seconds / row.native)
        if run.executions - run.blocked != row.classes:
            wrong.append(f"{row.title}: {row.classes:,} executions differ from each other")
    if ratios:
        print(f"\ngeometric mean of the ratios: {statistics.geometric_mean(ratios):.1f}")
    if wrong:
        print("\n" + "\n".join(wrong))
    return 1 if wrong and options.strategy == "dpor" else 0


if __name__ == "__main__":
    sys.exit(main())
