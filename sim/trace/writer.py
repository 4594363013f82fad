"""Writing a trace while the run happens.

    with recording(file, header, build, strategy) as execution:
        host(execution)  # or, inside trio: await trio_host.run(execution)

Each line is handed to the operating system as soon as its event has happened, so that a run
that hangs, crashes or is killed leaves a trace that ends with its last event.  (It is not
forced to the disk: losing power may lose the end.)  The verdict follows when the run has ended
by itself; a trace without one is of a run that did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, final

import msgspec

from sim import ops
from sim.choosing import Picks
from sim.errors import InternalError
from sim.events import Event
from sim.execution import RUNNING, Execution, Observer
from sim.stack import unwind
from sim.threads import Thread
from sim.trace.format import (
    EventRecord,
    FindingRecord,
    Header,
    Line,
    State,
    Verdict,
    WaitRecord,
    encode,
)
from sim.trace.values import cells_of, label_of, place_of, render, value_at

#: Makes an execution that has not begun, of one and the same program.
Build = Callable[[Picks, Observer], Execution]

_WITH_STACK: Final = frozenset({ops.ALLOC, ops.FREE})
_ENGINE: Final = frozenset({ops.QUIESCENT, ops.DEADLOCK})  # no thread does these

#: What an operation's result is the value of.
_READING: Final = frozenset(
    {
        ops.LOAD,
        ops.FETCH,
        ops.XCHG,
        ops.CMPXCHG,
        ops.RMW,
        ops.TRYLOCK,
        ops.WAIT,
        ops.CLOCK,
        ops.ARM,
        ops.SLEEP,
    }
)
#: Operations whose operand is more than what they read and write says.
_WITH_OPERAND: Final = frozenset(
    {ops.FORK, ops.EXIT, ops.SECTION_BEGIN, ops.SECTION_END, ops.GP_END, ops.ARM, ops.SLEEP}
    | {ops.NOTE}
)


@final
class TraceWriter:
    """An observer that turns every event into a line of a trace, as it happens.

    emit    takes each line
    header  the first one

    Hand the execution a strategy from :meth:`watch`, call :meth:`begin` before the run and
    :meth:`end` after it (:func:`recording` does all that).
    """

    def __init__(self, emit: Callable[[Line], object], header: Header) -> None:
        self._emit: Final = emit
        self._header: Final = header
        self._execution: Execution | None = None
        self._watched: _Watched | None = None
        self._choices = 0
        self._steps = 0
        self._seen: Final[Counter[tuple[str, str, str, str]]] = Counter()
        self._stack: tuple[str, ...] = ()  # of the last event
        self._finding_stacks: Final[list[tuple[str, ...]]] = []

    def watch(self, strategy: Picks) -> Picks:
        """`strategy`, with its choices shown to this writer."""
        self._watched = _Watched(strategy)
        return self._watched

    def begin(self, execution: Execution) -> None:
        """When `execution` starts, write the header and its initial state."""
        self._execution = execution
        execution.on_start = self._start

    def __call__(self, event: Event) -> None:
        """Write what happened."""
        self._keep_finding_stacks()
        frames = () if event.op.kind in _ENGINE else unwind(event.thread)
        self._stack = tuple(str(frame) for frame in frames)
        self._emit(self._record(event, frames[0].function if frames else ""))
        self._steps += 1

    def end(self) -> None:
        """Write the verdict.  The run must have ended by itself."""
        execution = self._running()
        if execution.state is RUNNING:
            raise InternalError("the verdict of a run that has not ended")
        self._keep_finding_stacks()
        findings = zip(execution.findings, self._finding_stacks, strict=True)
        records = tuple(FindingRecord.of(finding, stack) for finding, stack in findings)
        self._emit(Verdict(execution.state, self._steps, records))

    def _start(self) -> None:
        memory = self._running().memory
        environment = self._header.environment | memory.remarks
        self._emit(msgspec.structs.replace(self._header, environment=environment))
        self._emit(State({render(made): cells_of(made) for made in memory.roots}))

    def _running(self) -> Execution:
        if self._execution is None:
            raise InternalError("TraceWriter.begin() was not called")
        return self._execution

    def _keep_finding_stacks(self) -> None:
        """Detectors report after the observer: what is new was found at the last event."""
        while len(self._finding_stacks) < len(self._running().findings):
            self._finding_stacks.append(self._stack)

    def _record(self, event: Event, function: str) -> EventRecord:
        op = event.op
        label = label_of(event, self._running().memory)
        occurrence = event.thread.name, op.name, function, label
        self._seen[occurrence] += 1
        fault = event.fault.kind if event.fault is not None else ""
        return EventRecord(
            step=event.step,
            thread=event.thread.name,
            op=op.name,
            kind=ops.KIND_NAMES[op.kind],
            label=label,
            function=function,
            nth=self._seen[occurrence],
            fault=fault,
            stack=self._stack if fault or op.kind in _WITH_STACK else (),
            **self._values(event),
            **self._choice(event),
            waiting=self._waiting(event),
        )

    def _values(self, event: Event) -> dict[str, Any]:
        """What the step read, wrote and was given."""
        op, kind, values = event.op, event.op.kind, {}
        if kind in _READING:
            values["read"] = render(event.result)
        if kind == ops.ALLOC:
            values["wrote"] = cells_of(event.result)
        elif kind == ops.CMPXCHG:
            values["operand"] = render(op.operand[0])
            if event.result is op.operand[0] or event.result == op.operand[0]:
                values["wrote"] = render(op.operand[1])
        elif kind in (ops.STORE, ops.REWRITE, ops.XCHG, ops.RMW):
            values["wrote"] = render(value_at(op, self._running().memory))
        elif kind == ops.GP_START:
            values["operand"] = render(event.result)
        elif kind in _WITH_OPERAND and op.operand is not None:
            values["operand"] = render(op.operand)
        return values

    def _waiting(self, event: Event) -> tuple[WaitRecord, ...]:
        stuck = event.snapshot.waiting if event.snapshot is not None else ()
        memory = self._running().memory
        return tuple(
            WaitRecord(w.thread.name, w.op.name, place_of(w.op, memory), tuple(map(render, w.on)))
            for w in stuck
        )

    def _choice(self, event: Event) -> dict[str, Any]:
        """The choice made for this step, if one was."""
        made = len(self._running().choices) > self._choices
        values: dict[str, Any] = {"of": event.op.operand} if event.op.kind == ops.CHOOSE else {}
        if made:
            self._choices += 1
            values["choice"] = self._running().choices[-1]
            if event.op.kind != ops.CHOOSE:
                values["enabled"] = self._offered()
        return values

    def _offered(self) -> tuple[str, ...]:
        if self._watched is None:
            raise InternalError("the execution's strategy is not from TraceWriter.watch()")
        return self._watched.offered


@final
class _Watched:
    """A strategy that remembers the threads that it could choose from last."""

    def __init__(self, strategy: Picks) -> None:
        self._strategy: Final = strategy
        self.offered: tuple[str, ...] = ()

    def begin(self) -> bool:
        return self._strategy.begin()

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        self.offered = tuple(thread.name for thread in enabled)
        return self._strategy.pick(enabled, last)

    def choose(self, thread: Thread, n: int) -> int:
        return self._strategy.choose(thread, n)


@contextmanager
def recording(file: BinaryIO, header: Header, build: Build, strategy: Picks) -> Iterator[Execution]:
    """An execution of what `build` makes, to be run by a host; its trace goes to `file`.

    If running it raises, the trace ends with the last event.
    """

    def emit(line: Line) -> None:
        file.write(encode(line))
        file.flush()

    writer = TraceWriter(emit, header)
    execution = build(writer.watch(strategy), writer)
    writer.begin(execution)
    yield execution
    writer.end()
