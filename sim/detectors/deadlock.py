"""Threads that wait for each other for ever, and threads that wait for nobody.

When no thread can take a step, the threads that are left wait for each other in a circle (a
grace period is a link like any other), or for something that nobody is left to do: a wake-up
that came too early, a lock whose holder has ended, a section that its thread never ended.  Those
that spin for it (`macros.cpu_relax`) are in a livelock.
"""

from __future__ import annotations

from typing import Final, final

from sim import ops
from sim.detectors.describe import frames
from sim.detectors.loop import livelock
from sim.events import Detail, Event, Finding, Waiting
from sim.stack import unwind
from sim.threads import Thread

DEADLOCK: Final = "deadlock"
BLOCKED: Final = "blocked-forever"

Graph = dict[Thread, Waiting]


@final
class Deadlock:
    """Reports every circle of waiting threads, threads that wait for nobody, and livelocks."""

    kinds: frozenset[int] | None = frozenset({ops.DEADLOCK})

    def observe(self, event: Event) -> tuple[Finding, ...] | None:
        assert event.snapshot is not None
        graph: Graph = {waiting.thread: waiting for waiting in event.snapshot.waiting}
        found: list[Finding] = []
        explained: set[Thread] = set()
        for waiting in graph.values():
            circle = _circle(graph, waiting.thread)
            if circle and explained.isdisjoint(circle):
                explained.update(circle)
                found.append(_deadlock(event, graph, circle))
        if spinning := [w for w in graph.values() if _spins(w)]:
            explained.update(w.thread for w in spinning)
            found.append(_livelock(event, graph, spinning))
        for waiting in graph.values():
            if waiting.thread not in explained and not any(on in graph for on in waiting.on):
                found.append(_blocked(event, graph, waiting))
        return tuple(found)


def _circle(graph: Graph, start: Thread) -> list[Thread]:
    """A shortest circle of threads through `start`, each waiting for the next; empty if none."""
    came_from: dict[Thread, Thread] = {}
    frontier = [start]
    while frontier:
        reached: list[Thread] = []
        for thread in frontier:
            for on in graph[thread].on:
                if on is start:
                    return _path(came_from, start, thread)
                if on in graph and on not in came_from:
                    came_from[on] = thread
                    reached.append(on)
        frontier = reached
    return []


def _path(came_from: dict[Thread, Thread], start: Thread, end: Thread) -> list[Thread]:
    path = [end]
    while path[-1] is not start:
        path.append(came_from[path[-1]])
    return path[::-1]


def _deadlock(event: Event, graph: Graph, circle: list[Thread]) -> Finding:
    first = min(range(len(circle)), key=lambda i: circle[i].name)
    circle = circle[first:] + circle[:first]
    steps = " -> ".join(f"{thread.name} ({graph[thread].op.name})" for thread in circle)
    links = [
        f" which waits for {_reason(graph[thread], on)}"
        for thread, on in zip(circle, circle[1:] + circle[:1], strict=True)
    ]
    links[0] = links[0].replace(" which", f" {circle[0].name}", 1)
    return Finding(
        DEADLOCK,
        f"BUG: deadlock: {steps} -> {circle[0].name}",
        tuple(thread.name for thread in circle),
        event.step,
        (
            Detail("The circle:", tuple(links)),
            *(_task(thread) for thread in circle),
            *_behind(graph, circle),
        ),
    )


def _spins(waiting: Waiting) -> bool:
    op = waiting.op
    return op.kind == ops.WAIT and op.name == ops.SPINS and not waiting.on


def _livelock(event: Event, graph: Graph, spinning: list[Waiting]) -> Finding:
    threads = [waiting.thread for waiting in spinning]
    details = [_watched(waiting) for waiting in spinning]
    return livelock(threads, event.step, *details, *_behind(graph, threads))


def _watched(waiting: Waiting) -> Detail:
    op = waiting.op
    freed = ", which has been freed: to look at it once more is a use-after-free"
    seen = tuple(
        f" {cell.label} = {cell.value!r}{freed if cell.owner.freed else ''}"
        for cell in op.operand[1]
    )
    return Detail(f"{op.name} waits for a change of", seen)


def _blocked(event: Event, graph: Graph, waiting: Waiting) -> Finding:
    thread, op = waiting.thread, waiting.op
    if waiting.on:
        reason = ", ".join(f"{_reason(waiting, on)}, which has ended" for on in waiting.on)
    elif op.kind == ops.WAIT:
        reason = "lost wake-up"
    else:
        reason = op.name
    details = [_task(thread), *_behind(graph, [thread])]
    if op.kind == ops.WAIT:
        details.insert(0, _watched(waiting))
    return Finding(
        BLOCKED,
        f"INFO: task {thread.name} blocked forever ({reason})",
        (thread.name,),
        event.step,
        tuple(details),
    )


def _reason(waiting: Waiting, on: Thread) -> str:
    """What `waiting` waits for, as far as it is up to thread `on`."""
    op = waiting.op
    if op.kind == ops.LOCK and op.target.value is on:
        return f"{op.target.label} ({op.name}), held by {on.name}"
    if op.kind == ops.GP_END and any(section.thread == on.name for section in op.target.open):
        domain = op.target.name
        return f"the grace period of {domain} ({op.name}), waiting for the section of {on.name}"
    if op.kind == ops.JOIN and op.target is on:
        return f"the end of {on.name} ({op.name})"
    return f"the CPU to go on with {op.name}, held by {on.name}"


def _task(thread: Thread) -> Detail:
    return Detail(f"task:{thread.name} state:D", (" Call Trace:", *frames(unwind(thread))))


def _behind(graph: Graph, those: list[Thread]) -> tuple[Detail, ...]:
    """Who waits for one of `those`, directly or not."""
    blocked = dict.fromkeys(those)
    grown = True
    while grown:
        more = [t for t, w in graph.items() if t not in blocked and any(o in blocked for o in w.on)]
        blocked.update(dict.fromkeys(more))
        grown = bool(more)
    return tuple(
        Detail(f"{thread.name} waits behind them for {graph[thread].op.name}", ())
        for thread in list(blocked)[len(those) :]
    )
