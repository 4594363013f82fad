"""What a complete search keeps of the steps of an execution: clocks, races, places in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

from sim import ops
from sim.ops import Op

Packed = list[Any]  # of what JSON has
Clock = list[int]  # by dense number of the thread; zeros are missing at the end


@final
class Lead:
    """A step to be taken: of which thread, and the value if it is to choose one.

    fixed   whether its races are somebody else's: it was moved here, or leads to one that was
    before  of one that was moved: what it was moved before, as key of the thread and place among
            that thread's steps; `CHOICE`: nothing, it chooses another value
    but     keys of threads whose steps are fatal there, so that it was planned to come instead
    unsure  whether it may turn out not to be possible there
    values  by key of a thread that stands before a choice then: the first value to try, for all
            lower ones are fatal
    """

    __slots__ = ("before", "but", "fixed", "key", "unsure", "value", "values")

    def __init__(
        self,
        key: int,
        value: int = 0,
        before: tuple[int, int] | None = None,
        *,
        fixed: bool = True,
        but: tuple[int, ...] = (),
        unsure: bool = False,
        values: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.key: Final = key
        self.value: Final = value
        self.before: Final = before
        self.fixed: Final = fixed
        self.but: Final = but
        self.unsure: Final = unsure
        self.values: Final = values

    def packed(self) -> Packed:
        """As plain data."""
        values = [list(one) for one in self.values]
        return [self.key, self.value, self.before, self.fixed, list(self.but), self.unsure, values]

    @classmethod
    def unpacked(cls, packed: Packed) -> Lead:
        """What was :meth:`packed`."""
        key, value, before, fixed, but, unsure, values = packed
        of = None if before is None else (before[0], before[1])
        pairs = tuple((thread, first) for thread, first in values)
        return cls(key, value, of, fixed=fixed, but=tuple(but), unsure=unsure, values=pairs)


CHOICE: Final = (-1, 0)


@final
class Cut:
    """Steps that one that waits for several things would have to come before, all of them at once.

    removed  those steps, the last first: before fewer, from the last on, the wait is not possible
    clock    what happens before the wait then
    unsure   whether it is not known to be possible there
    """

    __slots__ = ("clock", "removed", "unsure")

    def __init__(self, removed: tuple[int, ...], clock: Clock, *, unsure: bool) -> None:
        self.removed: Final = removed
        self.clock: Final = clock
        self.unsure: Final = unsure


@final
class Step:
    """A visible step, with the local steps behind it.

    key       of its thread; cpu: address of that thread's CPU, 0: it has its own
    on_cpu    the same, but 0 if the step needs none (`ops.OFF_CPU`)
    op        the visible operation
    value     what `choose` gave (a step of another value is another one), 0 for other operations
    number    the dense number of its thread; time: its place among that thread's steps, from 1
    clock     what happens before it, itself included
    races     the earlier steps that it races with
    cuts      of a wait for several things, instead: the sets of earlier steps that it races with
    ended     of a grace period's start: behind which steps sections had ended
    before    what a memory cell held before it wrote there
    frees     whether its thread leaves its CPU behind it
    fatal     whether a finding ended the execution at it
    mark      how long the history's log was before it
    base      of one that races: what happens before it by its own thread alone
    needs     of one that races: the steps that it races with, and those that made it possible
    lead      what a search had planned it by; None: it was what came next of itself
    but       keys of threads that it came instead of, for their steps are fatal there
    """

    __slots__ = (
        "base",
        "before",
        "but",
        "clock",
        "cpu",
        "cuts",
        "end",
        "ended",
        "fatal",
        "frees",
        "key",
        "lead",
        "mark",
        "memory",
        "needs",
        "number",
        "on_cpu",
        "op",
        "races",
        "start",
        "time",
        "value",
        "writes",
    )

    def __init__(self, key: int, cpu: int, op: Op[Any], number: int = -1, value: int = 0) -> None:
        self.key: Final = key
        self.cpu: Final = cpu
        self.on_cpu: Final = cpu if op.kind not in ops.OFF_CPU else 0
        self.op: Final = op
        self.number: Final = number
        self.value: Final = value
        kind = op.kind
        self.memory: Final = kind in ops.MEMORY
        self.writes: Final = kind in ops.WRITING
        self.start: Final = op.addr
        self.end: Final = op.addr + op.size
        self.time = 0
        self.clock: Clock = []
        self.base: Clock = []
        self.needs: Sequence[int] = ()
        self.races: Sequence[int] = ()
        self.cuts: Sequence[Cut] = ()
        self.lead: Lead | None = None
        self.but: tuple[int, ...] = ()
        self.before: Any = None
        self.fatal = False
        self.frees = False
        self.mark = 0
        self.ended: tuple[int, ...] = ()

    def meets(self, other: Step) -> bool:
        """Whether this step and `other`, of another thread, may not change places."""
        same_cpu = self.cpu == other.cpu != 0
        if same_cpu and ((self.frees and other.on_cpu) or (other.frees and self.on_cpu)):
            return True
        if self.memory and other.memory and not same_cpu:
            return (
                (self.writes or other.writes) and self.start < other.end and other.start < self.end
            )  # as ops.dependent says
        return ops.dependent(self.op, other.op, same_cpu=same_cpu)


@final
class Spot:
    """Some bytes (or a CPU, or the clock): the steps that touched them.

    writes    all steps that wrote, in order
    readers   by thread, the last step that read since the last write
    overlaps  other spots that share a byte
    """

    __slots__ = ("addr", "overlaps", "readers", "size", "writes")

    def __init__(self, addr: int, size: int) -> None:
        self.addr: Final = addr
        self.size: Final = size
        self.writes: list[int] = []
        self.readers: dict[int, int] = {}
        self.overlaps: list[Spot] = []


@final
class Spots:
    """All spots by address and size."""

    def __init__(self) -> None:
        self._spots: Final[dict[tuple[int, int], Spot]] = {}
        self._in_word: Final[dict[int, list[Spot]]] = {}  # by address // 8

    def at(self, addr: int, size: int) -> Spot:
        """The spot of these bytes."""
        spot = self._spots.get((addr, size))
        if spot is not None:
            return spot
        spot = self._spots[addr, size] = Spot(addr, size)
        for word in range(addr >> 3, (addr + max(size, 1) + 7) >> 3):
            others = self._in_word.setdefault(word, [])
            for other in others:
                apart = other.addr + other.size <= addr or addr + size <= other.addr
                if not apart and other not in spot.overlaps:
                    spot.overlaps.append(other)
                    other.overlaps.append(spot)
            others.append(spot)
        return spot


def join(into: Clock, other: Clock) -> None:
    """Make `into` know what `other` knows; `into` is at least as long."""
    for number, time in enumerate(other):
        if time > into[number]:  # noqa: PLR1730  # max() would be a call per thread
            into[number] = time
