"""What has happened so far, up to the order of independent steps, as one number.

Two runs of a program that differ only in the order of independent steps (`ops.dependent`) are in
the same state: Mazurkiewicz, "Trace Theory", 1987.  :class:`Causality` gives each step a number
made of the numbers of the steps that it depends on, and adds them up; addition forgets the order.
So equal sums mean equal pasts (but for a collision of 128 bits), and a search that meets a sum
again need not go on from there: Musuvathi and Qadeer, "Partial-Order Reduction for
Context-Bounded State Exploration", MSR-TR-2007-12.

The dependences here include those of `ops.dependent`, and a few more where that is simpler (words
of 8 bytes are not divided).  More dependences only tell more pasts apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final, final

from sim import ops
from sim.events import Event
from sim.ops import Op
from sim.threads import Thread

_MASK: Final = (1 << 128) - 1
_ODD: Final = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2**128 / golden ratio
_CLOCK: Final = "clock"


def _mix(one: int, other: int) -> int:
    mixed = ((one ^ other) * _ODD) & _MASK
    return mixed ^ (mixed >> 61)


@final
class Causality:
    """Watches the steps of one execution; `past` is what has happened.

    past  equal for two prefixes if they are the same up to the order of independent steps
    """

    def __init__(self) -> None:
        self.past = 0
        self._threads: dict[int, int] = {}  # by key: the thread's last step
        self._writes: dict[Hashable, int] = {}  # by place: the last step that changed it
        self._reads: dict[Hashable, int] = {}  # by place: the sum of the steps that saw that

    def observe(self, event: Event) -> None:
        """A step has happened."""
        op, thread = event.op, event.thread
        kind = op.kind
        step = _mix(self._threads.get(thread.key, 1), thread.key + (kind << 64))
        if kind == ops.CHOOSE:
            step = _mix(step, event.result + 1)
        seen = list(_sees(thread, op))
        changed = list(_changes(op))
        for place in seen:
            step = _mix(step, self._writes.get(place, 2))
        for place in changed:
            step = _mix(_mix(step, self._writes.get(place, 2)), self._reads.pop(place, 3))
        for place in seen:
            self._reads[place] = (self._reads.get(place, 3) + step) & _MASK
        for place in changed:
            self._writes[place] = step
        self._threads[thread.key] = step
        if kind == ops.FORK:
            self._threads[event.result.key] = step
        self.past = (self.past + step) & _MASK


def _sees(thread: Thread, op: Op[Any]) -> Iterator[Hashable]:
    """The places on whose last change the step depends."""
    kind = op.kind
    if thread.cpu is not None:
        yield thread.cpu.addr
    if kind == ops.LOAD or kind == ops.FETCH:
        yield from _words(op.addr, op.size)
    elif kind == ops.WAIT:
        for cell in op.operand[1]:
            yield from _words(cell.addr, cell.size)
    elif kind == ops.SECTION_BEGIN:
        yield op.addr
    elif kind == ops.GP_END:
        yield from op.operand.waits_for
    elif kind == ops.JOIN:
        yield -op.addr
    elif kind == ops.CLOCK:
        yield _CLOCK


def _changes(op: Op[Any]) -> Iterator[Hashable]:
    """The places that the step changes."""
    kind = op.kind
    if kind in ops.WRITING:
        yield from _words(op.addr, op.size)
    elif kind == ops.GP_START or kind == ops.CPU_HOLD or kind == ops.CPU_RELEASE:
        yield op.addr
    elif kind == ops.SECTION_END:
        yield op.operand
    elif kind == ops.EXIT:
        yield -op.addr
    elif kind == ops.ARM or kind == ops.SLEEP:
        yield _CLOCK


def _words(addr: int, size: int) -> range:
    """The words of memory that hold the bytes; as numbers that are no addresses of words."""
    return range(addr >> 3, (addr + max(size, 1) + 7) >> 3)
