"""Which steps are ordered by synchronisation: vector clocks, and the edges that move them.

Program order, fork and join, locks, the hand-over of a CPU, release and acquire through the
message that a location's last write carries, fences as in C11, and the grace-period law.
Nothing else orders two steps, least of all that one happened before the other in this run.

Clocks as in Fidge and Mattern; a step is named by its *epoch*, the pair of its thread's index
and that thread's time, as in Flanagan and Freund, "FastTrack: Efficient and Precise Dynamic
Race Detection", PLDI 2009.  A thread's time advances only where it publishes what it knows.

Where Linux and C11 leave room: `rcu_dereference` acquires (what it orders are dependencies);
a failed cmpxchg or inc_not_zero acquires and does not release; a failed trylock orders
nothing; a plain write carries no message, not even after a release fence; a marked write ends
the release sequence of the write before it, a read-modify-write continues it.  Sleeping and
reading the clock order nothing.
"""

from __future__ import annotations

from typing import Any, Final, final

from sim import ops
from sim.cells import Cell
from sim.events import Event
from sim.ops import Op
from sim.threads import Thread
from sim.undo import Log

Clock = list[int]  # by Thread.index; a shorter one has zeros behind its end

_CELL: Final = Cell  # a constant is at hand where a class is looked up
_ACQUIRES: Final = frozenset({ops.ACQUIRE, ops.FULL, ops.DEREF})
_RELEASES: Final = frozenset({ops.RELEASE, ops.FULL})


def join(into: Clock, other: Clock | None) -> None:
    """Make `into` know what `other` knows; `into` is at least as long."""
    if other is not None:
        for index, time in enumerate(other):
            if time > into[index]:  # noqa: PLR1730  # max() would be a call per thread
                into[index] = time


def joined(a: Clock | None, b: Clock | None) -> Clock | None:
    """What `a` and `b` know together; neither is changed."""
    if a is None or b is None:
        return a if b is None else b
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    both = long[:]
    join(both, short)
    return both


@final
class _Flavour:
    """What sections and grace periods of one domain have published.

    starts   what every grace period's start knew
    ends     per thread, what it knew at the last end of a section
    ended    per section that has ended, what was known then
    grace    per grace period, what its start knew and what had ended by then
    """

    __slots__ = ("ended", "ends", "grace", "starts")

    def __init__(self) -> None:
        self.starts: Clock | None = None
        self.ends: dict[int, Clock] = {}
        self.ended: dict[Any, Clock] = {}
        self.grace: dict[Any, Clock] = {}


@final
class HappensBefore:
    """What every thread knows of the others' steps.  Must see an event before those who ask.

    clocks  by Thread.index: ``clocks[t][u]`` is the latest time of thread u whose steps are
            ordered before thread t's next one; ``clocks[t][t]`` is t's own time
    time    the time, in its own thread, of the step observed last

    invariant: a published clock (a message) is never changed again, only replaced.
    """

    kinds: frozenset[int] | None = frozenset(range(len(ops.KIND_NAMES))) - {
        ops.NOTE,
        ops.EXIT,
        ops.CHOOSE,
        ops.CLOCK,
        ops.ARM,
        ops.SLEEP,
    }

    def __init__(self, log: Log | None = None) -> None:
        self._log: Final = log
        self.clocks: Final[list[Clock]] = [[1]]
        self.time = 1
        self._read: Final[list[Clock | None]] = [None]  # by relaxed reads since the start
        self._fence: Final[list[Clock | None]] = [None]  # at the last release fence
        self._messages: Final[dict[int, Clock]] = {}  # of cells and CPUs, by address
        self._bytes: Final[dict[int, Clock]] = {}  # of bytes in regions, by address
        self._flavours: Final[dict[int, _Flavour]] = {}
        self._handlers: Final = {
            ops.REWRITE: self._store,
            ops.XCHG: self._rmw,
            ops.CMPXCHG: self._rmw,
            ops.RMW: self._rmw,
            ops.LOCK: self._take,
            ops.TRYLOCK: self._take,
            ops.UNLOCK: self._store,
            ops.WAIT: self._wait,
            ops.FORK: self._fork,
            ops.JOIN: self._join,
            ops.FENCE: self._fence_step,
            ops.SECTION_BEGIN: self._section_begin,
            ops.SECTION_END: self._section_end,
            ops.GP_START: self._gp_start,
            ops.GP_END: self._gp_end,
            ops.CPU_HOLD: self._cpu_hold,
            ops.CPU_RELEASE: self._cpu_release,
        }

    def ordered(self, index: int, time: int, thread: Thread) -> bool:
        """Whether the step of thread `index` at `time` is ordered before `thread`'s next one."""
        return time <= self.clocks[thread.index][index]

    def observe(self, event: Event) -> None:
        op = event.op
        index = event.thread.index
        self.time = self.clocks[index][index]
        kind = op.kind
        if kind == ops.LOAD or kind == ops.FETCH:
            if (
                op.order != ops.PLAIN
                and (self._messages or self._bytes)
                and (message := self._message(op)) is not None
            ):
                self._acquire(index, op.order, message)
        elif kind == ops.STORE:
            self._store(index, event)
        else:
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(index, event)

    # -- messages ------------------------------------------------------------------------------

    def _message(self, op: Op[Any]) -> Clock | None:
        """What the bytes that `op` reads were last written with."""
        if type(op.target) is _CELL:
            return self._messages.get(op.addr)
        return self._bytes_message(op.addr, op.size)

    def _bytes_message(self, addr: int, size: int) -> Clock | None:
        message = self._messages.get(addr)  # an access by address may hit a cell
        if self._bytes:
            for byte in range(addr, addr + size):
                message = joined(message, self._bytes.get(byte))
        return message

    def _write(self, op: Op[Any], message: Clock | None) -> None:
        """The bytes that `op` writes carry `message` from now on."""
        if message is None and not self._messages and not self._bytes:
            return
        addr = op.addr
        is_cell = type(op.target) is _CELL
        if self._log is not None and (message is not None or addr in self._messages):
            self._log.item(self._messages, addr)
        if message is not None and (is_cell or op.target is None):
            self._messages[addr] = message
        else:
            self._messages.pop(addr, None)
        if is_cell:
            return
        if self._log is not None and (message is not None or self._bytes):
            for byte in range(addr, addr + op.size):
                self._log.item(self._bytes, byte)
        if message is not None:
            for byte in range(addr, addr + op.size):
                self._bytes[byte] = message
        elif self._bytes:
            for byte in range(addr, addr + op.size):
                self._bytes.pop(byte, None)

    def _acquire(self, index: int, order: int, message: Clock | None) -> None:
        """Thread `index` has read `message`: it knows it now, or after an acquire fence."""
        if message is None:
            return
        if order in _ACQUIRES:
            join(self._changing(self.clocks, index), message)
        elif order != ops.PLAIN:
            if self._log is not None:
                self._log.items(self._read)
            self._read[index] = joined(self._read[index], message)

    def _changing(self, clocks: list[Clock], index: int) -> Clock:
        """One of `clocks` that is about to change."""
        clock = clocks[index]
        if self._log is not None:
            self._log.items(clock)
        return clock

    def _release(self, index: int) -> Clock:
        """What thread `index` knows, published; what it does from now on is not in it."""
        clock = self._changing(self.clocks, index)
        published = clock[:]
        clock[index] += 1
        return published

    def _carried(self, index: int, order: int) -> Clock | None:
        """The message of a write of that order by thread `index`."""
        if order in _RELEASES:
            return self._release(index)
        return None if order == ops.PLAIN else self._fence[index]

    # -- steps ---------------------------------------------------------------------------------

    def _store(self, index: int, event: Event) -> None:
        self._write(event.op, self._carried(index, event.op.order))

    def _rmw(self, index: int, event: Event) -> None:
        op = event.op
        message = self._message(op)
        self._acquire(index, op.order, message)
        if wrote(event):
            self._write(op, joined(message, self._carried(index, op.order)))

    def _take(self, index: int, event: Event) -> None:
        if event.result is not False:  # a trylock that failed
            self._acquire(index, event.op.order, self._message(event.op))

    def _wait(self, index: int, event: Event) -> None:
        op = event.op
        for cell in op.operand[1]:
            message = (
                self._messages.get(cell.addr)
                if type(cell) is _CELL
                else self._bytes_message(cell.addr, cell.size)
            )
            self._acquire(index, op.order, message)

    def _fork(self, index: int, event: Event) -> None:
        born: Thread = event.result
        assert born.index == len(self.clocks)
        for clock in self.clocks:
            clock.append(0)
        if self._log is not None:  # before the clock that changes: it is put back first then
            self._log.call(_unfork, self.clocks, self._read, self._fence)
        known = self._release(index)
        known[born.index] = 1
        self.clocks.append(known)
        self._read.append(None)
        self._fence.append(None)

    def _join(self, index: int, event: Event) -> None:
        join(self._changing(self.clocks, index), self.clocks[event.op.target.index])

    def _fence_step(self, index: int, event: Event) -> None:
        order = event.op.order
        if order in _ACQUIRES:
            join(self._changing(self.clocks, index), self._read[index])
        if order in _RELEASES:
            if self._log is not None:
                self._log.items(self._fence)
            self._fence[index] = self._release(index)

    def _cpu_hold(self, index: int, event: Event) -> None:
        join(self._changing(self.clocks, index), self._messages.get(event.op.addr))

    def _cpu_release(self, index: int, event: Event) -> None:
        if self._log is not None:
            self._log.item(self._messages, event.op.addr)
        self._messages[event.op.addr] = self._release(index)

    # -- the grace-period law --------------------------------------------------------------------

    def _flavour(self, event: Event) -> _Flavour:
        flavour = self._flavours.get(event.op.addr)
        if flavour is None:
            flavour = self._flavours[event.op.addr] = _Flavour()
        return flavour

    def _section_begin(self, index: int, event: Event) -> None:
        flavour = self._flavours.get(event.op.addr)
        if flavour is not None and event.op.target.readers:
            join(self._changing(self.clocks, index), flavour.starts)

    def _section_end(self, index: int, event: Event) -> None:
        flavour = self._flavour(event)
        if self._log is not None:
            self._log.item(flavour.ended, event.op.operand)
            self._log.item(flavour.ends, index)
        flavour.ended[event.op.operand] = flavour.ends[index] = self._release(index)

    def _gp_start(self, index: int, event: Event) -> None:
        flavour = self._flavour(event)
        published = self._release(index)
        if self._log is not None:
            self._log.attribute(flavour, "starts")
            self._log.item(flavour.grace, event.result)
        flavour.starts = joined(flavour.starts, published)
        known = published[:]
        for end in flavour.ends.values():
            join(known, end)
        flavour.grace[event.result] = known

    def _gp_end(self, index: int, event: Event) -> None:
        flavour = self._flavour(event)
        clock = self._changing(self.clocks, index)
        join(clock, flavour.grace.get(event.op.operand))
        for section in event.op.operand.waits_for:
            join(clock, flavour.ended.get(section))


def _unfork(*grown: list[Any]) -> None:
    """Forget the last thread; no clock knows a step of it any more."""
    clocks = grown[0]
    for one in grown:
        one.pop()
    for clock in clocks:
        clock.pop()


def wrote(event: Event) -> bool:
    """Whether a memory operation has written, now that its result is known."""
    return has_written(event.op, event.result)


def has_written(op: Op[Any], result: Any) -> bool:
    """The same of an operation and its result."""
    kind = op.kind
    if kind == ops.CMPXCHG:
        expected = op.operand[0]
        return result is expected or bool(result == expected)
    if kind == ops.RMW:
        return bool(op.operand[0] != "inc_not_zero" or result)
    if kind == ops.TRYLOCK:
        return bool(result)
    return kind in ops.WRITING
