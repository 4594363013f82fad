"""The steps of one execution as far as they have been taken, and what each left behind.

Steps can be taken back from the end, so that what is known of a common beginning of two
executions is found out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

from sim import ops
from sim.ops import Op
from sim.strategies.steps import Clock, Lead, Spot, Spots, Step
from sim.threads import Thread
from sim.undo import Log

if TYPE_CHECKING:
    from sim.events import Event

TIME: Final = -1  # the spot of what reads the clock or sleeps


@final
class History:
    """The steps of an execution, and tables of what they touched.

    steps    in order; step 0 is the start of the main thread
    of       by number of thread: its steps
    born     by number of thread: the step that forked it
    exits    by key of thread: the step behind which it ended
    ends     by domain and section: the step behind which it ended
    begins   by domain and number of thread: where its last section began
    starts   by domain and number of thread: where its last grace period started
    started  by grace period, of this execution: behind which steps sections had ended by its start
    """

    def __init__(self) -> None:
        self.steps: Final[list[Step]] = []
        self.log: Final = Log()
        self.numbers: Final[dict[int, int]] = {}
        self.of: Final[list[list[int]]] = []
        self.threads: Final[dict[int, Thread]] = {}
        self.born: Final[dict[int, int]] = {}
        self.exits: Final[dict[int, int]] = {}
        self.ends: Final[dict[Any, int]] = {}
        self.begins: Final[dict[int, dict[int, int]]] = {}
        self.starts: Final[dict[int, dict[int, int]]] = {}
        self.started: Final[dict[Any, tuple[int, ...]]] = {}
        self._last_ends: Final[dict[int, dict[int, int]]] = {}  # by domain and who ended them
        self._spots: Final = Spots()
        self._before: Any = None

    # -- steps come and go -----------------------------------------------------------------------

    def boot(self) -> Step:
        """The first step, before every thread's: only local steps of the main thread."""
        step = Step(0, 0, Op(ops.NOTE, "boot"), self.number_of(0))
        step.time = 1
        step.clock = [0] * len(self.of)
        step.clock[step.number] = 1
        self._append(step)
        return step

    def about(self, thread: Thread) -> None:
        """`thread` is about to take a step."""
        op = thread.pending
        assert op is not None
        self._before = None
        if op.kind in ops.WRITING and op.target is not None:
            self._before = getattr(op.target, "value", None)

    def seen(self, event: Event, index: int) -> None:
        """Step `index`, known from the execution before, has been taken again."""
        self.threads[self.number_of(event.thread.key)] = event.thread
        if index == 1:
            self.started.clear()  # of the execution before
        if event.op.kind == ops.GP_START:
            self.started[event.result] = self.steps[index].ended

    def open(self, event: Event) -> Step:
        """A step has been taken; its clock says only what its own thread has done before."""
        thread = event.thread
        value = event.result if event.op.kind == ops.CHOOSE else 0
        step = Step(thread.key, cpu_of(thread), event.op, self.number_of(thread.key), value)
        step.before = self._before
        self.threads[step.number] = thread
        step.clock = self.clock_of(step.number)
        step.time = len(self.of[step.number]) + 1
        self._append(step)
        return step

    def clock_of(self, number: int) -> Clock:
        """What is before the next step of a thread by its own doing: a new list."""
        own = self.of[number]
        before = own[-1] if own else self.born.get(number, 0)
        clock = self.steps[before].clock[:]
        clock += [0] * (len(self.of) - len(clock))
        return clock

    def way(self, place: int) -> list[Lead]:
        """The steps to a place, behind the start of the main thread, as they were planned."""
        steps = self.steps[1:place]
        return [
            step.lead or Lead(step.key, step.value, fixed=False, but=step.but) for step in steps
        ]

    def local(self, event: Event) -> None:
        """A local step, behind the last step."""
        op = event.op
        kind = op.kind
        index = len(self.steps) - 1
        log = self.log
        if kind == ops.SECTION_END:
            log.item(self.ends, (op.addr, op.operand))
            self.ends[op.addr, op.operand] = index
            self._last(self._last_ends, op.addr, self.number_of(event.thread.key), index)
        elif kind == ops.EXIT:
            log.item(self.exits, event.thread.key)
            self.exits[event.thread.key] = index
        elif kind == ops.FORK:
            number = self.number_of(event.result.key)
            log.item(self.born, number)
            self.born[number] = index
        elif kind == ops.CPU_RELEASE:
            self._wrote(self.spot(op.addr, 1), index)
            self.steps[index].frees = True

    def pop(self) -> Step:
        """Take the last step back."""
        step = self.steps.pop()
        self.log.rewind(step.mark)
        return step

    def _append(self, step: Step) -> None:
        index = len(self.steps)
        self.steps.append(step)
        own = self.of[step.number]
        step.mark = len(self.log.entries)
        own.append(index)
        self.log.grown(own)

    def spot(self, addr: int, size: int) -> Spot:
        """The spot of these bytes."""
        return self._spots.at(addr, size)

    def number_of(self, key: int) -> int:
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.of)
            self.of.append([])
        return number

    def after(self, index: int) -> list[Step]:
        """The steps behind step `index` that do not happen after it."""
        first = self.steps[index]
        number, time = first.number, first.time
        found = []
        for step in self.steps[index + 1 :]:
            clock = step.clock
            if number >= len(clock) or clock[number] < time:
                found.append(step)
        return found

    def is_after(self, first: int, second: int) -> bool:
        """Whether step `second` is `first`, or happens after it."""
        one, other = self.steps[first], self.steps[second]
        clock = other.clock
        return one.number < len(clock) and clock[one.number] >= one.time

    def holder(self, writes: Sequence[int], count: int) -> int:
        """The number of the thread that held a CPU after the first `count` of its writes, or -1."""
        if not count:
            return -1
        last = self.steps[writes[count - 1]]
        released = count > 1 and writes[count - 2] == writes[count - 1]
        return last.number if last.op.kind == ops.CPU_HOLD and not released else -1

    def next_of(self, number: int) -> Op[Any] | None:
        """What a thread is about to do in this execution."""
        thread = self.threads.get(number)
        return thread.pending if thread is not None else None

    # -- what it leaves behind ------------------------------------------------------------------

    def note(self, step: Step, event: Event) -> None:
        """Keep what a step leaves behind for later ones."""
        index = len(self.steps) - 1
        op, kind = step.op, step.op.kind
        if step.writes:
            self._wrote(self.spot(op.addr, op.size), index)
        elif step.memory:
            self._read(self.spot(op.addr, op.size), step.number, index)
        elif kind == ops.WAIT:
            for cell in op.operand[1]:
                self._read(self.spot(cell.addr, cell.size), step.number, index)
        elif kind == ops.SECTION_BEGIN:
            self._last(self.begins, op.addr, step.number, index)
        elif kind == ops.GP_START:
            self._last(self.starts, op.addr, step.number, index)
            step.ended = tuple(self._last_ends.get(op.addr, {}).values())
            self.log.item(self.started, event.result)
            self.started[event.result] = step.ended
        elif kind == ops.SLEEP or kind == ops.ARM:
            self._wrote(self.spot(TIME, 1), index)
        elif kind == ops.CLOCK:
            self._read(self.spot(TIME, 1), step.number, index)
        if step.on_cpu:
            spot = self.spot(step.on_cpu, 1)
            if kind == ops.CPU_HOLD:
                self._wrote(spot, index)
            else:
                self._read(spot, step.number, index)

    def _last(self, table: dict[int, dict[int, int]], addr: int, number: int, index: int) -> None:
        of_domain = table.setdefault(addr, {})
        self.log.item(of_domain, number)
        of_domain[number] = index

    def _wrote(self, spot: Spot, index: int) -> None:
        spot.writes.append(index)
        self.log.grown(spot.writes)
        if spot.readers:
            self.log.attribute(spot, "readers")
            spot.readers = {}

    def _read(self, spot: Spot, number: int, index: int) -> None:
        self.log.item(spot.readers, number)
        spot.readers[number] = index


def cpu_of(thread: Thread) -> int:
    """The address of the CPU that the thread is bound to, 0: none."""
    return thread.cpu.addr if thread.cpu is not None else 0
