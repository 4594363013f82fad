"""Data races, in the words of KCSAN: conflicting accesses that no synchronisation orders.

Two accesses conflict if they touch a common byte, at least one of them writes and at least one
is plain.  Races on places that are declared racy by design are reported with the reason, and
decide nothing.  Allocating and freeing are the business of `lifetime`.

Of each kind of access only the last one per thread is kept: if an earlier one is unordered with
a later step of another thread, then so is the last one.  An access in the same epoch as one of
the same kind need not be looked at again, as in FastTrack (Flanagan and Freund, PLDI 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from sim import ops
from sim.cells import Lvalue
from sim.detectors.describe import distinct, frames
from sim.detectors.happens_before import HappensBefore, wrote
from sim.events import Detail, Event, Finding, Stack
from sim.stack import function_of, unwind
from sim.undo import ABSENT, PUT_ITEM

if TYPE_CHECKING:
    from sim.memory import Memory

DATA_RACE: Final = "data-race"

# Kinds of access.
PLAIN_READ: Final = 0
MARKED_READ: Final = 1
PLAIN_WRITE: Final = 2
MARKED_WRITE: Final = 3

_CONFLICTS: Final = (
    (PLAIN_WRITE, MARKED_WRITE),  # with a plain read
    (PLAIN_WRITE,),  # with a marked read
    (PLAIN_READ, MARKED_READ, PLAIN_WRITE, MARKED_WRITE),  # with a plain write
    (PLAIN_READ, PLAIN_WRITE),  # with a marked write
)


@final
class _Access:
    """The last access of one kind by one thread to one place."""

    __slots__ = ("function", "kind", "op", "place", "stack", "step", "thread", "time")

    def __init__(
        self, place: _Place, kind: int, time: int, event: Event, function: str, stack: Stack
    ) -> None:
        self.place: Final = place
        self.kind: Final = kind
        self.time: Final = time
        self.thread: Final = event.thread
        self.step: Final = event.step
        self.op: Final = event.op
        self.function: Final = function
        self.stack: Final = stack

    def detail(self) -> Detail:
        """The access as KCSAN describes it."""
        what = "read" if self.kind in (PLAIN_READ, MARKED_READ) else "write"
        if what == "write" and self.op.kind not in (ops.STORE, ops.UNLOCK):
            what = "read-write"
        if self.kind in (MARKED_READ, MARKED_WRITE):
            what += " (marked)"
        where = f"0x{self.place.addr:016x} of {self.place.size} bytes"
        return Detail(
            f"{what} to {where} by task {self.thread.name} at step {self.step}:",
            frames(self.stack) or (f" {self.function}",),
        )


@final
class _Place:
    """The bytes ``[addr, addr + size)``: who has accessed them, and places that share a byte.

    accesses  per kind of access, the last one of each thread
    """

    __slots__ = ("accesses", "addr", "overlaps", "size")

    def __init__(self, addr: int, size: int) -> None:
        self.addr: Final = addr
        self.size: Final = size
        self.accesses: Final[tuple[dict[int, _Access], ...]] = ({}, {}, {}, {})
        self.overlaps: list[_Place] = []


def _where(place: _Place) -> tuple[int, int]:
    return place.addr, place.size


@final
class DataRace:
    """Reports each pair of functions that race on a place, once per execution."""

    kinds: frozenset[int] | None = (ops.MEMORY - {ops.FREE, ops.FETCH, ops.REWRITE}) | {ops.WAIT}

    def __init__(self, order: HappensBefore, memory: Memory) -> None:
        self._order: Final = order
        self._memory: Final = memory
        self._log: Final = memory.log
        self._places: Final[dict[int, _Place]] = {}  # by address: of the size met last
        self._sized: Final[dict[tuple[int, int], _Place]] = {}  # by address and size
        self._in_word: Final[dict[int, list[_Place]]] = {}  # by address // 8
        self._reported: Final[dict[tuple[int, str, str], None]] = {}

    def observe(self, event: Event) -> tuple[Finding, ...] | None:
        if event.fault is not None:
            return None  # worse than a race, and reported as what it is
        if event.thread.parent is None and not event.thread.forks:
            return None  # whatever comes before the first fork is ordered before all else
        op = event.op
        plain = op.order == ops.PLAIN
        if op.kind == ops.LOAD:
            kind = PLAIN_READ if plain else MARKED_READ
        elif op.kind == ops.WAIT:
            kind = PLAIN_READ if plain else MARKED_READ
            found: list[Finding] = []
            for place in op.operand[1]:
                found += self._accessed(event, place.addr, place.size, kind) or ()
            return tuple(found)
        elif op.kind == ops.STORE or wrote(event):
            kind = PLAIN_WRITE if plain else MARKED_WRITE
        else:
            kind = PLAIN_READ if plain else MARKED_READ
        return self._accessed(event, op.addr, op.size, kind)

    def _accessed(
        self, event: Event, addr: int, size: int, kind: int
    ) -> tuple[Finding, ...] | None:
        place = self._places.get(addr)
        if place is None or place.size != size:
            place = self._sized.get((addr, size)) or self._new_place(addr, size)
            self._places[addr] = place
        thread, op = event.thread, event.op
        index = thread.index
        time = self._order.time
        accesses = place.accesses[kind]
        mine = accesses.get(index)
        if mine is not None and mine.time == time:
            return None
        if self._log is not None:
            before: object = ABSENT if mine is None else mine
            self._log.entries.append((PUT_ITEM, accesses, index, before))
        function = op.function or function_of(thread, op)
        stack = unwind(thread) if self._memory.stacks else ()
        mine = accesses[index] = _Access(place, kind, time, event, function, stack)
        racing = self._unordered(place, kind, index)
        for other in place.overlaps:
            racing += self._unordered(other, kind, index)
        return tuple(self._report(event, mine, racing)) if racing else None

    def _new_place(self, addr: int, size: int) -> _Place:
        made = self._sized[addr, size] = _Place(addr, size)
        for word in range(addr >> 3, (addr + size - 1 >> 3) + 1):
            others = self._in_word.setdefault(word, [])
            for other in others:
                if (
                    addr < other.addr + other.size
                    and other.addr < addr + size
                    and other not in made.overlaps
                ):
                    made.overlaps.append(other)
                    other.overlaps.append(made)
                    other.overlaps.sort(key=_where)  # not by which execution met them first
            others.append(made)
        made.overlaps.sort(key=_where)
        return made

    def _unordered(self, place: _Place, kind: int, index: int) -> list[_Access]:
        """Accesses to `place` that conflict with one of `kind` that thread `index` does now."""
        racing: list[_Access] = []
        clock = self._order.clocks[index]
        for conflicting in _CONFLICTS[kind]:
            others = place.accesses[conflicting]
            if others:
                racing += [a for i, a in others.items() if a.time > clock[i]]
        return racing

    # -- reports -------------------------------------------------------------------------------

    def _report(self, event: Event, mine: _Access, racing: list[_Access]) -> list[Finding]:
        found: list[Finding] = []
        label, reason = self._declared(mine)
        for other in racing:
            first, second = sorted((mine.function, other.function))
            key = (mine.place.addr, first, second)
            if key in self._reported:
                continue
            if self._log is not None:
                self._log.item(self._reported, key)
            self._reported[key] = None
            details = [mine.detail(), other.detail(), Detail(f"The place is {label}", ())]
            if reason:
                details.append(Detail(f"Allowed by design: {reason}", ()))
            found.append(
                Finding(
                    DATA_RACE,
                    f"BUG: KCSAN: data-race in {first} / {second}"
                    + (" (allowed by design)" if reason else ""),
                    distinct((mine.thread.name, other.thread.name)),
                    event.step,
                    tuple(details),
                    decides=not reason,
                    fatal=False,
                )
            )
        return found

    def _declared(self, access: _Access) -> tuple[str, str]:
        """What the place of an access is called, and why races on it are allowed, if they are."""
        place: Lvalue[Any] | None = access.op.target
        owner = self._memory.object_at(access.place.addr)
        if place is None and owner is not None:
            place = owner.lvalue(access.place.addr - owner.addr, access.place.size)
        if place is None:
            return f"{access.place.addr:016x}", ""
        return place.label, place.owner.legal_races(place)
