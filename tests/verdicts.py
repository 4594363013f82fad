"""The table of docs/verdicts.md: what each workload shows.  `make verdicts` measures it anew.

For every row, random walk and PCT with seed 0, at most EXECUTIONS executions each; and how many
executions it took to the finding, of which the last may be a directed one.
"""

from __future__ import annotations

from pathlib import Path

from sim.errors import UsageError
from sim.execution import Strategy
from sim.explore import Budget, Explorer
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

PAGE = Path(__file__).parents[1] / "docs" / "verdicts.md"
BEGIN, END = "<!-- table: make verdicts -->", "<!-- end of table -->"
EXECUTIONS = 300

RCU_ONLY, TRACE_ONLY = "mutant:inner-free-rcu-only", "mutant:inner-free-trace-only"
FIXED = "876673364161"

Row = tuple[str, dict[str, str], str, tuple[str, ...]]
ROWS: list[Row] = [
    *[
        ("inner_map_replace", {"outer": outer}, version, ())
        for outer in ("array", "hash", "hash_no_prealloc")
        for version in ("5.8", "5.9", "5.10", "5.12", "6.7", "6.8")
    ],
    ("inner_map_replace", {}, "5.12", (FIXED,)),
    ("inner_map_replace", {}, "5.12", (TRACE_ONLY,)),
    ("inner_map_replace", {}, "6.8", (TRACE_ONLY,)),
    ("inner_map_replace", {}, "6.8", (RCU_ONLY,)),
    ("inner_map_replace", {"preempt": "none", "cpus": "2"}, "5.10", ()),
    ("inner_map_replace", {"preempt": "none", "cpus": "2"}, "6.8", ()),
    ("inner_map_replace", {"readers": "2", "updates": "3", "runs": "2"}, "6.8", ()),
    ("inner_map_replace", {"teardown": "yes"}, "6.8", ()),
    ("inner_map_replace_sleepable", {}, "5.10", ()),
    ("inner_map_replace_sleepable", {}, "5.12", ()),
    ("inner_map_replace_sleepable", {}, "5.12", (FIXED,)),
    ("inner_map_replace_sleepable", {}, "6.8", ()),
    ("inner_map_replace_sleepable", {}, "6.8", (RCU_ONLY,)),
    *[
        ("array_map_values", {"locking": locking}, "5.10", ())
        for locking in ("nobody", "program", "everybody")
    ],
]


def cell(row: Row, strategy: Strategy) -> str:
    """What one search showed."""
    workload, params, version, add = row
    try:
        program = find(workload).prepare(params, version=version, add=add)
        result = Explorer(program, strategy, Budget(executions=EXECUTIONS)).explore()
    except UsageError as refused:
        return f"refused: {str(refused).partition(': ')[2]}"
    if result.findings:
        found = result.findings[0]
        return f"**{found.finding.kind}** ({found.number})"
    races = f", {len(result.races)} data races by design" if result.races else ""
    return f"nothing{races}"


def table() -> str:
    """The table in Markdown."""
    lines = ["| workload | parameters | kernel | random walk | PCT |", "|---|---|---|---|---|"]
    for row in ROWS:
        workload, params, version, add = row
        shown = " ".join(f"{name}={value}" for name, value in params.items())
        kernel = " ".join([version, *(f"+{name}" for name in add)])
        cells = [cell(row, RandomWalk(0)), cell(row, Pct(0))]
        lines.append(f"| {workload} | {shown} | {kernel} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")
