"""Counts the executions of small programs up to the order of independent steps, in two ways.

:func:`by_enumeration` runs every interleaving.  :func:`by_reversal` starts with one execution and,
for every two steps of one that it has met that depend on each other, runs one in which they change
places, until nothing new comes.  Both tell executions apart by the order of their dependent steps
(Mazurkiewicz, "Trace Theory", 1987), taken from `ops.dependent` alone; neither is a search of
rcusim's, so that they can be held against one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from sim import ops
from sim.choosing import Strategy
from sim.events import Event
from sim.execution import DEADLOCKED, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.ops import Op
from sim.strategies.dfs import Dfs
from sim.threads import Thread
from sim.workload import Program

#: A step or, at the end of a deadlock, what a thread waits for: its thread, how many steps the
#: thread took before, the operation.
Step = tuple[str, int, Op[Any]]

#: Pairs of dependent steps of two threads, the earlier one first, as (thread, number).
Order = frozenset[tuple[str, int, str, int]]


@final
@dataclass(frozen=True)
class Ran:
    """An execution: its visible steps in order, what threads wait for at its end, how it ended."""

    steps: tuple[Step, ...]
    waiting: tuple[Step, ...]
    state: str

    @property
    def order(self) -> Order:
        """The order of the steps that depend on each other: equal for equivalent executions."""
        return frozenset(
            (one, m, other, n)
            for at, (other, n, later) in enumerate(self.steps)
            for one, m, earlier in self.steps[:at]
            if one != other and ops.dependent(earlier, later)
        )


@final
class Schedule:
    """The threads that take the first steps; then whoever comes first.

    kept  whether every thread could take its step
    """

    kinds = None

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.kept = True
        self._names = list(reversed(names))

    def begin(self) -> bool:
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        names = [thread.name for thread in enabled]
        if not self._names:
            return 0
        if self._names[-1] in names:
            return names.index(self._names[-1])
        self.kept = False
        return -1

    def choose(self, thread: Thread, n: int) -> int:
        raise NotImplementedError("programs that choose values are not counted")

    def observe(self, event: Event) -> None:
        if event.op.kind not in ops.LOCAL and self._names:
            self.kept = self.kept and self._names.pop() == event.thread.name


def run(program: Program, strategy: Strategy) -> Ran:
    """Run `program` once, without detectors."""
    steps: list[Step] = []
    taken: dict[str, int] = {}
    waiting: tuple[Step, ...] = ()

    def observe(event: Event) -> None:
        nonlocal waiting
        name = event.thread.name
        if event.op.kind not in ops.LOCAL:
            steps.append((name, taken.get(name, 0), event.op))
            taken[name] = taken.get(name, 0) + 1
        elif event.snapshot is not None:
            stuck = [(it.thread.name, it.op) for it in event.snapshot.waiting]
            waiting = tuple((name, taken.get(name, 0), op) for name, op in stuck)

    memory = Memory()
    execution = Execution(program.main(memory), memory, strategy, observer=observe)
    direct.run(execution)
    return Ran(tuple(steps), waiting, execution.state)


def by_enumeration(program: Program) -> dict[Order, Ran]:
    """One execution of each class, out of all interleavings."""
    strategy = Dfs()
    found: dict[Order, Ran] = {}
    while strategy.begin():
        ran = run(program, strategy)
        found.setdefault(ran.order, ran)
    return found


def by_reversal(program: Program) -> dict[Order, Ran]:
    """One execution of each class, by changing the order of dependent steps."""
    first = run(program, Schedule())
    found = {first.order: first}
    tried: set[tuple[str, ...]] = set()
    todo = [first]
    while todo:
        for names in _reversals(todo.pop()):
            if names in tried:
                continue
            tried.add(names)
            schedule = Schedule(names)
            ran = run(program, schedule)
            if schedule.kept and ran.order not in found:
                found[ran.order] = ran
                todo.append(ran)
    return found


def deadlocks(found: dict[Order, Ran]) -> int:
    """How many of the classes end in a deadlock."""
    return sum(ran.state == DEADLOCKED for ran in found.values())


def _reversals(ran: Ran) -> list[tuple[str, ...]]:
    """Schedules in which a later step comes before an earlier one that it depends on."""
    steps = ran.steps + ran.waiting
    after = [_after(ran.steps, at) for at in range(len(ran.steps))]
    schedules = []
    for late, (other, n, later) in enumerate(steps):
        for early, (one, _, earlier) in enumerate(ran.steps[:late]):
            if one == other or not ops.dependent(earlier, later):
                continue
            kept = [at for at in range(min(late, len(ran.steps))) if at not in after[early]]
            if sum(steps[at][0] == other for at in kept) == n:
                schedules.append((*(steps[at][0] for at in kept), other))
    return schedules


def _after(steps: Sequence[Step], early: int) -> set[int]:
    """The step and those that happen after it."""
    after = {early}
    for at in range(early + 1, len(steps)):
        name, _, op = steps[at]
        if any(steps[b][0] == name or ops.dependent(steps[b][2], op) for b in after):
            after.add(at)
    return after
