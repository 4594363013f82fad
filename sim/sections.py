"""Reader sections and grace periods: the one law that every RCU flavour keeps.

A :class:`Domain` is one flavour.  For every section and every grace period of a domain exactly
one holds: the section began before the grace period started, then it ends before the grace
period ends; or it began after the start, and the grace period does not wait for it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from sim.cells import Struct


class Section(NamedTuple):
    """One reader section: the thread that opened it and its n-th section in that thread."""

    thread: str
    nth: int


@final
class GracePeriod:
    """A started grace period: waits for the sections that were open when it started."""

    __slots__ = ("addr", "waits_for")

    def __init__(self, waits_for: tuple[Section, ...]) -> None:
        self.waits_for: Final = waits_for
        self.addr: Final = 0

    def __repr__(self) -> str:
        return f"<grace period waiting for {len(self.waits_for)} sections>"


@final
class Domain(Struct):
    """A flavour: the sections that are open now, in the order in which they began.

    readers  whether its sections are readers: then the start of a grace period is ordered before
             every section that begins after it (that is not so of callbacks and a barrier)
    invariant: a section is in `open` from its SECTION_BEGIN until its SECTION_END.
    """

    KIND = "domain"

    name: str
    readers: bool
    open: dict[Section, None]

    def __init__(self, name: str, *, readers: bool = True) -> None:
        self.name = name
        self.readers = readers
        self.open = {}
        self.size = 8
