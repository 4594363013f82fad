"""What makes two executions equal up to the order of independent steps; two ways to count.

:func:`order` is that definition, for every test: executions are told apart by the order of their
dependent steps (Mazurkiewicz, "Trace Theory", 1987), taken from `ops.dependent` alone.
:func:`by_enumeration` runs every interleaving.  :func:`by_reversal` starts with one execution and,
for every two steps of one that it has met that depend on each other, runs one in which they change
places, until nothing new comes.  Neither is a search of rcusim's, so that they can be held against
one.

Only visible steps are compared.  So the end of a section (`ops.LOCAL`) and the end of a grace
period are compared through the order of SECTION_BEGIN and GP_START alone: that decides whether
the grace period waits for the section, hence in which order the two ends come.  One that starts
after a section has ended and one that starts before, in an order of SECTION_BEGIN and GP_START
that is the same, are the same: nobody could tell.  Likewise the end of a thread and a JOIN.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from sim import ops
from sim.choosing import Strategy
from sim.cpu import Cpu
from sim.events import Event
from sim.execution import DEADLOCKED, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.ops import Op
from sim.strategies.dfs import Dfs
from sim.threads import Thread
from sim.workload import Program

#: Pairs of dependent steps of two threads, the earlier one first, as (thread, number).
Order = frozenset[tuple[str, int, str, int]]


class Step(NamedTuple):
    """A step or, at the end of a deadlock, what a thread waits for.

    nth  how many steps the thread took before
    """

    thread: str
    nth: int
    op: Op[Any]
    cpu: Cpu | None = None

    def meets(self, other: "Step") -> bool:
        """Whether this step and the other are of two threads and may not change places."""
        return self.thread != other.thread and ops.dependent(
            self.op, other.op, same_cpu=self.cpu is not None and self.cpu is other.cpu
        )


def visible(events: Iterable[Event]) -> list[Step]:
    """The steps that take part in the order."""
    steps: list[Step] = []
    taken: dict[str, int] = {}
    for event in events:
        if event.op.kind not in ops.LOCAL:
            name = event.thread.name
            nth = taken.get(name, 0)
            taken[name] = nth + 1
            steps.append(Step(name, nth, event.op, event.thread.cpu))
    return steps


def order(steps: Sequence[Step]) -> Order:
    """The order of the steps that depend on each other: equal for equivalent executions."""
    return frozenset(
        (earlier.thread, earlier.nth, later.thread, later.nth)
        for at, later in enumerate(steps)
        for earlier in steps[:at]
        if earlier.meets(later)
    )


def way_to_the_end(events: Sequence[Event]) -> list[Event]:
    """The events that happen before the last one, and that.

    A grace period ends behind the sections that had ended when it started, too: had it started
    earlier it would have waited for them, and that is the same class.
    """
    begun: dict[Any, set[Any]] = {}  # by grace period: the sections that had begun when it started
    sections: set[Any] = set()
    for event in events:
        if event.op.kind == ops.SECTION_BEGIN:
            sections.add((event.op.addr, event.op.operand))
        elif event.op.kind == ops.GP_START:
            begun[event.result] = set(sections)
    last = len(events) - 1
    needed = {last}
    for at in range(last - 1, -1, -1):
        one = events[at]
        if any(
            one.thread is other.thread
            or (one.op.kind == ops.FORK and one.result is other.thread)
            or (
                (one.op.kind, other.op.kind) == (ops.SECTION_END, ops.GP_END)
                and (one.op.addr, one.op.operand) in begun[other.op.operand]
            )
            or ops.dependent(
                one.op,
                other.op,
                same_cpu=one.thread.cpu is not None and one.thread.cpu is other.thread.cpu,
            )
            for other in (events[after] for after in needed)
        ):
            needed.add(at)
    return [events[at] for at in sorted(needed)]


@final
@dataclass(frozen=True)
class Ran:
    """An execution: its visible steps in order, what threads wait for at its end, how it ended."""

    steps: tuple[Step, ...]
    waiting: tuple[Step, ...]
    state: str

    @property
    def order(self) -> Order:
        """See `order`."""
        return order(self.steps)


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
    events: list[Event] = []
    memory = Memory()
    execution = Execution(program.main(memory), memory, strategy, observer=events.append)
    direct.run(execution)
    steps = visible(events)
    taken = Counter(step.thread for step in steps)
    snapshot = events[-1].snapshot
    waiting = tuple(
        Step(stuck.thread.name, taken[stuck.thread.name], stuck.op)
        for stuck in (snapshot.waiting if snapshot is not None else ())
    )
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
    for late, later in enumerate(steps):
        for early, earlier in enumerate(ran.steps[:late]):
            if not earlier.meets(later):
                continue
            kept = [at for at in range(min(late, len(ran.steps))) if at not in after[early]]
            if sum(steps[at].thread == later.thread for at in kept) == later.nth:
                schedules.append((*(steps[at].thread for at in kept), later.thread))
    return schedules


def _after(steps: Sequence[Step], early: int) -> set[int]:
    """The step and those that happen after it."""
    after = {early}
    for at in range(early + 1, len(steps)):
        step = steps[at]
        if any(steps[b].thread == step.thread or steps[b].meets(step) for b in after):
            after.add(at)
    return after
