"""Run programs: once, under every interleaving, or through every reachable state.

What an execution came to is compared as an :class:`Outcome`: how it ended, the result of every
step of every thread, and the final memory.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sim import ops
from sim.cells import Bytes, Cell, Cells, Struct
from sim.choosing import Strategy
from sim.cpu import Cpu
from sim.events import Detector, Event, Waiting
from sim.execution import Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.sections import Domain, GracePeriod
from sim.strategies.dfs import Dfs
from sim.threads import Thread
from tests.programs.code import Program
from tests.programs.interpreter import Machine, main_of

Host = Callable[[Execution], None]
View = tuple[Any, ...]  # a step, as far as interleavings may be told apart by it
ENGINE = (ops.QUIESCENT, ops.DEADLOCK)


@dataclass(frozen=True)
class Outcome:
    """What an execution came to: equal for two executions that nobody can tell apart."""

    state: str
    results: tuple[tuple[str, tuple[View, ...]], ...]
    memory: tuple[View, ...]
    stuck: tuple[View, ...]


@dataclass
class Run:
    """An execution of a program, with its events."""

    machine: Machine
    execution: Execution
    events: list[Event] = field(default_factory=list)

    @property
    def schedule(self) -> list[str]:
        """The threads that took the steps, in order."""
        return [event.thread.name for event in self.events if event.op.kind not in ENGINE]

    @property
    def outcome(self) -> Outcome:
        stuck: tuple[Waiting, ...] = ()
        snapshot = self.events[-1].snapshot if self.events else None
        if snapshot is not None:
            stuck = snapshot.waiting
        return Outcome(
            self.execution.state,
            histories(self.events),
            contents(self.machine.memory),
            tuple(sorted((waiting.thread.name, waiting.op.name) for waiting in stuck)),
        )


def prepare(
    program: Program,
    strategy: Strategy,
    detectors: Callable[[Memory], Sequence[Detector]] | None = None,
    *,
    every_step: bool = False,
    stacks: bool = False,
) -> Run:
    """An execution of `program` that has not begun yet."""
    machine = Machine(stacks=stacks)
    events: list[Event] = []
    execution = Execution(
        main_of(program, machine),
        machine.memory,
        strategy,
        detectors(machine.memory) if detectors is not None else (),
        observer=events.append,
        every_step=every_step,
    )
    if isinstance(strategy, Scripted | Merging):
        strategy.execution = execution
    return Run(machine, execution, events)


def execute(
    program: Program,
    strategy: Strategy,
    detectors: Callable[[Memory], Sequence[Detector]] | None = None,
    *,
    every_step: bool = False,
    stacks: bool = False,
    host: Host = direct.run,
) -> Run:
    """Run `program` once; `strategy` has begun."""
    run = prepare(program, strategy, detectors, every_step=every_step, stacks=stacks)
    host(run.execution)
    return run


class TooMany(Exception):
    """A program has more interleavings than a test has time for."""


@dataclass
class Explored:
    """Every outcome of a program, and how many executions it took to see them."""

    outcomes: set[Outcome] = field(default_factory=set)
    executions: int = 0


def brute_force(program: Program, *, every_step: bool = False, limit: int = 20_000) -> Explored:
    """Run every interleaving.  Raises TooMany beyond `limit`."""
    explored = Explored()
    strategy = Dfs()
    while strategy.begin():
        if explored.executions == limit:
            raise TooMany(f"more than {limit} interleavings")
        run = execute(program, strategy, every_step=every_step)
        explored.outcomes.add(run.outcome)
        explored.executions += 1
    return explored


def every_outcome(program: Program, *, every_step: bool = False, limit: int = 20_000) -> Explored:
    """Visit every reachable state once: the outcomes of `brute_force`, in far fewer runs."""
    explored = Explored()
    strategy = Merging()
    while strategy.begin():
        if explored.executions == limit:
            raise TooMany(f"more than {limit} executions")
        run = prepare(program, strategy, every_step=every_step)
        strategy.events = run.events
        explored.executions += 1
        try:
            direct.run(run.execution)
        except _Seen:
            continue
        explored.outcomes.add(run.outcome)
    return explored


# -- strategies --------------------------------------------------------------------------------


class Scripted:
    """Follows a schedule, given as the names of the threads step by step; then random.

    enabled  by step, the names of the threads that could have gone on (where they were several)
    values   what `choose` gave, in order, by thread; given values come first
    """

    def __init__(
        self,
        schedule: Sequence[str] = (),
        values: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.execution: Execution | None = None
        self.schedule = tuple(schedule)
        self.enabled: dict[int, list[str]] = {}
        self.values: dict[str, list[int]] = defaultdict(list)
        self._given = values or {}
        self._random = Random(seed)

    def begin(self) -> bool:
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        assert self.execution is not None
        step = self.execution.step
        names = [thread.name for thread in enabled]
        self.enabled[step] = names
        if step < len(self.schedule) and self.schedule[step] in names:
            return names.index(self.schedule[step])
        return self._random.randrange(len(names))

    def choose(self, thread: Thread, n: int) -> int:
        nth = len(self.values[thread.name])
        given = self._given.get(thread.name, ())
        value = given[nth] if nth < len(given) else self._random.randrange(n)
        self.values[thread.name].append(value)
        return value


class _Seen(Exception):
    """The execution has come to a state that has been visited before."""


class Merging:
    """Depth-first search that goes on from every state only once.

    A state is the memory and what every thread has seen so far, which decides where it is.
    """

    def __init__(self) -> None:
        self.execution: Execution | None = None
        self.events: list[Event] = []
        self._path: list[list[int]] = []  # [taken, alternatives] per choice
        self._depth = 0
        self._seen: set[View] = set()
        self._started = False

    def begin(self) -> bool:
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        if self._started and not self._path:
            return False
        if self._path:
            self._path[-1][0] += 1
        self._started = True
        self._depth = 0
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        if self._depth == len(self._path):
            assert self.execution is not None
            memory = self.execution.memory
            state = histories(self.events, exact=True), contents(memory), memory.clock.now
            if state in self._seen:
                raise _Seen
            self._seen.add(state)
        return self._take(len(enabled))

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        return self._take(n)

    def _take(self, alternatives: int) -> int:
        if self._depth == len(self._path):
            self._path.append([0, alternatives])
        self._depth += 1
        return self._path[self._depth - 1][0]


# -- what can be told apart ----------------------------------------------------------------------


def shown(value: Any, *, exact: bool = False) -> Any:
    """A value without identity; of a grace period only (if `exact`) what it waits for."""
    if isinstance(value, Struct):
        return value.label
    if isinstance(value, Thread):
        return value.name
    if isinstance(value, GracePeriod):
        return value.waits_for if exact else "grace period"
    if isinstance(value, tuple):
        return tuple(shown(item, exact=exact) for item in value)
    return value


def view(event: Event, *, exact: bool = False) -> View:
    """A step: what was done, what came back, what was wrong."""
    op = event.op
    fault = event.fault.kind if event.fault is not None else ""
    return ops.KIND_NAMES[op.kind], op.name, op.addr, shown(event.result, exact=exact), fault


def histories(
    events: Sequence[Event], *, exact: bool = False
) -> tuple[tuple[str, tuple[View, ...]], ...]:
    """What every thread has done and seen."""
    by_thread: dict[str, list[View]] = {}
    for event in events:
        if event.op.kind not in ENGINE:
            by_thread.setdefault(event.thread.name, []).append(view(event, exact=exact))
    return tuple(sorted((name, tuple(steps)) for name, steps in by_thread.items()))


def contents(memory: Memory) -> tuple[View, ...]:
    """Every object and what is in it, in order of address."""
    return tuple(_content(found) for found in memory._objects.values())


def _content(found: Struct) -> View:
    if isinstance(found, Domain):
        return found.label, tuple(sorted(found.open))
    if isinstance(found, Cpu):
        return found.label, shown(found.holder)
    values: list[Any] = []
    for name, value in vars(found).items():
        if isinstance(value, Cell):
            values.append((name, shown(value.value)))
        elif isinstance(value, Bytes):
            values.append((name, bytes(value.data)))
        assert not isinstance(value, Cells)  # no program has any
    return found.label, found.freed, tuple(values)
