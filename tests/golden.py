"""The golden traces: what is found, by which search.  `make golden` records them anew.

Each is the first finding of a search with seed 0, with its report beside it.  A change of the
model or of a report that alters one shows up as a difference in git, to be read before it is
committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sim.choosing import Strategy
from sim.explore import Budget, Explorer
from sim.record import header_of, record
from sim.report.columns import render_columns
from sim.report.splat import render_splats
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.trace.format import Trace
from sim.workload import Program, find

TRACES = Path(__file__).parents[1] / "traces"
WIDTH = 120


@dataclass(frozen=True)
class Golden:
    """One trace: its name, and what is searched; `race` asks for a data race allowed by design."""

    name: str
    workload: str
    version: str
    params: dict[str, str] = field(default_factory=dict)
    add: tuple[str, ...] = ()
    race: bool = False
    remove: tuple[str, ...] = ()
    strategy: Callable[[], Strategy] = lambda: RandomWalk(0)

    @property
    def program(self) -> Program:
        return find(self.workload).prepare(
            self.params, version=self.version, add=self.add, remove=self.remove
        )

    @property
    def path(self) -> Path:
        return TRACES / f"{self.name}.jsonl"


GOLDEN = [
    Golden("inner-map-use-after-free-5.10", "inner_map_replace", "5.10"),
    Golden("inner-map-use-after-free-5.10-hash", "inner_map_replace", "5.10", {"outer": "hash"}),
    Golden("inner-map-use-after-free-5.12-sleepable", "inner_map_replace_sleepable", "5.12"),
    Golden(
        "inner-map-use-after-free-6.8-rcu-only",
        "inner_map_replace_sleepable",
        "6.8",
        add=("mutant:inner-free-rcu-only",),
    ),
    Golden("array-values-data-race-5.10", "array_map_values", "5.10", race=True),
    Golden(
        "tailcall-load-window-5.10-execute", "tailcall_load_window", "5.10", {"change": "delete"}
    ),
    Golden("tailcall-load-window-5.10-bug", "tailcall_load_window", "5.10", {"installed": "no"}),
    Golden(
        "tailcall-stale-5.10",
        "tailcall_load_window",
        "5.10",
        {"installed": "no", "again": "no"},
    ),
    Golden("tailcall-wrong-type-5.10", "tailcall_owner", "5.10", {"race": "update"}),
    Golden("tailcall-untrack-5.10", "tailcall_subprog_untrack", "5.10"),
    Golden("tailcall-tree-5.10", "tailcall_counter", "5.10", {"shape": "tree"}),
    Golden("tailcall-trampoline-5.10", "tailcall_trampoline", "5.10"),
    Golden(
        "tailcall-install-swapped-5.10",
        "tailcall_poke",
        "5.10",
        {"runs": "2"},
        add=("mutant:install-swapped",),
        strategy=lambda: Pct(0),
    ),
    Golden(
        "trampoline-fexit-sleep-5.10",
        "trampoline_fexit_sleep",
        "5.10",
        strategy=lambda: Pct(0),
    ),
    Golden("trampoline-halfpage-5.5", "trampoline_halfpage", "5.5"),
    Golden("trampoline-freed-5.10", "trampoline_update", "5.10", strategy=lambda: Pct(0)),
    Golden("tailcall-load-error-5.10", "tailcall_load_error", "5.10", remove=("a2ea07465c8d",)),
    Golden(
        "prog-array-leaked-5.10",
        "n7_prog_array_insert_clear",
        "5.10",
        {"kept": "no"},
        strategy=lambda: Pct(0),
    ),
    Golden(
        "prog-array-stall-5.10",
        "prog_array_clear",
        "5.10",
        {"second": "no", "waiters": "1", "entries": "600", "preempt": "none"},
    ),
    Golden("prog-array-cleared-early", "prog_array_clear", "5.10", remove=("c9da161c6517",)),
]


def report(trace: Trace) -> str:
    """What stands beside a trace: the run in columns, and its findings."""
    return f"{render_columns(trace, width=WIDTH)}\n\n{render_splats(trace)}\n"


def write(golden: Golden) -> None:
    """Search, record and report."""
    budget = Budget(executions=1 if golden.race else 1000)
    result = Explorer(golden.program, golden.strategy(), budget).explore()
    found = (result.races if golden.race else result.findings)[0]
    header = header_of(golden.program, "random", 0, found.number)
    trace = record(golden.program, Choices(found.choices), header, golden.path)
    golden.path.with_suffix(".txt").write_text(report(trace))


if __name__ == "__main__":
    for entry in GOLDEN:
        write(entry)
