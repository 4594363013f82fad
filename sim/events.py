"""All that is ever recorded: steps that happened, and findings about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

from sim.event import Event, Snapshot
from sim.ops import Op

if TYPE_CHECKING:
    from sim.cells import Struct
    from sim.threads import Thread

__all__ = [
    "Detail",
    "Detector",
    "Event",
    "Fault",
    "Finding",
    "Frame",
    "Snapshot",
    "Stack",
    "Waiting",
]


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """One modelled stack frame: the function, and the offset in it where that is known."""

    function: str
    offset: int | None = None

    def __str__(self) -> str:
        return self.function if self.offset is None else f"{self.function}+{self.offset}"


Stack = tuple[Frame, ...]  # innermost frame first


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """What memory found wrong with an access.

    kind    use-after-free, slab-out-of-bounds, null-ptr-deref, wild-memory-access,
            double-free, invalid-unlock, use-after-free-execute, wild-execute
    write   whether the access writes
    addr    the address accessed; size: bytes
    object  the object hit or nearest below, None if there is none
    execute whether it is a fetch of instructions
    """

    kind: str
    write: bool
    addr: int
    size: int
    object: Struct | None
    execute: bool = False


@final
@dataclass(frozen=True, slots=True)
class Waiting:
    """One thread of a deadlock: what it waits for, and which threads that depends on."""

    thread: Thread
    op: Op[Any]
    on: tuple[Thread, ...]


@final
@dataclass(frozen=True, slots=True)
class Detail:
    """A part of a finding's report: a heading, and lines below it."""

    heading: str
    lines: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with the modelled kernel, as a value.

    kind       the sanitizer's name: use-after-free, data-race, deadlock, ...
    title      the first line of the report: ``BUG: KASAN: use-after-free in ...``
    threads    names of the threads involved, the one that noticed it first
    step       the step at which it was noticed
    details    the rest of the report
    decides    whether it decides the verdict (legal data races do not)
    fatal      whether the execution means nothing after it
    """

    kind: str
    title: str
    threads: tuple[str, ...]
    step: int
    details: tuple[Detail, ...] = field(default=(), compare=False)
    decides: bool = True
    fatal: bool = True

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Two findings of one key are the same defect, seen in two executions."""
        return self.kind, self.title, tuple(sorted(self.threads))


class Detector(Protocol):
    """Watches the events of one execution and reports findings.  Never touches the engine.

    kinds  the kinds of operation it wants to see, None: all
    """

    kinds: frozenset[int] | None

    def observe(self, event: Event) -> Finding | tuple[Finding, ...] | None:
        """Look at one event, in order; return what is wrong, if anything."""
        ...
