"""Speed of complete searches, beside other tools for Python.  `make bench-peers` prints the table.

The peers run programs of the same accesses (`tests/peers`), from an environment of their own, in
the same run as rcusim.  They differ in what a step is and in which orders they tell apart, so that
the figure to compare is the time until a tool has seen all that it can tell apart.  Seconds are
those of the search, without the start of the interpreter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench_search import ROOT, Row, median_of, version

PEERS = Path(__file__).parent / "peers"
TICK = 0.001  # rcusim reports milliseconds

ROWS = (
    Row("counter", {"n": 2, "k": 2}, 34),
    Row("counter", {"n": 2, "k": 3}, 328),
    Row("counter", {"n": 3, "k": 1}, 36),
    Row("atomic_increment", {"n": 4}, 24),
    Row("atomic_increment", {"n": 5}, 120),
    Row("readers", {"n": 3}, 8),
    Row("readers", {"n": 4}, 16),
    Row("lastzero", {"n": 3}, 12),
)


def commands(venv: Path) -> dict[str, list[str]]:
    """How each peer's programs are run."""
    return {
        "frontrun": [
            str(venv / "bin" / "frontrun"),
            str(venv / "bin" / "python"),
            str(PEERS / "frontrun_programs.py"),
        ],
        "detangle": [str(venv / "bin" / "python"), str(PEERS / "detangle_programs.py")],
    }


def ask(command: Sequence[str], row: Row, timeout: float) -> dict[str, Any] | str:
    """The peer's answer, or why there is none."""
    numbers = [str(value) for value in row.params.values()]
    try:
        done = subprocess.run(
            [*command, str(timeout), row.name, *numbers],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=2 * timeout,
            check=False,
        )
    except OSError:
        return "not installed"
    except subprocess.TimeoutExpired:
        return f"no answer within {2 * timeout:.0f} s"
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"failed: {told[-1]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def told(name: str, answer: dict[str, Any] | str, seconds: float) -> str:
    """One line of the table: what a peer did, and how much longer it took than rcusim."""
    if isinstance(answer, str):
        return f"  {name:<10}{answer}"
    spent: float = answer["elapsed_s"]
    ratio = spent / max(seconds, TICK)
    line = f"  {name:<10}{answer['executions']:>10,}{spent:>10.3f}"
    if answer["complete"]:
        return f"{line}{ratio:>10.1f}"
    return f"{line}{f'> {ratio:.1f}':>10}  not complete"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="dpor", help="of rcusim explore")
    parser.add_argument("--repeat", type=int, default=3, help="runs of rcusim; peers run once")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds of one search")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-peers", help="has the peers")
    options = parser.parse_args()
    print(f"{version()}\ncomplete searches, rcusim with --strategy {options.strategy}\n")
    print(f"  {'tool':<10}{'executions':>10}{'seconds':>10}{'ratio':>10}")
    for row in ROWS:
        run = median_of(options.repeat, row.name, row.params, options.strategy)
        print(f"{row.title}\n  {'rcusim':<10}{run.executions:>10,}{run.seconds:>10.3f}")
        for name, command in commands(options.venv).items():
            print(told(name, ask(command, row, options.timeout), run.seconds), flush=True)
    print("\nratio: seconds of the peer per second of rcusim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
