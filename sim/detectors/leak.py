"""Objects that nobody can free any more, in the words of kmemleak.

When every thread has ended, an object that has not been freed must be reachable from static
storage through pointers in cells (weak ones do not count) and in constants of objects, unless its
class keeps the memory for a reason of its own (`Struct.may_be_lost`).

Not seen: a pointer kept as a number in a region of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from sim import ops
from sim.cells import Struct
from sim.detectors.describe import frames
from sim.events import Detail, Event, Finding

if TYPE_CHECKING:
    from sim.memory import Memory

LEAK: Final = "memory-leak"

Objects = dict[int, Struct]  # by address


@final
class Leak:
    """Reports objects that are lost; what only a lost object points to counts with it."""

    kinds: frozenset[int] | None = frozenset({ops.QUIESCENT})

    def __init__(self, memory: Memory) -> None:
        self._memory: Final = memory

    def observe(self, event: Event) -> tuple[Finding, ...] | None:
        assert event.snapshot is not None
        if len(event.snapshot.live) == len(event.snapshot.roots):
            return None
        kept = _reachable(event.snapshot.roots)
        lost = {
            found.addr: found
            for found in event.snapshot.live
            if found.addr not in kept and not found.may_be_lost()
        }
        pointed_to = {p.addr for found in lost.values() for p in found.pointers() if p is not found}
        heads = [found for addr, found in lost.items() if addr not in pointed_to]
        circular = [found for addr, found in lost.items() if addr in pointed_to]
        findings: list[Finding] = []
        counted: Objects = {}
        for found in heads + circular:
            if found.addr not in counted:
                new = _reachable([found])
                counted.update(new)
                behind = [p for addr, p in new.items() if addr in lost and p is not found]
                findings.append(self._finding(event, found, behind))
        return tuple(findings)

    def _finding(self, event: Event, found: Struct, behind: list[Struct]) -> Finding:
        site = self._memory.allocated.get(found.addr)
        lines: tuple[str, ...] = ()
        if site is not None:
            lines = (f' comm "{site.thread}", step {site.step}', " backtrace:", *frames(site.stack))
        details = [Detail(f"unreferenced object 0x{found.addr:016x} (size {found.size}):", lines)]
        if behind:
            labels = tuple(f" {other.label}" for other in behind)
            details.append(Detail("which points to, and is all that does:", labels))
        return Finding(
            LEAK,
            f"BUG: memory leak: unreferenced object {found.label}",
            (site.thread,) if site is not None else (),
            event.step,
            tuple(details),
            fatal=False,
        )


def _reachable(start: Iterable[Struct]) -> Objects:
    """`start` and every object that can be reached from there."""
    seen = {found.addr: found for found in start}
    queue = list(seen.values())
    while queue:
        for found in queue.pop().pointers():
            if found.addr not in seen:
                seen[found.addr] = found
                queue.append(found)
    return seen
