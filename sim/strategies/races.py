"""The steps of one execution, what happens before what in them, and which of them race.

Happens-before is the order of dependent steps (`ops.dependent`) and of the steps of one thread;
that is the order of Mazurkiewicz's traces, not that of `sim.detectors.happens_before`, which asks
what the kernel's own synchronisation orders.  Clocks as there: of every thread, how many of its
steps come before.  Two dependent steps race if nothing else orders them and the second could
have come first.

Steps can be taken back from the end, so that what is known of a common beginning of two
executions is found out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, final

from sim import ops
from sim.ops import Op
from sim.strategies.steps import Clock, Spot, Spots, Step, join
from sim.threads import Thread
from sim.undo import Log

if TYPE_CHECKING:
    from sim.events import Event

_TIME: Final = -1  # the spot of what reads the clock or sleeps


@final
class History:
    """The steps of an execution so far; see the module's docstring."""

    def __init__(self) -> None:
        self.steps: Final[list[Step]] = []
        self.exact = True
        self._log: Final = Log()
        self._numbers: Final[dict[int, int]] = {}  # by key of thread
        self._of: Final[list[list[int]]] = []  # by number of thread: its steps
        self._threads: Final[dict[int, Thread]] = {}  # by number, of this execution
        self._born: Final[dict[int, int]] = {}  # by number: the step that forked it
        self._exits: Final[dict[int, int]] = {}  # by key: the step behind which it ended
        self._ends: Final[dict[Any, int]] = {}  # by domain and section: the step behind it
        self._begins: Final[dict[int, list[tuple[int, Any]]]] = {}  # by domain, with the section
        self._starts: Final[dict[int, list[int]]] = {}  # by domain: starts of grace periods
        self._started: Final[dict[Any, int]] = {}  # by grace period, of this execution
        self._spot: Final = Spots().at
        self._before: Any = None
        self._pending: list[Step] = []

    # -- steps come and go -----------------------------------------------------------------------

    def boot(self) -> Step:
        """The first step, before every thread's: only local steps of the main thread."""
        step = Step(0, None, Op(ops.NOTE, "boot"), self._number(0))
        step.time = 1
        step.clock = [0] * len(self._of)
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
        self._threads[self._number(event.thread.key)] = event.thread
        if event.op.kind == ops.GP_START:
            self._started[event.result] = index

    def push(self, event: Event) -> Step:
        """A step has been taken."""
        thread, op = event.thread, event.op
        step = Step(thread.key, thread.cpu, op, self._number(thread.key))
        step.before = self._before
        self._threads[step.number] = thread
        steps = self._of[step.number]
        before = steps[-1] if steps else self._born.get(step.number, 0)
        clock = self.steps[before].clock[:]
        clock += [0] * (len(self._of) - len(clock))
        step.time = len(steps) + 1
        index = len(self.steps)
        self._append(step)
        racing: list[int] = []
        ordered: list[int] = []
        self._look(step, clock, racing, ordered, event.result)
        step.races = self._direct(racing)
        for other in (*racing, *ordered):
            join(clock, self.steps[other].clock)
        clock[step.number] = step.time
        step.clock = clock
        self._note(step, index, event)
        return step

    def local(self, event: Event) -> None:
        """A local step, behind the last step."""
        op = event.op
        kind = op.kind
        index = len(self.steps) - 1
        log = self._log
        if kind == ops.SECTION_END:
            log.item(self._ends, (op.addr, op.operand))
            self._ends[op.addr, op.operand] = index
        elif kind == ops.EXIT:
            log.item(self._exits, event.thread.key)
            self._exits[event.thread.key] = index
        elif kind == ops.FORK:
            number = self._number(event.result.key)
            log.item(self._born, number)
            self._born[number] = index
        elif kind == ops.CPU_RELEASE:
            self._wrote(self._spot(op.addr, 1), index)

    def chose(self, value: int, n: int) -> tuple[int, ...]:
        """`choose(n)` gave `value`, behind the last step; all that it gave there."""
        step = self.steps[-1]
        step.choices.append((value, n))
        step.values += (value,)
        return step.values

    def pop(self) -> Step:
        """Take the last step back."""
        step = self.steps.pop()
        self._log.rewind(step.mark)
        return step

    def _append(self, step: Step) -> None:
        index = len(self.steps)
        self.steps.append(step)
        own = self._of[step.number]
        step.mark = len(self._log.entries)
        own.append(index)
        self._log.grown(own)

    def _number(self, key: int) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._of)
            self._of.append([])
        return number

    # -- what a step depends on --------------------------------------------------------------------

    def _look(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], result: Any
    ) -> None:
        """Find the steps on which `step` depends: those that race with it, and the others.

        clock   what is ordered before it by its thread alone
        result  of the step; None: it has not been taken
        """
        op, kind = step.op, step.op.kind
        if kind in ops.MEMORY:
            spot = self._spot(op.addr, op.size)
            for near in (spot, *spot.overlaps):
                self._meet(near, step, clock, racing, write=kind in ops.WRITING)
            if kind == ops.LOCK:
                self._possible(step, clock, racing, ordered, spot)
        elif kind == ops.WAIT:
            self._wait(step, clock, racing, ordered, result)
        elif kind == ops.SECTION_BEGIN:
            self._new(step, clock, racing, self._starts.get(op.addr, ()))
        elif kind == ops.GP_START:
            self._new(step, clock, racing, (at for at, _ in self._begins.get(op.addr, ())))
        elif kind == ops.GP_END:
            ordered += self._ended(op)
        elif kind == ops.JOIN:
            if op.addr in self._exits:
                ordered.append(self._exits[op.addr])
        elif kind == ops.SLEEP or kind == ops.CLOCK:
            self._meet(self._spot(_TIME, 1), step, clock, racing, write=kind == ops.SLEEP)
            if kind == ops.SLEEP:
                self._sleep(step, clock, racing, ordered)
        if step.cpu is not None:
            spot = self._spot(step.cpu.addr, 1)
            self._meet(spot, step, clock, racing, write=kind == ops.CPU_HOLD)
            self._possible(step, clock, racing, ordered, spot)

    def _ended(self, op: Op[Any]) -> Iterator[int]:
        """Where the sections ended that a grace period waits for, or that it found ended.

        Had it started earlier, it would have had to wait for those, too; and that is the same
        class of executions, for the end of a section and the start of a grace period commute.
        """
        sections: Iterable[Any] = op.operand.waits_for
        start = self._started.get(op.operand)
        if start is not None:  # otherwise it was made to wait for these sections alone
            sections = (one for begin, one in self._begins.get(op.addr, ()) if begin < start)
        ends = ((op.addr, section) for section in sections)
        return (self._ends[end] for end in ends if end in self._ends)

    def _new(self, step: Step, clock: Clock, found: list[int], others: Iterable[int]) -> None:
        """Those of `others` that are of other threads and not ordered before by them."""
        for index in others:
            other = self.steps[index]
            if other.number != step.number and other.time > clock[other.number]:
                found.append(index)

    def _meet(self, spot: Spot, step: Step, clock: Clock, found: list[int], *, write: bool) -> None:
        """The last steps at `spot` on which a read or a write there depends."""
        if spot.writes:
            self._new(step, clock, found, spot.writes[-1:])
        if write and spot.readers:
            self._new(step, clock, found, spot.readers.values())

    def _possible(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], spot: Spot
    ) -> None:
        """`step` has to wait until `spot` is free: leave the steps before which it was."""
        if not spot.writes:
            return
        last = spot.writes[-1]
        if last in racing and not self._was_free(last):
            racing.remove(last)
            ordered.append(last)
            for at in reversed(spot.writes):
                if self._was_free(at):
                    self._new(step, clock, racing, (at,))
                    break

    def _was_free(self, index: int) -> bool:
        """Whether the lock or CPU that step `index` wrote was free before it."""
        step = self.steps[index]
        if step.op.kind in ops.MEMORY:
            return step.before is None
        return step.op.kind == ops.CPU_HOLD

    def _wait(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], result: Any
    ) -> None:
        """`step` waits for a predicate: find the last steps before which it held."""
        predicate, cells = step.op.operand
        values = list(result) if result is not None else [cell.value for cell in cells]
        spots = [self._spot(cell.addr, cell.size) for cell in cells]
        found: list[int] = []
        for spot in spots:
            for near in (spot, *spot.overlaps):
                self._meet(near, step, clock, found, write=False)
        ordered += found
        writes = sorted({at for spot in spots for at in spot.writes}, reverse=True)
        if sum(1 for spot in spots if spot.writes) > 1:
            self.exact = False
        for at in writes:
            other = self.steps[at]
            if other.number == step.number or other.time <= clock[other.number]:
                break
            before = [
                next((self.steps[w].before for w in spot.writes if self._after(at, w)), value)
                for spot, value in zip(spots, values, strict=True)
            ]
            if predicate(*before):
                racing.append(at)
                break

    def _after(self, first: int, second: int) -> bool:
        """Whether step `second` is `first`, or happens after it."""
        one, other = self.steps[first], self.steps[second]
        clock = other.clock
        return one.number < len(clock) and clock[one.number] >= one.time

    def _sleep(self, step: Step, clock: Clock, racing: list[int], ordered: list[int]) -> None:
        """`step` sleeps: leave the step before which nobody had an earlier deadline."""
        ordered += racing
        racing.clear()
        for at in range(len(self.steps) - 1, 0, -1):
            other = self.steps[at]
            if other.op.kind not in (ops.CLOCK, ops.SLEEP) or other is step:
                continue
            if other.number == step.number or other.time <= clock[other.number]:
                continue
            if self._earliest(step, at):
                racing.append(at)

    def _earliest(self, step: Step, without: int) -> bool:
        """Whether `step` would be the next to wake, were it not for step `without`."""
        for number, own in enumerate(self._of):
            if number == step.number:
                continue
            left = [at for at in own if not self._after(without, at)]
            op = self.steps[own[len(left)]].op if len(left) < len(own) else self._next(number)
            if op is not None and op.kind == ops.SLEEP and op.operand < step.op.operand and left:
                return False
        return True

    def _next(self, number: int) -> Op[Any] | None:
        thread = self._threads.get(number)
        return thread.pending if thread is not None else None

    def _direct(self, racing: list[int]) -> list[int]:
        """Those of `racing` that do not happen before another one."""
        if len(racing) <= 1:
            return racing
        return [
            at
            for at in dict.fromkeys(racing)
            if not any(other != at and self._after(at, other) for other in racing)
        ]

    # -- what it leaves behind ------------------------------------------------------------------

    def _note(self, step: Step, index: int, event: Event) -> None:
        op, kind = step.op, step.op.kind
        if kind in ops.WRITING:
            self._wrote(self._spot(op.addr, op.size), index)
        elif kind in ops.MEMORY:
            self._read(self._spot(op.addr, op.size), step.number, index)
        elif kind == ops.WAIT:
            for cell in op.operand[1]:
                self._read(self._spot(cell.addr, cell.size), step.number, index)
        elif kind == ops.SECTION_BEGIN:
            begins = self._begins.setdefault(op.addr, [])
            begins.append((index, op.operand))
            self._log.grown(begins)
        elif kind == ops.GP_START:
            starts = self._starts.setdefault(op.addr, [])
            starts.append(index)
            self._log.grown(starts)
            self._started[event.result] = index
        elif kind == ops.SLEEP:
            self._wrote(self._spot(_TIME, 1), index)
        elif kind == ops.CLOCK:
            self._read(self._spot(_TIME, 1), step.number, index)
        if step.cpu is not None:
            spot = self._spot(step.cpu.addr, 1)
            if kind == ops.CPU_HOLD:
                self._wrote(spot, index)
            else:
                self._read(spot, step.number, index)

    def _wrote(self, spot: Spot, index: int) -> None:
        spot.writes.append(index)
        self._log.grown(spot.writes)
        if spot.readers:
            self._log.attribute(spot, "readers")
            spot.readers = {}

    def _read(self, spot: Spot, number: int, index: int) -> None:
        self._log.item(spot.readers, number)
        spot.readers[number] = index

    # -- the end of an execution -------------------------------------------------------------------

    def ended(self, threads: Sequence[Thread], *, fatal: bool, stuck: bool) -> None:
        """The execution is over; `fatal`: at its last step, `stuck`: for nobody can go on."""
        self._pending = []
        if fatal and self.steps:
            self.steps[-1].fatal = True
        if fatal or stuck:
            for thread in threads:
                if thread.pending is not None and not thread.ended:
                    step = Step(thread.key, thread.cpu, thread.pending, self._number(thread.key))
                    self._pending.append(step)

    def pending_races(self) -> Iterator[tuple[int, Step]]:
        """Races with the steps that threads stand before at the end."""
        last = len(self.steps) - 1
        for step in self._pending:
            own = self._of[step.number]
            before = own[-1] if own else self._born.get(step.number, 0)
            if before == last or step.op.kind in (ops.GP_END, ops.JOIN):
                continue  # what they wait for is a matter of other races
            if self.steps[last].fatal and self._was_able(step):
                yield last, step
                continue
            clock = self.steps[before].clock[:]
            clock += [0] * (len(self._of) - len(clock))
            racing: list[int] = []
            self._look(step, clock, racing, [], None)
            if step.op.kind == ops.LOCK:
                racing = [at for at in racing if self.steps[at].op.kind in ops.WRITING]
            for first in self._direct(racing):
                yield first, step

    def _was_able(self, step: Step) -> bool:
        """Whether a pending step could have been taken before the last step."""
        op, kind = step.op, step.op.kind
        last = len(self.steps) - 1
        if kind == ops.LOCK:
            return self._value(op.target, last) is None
        if kind == ops.WAIT:
            predicate, cells = op.operand
            return bool(predicate(*(self._value(cell, last) for cell in cells)))
        return kind != ops.SLEEP or self._earliest(step, last)

    def _value(self, place: Any, last: int) -> Any:
        """What a cell held before step `last`."""
        writes = self._spot(place.addr, place.size).writes
        return self.steps[last].before if writes and writes[-1] == last else place.value

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
