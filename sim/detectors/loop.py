"""Livelock: every thread that can go on does, and nothing ever changes.

The criterion: for more than `limit` steps nobody has changed memory, a lock, a CPU, the time or
the set of threads, nobody has made a choice, and since then every thread that is able to take a
step has taken `limit` more.  Whatever such a thread reads is the same each time round, so it
would have to count its own fruitless steps to come out by itself; that is the bound stated.
A thread that the strategy has merely kept waiting does not count as spinning, so no unfair
schedule is reported.

A thread that says what it spins for (`macros.cpu_relax`) takes no steps meanwhile.  If nobody is
able to take one any more, `deadlock` reports it, in the same words.

How many steps two threads take between each other's depends on the execution, not on its class.  So
where a thread alone takes more than `limit` fruitless steps in a row and then goes on, that not all
such orders have been tried is noted (`Memory.doubts`).

Not seen: loops that write (two threads that back off for each other for ever), and loops that
sleep; the step limit ends those executions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

from sim import ops
from sim.detectors.describe import call_trace
from sim.detectors.happens_before import has_written
from sim.events import Detail, Event, Finding

if TYPE_CHECKING:
    from sim.memory import Memory
    from sim.ops import Op
    from sim.threads import Thread

LIVELOCK: Final = "livelock"
LIMIT: Final = 1000
DOUBT: Final = "a thread took more than {:,} steps in a row that change nothing: maybe a livelock"

#: Kinds that leave no trace in the state that the others see, and those that may.
_FRUITLESS: Final = frozenset(
    {ops.LOAD, ops.FETCH, ops.WAIT, ops.FENCE, ops.CLOCK, ops.NOTE}
    | {ops.SECTION_BEGIN, ops.SECTION_END, ops.GP_START, ops.GP_END}
)
_CONDITIONAL: Final = frozenset({ops.CMPXCHG, ops.RMW, ops.TRYLOCK})


def _is_fruitless(op: Op[Any], result: Any) -> bool:
    """Whether an operation has changed nothing that others could notice."""
    kind = op.kind
    return kind in _FRUITLESS or (kind in _CONDITIONAL and not has_written(op, result))


def livelock(threads: Sequence[Thread], step: int, *details: Detail) -> Finding:
    """What is reported of threads that spin for ever."""
    names = tuple(sorted(thread.name for thread in threads))
    return Finding(
        LIVELOCK,
        f"INFO: livelock of {', '.join(names)}: nothing changes any more",
        names,
        step,
        (*details, *map(call_trace, threads)),
    )


@final
class Livelock:
    """Reports once per execution that all threads that can go on are spinning.

    limit  how many fruitless steps in a row every one of them has taken
    """

    kinds: frozenset[int] | None = None

    def __init__(self, memory: Memory, limit: int = LIMIT) -> None:
        self._memory: Final = memory
        self._log: Final = memory.log
        self._limit: Final = limit
        self._changes: list[int] = [0]  # steps of changes; where nobody goes back, of the last one
        self._threads: list[Thread] = []
        self._spun: dict[Thread, int] = {}  # steps since `limit` steps after the change
        self._reported = False
        self._rows: dict[Thread, int] = {}  # fruitless steps in a row, where nobody goes back

    def observe(self, event: Event) -> Finding | None:
        kind = event.op.kind
        changes = self._changes
        while changes[-1] >= event.step > 0:
            changes.pop()  # has been taken back
        if kind == ops.EXIT and len(event.thread.trail) > self._limit:
            self._look_back(event.thread)
        fruitless = _is_fruitless(event.op, event.result)
        if self._log is None:
            row = self._rows[event.thread] = self._rows.get(event.thread, 0) + 1 if fruitless else 0
            if row > self._limit:
                self._doubt()
        if fruitless:
            return self._spinning(event) if event.step - changes[-1] > self._limit else None
        log = self._log
        if log is None:
            changes.clear()
        changes.append(event.step)
        if self._spun:
            if log is not None:
                log.attribute(self, "_spun")
            self._spun = {}
        if kind == ops.FORK:
            if log is not None:
                log.attribute(self, "_threads")
            self._threads = [*(self._threads or [event.thread]), event.result]
        return None

    def _look_back(self, thread: Thread) -> None:
        """Note a long row of fruitless steps in what `thread` has done."""
        row = 0
        for known, result in thread.trail:
            row = row + 1 if _is_fruitless(known.op, result) else 0
            if row > self._limit:
                self._doubt()
                return

    def _doubt(self) -> None:
        self._memory.doubts[DOUBT.format(self._limit)] = None

    def _spinning(self, event: Event) -> Finding | None:
        thread = event.thread
        if self._log is not None:
            self._log.item(self._spun, thread)
        steps = self._spun[thread] = self._spun.get(thread, 0) + 1
        if steps % self._limit or self._reported:
            return None
        threads = self._threads or [thread]
        able = [t for t in threads if t is thread or self._able(t)]
        if any(self._spun.get(t, 0) < self._limit for t in able):
            return None
        if self._log is not None:
            self._log.attribute(self, "_reported")
        self._reported = True
        return livelock(able, event.step)

    def _able(self, thread: Thread) -> bool:
        """Whether a thread other than the running one could take its next step."""
        if thread.ended or thread.pending is None:
            return False
        cpu = thread.cpu
        if cpu is not None and cpu.holder is not None and cpu.holder is not thread:
            return False
        return not thread.guarded or self._memory.ready(thread, thread.pending)
