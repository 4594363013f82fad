"""What several reports say in the same words: stacks, tasks, where in an object an address is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sim.events import Detail, Stack
from sim.stack import unwind

if TYPE_CHECKING:
    from sim.cells import Struct
    from sim.memory import Memory, Site
    from sim.threads import Thread


def call_trace(thread: Thread) -> Detail:
    """Where a suspended thread is."""
    return Detail("Call Trace:", frames(unwind(thread)))


def frames(stack: Stack) -> tuple[str, ...]:
    """A stack, one line per frame, innermost first."""
    return tuple(f" {frame}" for frame in stack)


def history(found: Struct, memory: Memory) -> tuple[Detail, ...]:
    """Who allocated an object, and who freed it; static objects have no history."""
    details: list[Detail] = []
    allocated = memory.allocated.get(found.addr)
    if allocated is not None:
        details.append(_site("Allocated", allocated))
    freed = memory.freed.get(found.addr)
    if freed is not None:
        details.append(_site("Freed", freed))
    return tuple(details)


def _site(what: str, site: Site) -> Detail:
    return Detail(f"{what} by task {site.thread} at step {site.step}:", frames(site.stack))


def whereabouts(addr: int, found: Struct) -> tuple[Detail, ...]:
    """Where `addr` lies in the object, or behind it."""
    start, end = found.addr, found.addr + found.size
    where = f"{addr - start} bytes inside" if addr < end else f"{addr - end} bytes to the right"
    return (
        Detail(
            f"The buggy address belongs to the object at {start:016x}",
            (f" which belongs to {found.KIND} and is called {found.label}",),
        ),
        Detail(
            f"The buggy address is located {where} of",
            (f" {found.size}-byte region [{start:016x}, {end:016x})",),
        ),
    )


def field_of(place: object) -> tuple[Detail, ...]:
    """The place by meaning, where the access named one."""
    label = getattr(place, "label", "")
    return (Detail(f"The buggy address is {label}", ()),) if label else ()


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetition, in order."""
    return tuple(dict.fromkeys(names))
