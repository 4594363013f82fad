"""What it saves that RCU's readers commute: classes of executions with that, and without.

Without: the beginnings of sections and the starts of grace periods of a domain are all dependent,
as if each wrote to the domain.  (The ends of sections and of grace periods are no steps that could
be reversed in either case.)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["RCUSIM_PURE"] = "1"  # compiled callers would not notice what is replaced here

from sim import ops
from sim.explore import Budget, Explorer
from sim.strategies.dpor import Dpor
from sim.strategies.history import History
from sim.strategies.races import Races
from sim.strategies.steps import Step
from sim.workload import find

ROWS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("inner_map_replace", "6.8", {"readers": "1"}),
    ("inner_map_replace", "6.8", {"readers": "2"}),
    ("n5_inner_map_swaps", "6.8", {}),
)
MARKERS = frozenset({ops.SECTION_BEGIN, ops.GP_START})


@contextmanager
def all_dependent() -> Iterator[None]:
    """Every beginning of a section and start of a grace period depends on every other one."""
    meets, look, note = Step.meets, Races._look, History.note

    def meets_coarsely(self: Step, other: Step) -> bool:
        kinds = {self.op.kind, other.op.kind}
        return (kinds <= MARKERS and self.start == other.start) or meets(self, other)

    def look_coarsely(self: Races, step: Step, *args: Any) -> None:
        if step.op.kind in MARKERS:
            clock, racing = args[0], args[1]
            self._meet(self._history.spot(step.op.addr, 1), step, clock, racing, write=True)
        else:
            look(self, step, *args)

    def note_coarsely(self: History, step: Step, event: Any) -> None:
        note(self, step, event)
        if step.op.kind in MARKERS:
            self._wrote(self.spot(step.op.addr, 1), len(self.steps) - 1)

    changed: Any = (Step, "meets", meets_coarsely), (Races, "_look", look_coarsely)
    for owner, name, function in (*changed, (History, "note", note_coarsely)):
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in (
            (Step, "meets", meets),
            (Races, "_look", look),
            (History, "note", note),
        ):
            setattr(owner, name, function)


def count(name: str, kernel: str, params: dict[str, str], seconds: float) -> str:
    program = find(name).prepare(params, version=kernel)
    result = Explorer(program, Dpor(), Budget(seconds=seconds)).explore()
    return f"{result.classes:,}" if result.classes is not None else f"> {result.executions:,}"


def main(seconds: float = 60.0) -> None:
    print(f"{'workload':50} {'classes':>10} {'all RCU dependent':>20}")
    for name, kernel, params in ROWS:
        fine = count(name, kernel, params, seconds)
        with all_dependent():
            coarse = count(name, kernel, params, seconds)
        given = " ".join(f"{key}={value}" for key, value in params.items())
        print(f"{f'{name} {given} ({kernel})':50} {fine:>10} {coarse:>20}", flush=True)


if __name__ == "__main__":
    main()
