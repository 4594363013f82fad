"""Happens-before by definition: every edge written down, then reachability.

Slow, obvious, and sharing nothing with `sim.detectors.happens_before` but the definition;
:func:`difference` compares the two.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sim import ops
from sim.detectors.happens_before import HappensBefore
from sim.events import Detector, Event
from sim.memory import Memory
from tests.programs.code import Program
from tests.programs.running import Scripted, execute

ACQUIRING = (ops.ACQUIRE, ops.FULL, ops.DEREF)
RELEASING = (ops.RELEASE, ops.FULL)
RMWS = (ops.XCHG, ops.CMPXCHG, ops.RMW)

Edge = tuple[int, int]  # positions of two events


def happens_before(events: Sequence[Event]) -> list[set[int]]:
    """For every event, the positions of those that are ordered before it."""
    sources: list[set[int]] = [set() for _ in events]
    for source, target in edges(events):
        assert source < target, "an edge goes forward in the order of the run"
        sources[target].add(source)
    before: list[set[int]] = []
    for position in range(len(events)):
        direct = sources[position]
        before.append(direct.union(*(before[source] for source in direct)))
    return before


def edges(events: Sequence[Event]) -> Iterator[Edge]:
    yield from program_order(events)
    yield from fork_and_join(events)
    yield from handed_over(events)
    yield from messages(events)
    yield from grace_periods(events)


def program_order(events: Sequence[Event]) -> Iterator[Edge]:
    for at, event in enumerate(events):
        later = [i for i in range(at + 1, len(events)) if events[i].thread is event.thread]
        if later:
            yield at, later[0]


def fork_and_join(events: Sequence[Event]) -> Iterator[Edge]:
    for at, event in enumerate(events):
        if event.op.kind == ops.FORK:
            first = [i for i, e in enumerate(events) if e.thread is event.result]
            yield from ((at, i) for i in first[:1])
        if event.op.kind == ops.JOIN:
            last = [i for i, e in enumerate(events) if e.thread is event.op.target]
            yield last[-1], at


def handed_over(events: Sequence[Event]) -> Iterator[Edge]:
    """Locks and CPUs: from giving to every later taking."""
    for at, event in enumerate(events):
        for i in range(at + 1, len(events)):
            if events[i].op.addr == event.op.addr and (
                (event.op.kind == ops.UNLOCK and takes_lock(events[i]))
                or (event.op.kind == ops.CPU_RELEASE and events[i].op.kind == ops.CPU_HOLD)
            ):
                yield at, i


def takes_lock(event: Event) -> bool:
    kind = event.op.kind
    return kind == ops.LOCK or (kind == ops.TRYLOCK and event.result is True)


# -- release and acquire -----------------------------------------------------------------------


def spanned(place: Any) -> range:
    return range(place.addr, place.addr + place.size)


def bytes_read(event: Event) -> list[int]:
    """The bytes that an event reads, of cells and regions (not locks)."""
    op = event.op
    if op.kind == ops.WAIT:
        return [byte for place in op.operand[1] for byte in spanned(place)]
    return list(spanned(op)) if op.kind == ops.LOAD or op.kind in RMWS else []


def bytes_written(event: Event) -> list[int]:
    """The bytes that an event writes."""
    op = event.op
    if op.kind == ops.CMPXCHG and event.result != op.operand[0]:
        return []
    if op.kind == ops.RMW and op.operand[0] == "inc_not_zero" and event.result == 0:
        return []
    return list(spanned(op)) if op.kind == ops.STORE or op.kind in RMWS else []


def messages(events: Sequence[Event]) -> Iterator[Edge]:
    last: dict[int, set[int]] = {}  # by byte: what was released to whoever reads its last write
    for at, event in enumerate(events):
        seen: set[int] = set()
        for byte in bytes_read(event):
            seen |= last.get(byte, set())
        if event.op.order != ops.PLAIN:
            for acquirer in acquirers(events, at):
                yield from ((source, acquirer) for source in seen)
        released = releases(events, at) | (seen if event.op.kind in RMWS else set())
        last.update((byte, released) for byte in bytes_written(event))


def acquirers(events: Sequence[Event], at: int) -> list[int]:
    """Where what the event read becomes known: at once, or at later acquire fences."""
    if events[at].op.order in ACQUIRING:
        return [at]
    return fences(events, at, range(at + 1, len(events)), ACQUIRING)


def releases(events: Sequence[Event], at: int) -> set[int]:
    """What releases through the write at `at`: itself, or earlier release fences."""
    if events[at].op.order in RELEASING:
        return {at}
    if events[at].op.order == ops.PLAIN:
        return set()
    return set(fences(events, at, range(at), RELEASING))


def fences(events: Sequence[Event], at: int, where: range, orders: tuple[int, ...]) -> list[int]:
    """Fences of one of the orders in the same thread as the event at `at`."""
    return [
        i
        for i in where
        if events[i].op.kind == ops.FENCE
        and events[i].op.order in orders
        and events[i].thread is events[at].thread
    ]


# -- the grace-period law ------------------------------------------------------------------------


def grace_periods(events: Sequence[Event]) -> Iterator[Edge]:
    for start, event in enumerate(events):
        if event.op.kind != ops.GP_START:
            continue
        same = [i for i, e in enumerate(events) if e.op.addr == event.op.addr]
        grace_period_ends = [
            i for i in same if events[i].op.kind == ops.GP_END and ends(events[i], event)
        ]
        yield from ((start, end) for end in grace_period_ends)
        for begin in same:
            if events[begin].op.kind != ops.SECTION_BEGIN:
                continue
            if begin > start:
                yield start, begin
                continue
            for i in same:
                if events[i].op.kind == ops.SECTION_END and (
                    events[i].op.operand == events[begin].op.operand
                ):
                    yield from ((i, end) for end in grace_period_ends)


def ends(end: Event, start: Event) -> bool:
    return end.op.operand is start.result


# -- against the clocks --------------------------------------------------------------------------


class Clocks:
    """Records, for every step, its epoch and what its thread knew."""

    kinds: frozenset[int] | None = None

    def __init__(self, order: HappensBefore) -> None:
        self.order = order
        self.epochs: list[tuple[int, int]] = []
        self.known: list[list[int]] = []

    def observe(self, event: Event) -> None:
        index = event.thread.index
        clock = self.order.clocks[index]
        asked = self.order.kinds is None or event.op.kind in self.order.kinds
        self.epochs.append((index, self.order.time if asked else clock[index]))
        self.known.append(clock[:])

    def ordered(self, first: int, second: int) -> bool:
        index, time = self.epochs[first]
        return time <= (self.known[second] + [0] * 100)[index]


def observed(program: Program, seed: int) -> tuple[list[Event], Clocks]:
    order = HappensBefore()
    clocks = Clocks(order)

    def detectors(memory: Memory) -> Sequence[Detector]:
        del memory
        return [order, clocks]

    return execute(program, Scripted(seed=seed), detectors, every_step=True).events, clocks


def difference(program: Program, seed: int) -> str:
    """Two steps that clocks and definition order differently; empty: none."""
    events, clocks = observed(program, seed)
    before = happens_before(events)
    for second, event in enumerate(events):
        for first in range(second):
            if clocks.ordered(first, second) != (first in before[second]):
                return f"{first} {events[first].op!r} before {second} {event.op!r}?"
    return ""
